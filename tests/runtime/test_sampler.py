"""The frame and mask-step loop on a fake backend: who is predicted when, with what numbers, and that it lets go."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from videomar.config import ANCESTRAL, ModelConfig, SamplingConfig
from videomar.errors import InputError
from videomar.runtime.backends.base import ClipPlan
from videomar.runtime.sampler import sample_frames
from videomar.runtime.timing import Timing
from videomar.schedule import half_tables
from videomar.steps import ClipShape, ClipSteps, Step

CHANNELS = 3


class Broken(RuntimeError):
    """What a failing device raises."""


@dataclass
class Call:
    """One call of the clip, its arguments copied: the loop may reuse its arrays."""

    kind: str
    args: tuple[Any, ...] = ()

    def __getattr__(self, name: str) -> Any:
        names = {
            "step": ("tokens", "masked", "predict", "cos", "sin", "first", "branches"),
            "sample": ("guidance", "initial", "draws"),
        }
        try:
            return self.args[names[self.kind].index(name)]
        except (KeyError, ValueError):
            raise AttributeError(name) from None


@dataclass
class FakeClip:
    """Records; samples `5 * initial + sum of draws`, in a buffer that it spoils at the next call, as it may."""

    fail_at: str = ""
    calls: list[Call] = field(default_factory=list)
    closed: int = 0
    lent: np.ndarray = field(default_factory=lambda: np.zeros(0))

    def _record(self, kind: str, *args: Any) -> None:
        self.lent[...] = np.nan
        self.calls.append(Call(kind, tuple(np.array(a) for a in args)))
        if kind == self.fail_at:
            raise Broken(kind)

    def step(self, *args: np.ndarray) -> None:
        self._record("step", *args)

    def sample(self, guidance: float, initial: np.ndarray, draws: np.ndarray, solver: str = ANCESTRAL) -> np.ndarray:
        self._record("sample", guidance, initial, draws)
        self.lent = 5 * initial + draws.sum(0)
        return self.lent

    def keep(self) -> None:
        self._record("keep")

    def close(self) -> None:
        self.closed += 1


@dataclass
class FakeBackend:
    clip: FakeClip
    plan: ClipPlan | None = None
    name: str = "fake"

    def begin(self, states: np.ndarray, plan: ClipPlan) -> FakeClip:
        self.plan = plan
        return self.clip


@dataclass
class FakeNoise:
    """Numbers keyed by (frame, step); keeps what it gave out and what it was asked for."""

    asked: list[tuple[str, int, int]] = field(default_factory=list)
    given: dict[tuple[str, int, int], np.ndarray] = field(default_factory=dict)

    def _give(self, kind: str, frame: int, step: int, shape: tuple[int, ...]) -> np.ndarray:
        rng = np.random.default_rng([frame, step, len(kind)])
        self.asked.append((kind, frame, step))
        array = rng.permutation(shape[0]) if kind == "order" else rng.standard_normal(shape).astype(np.float32)
        self.given[kind, frame, step] = array
        return array.copy() if kind == "order" else array

    def order(self, frame: int, tokens: int) -> np.ndarray:
        return self._give("order", frame, 0, (tokens,))

    def initial(self, frame: int, step: int, shape: tuple[int, int]) -> np.ndarray:
        return self._give("initial", frame, step, shape)

    def steps(self, frame: int, step: int, shape: tuple[int, int, int]) -> np.ndarray:
        return self._give("steps", frame, step, shape)


@dataclass(frozen=True)
class Clip:
    """What is asked for; lengths in latent frames, grid in tokens."""

    grid: tuple[int, int] = (4, 4)
    given: int = 1
    new: int = 3
    mask_steps: int = 4
    head_steps: int = 3
    scale: float = 3.0
    temperature: float | None = None
    bound: float | None = 2.0

    @property
    def tokens(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def latents(self) -> np.ndarray:
        shape = (CHANNELS, self.given, *self.grid)
        return np.arange(math.prod(shape), dtype=np.float32).reshape(shape)

    @property
    def sampling(self) -> SamplingConfig:
        return SamplingConfig(
            mask_steps=self.mask_steps,
            head_steps=self.head_steps,
            guidance_scale=self.scale,
            temperature=self.temperature,
            token_clip=self.bound,
        )

    def steps(self, config: ModelConfig, **options: Any) -> ClipSteps:
        return ClipSteps(config, self.sampling.but(**options), ClipShape(self.given + self.new, self.given, *self.grid))


@dataclass
class Run:
    """A finished run, its calls told apart by what they are for."""

    clip: Clip
    plan: ClipPlan
    fake: FakeClip
    noise: FakeNoise
    frames: list[np.ndarray]
    progress: list[tuple[int, int]]

    @property
    def steps(self) -> list[Call]:
        return [c for c in self.fake.calls if c.kind == "step"]

    @property
    def prefilled(self) -> list[Call]:
        return self.steps[: self.clip.given]

    def passes(self, frame: int) -> list[Call]:
        """The mask steps' passes of generated frame 0, 1, ..., and the storing one if there is one."""
        each = self.clip.mask_steps + 1
        return self.steps[self.clip.given :][frame * each : (frame + 1) * each]

    def samples(self, frame: int) -> list[Call]:
        n = self.clip.mask_steps
        return [c for c in self.fake.calls if c.kind == "sample"][frame * n : (frame + 1) * n]


@pytest.fixture(scope="session")
def config(tiny_config: ModelConfig) -> ModelConfig:
    tokenizer = dataclasses.replace(tiny_config.tokenizer, latent_channels=CHANNELS)
    transformer = dataclasses.replace(tiny_config.transformer, token_channels=CHANNELS)
    return dataclasses.replace(tiny_config, tokenizer=tokenizer, transformer=transformer)


def start(
    config: ModelConfig, clip: Clip, fake: FakeClip, noise: FakeNoise, progress: Any = lambda step: None
) -> tuple[Iterator[np.ndarray], FakeBackend]:
    backend = FakeBackend(fake)
    frames = sample_frames(backend, clip.steps(config), np.zeros((1, 2, 16)), clip.latents, noise, Timing(), progress)  # type: ignore[arg-type]
    return frames, backend


def run(config: ModelConfig, clip: Clip) -> Run:
    fake, noise, progress = FakeClip(), FakeNoise(), []
    frames, backend = start(config, clip, fake, noise, lambda s: s.predicted and progress.append((s.frame, s.index)))
    given, done = [next(frames) for _ in range(clip.given)], list(frames)
    assert np.array_equal(np.stack(given, axis=1), clip.latents)
    assert backend.plan is not None
    return Run(clip, backend.plan, fake, noise, done, progress)


@st.composite
def clips(draw: st.DrawFn) -> Clip:
    grid = (draw(st.integers(1, 5)), draw(st.integers(1, 5)))
    return Clip(
        grid=grid,
        given=draw(st.integers(1, 3)),
        new=draw(st.integers(1, 3)),
        mask_steps=draw(st.integers(1, grid[0] * grid[1])),
        head_steps=draw(st.integers(1, 4)),
        scale=draw(st.sampled_from([0.0, 0.5, 1.0, 3.0, 7.5])),
        temperature=draw(st.sampled_from([None, 0.0, 0.8])),
        bound=draw(st.sampled_from([None, 0.5, 2.0])),
    )


every_clip = given(clip=clips())
quick = settings(max_examples=40, deadline=None)

# ---- the order of calls


@quick
@every_clip
def test_a_pass_a_given_frame_then_steps_and_samples_then_a_storing_pass_unless_last(
    config: ModelConfig, clip: Clip
) -> None:
    expected = ["step", "keep"] * clip.given
    for frame in range(clip.new):
        expected += ["step", "sample"] * clip.mask_steps
        expected += ["step", "keep"] if frame + 1 < clip.new else []
    r = run(config, clip)
    assert [c.kind for c in r.fake.calls] == expected
    assert r.fake.closed == 1 and len(r.frames) == clip.new


@quick
@every_clip
def test_given_frames_are_stored_as_they_are_with_nothing_masked(config: ModelConfig, clip: Clip) -> None:
    r = run(config, clip)
    for frame, call in enumerate(r.prefilled):
        rows = [clip.latents[:, frame, i, j] for i in range(clip.grid[0]) for j in range(clip.grid[1])]
        np.testing.assert_array_equal(call.tokens, rows)
        assert not call.masked.any() and call.predict.shape == (1,)


@quick
@every_clip
def test_the_storing_pass_sees_the_finished_frame_with_nothing_masked(config: ModelConfig, clip: Clip) -> None:
    r = run(config, clip)
    for frame in range(clip.new - 1):
        call = r.passes(frame)[-1]
        np.testing.assert_array_equal(call.tokens, r.frames[frame].reshape(CHANNELS, -1).T)
        assert not call.masked.any() and call.predict.shape == (1,)


def test_progress_is_told_after_every_mask_step(config: ModelConfig) -> None:
    assert run(config, Clip(given=2, new=2, mask_steps=3)).progress == [(f, s) for f in (2, 3) for s in range(3)]


@quick
@every_clip
def test_the_plan_says_all_that_a_backend_has_to_allocate(config: ModelConfig, clip: Clip) -> None:
    r = run(config, clip)
    p = r.plan
    assert (p.tokens, p.frames, p.branches) == (clip.tokens, clip.given + clip.new, 1 if clip.scale == 1 else 2)
    assert [(n, s.timesteps.shape, s.coefficients.shape) for n, s in p.schedules.items()] == [
        ((clip.head_steps, "ancestral"), (clip.head_steps,), (clip.head_steps, 6))
    ]
    assert list(p.counts) == [len(c.predict) for c in r.passes(0)[: clip.mask_steps]]


# ---- who is predicted when


@quick
@every_clip
def test_every_position_is_predicted_once_in_the_noises_order(config: ModelConfig, clip: Clip) -> None:
    r = run(config, clip)
    for frame in range(clip.new):
        predicted = np.concatenate([c.predict for c in r.passes(frame)[: clip.mask_steps]])
        np.testing.assert_array_equal(predicted, r.noise.given["order", clip.given + frame, 0])


@quick
@every_clip
def test_counts_follow_the_cosine_and_every_step_predicts_something(config: ModelConfig, clip: Clip) -> None:
    r, now = run(config, clip), clip.tokens
    for s, call in enumerate(r.passes(0)[: clip.mask_steps]):
        left = math.floor(clip.tokens * math.cos(math.pi / 2 * (s + 1) / clip.mask_steps))
        left = 0 if s + 1 == clip.mask_steps else min(max(left, 1), now - 1)
        assert len(call.predict) == now - left > 0
        now = left


def test_sixteen_tokens_in_four_steps_are_two_three_five_and_six(config: ModelConfig) -> None:
    # 16 cos(22.5, 45, 67.5 degrees) = 14.8, 11.3, 6.1
    assert run(config, Clip()).plan.counts == (2, 3, 5, 6)


@quick
@every_clip
def test_a_step_sees_what_was_sampled_and_a_mask_on_all_the_rest(config: ModelConfig, clip: Clip) -> None:
    r = run(config, clip)
    for frame in range(clip.new):
        left, final = set(range(clip.tokens)), r.frames[frame].reshape(CHANNELS, -1).T
        for call in r.passes(frame)[: clip.mask_steps]:
            assert set(np.flatnonzero(call.masked)) == left
            known = sorted(set(range(clip.tokens)) - left)
            np.testing.assert_array_equal(call.tokens[known], final[known])
            assert np.isfinite(call.tokens).all()
            left -= set(call.predict.tolist())


def test_more_mask_steps_than_tokens_are_refused_before_anything_runs(config: ModelConfig) -> None:
    fake = FakeClip()
    with pytest.raises(InputError, match=r"mask steps is 7, expected 1 to 6 .* --mask-steps"):
        next(start(config, Clip(grid=(2, 3), mask_steps=7), fake, FakeNoise())[0])
    assert not fake.calls


# ---- with what numbers


@quick
@every_clip
def test_guidance_goes_from_near_one_to_the_scale_with_the_share_known(config: ModelConfig, clip: Clip) -> None:
    r = run(config, clip)
    for frame in range(clip.new):
        known, seen = 0, []
        for step, sample in zip(r.passes(frame), r.samples(frame), strict=False):
            known += len(step.predict)
            seen.append(float(sample.guidance))
            counted = min(known, clip.tokens - 1)  # at least one position counts as masked, at the last step too
            assert seen[-1] == pytest.approx(1 + (clip.scale - 1) * counted / clip.tokens)
        assert seen == sorted(seen, reverse=clip.scale < 1)


@pytest.mark.parametrize(("scale", "branches"), [(1.0, 1), (0.0, 2), (0.5, 2), (3.0, 2)])
def test_without_guidance_there_is_one_branch(config: ModelConfig, scale: float, branches: int) -> None:
    assert run(config, Clip(scale=scale)).plan.branches == branches


@quick
@every_clip
def test_noise_is_asked_once_a_step_and_reaches_the_head_scaled_but_for_the_last_draw(
    config: ModelConfig, clip: Clip
) -> None:
    r = run(config, clip)
    for f in range(clip.new):
        frame = clip.given + f
        factor = 0.9 + 0.1 ** (f + 1) if clip.temperature is None else clip.temperature
        for s, (step, sample) in enumerate(zip(r.passes(f), r.samples(f), strict=False)):
            given = r.noise.given["steps", frame, s]
            assert given.shape == (clip.head_steps, len(step.predict), CHANNELS)
            np.testing.assert_array_equal(sample.initial, r.noise.given["initial", frame, s])
            np.testing.assert_allclose(sample.draws[:-1], given[:-1] * factor, rtol=1e-6)
            assert not sample.draws[-1].any()
            assert sample.draws.dtype == sample.initial.dtype == np.float32
            assert given[-1].any()  # a caller's own arrays are left alone
    assert len(r.noise.asked) == len(set(r.noise.asked)) == clip.new * (1 + 2 * clip.mask_steps)


def test_temperature_falls_from_one_towards_nine_tenths(config: ModelConfig) -> None:
    r = run(config, Clip(given=2, new=3))
    for frame, factor in enumerate((1.0, 0.91, 0.901)):
        given = r.noise.given["steps", 2 + frame, 0]
        np.testing.assert_allclose(r.samples(frame)[0].draws[0], given[0] * factor, rtol=1e-6)


@quick
@every_clip
def test_every_generated_frame_but_the_first_is_clipped(config: ModelConfig, clip: Clip) -> None:
    r = run(config, clip)
    for f, frame in enumerate(r.frames):
        drawn = np.zeros((clip.tokens, CHANNELS), np.float32)
        for step, sample in zip(r.passes(f), r.samples(f), strict=False):
            drawn[step.predict] = 5 * sample.initial + sample.draws.sum(0)
        if f > 0 and clip.bound is not None:
            drawn = drawn.clip(-clip.bound, clip.bound)
        np.testing.assert_array_equal(frame, drawn.T.reshape(CHANNELS, *clip.grid))
        assert frame.dtype == np.float32 and frame.flags.c_contiguous


def test_clipping_bites_here(config: ModelConfig) -> None:
    frames = run(config, Clip(bound=2.0)).frames
    assert np.abs(frames[0]).max() > 2 and np.abs(frames[1]).max() == np.abs(frames[2]).max() == 2


@quick
@every_clip
def test_every_pass_has_the_rotary_angles_of_its_frame(config: ModelConfig, clip: Clip) -> None:
    r, t = run(config, clip), config.transformer
    of_passes = list(range(clip.given))
    for f in range(clip.new):
        of_passes += [clip.given + f] * len(r.passes(f))
    assert len(of_passes) == len(r.steps)
    for frame, call in zip(of_passes, r.steps, strict=True):
        cos, sin = half_tables(frame, *clip.grid, t.rope_split, t.rope_theta)
        np.testing.assert_array_equal(call.cos, cos)
        np.testing.assert_array_equal(call.sin, sin)


# ---- letting go


def test_the_clip_is_closed_when_the_consumer_stops_early(config: ModelConfig) -> None:
    fake = FakeClip()
    frames, _ = start(config, Clip(), fake, FakeNoise())
    next(frames)
    assert fake.closed == 0
    frames.close()  # type: ignore[attr-defined]
    assert fake.closed == 1


@pytest.mark.parametrize("at", ["step", "sample", "keep"])
def test_the_clip_is_closed_when_the_backend_fails(config: ModelConfig, at: str) -> None:
    fake = FakeClip(fail_at=at)
    with pytest.raises(Broken, match=at):
        list(start(config, Clip(), fake, FakeNoise())[0])
    assert fake.closed == 1


def test_the_clip_is_closed_when_the_callers_noise_or_progress_fails(config: ModelConfig) -> None:
    def stop(step: Step) -> None:
        raise KeyboardInterrupt

    fake = FakeClip()
    with pytest.raises(KeyboardInterrupt):
        list(start(config, Clip(), fake, FakeNoise(), stop)[0])
    assert fake.closed == 1


def test_nothing_is_allocated_before_the_first_frame_is_asked_for(config: ModelConfig) -> None:
    frames, backend = start(config, Clip(), FakeClip(), FakeNoise())
    assert backend.plan is None
    next(frames)
    assert backend.plan is not None


def test_guidance_without_a_ramp_is_the_same_in_every_step(config: ModelConfig) -> None:
    clip, fake = Clip(scale=4.0), FakeClip()
    asked = (clip.steps(config, guidance_ramp=False), np.zeros((1, 2, 16)), clip.latents, FakeNoise())
    list(sample_frames(FakeBackend(fake), *asked))  # type: ignore[arg-type]
    assert {float(call.guidance) for call in fake.calls if call.kind == "sample"} == {4.0}
