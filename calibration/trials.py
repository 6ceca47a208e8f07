"""Steps of the real loop on held-out clips, kept with all that went in, and how far other graphs err on them.

Teacher-forced: every candidate gets the same tokens and K/V. Knows nothing of how a candidate was made.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from videomar.artifacts import Manifest
from videomar.calibration.clips import CalibrationClip
from videomar.calibration.collect import Progress, generate, pipeline
from videomar.calibration.plain import Arrays, Graphs
from videomar.config import SamplingOptions
from videomar.errors import InputError
from videomar.graphs import HEAD_CONDITION, HEAD_STEP, TRANSFORMER_STEP
from videomar.runtime.backends.plain import modulations_of

STEPS = 6  # kept of every held-out clip, spread over its frames and mask steps
LARGE = 1 << 20  # bytes from which on an input is kept in a file, as the K/V of finished frames are


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
    sampling: SamplingOptions,
    threads: int | None = None,
    folder: Path | None = None,
    progress: Progress = lambda what, done, of: None,
) -> list[Trial]:
    """Run held-out clips through the source graphs and keep STEPS mask steps of each.

    folder: large inputs lie in files there, and are read when they are used; without it, in memory.
    """
    graphs, trials, done = Graphs(directory, threads), [], 0
    for clip in clips:
        recorder = _Recorder(graphs, clip.name, folder)
        pipe = pipeline(directory, manifest, recorder)
        steps = pipe.start(clip.given, clip.prompt, **sampling).steps
        of, masking = len(steps) * len(clips), sum(step.predicted > 0 for step in steps)
        recorder.chosen = {round(i) for i in np.linspace(0, masking - 1, min(STEPS, masking))}

        def tick(of: int = of) -> None:
            nonlocal done
            done += 1
            progress("held-out clips", done, of)

        generate(pipe, clip, sampling, tick)
        trials += recorder.made
    if not all(np.isfinite(t.z).all() and np.isfinite(t.sampled).all() for t in trials):
        raise InputError("the source graphs make NaN or infinite numbers on the held-out clips, expected finite ones")
    return trials


class _Recorder:
    """A `Run` that keeps the chosen mask steps of one clip."""

    def __init__(self, graphs: Graphs, clip: str, folder: Path | None) -> None:
        self._graphs, self._clip, self._files = graphs, clip, _Files(folder)
        self._step = -1
        self.chosen: set[int] = set()
        self.made: list[Trial] = []

    def __call__(self, graph: str, feeds: Arrays) -> Arrays:
        outputs = self._graphs(graph, feeds)
        masks = graph == TRANSFORMER_STEP and bool(feeds["masked"].any())  # the others only store K/V
        self._step += masks
        if self._step not in self.chosen:
            return outputs
        if masks:
            kept = self._files.take(feeds)
            self.made.append(Trial(self._clip, kept, outputs["z"], [], np.zeros(0), np.zeros(0)))
        elif graph == HEAD_CONDITION:
            self.made[-1].timesteps = feeds["timesteps"]
        elif graph == HEAD_STEP:
            self.made[-1].head.append({k: v for k, v in feeds.items() if not k.startswith("modulation_")})
            self.made[-1].sampled = outputs["next"]
        return outputs


class _Files:
    """Large arrays as files; what one frame's steps share is written once."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._last: dict[str, tuple[np.ndarray, np.ndarray]] = {}  # name -> the array as it came, and its file

    def take(self, feeds: Arrays) -> Arrays:
        if self._folder is None:
            return feeds
        return {name: value if value.nbytes < LARGE else self._file(name, value) for name, value in feeds.items()}

    def _file(self, name: str, value: np.ndarray) -> np.ndarray:
        if name not in self._last or self._last[name][0] is not value:
            handle, path = tempfile.mkstemp(suffix=".npy", dir=self._folder)
            os.close(handle)
            np.save(path, value)
            self._last[name] = value, np.load(path, mmap_mode="r")
        return self._last[name][1]


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
    for i, feeds in enumerate(trial.head):
        x = graphs(HEAD_STEP, {**feeds, "x": x, **modulations_of(made, i)})["next"]
    return x
