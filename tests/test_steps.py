"""A clip's steps as data: sizes, who is predicted when, with what numbers; against lists written out by hand."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from videomar.config import DEMO, SamplingConfig
from videomar.errors import InputError, UserError
from videomar.runtime.backends.base import ClipPlan
from videomar.steps import ClipShape, ClipSteps, Step, clip_shape

SMALL = DEMO.sampling.but(frames=17, height=16, width=16, mask_steps=2)  # 2 x 2 tokens, 3 latent frames


def test_the_steps_of_a_small_clip_by_hand() -> None:
    clip = ClipSteps.of(DEMO, SMALL.but(guidance_scale=5.0, token_clip=7.0), given=1)
    assert clip.shape == ClipShape(frames=3, given=1, rows=2, columns=2)
    # floor(4 cos(pi/4)) = 2 stay masked after the first of two mask steps; at the last one position counts as masked.
    half, end = 1 + 4 * 2 / 4, 1 + 4 * 3 / 4
    assert clip.steps == (
        Step(0, 0, known=4, predicted=0, guidance=end, temperature=1.0, token_clip=None, finishes=True),
        Step(1, 0, known=0, predicted=2, guidance=half, temperature=1.0, token_clip=None, finishes=False),
        Step(1, 1, known=2, predicted=2, guidance=end, temperature=1.0, token_clip=None, finishes=True),
        Step(1, 2, known=4, predicted=0, guidance=end, temperature=1.0, token_clip=None, finishes=False),
        Step(2, 0, known=0, predicted=2, guidance=half, temperature=0.91, token_clip=7.0, finishes=False),
        Step(2, 1, known=2, predicted=2, guidance=end, temperature=0.91, token_clip=7.0, finishes=True),
    )
    assert [step.keeps for step in clip.steps] == [True, False, False, True, False, False]
    assert clip.counts == (2, 2)


samplings = st.builds(
    SamplingConfig,
    frames=st.integers(1, 5).map(lambda k: 1 + 8 * k),
    height=st.integers(1, 5).map(lambda n: 8 * n),
    width=st.integers(1, 5).map(lambda n: 8 * n),
    mask_steps=st.integers(1, 12),
    head_steps=st.integers(1, 30),
    guidance_scale=st.sampled_from([0.0, 1.0, 3.0]),
    guidance_ramp=st.booleans(),
    temperature=st.sampled_from([None, 0.0, 1.0]),
    token_clip=st.sampled_from([None, 2.0]),
    kv_window=st.none() | st.integers(1, 5),
    max_beta=st.just(0.1),
)


@settings(max_examples=150, deadline=None)
@given(samplings, st.integers(1, 4).map(lambda k: 1 + 8 * (k - 1)))
def test_every_position_of_every_new_frame_is_predicted_once_and_every_frame_but_the_last_is_kept(
    sampling: SamplingConfig, known: int
) -> None:
    try:
        clip = ClipSteps.of(DEMO, sampling, known)
    except InputError as error:
        assert sampling.frames <= known or sampling.mask_steps > sampling.height * sampling.width // 64, error
        return
    shape = clip.shape
    assert [step.frame for step in clip.steps] == sorted(step.frame for step in clip.steps)
    for frame in range(shape.frames):
        steps = [step for step in clip.steps if step.frame == frame]
        assert [step.index for step in steps] == list(range(len(steps)))
        places = np.concatenate([np.arange(shape.tokens)[step.slots] for step in steps])
        expected = range(shape.tokens) if frame >= shape.given else []
        assert list(places) == list(expected)
        assert [step.known for step in steps if step.predicted] == list(
            np.cumsum([0, *clip.counts[:-1]]) if frame >= shape.given else []
        )
        assert [step.keeps for step in steps].count(True) == (frame + 1 < shape.frames)
        assert [step.finishes for step in steps].count(True) == 1
        bounds = {step.token_clip for step in steps}
        assert bounds == {sampling.token_clip if frame > shape.given else None}
    assert sum(clip.counts) == shape.tokens and len(clip.counts) == sampling.mask_steps
    plan = ClipPlan.of(clip)
    assert (plan.tokens, plan.frames, plan.counts, plan.seen) == (shape.tokens, shape.frames, clip.counts, clip.seen)
    assert len(plan.timesteps) == sampling.head_steps


def test_guidance_grows_with_what_is_known_and_never_reaches_the_scale() -> None:
    clip = ClipSteps.of(DEMO, DEMO.sampling.but(mask_steps=64), given=1)
    first = [step.guidance for step in clip.steps if step.frame == 1 and step.predicted]
    still = [min(63 - i, math.floor(64 * math.cos(math.pi / 2 * (i + 1) / 64))) for i in range(64)]
    assert first[:-2] == pytest.approx([1 + 2 * (64 - n) / 64 for n in still[:-2]])
    assert first[-1] == first[-2] == 1 + 2 * 63 / 64


@pytest.mark.parametrize(
    ("options", "given", "message"),
    [
        ({"frames": 16}, 1, "frames is 16, expected 1 + 8k, such as 9; change --frames"),
        (
            {"frames": 17},
            17,
            "frames is 17, expected more than the 17 conditioning frames, such as 25; change --frames",
        ),
        ({}, 4, "conditioning frames is 4, expected 1 + 8k, such as 1; change --given"),
        ({}, 0, "conditioning frames is 0, expected 1 + 8k, such as 1; change --given"),
        ({"height": 20}, 1, "height is 20, expected a multiple of 8, such as 16; change --height"),
        ({"width": 3}, 1, "width is 3, expected a multiple of 8, such as 8; change --width"),
        ({"height": 8 * 4097}, 1, "height is 32776, which is 4097 rotary positions, expected at most 4096"),
        ({"frames": 8 * 4096 + 1}, 1, "frames is 32769, which is 4097 rotary positions, expected at most 4096"),
        ({"mask_steps": 5}, 1, "mask steps is 5, expected 1 to 4"),
        ({"head_steps": 1001}, 1, "head steps is 1001, expected 1 to 1000"),
    ],
)
def test_what_cannot_be_is_refused_with_what_could(options: dict[str, int], given: int, message: str) -> None:
    with pytest.raises(UserError) as caught:
        ClipSteps.of(DEMO, dataclasses.replace(SMALL, **options), given)
    assert str(caught.value).startswith(message)


def test_a_shape_counts_in_latents() -> None:
    shape = clip_shape(DEMO, DEMO.sampling.but(frames=33, height=24, width=40), given=9)
    assert shape == ClipShape(frames=5, given=2, rows=3, columns=5)
    assert (shape.tokens, shape.generated) == (15, 3)
