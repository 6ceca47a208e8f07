"""Steps of the real loop on held-out clips, kept with all that went in, and how far other graphs err on them.

Teacher-forced: every candidate gets the same tokens and K/V. Knows nothing of how a candidate was made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from videomar.artifacts import Manifest
from videomar.calibration.clips import CalibrationClip
from videomar.calibration.collect import generate, pipeline
from videomar.calibration.plain import Arrays, Graphs
from videomar.errors import InputError
from videomar.graphs import HEAD_CONDITION, HEAD_STEP, TRANSFORMER_STEP

STEPS = 6  # kept of every held-out clip, spread over its frames and mask steps


@dataclass
class Trial:
    """One transformer pass and the head's loop after it."""

    clip: str
    feeds: Arrays
    z: np.ndarray  # of the source graphs
    head: list[Arrays]  # inputs of every diffusion step; the first one starts at noise
    timesteps: np.ndarray
    sampled: np.ndarray  # [predicted, channels] float32, of the source graphs


@dataclass(frozen=True)
class Errors:
    """How far a candidate is from the source over all trials."""

    cosine: float  # of z, the worst trial's
    relative: float  # L2 of z, over all trials
    sampled: float | None = None  # L2 of the sampled tokens, over all trials

    def as_data(self) -> dict[str, Any]:
        return {"z_cosine": self.cosine, "z_relative": self.relative, "sampled_relative": self.sampled}


def record(
    directory: Path,
    manifest: Manifest,
    clips: Sequence[CalibrationClip],
    knobs: dict[str, Any],
    threads: int | None = None,
    tick: Callable[[], None] = lambda: None,
) -> list[Trial]:
    """Run held-out clips through the source graphs and keep STEPS mask steps of each, and the frames' store passes."""
    graphs, trials = Graphs(directory, threads), []
    for clip in clips:
        made: list[Trial] = []

        def run(graph: str, feeds: Arrays, clip: CalibrationClip = clip, made: list[Trial] = made) -> Arrays:
            outputs = graphs(graph, feeds)
            if graph == TRANSFORMER_STEP:
                made.append(Trial(clip.name, feeds, outputs["z"], [], np.zeros(0), np.zeros(0)))
            elif graph == HEAD_CONDITION:
                made[-1].timesteps = feeds["timesteps"]
            elif graph == HEAD_STEP:
                made[-1].head.append({k: v for k, v in feeds.items() if k != "condition"})
                made[-1].sampled = outputs["next"]
            return outputs

        generate(pipeline(directory, manifest, run), clip, knobs, tick)
        steps = [trial for trial in made if trial.head]
        chosen = sorted({round(i) for i in np.linspace(0, len(steps) - 1, min(STEPS, len(steps)))})
        trials += [steps[i] for i in chosen]
    if not all(np.isfinite(t.z).all() and np.isfinite(t.sampled).all() for t in trials):
        raise InputError("the source graphs make NaN or infinite numbers on the held-out clips, expected finite ones")
    return trials


def measure(trials: Sequence[Trial], step: Callable[[Arrays], np.ndarray], graphs: Graphs | None = None) -> Errors:
    """Errors of `step` (a trial's feeds -> z); `graphs`, the source's head, adds the sampled tokens'."""
    worst, off, whole, off_x, whole_x = 1.0, 0.0, 0.0, 0.0, 0.0
    for trial in trials:
        z, true = step(trial.feeds).astype(np.float64), trial.z.astype(np.float64)
        if not np.isfinite(z).all():
            return Errors(0.0, np.inf, None if graphs is None else np.inf)
        worst = min(worst, float((z * true).sum() / max(np.linalg.norm(z) * np.linalg.norm(true), 1e-30)))
        off, whole = off + ((z - true) ** 2).sum(), whole + (true**2).sum()
        if graphs is not None:
            x = sample(graphs, trial, z.astype(trial.z.dtype))
            off_x, whole_x = off_x + ((x - trial.sampled) ** 2).sum(), whole_x + (trial.sampled**2).sum()
    sampled = None if graphs is None else float(np.sqrt(off_x / max(whole_x, 1e-30)))
    return Errors(worst, float(np.sqrt(off / max(whole, 1e-30))), sampled)


def sample(graphs: Graphs, trial: Trial, z: np.ndarray) -> np.ndarray:
    """The head's loop on another z, with the trial's own noise and guidance: [predicted, channels] float32."""
    made = graphs(HEAD_CONDITION, {"timesteps": trial.timesteps, "z": z})
    x = trial.head[0]["x"]
    for feeds in trial.head:
        x = graphs(HEAD_STEP, {**feeds, "x": x, "condition": made["condition"]})["next"]
    return x
