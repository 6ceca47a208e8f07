"""A deadline: the level that fits, changed between frames as time goes; on a clock that is set by hand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from videomar.config import DEMO, SamplingConfig
from videomar.errors import InputError
from videomar.quality import LEVELS, at_quality
from videomar.runtime import deadline as module
from videomar.runtime.deadline import MARGIN, Costs, Deadline, start
from videomar.runtime.pipeline import Pipeline
from videomar.steps import ClipSteps, Step

OWN = DEMO.sampling.but(frames=41, mask_steps=24)  # five new latent frames
SAMPLINGS = {level: at_quality(OWN, level) for level in LEVELS}
CLIPS = {level: ClipSteps.of(DEMO, sampling, 1) for level, sampling in SAMPLINGS.items()}
COSTS = Costs(passing=(0.002, 1e-4), head=(1e-4, 1e-5), before=0.1, frame=0.05)


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class FakeRun:
    """A run that takes `slower` times what the costs say, from frame to frame, and changes as a ClipRun does."""

    clip: ClipSteps
    clock: Clock
    slower: dict[int, float] = field(default_factory=dict)
    done: int = 0

    @property
    def left(self) -> tuple[Step, ...]:
        return self.clip.steps[self.done :]

    def change(self, sampling: SamplingConfig) -> None:
        self.clip = self.clip.then(self.left[0].frame, sampling)

    def go(self, deadline: Deadline) -> None:
        self.clock.now += COSTS.before
        while self.left:
            step = self.left[0]
            self.clock.now += self.slower.get(step.frame, 1.0) * COSTS.of_step(step)
            self.done += 1
            deadline.done(step, self)  # type: ignore[arg-type]


def made(seconds: float, slower: dict[int, float] | None = None) -> tuple[Deadline, FakeRun]:
    clock = Clock()
    deadline = Deadline(seconds, CLIPS, COSTS, clock=clock)
    run = FakeRun(CLIPS[deadline.choose()], clock, slower or {})
    run.go(deadline)
    return deadline, run


def whole(level: str) -> float:
    return COSTS.before + COSTS.of_steps(CLIPS[level].steps)


@pytest.mark.parametrize("level", LEVELS)
def test_the_best_level_that_fits_is_taken_and_time_that_is_left_over_goes_into_the_last_frames(level: str) -> None:
    deadline, run = made(MARGIN * whole(level) * 1.001)
    assert deadline.history[0] == (1, level)
    assert whole(level) <= run.clock.now * (1 + 1e-9) and run.clock.now <= deadline.seconds
    order = [LEVELS.index(name) for _, name in deadline.history]
    assert order == sorted(order, reverse=True)
    assert deadline.told().startswith(f"deadline of {deadline.seconds:g} s kept: {run.clock.now:.2f} s")
    if level == "exact":
        assert run.clip.steps == CLIPS["exact"].steps and "latent frames 1 to 5 exact" in deadline.told()


def test_a_deadline_that_cannot_be_met_is_refused_with_one_that_can() -> None:
    with pytest.raises(InputError) as caught:
        made(whole("draft") / 2)
    words = str(caught.value).split()
    offered = float(words[words.index("--deadline") + 1])
    assert "the fastest level, draft, takes about" in str(caught.value)
    assert whole("draft") < offered < 2 * whole("draft") and made(offered)[0].history[0] == (1, "draft")


def test_a_device_that_gets_slower_is_met_by_a_lower_level_between_two_frames() -> None:
    seconds = MARGIN * whole("exact") * 1.02
    deadline, run = made(seconds, {2: 1.6})
    assert deadline.history[0] == (1, "exact") and deadline.history[1][0] == 3
    assert run.clock.now <= seconds < whole("exact") + 0.6 * (whole("exact") - COSTS.before) / 5 + 1
    frames = {step.frame for step in run.clip.steps}
    for frame in frames:  # no frame is broken: each is one level's, whole
        mine = [s for s in run.clip.steps if s.frame == frame]
        assert any(mine == [s for s in clip.steps if s.frame == frame] for clip in CLIPS.values())


def test_time_that_is_won_goes_back_into_quality() -> None:
    deadline, run = made(MARGIN * whole("fast") * 1.01, {1: 0.3, 2: 0.3, 3: 0.3, 4: 0.3, 5: 0.3})
    assert deadline.history[0][1] == "fast" and deadline.history[1][1] in ("exact", "high")
    assert run.clock.now <= deadline.seconds


def test_a_miss_is_told() -> None:
    deadline, _ = made(MARGIN * whole("draft") * 1.01, {5: 30.0})
    assert "MISSED" in deadline.told()


@pytest.fixture(scope="module")
def pipe(tiny_native: Path) -> Iterator[Pipeline]:
    with Pipeline.open(tiny_native, threads=1, backend="ort-cpu") as pipe:
        yield pipe


def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)


def levels(pipe: Pipeline) -> dict[str, SamplingConfig]:
    own = pipe.config.sampling.but(frames=25, height=32, width=32, mask_steps=8)
    return {level: at_quality(own, level) for level in LEVELS}


def test_a_clip_with_time_enough_is_the_exact_one_byte_for_byte(pipe: Pipeline) -> None:
    run, deadline = start(pipe, picture(), "a red circle", 600, levels(pipe), seed=4)
    with run:
        frames = np.concatenate([f for f in run])
    assert deadline.level == "exact"
    assert np.array_equal(frames, pipe(picture(), "a red circle", seed=4, sampling=levels(pipe)["exact"]).frames)


def test_measured_costs_are_positive_and_fit_a_real_clip(pipe: Pipeline) -> None:
    run, deadline = start(pipe, picture(), "a red circle", 600, levels(pipe))
    run.close()
    costs: Any = deadline.costs
    assert min(*costs.passing, *costs.head, costs.before, costs.frame) >= 0
    assert 0 < deadline.expected("draft") < deadline.expected("exact") < 60


def test_a_clip_that_changes_between_frames_is_each_levels_own_frames(pipe: Pipeline) -> None:
    """The first new frame is the exact clip's; from the change on it is a clip of these dials over the same past."""
    options = levels(pipe)
    exact = pipe(picture(), "a red circle", seed=4, sampling=options["exact"])
    for level in ("fast", "draft"):
        with pipe.start(
            picture(), "a red circle", seed=4, sampling=options["exact"], others=list(options.values())
        ) as run:
            while not run.finished:
                if run.left[0].frame == 2 and not run.left[0].index:
                    assert run.change(options[level]) == 2
                run.advance()
            changed = np.stack(run.latents, axis=1)
            assert [s for s in run.steps if s.frame == 2] == [
                s for s in ClipSteps.of(pipe.config, options[level], 1).steps if s.frame == 2
            ]
        assert np.array_equal(changed[:, :2], exact.latents[:, :2])
        assert not np.array_equal(changed[:, 2], exact.latents[:, 2])


def test_only_dials_that_were_planned_for_can_come_and_never_inside_a_frame(pipe: Pipeline) -> None:
    options = levels(pipe)
    with pipe.start(picture(), "a red circle", sampling=options["exact"], others=[options["draft"]]) as run:
        with pytest.raises(InputError, match="not begun for these dials"):
            run.change(options["fast"])
        run.advance(), run.advance(), run.advance()
        assert run.left[0].frame == 1 and run.change(options["draft"]) == 2
        assert [s for s in run.left if s.frame == 1] == [
            s for s in ClipSteps.of(pipe.config, options["exact"], 1).steps if s.frame == 1
        ][2:]
    with pytest.raises(InputError, match="height cannot change inside a clip"):
        run.clip.then(2, options["draft"].but(height=16))


def test_a_clip_whose_branches_go_one_after_the_other_for_want_of_memory_keeps_that_when_it_changes(
    pipe: Pipeline,
) -> None:
    options = levels(pipe)
    begun = options["exact"].but(guidance_passes=2)  # as the memory check would have it
    with pipe.start(picture(), "a red circle", sampling=begun, others=list(options.values())) as run:
        run.change(options["draft"])
        assert len(np.concatenate(list(run))) == begun.frames
        assert {sampling.guidance_passes for _, sampling in run.clip.later} == {2}


def test_the_line_through_measured_times_never_goes_below_zero() -> None:
    assert module._line({10.0: 3.0, 20.0: 5.0}) == pytest.approx((1.0, 0.2))
    assert module._line({10.0: 3.0}) == pytest.approx((0.0, 0.3))
    assert module._line({10.0: 5.0, 20.0: 3.0}) == pytest.approx((4.0, 0.0))
    start_, slope = module._line({10.0: 1.0, 20.0: 4.0})
    assert start_ == 0 and slope > 0
