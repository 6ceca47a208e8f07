"""A clip that is to be done in time: the best level of quality whose steps fit, chosen anew at every latent frame.

Times are the device's own: a few steps of the clip are run first, and what the clip then takes corrects them. Knows
nothing of backends or files.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from videomar.config import SamplingConfig
from videomar.errors import InputError
from videomar.runtime.clip import ClipRun
from videomar.steps import ClipSteps, Step

if TYPE_CHECKING:
    from videomar.runtime.pipeline import Picture, Pipeline, Prompt

Clock = Callable[[], float]
PROBED = 5  # mask steps of a level that are timed: the first one allocates, the others are of two kinds
MARGIN = 1.05  # of what is predicted


@dataclass(frozen=True)
class Costs:
    """Seconds of a device: what a step and what the rest of a clip takes."""

    passing: tuple[float, float]  # of a transformer pass: a call, and a position of a branch
    head: tuple[float, float]  # of a diffusion step: a call, and a token of a branch
    before: float  # text, encoder
    frame: float  # decoding a latent frame

    def of_step(self, step: Step) -> float:
        """Seconds of one step."""
        call, position = self.passing
        seconds = call + position * step.computed * step.branches
        if step.predicted:
            call, token = self.head
            seconds += step.head_steps * (call + token * step.predicted * step.branches)
        return seconds + self.frame * step.finishes

    def of_steps(self, steps: Sequence[Step]) -> float:
        """Seconds of many."""
        return sum(map(self.of_step, steps))


def start(
    pipe: Pipeline,
    image: Picture | None,
    prompt: Prompt,
    seconds: float,
    levels: Mapping[str, SamplingConfig],
    seed: int = 0,
) -> tuple[ClipRun, Deadline]:
    """A clip that is to be finished `seconds` from now, and the deadline that is told its steps (`Deadline.done`).

    levels: name -> options, the best one first. Raises InputError when the fastest one takes too long.
    """
    began = time.perf_counter()
    runs = {name: pipe.start(image, prompt, seed=seed, sampling=sampling) for name, sampling in levels.items()}
    costs = measure([run for name, run in runs.items() if name in (next(iter(runs)), next(reversed(runs)))])
    deadline = Deadline(seconds, {name: run.clip for name, run in runs.items()}, costs, began=began)
    chosen = levels[deadline.choose()]
    return pipe.start(image, prompt, seed=seed, sampling=chosen, others=list(levels.values())), deadline


def measure(runs: Sequence[ClipRun]) -> Costs:
    """Run the first steps of each clip and close it; K/V of many frames, which cost more, are met later."""
    passing: dict[float, float] = {}
    head: dict[float, float] = {}
    frame = before = 0.0
    for run in runs:
        with run:
            timing = run.timing
            for step in run.steps[: run.clip.shape.given + PROBED]:
                was = dict(timing.seconds)
                run.advance()
                spent = {name: seconds - was.get(name, 0.0) for name, seconds in timing.seconds.items()}
                _least(passing, step.computed * step.branches, spent["transformer"])
                if step.predicted:
                    _least(head, step.predicted * step.branches, spent["head"] / step.head_steps)
            if not timing.calls["decoder"]:  # no frame was given, and none is finished
                run.try_decoder()
            frame = max(frame, timing.seconds["decoder"] / max(1, timing.calls["decoder"]))
            before = max(before, timing.seconds["text"] + timing.seconds["encoder"])
    return Costs(_line(passing), _line(head), before, frame)


def _least(seen: dict[float, float], size: float, seconds: float) -> None:
    seen[size] = min(seconds, seen.get(size, seconds))


def _line(seen: Mapping[float, float]) -> tuple[float, float]:
    """A call's seconds and those of a unit: least squares, neither below zero."""
    sizes, seconds = np.array(list(seen)), np.array(list(seen.values()))
    if len(sizes) > 1:
        slope, start = np.polyfit(sizes, seconds, 1)
        if slope >= 0 and start >= 0:
            return float(start), float(slope)
        if slope < 0:
            return float(seconds.mean()), 0.0
    return 0.0, float((seconds * sizes).sum() / (sizes**2).sum())


@dataclass
class Deadline:
    """Which level a clip is at, frame by frame. levels: name -> the whole clip at that level, the best one first."""

    seconds: float
    levels: Mapping[str, ClipSteps]
    costs: Costs
    clock: Clock = time.perf_counter
    began: float = field(default=0.0)  # on the clock
    level: str = ""
    history: list[tuple[int, str]] = field(default_factory=list)  # latent frame -> the level from there on
    slower: float = 1.0  # what steps took, in units of what was predicted
    _predicted: float = 0.0
    _marked: float = 0.0

    def expected(self, level: str) -> float:
        """Seconds of the whole clip at a level."""
        return self.costs.before + self.costs.of_steps(self.levels[level].steps)

    def choose(self) -> str:
        """The level to begin with; raises InputError when the fastest one takes too long."""
        left = self.began + self.seconds - self.clock()
        for level in self.levels:
            if MARGIN * self.expected(level) <= left:
                break
        else:
            fastest = min(self.levels, key=self.expected)
            need = MARGIN * self.expected(fastest) + self.seconds - left
            raise InputError(
                f"deadline is {self.seconds:g} s and the fastest level, {fastest}, takes about {need:.1f} s here; give "
                f"--deadline {need * 1.1:.1f} or more, fewer --frames, or a smaller --size"
            )
        self.level, self._marked = level, self.clock()
        self.history.append((self.levels[level].shape.given, level))
        return level

    def done(self, step: Step, run: ClipRun) -> None:
        """Told every step that has run; changes the run's level where the next frame begins and time says so."""
        self._predicted += self.costs.of_step(step)
        left = run.left
        if not left or left[0].index or left[0].known:
            return  # inside a frame
        spent = self.clock() - self._marked - self.costs.before
        self.slower = max(0.2, spent / self._predicted) if self._predicted else 1.0
        time_left, frame = self.began + self.seconds - self.clock(), left[0].frame
        rest = {
            level: MARGIN * self.slower * self.costs.of_steps([s for s in clip.steps if s.frame >= frame])
            for level, clip in self.levels.items()
        }
        level = next((name for name, seconds in rest.items() if seconds <= time_left), min(rest, key=lambda n: rest[n]))
        if level != self.level:
            run.change(self.levels[level].sampling)
            self.level = level
            self.history.append((frame, level))

    def told(self) -> str:
        """What was done, in a sentence."""
        frames = next(iter(self.levels.values())).shape.frames
        ends = [*(begin for begin, _ in self.history[1:]), frames]
        parts = [
            f"latent frame{'s' * (end - begin > 1)} {begin}{f' to {end - 1}' * (end - begin > 1)} {level}"
            for (begin, level), end in zip(self.history, ends, strict=True)
            if end > begin
        ]
        took, first = self.clock() - self.began, next(iter(self.levels))
        kept = "kept" if took <= self.seconds else "MISSED"
        cost = "" if all(level == first for _, level in self.history) else "; `videomar tune` measures what levels cost"
        return (
            f"deadline of {self.seconds:g} s {kept}: {took:.2f} s with the steps timed first; {', '.join(parts)}{cost}"
        )
