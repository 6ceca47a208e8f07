"""Time and loss of every setting, a clip at a time, kept in a file as they are found so that a run can go on.

Loss needs no labels: how far a clip is from the exact schedule's under the same noise, in units of how far the exact
schedule's clips of two seeds are from each other. 1 is as far as chance goes; more than that is another picture.
Where a judge is given (the demo world's), its figures stand beside. Knows nothing of pages.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from videomar.artifacts import atomic_write
from videomar.config import SamplingConfig
from videomar.errors import InputError
from videomar.quality import EXACT
from videomar.runtime.pipeline import Pipeline

Judge = Callable[[SamplingConfig], dict[str, Any]]  # figures of a setting, "loss" among them
OTHER_SEED = 500_000  # between a case's two exact clips


@dataclass(frozen=True)
class Start:
    """What a case continues."""

    name: str
    given: np.ndarray
    prompt: str
    seed: int


@dataclass
class Tuning:
    """What was measured. rows: setting -> {"seconds", "apart", "loss", "dials", ...}; frames: of the last case."""

    key: dict[str, Any]  # model, device, cases: what the figures hold for
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def front(self) -> list[str]:
        """Settings that no other beats in both time and loss, the fastest last."""
        order = sorted(self.rows, key=lambda n: (self.rows[n]["seconds"], self.rows[n]["loss"]))
        kept: list[str] = []
        for name in order:
            if not kept or self.rows[name]["loss"] < self.rows[kept[-1]]["loss"]:
                kept.append(name)
        return kept[::-1]


def load(path: Path, key: Mapping[str, Any]) -> Tuning:
    """What an earlier run of the same model, device and cases found; raises InputError for a file of another kind."""
    if not path.exists():
        return Tuning(dict(key))
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        found, rows = data["key"], data["settings"]
        for row in rows.values():
            float(row["seconds"]), float(row["loss"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{path} is not a file of `videomar tune`; give another -o, or remove it") from None
    if found != dict(key):
        changed = sorted(name for name in {*found, *key} if found.get(name) != key.get(name))
        raise InputError(f"{path} was measured with another {', '.join(changed)}; give another -o, or remove it")
    return Tuning(found, rows)


def save(path: Path, tuning: Tuning) -> None:
    """Write what was found, whole or not at all."""
    data = {"key": tuning.key, "settings": tuning.rows, "front": tuning.front}
    atomic_write(path, json.dumps(data, indent=1) + "\n")


def clip(pipe: Pipeline, start: Start, sampling: SamplingConfig, seed: int) -> tuple[float, np.ndarray, np.ndarray]:
    """Seconds, generated latents [channels, t, h, w] and all frames of one clip."""
    began = time.perf_counter()
    video = pipe(start.given, start.prompt, seed=seed, sampling=sampling)
    seconds, frames = time.perf_counter() - began, 1 if start.given.ndim == 3 else len(start.given)
    return seconds, video.latents[:, 1 + (frames - 1) // pipe.config.tokenizer.temporal_stride :], video.frames


def tune(
    pipe: Pipeline,
    starts: Sequence[Start],
    settings: Mapping[str, SamplingConfig],
    tuning: Tuning,
    judge: Judge | None = None,
    minutes: float | None = None,
) -> Iterator[str]:
    """Measure what is not in `tuning` yet, setting after setting; yields the name of each that was done.

    Ends early after `minutes`, never inside a setting. Every setting has a clip of the exact schedule beside each of
    its own: how much faster it is comes of the same minute, and its seconds are the exact ones' by that much.
    """
    began = time.perf_counter()
    exact = settings[EXACT]
    once = [clip(pipe, start, exact, start.seed) for start in starts]
    spread = median(
        _apart(clip(pipe, s, exact, s.seed + OTHER_SEED)[1], made[1]) for s, made in zip(starts, once, strict=True)
    )
    for name, sampling in settings.items():
        if name in tuning.rows:
            continue
        if minutes is not None and time.perf_counter() - began > 60 * minutes and tuning.rows:
            return
        pairs = [(clip(pipe, s, sampling, s.seed), clip(pipe, s, exact, s.seed)) for s in starts]
        faster = 1.0 if name == EXACT else median(beside[0] / own[0] for own, beside in pairs)
        apart = [_apart(own[1], beside[1]) / spread for own, beside in pairs]
        row = {
            "seconds": tuning.rows[EXACT]["seconds"] / faster if tuning.rows else median(made[0] for made in once),
            "faster": faster,
            "apart": sum(apart) / len(apart),
            "apart_most": max(apart),
            "dials": {**sampling.dials, "mask_steps": sampling.mask_steps, "head_steps": sampling.head_steps},
        }
        row["loss"] = row["apart"]
        tuning.rows[name] = row | (judge(sampling) if judge else {})
        yield name


def _apart(a: np.ndarray, b: np.ndarray) -> float:
    """Root mean square difference."""
    return float(np.sqrt(np.mean((a.astype(np.float64) - b) ** 2)))
