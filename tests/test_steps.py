"""A clip's steps as data: sizes, who is predicted when, with what numbers; against lists written out by hand."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from videomar.config import ANNEALS, DEMO, ORDERS, SOLVERS, SamplingConfig
from videomar.errors import ConfigError, InputError, UserError
from videomar.runtime.backends.base import ClipPlan
from videomar.schedule import HEAD_LOOPS
from videomar.steps import PARTS, ClipShape, ClipSteps, Step, clip_shape

SMALL = DEMO.sampling.but(frames=17, height=16, width=16, mask_steps=2)  # 2 x 2 tokens, 3 latent frames


def test_the_steps_of_a_small_clip_by_hand() -> None:
    clip = ClipSteps.of(DEMO, SMALL.but(guidance_scale=5.0, token_clip=7.0), given=1)
    assert clip.shape == ClipShape(frames=3, given=1, rows=2, columns=2)
    # floor(4 cos(pi/4)) = 2 stay masked after the first of two mask steps; at the last one position counts as masked.
    half, end = 1 + 4 * 2 / 4, 1 + 4 * 3 / 4
    drawn, stored = ({"head_steps": n, "computed": 4} for n in (clip.sampling.head_steps, 0))
    assert clip.steps == (
        Step(0, 0, known=4, predicted=0, guidance=end, temperature=1.0, token_clip=None, finishes=True, **stored),
        Step(1, 0, known=0, predicted=2, guidance=half, temperature=1.0, token_clip=None, finishes=False, **drawn),
        Step(1, 1, known=2, predicted=2, guidance=end, temperature=1.0, token_clip=None, finishes=True, **drawn),
        Step(1, 2, known=4, predicted=0, guidance=end, temperature=1.0, token_clip=None, finishes=False, **stored),
        Step(2, 0, known=0, predicted=2, guidance=half, temperature=0.91, token_clip=7.0, finishes=False, **drawn),
        Step(2, 1, known=2, predicted=2, guidance=end, temperature=0.91, token_clip=7.0, finishes=True, **drawn),
    )
    assert [step.keeps for step in clip.steps] == [True, False, False, True, False, False]
    assert clip.counts == (2, 2)


FROM_TEXT = dataclasses.replace(DEMO, from_text=True)


def test_the_steps_of_a_clip_of_the_sentence_alone_by_hand() -> None:
    clip = ClipSteps.of(FROM_TEXT, SMALL.but(frames=9, guidance_scale=5.0, token_clip=7.0), given=0)
    assert clip.shape == ClipShape(frames=2, given=0, rows=2, columns=2) and clip.shape.generated == 2
    half, end = 1 + 4 * 2 / 4, 1 + 4 * 3 / 4
    drawn, stored = ({"head_steps": n, "computed": 4} for n in (clip.sampling.head_steps, 0))
    # Frame 0 is the first generated one: its tokens are not clipped, its temperature is 0.9 + 10^-1.
    assert clip.steps == (
        Step(0, 0, known=0, predicted=2, guidance=half, temperature=1.0, token_clip=None, finishes=False, **drawn),
        Step(0, 1, known=2, predicted=2, guidance=end, temperature=1.0, token_clip=None, finishes=True, **drawn),
        Step(0, 2, known=4, predicted=0, guidance=end, temperature=1.0, token_clip=None, finishes=False, **stored),
        Step(1, 0, known=0, predicted=2, guidance=half, temperature=0.91, token_clip=7.0, finishes=False, **drawn),
        Step(1, 1, known=2, predicted=2, guidance=end, temperature=0.91, token_clip=7.0, finishes=True, **drawn),
    )
    assert clip.counts == (2, 2) and clip.seen == 1


def test_a_picture_of_the_sentence_is_a_clip_of_one_frame() -> None:
    clip = ClipSteps.of(FROM_TEXT, SMALL.but(frames=1), given=0)
    assert clip.shape == ClipShape(frames=1, given=0, rows=2, columns=2) and clip.seen == 0
    assert [(step.frame, step.predicted, step.keeps) for step in clip.steps] == [(0, 2, False), (0, 2, False)]
    with pytest.raises(InputError, match="frames is 1, expected more than the 1 conditioning frames"):
        ClipSteps.of(FROM_TEXT, SMALL.but(frames=1), given=1)


def test_a_model_that_makes_first_frames_continues_pictures_by_the_same_steps() -> None:
    for known in (1, 9):
        assert ClipSteps.of(FROM_TEXT, SMALL, known).steps == ClipSteps.of(DEMO, SMALL, known).steps


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
    order=st.sampled_from(ORDERS),
    head_solver=st.sampled_from(SOLVERS),
    head_steps_end=st.none() | st.just(1),
    head_anneal=st.sampled_from(ANNEALS),
    refresh_every=st.integers(1, 4),
)


@settings(max_examples=150, deadline=None)
@given(samplings, st.integers(0, 4).map(lambda k: max(0, 1 + 8 * (k - 1))))
def test_every_position_of_every_new_frame_is_predicted_once_and_every_frame_but_the_last_is_kept(
    sampling: SamplingConfig, known: int
) -> None:
    try:
        clip = ClipSteps.of(FROM_TEXT, sampling, known)
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
    loops = {step.head_steps for step in clip.steps if step.predicted}
    assert set(plan.schedules) == {(n, sampling.head_solver) for n in loops}
    assert max(loops) == sampling.head_steps and len(loops) <= HEAD_LOOPS
    assert all(len(schedule.timesteps) == n for (n, _), schedule in plan.schedules.items())
    assert plan.parts[0] == shape.tokens and len(plan.parts) <= PARTS


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 8), st.integers(1, 8), st.integers(2, 12), st.integers(2, 5), st.floats(0, 1),
    st.sampled_from([(0.0, 1.0), (0.25, 1.0), (0.0, 0.5), (0.3, 0.9)]),
)  # fmt: skip
def test_a_part_holds_what_was_drawn_last_and_what_is_drawn_now_and_nothing_is_seen_that_was_never_computed(
    rows: int, columns: int, mask_steps: int, every: int, share: float, interval: tuple[float, float]
) -> None:
    mask_steps = min(mask_steps, rows * columns)
    options = {"refresh_every": every, "known_share": share}
    try:
        sampling = DEMO.sampling.but(
            frames=25, height=8 * rows, width=8 * columns, mask_steps=mask_steps, guidance_start=interval[0],
            guidance_end=interval[1], **options,
        )  # fmt: skip
    except ConfigError:
        return  # no mask step lies in the interval
    tokens, frame = rows * columns, -1
    for step in ClipSteps.of(DEMO, sampling, 1).steps:
        part = set(range(tokens)[step.part])
        if step.frame != frame:  # by branch: what each position's K/V know, 2: itself, 1: that it was masked
            frame, computed = step.frame, [dict[int, int](), dict[int, int]()]
        known = {at: 2 if at < step.known else 1 for at in range(tokens)}
        for branch in range(step.branches):
            before, computed[branch] = computed[branch], computed[branch] | {at: known[at] for at in part}
            outside = set(range(tokens)) - part
            assert all(before.get(at) == known[at] for at in outside), (
                "K/V of a token that were taken when it was masked"
            )
        assert set(range(tokens)[step.slots]) <= part
        if step.index % every == 0 or step.keeps:
            assert len(part) == tokens
        if len(part) < tokens:
            assert len(part) % -(-tokens // PARTS) == 0 or step.first == 0 or step.part.stop == tokens


def test_the_dials_change_the_steps_as_written_by_hand() -> None:
    options = {"head_steps_end": 4, "guidance_start": 0.25, "guidance_end": 0.75, "refresh_every": 3}
    clip = ClipSteps.of(DEMO, SMALL.but(height=32, width=32, frames=9, mask_steps=4, head_steps=10, **options), 1)
    given, *mask = clip.steps
    assert (given.branches, given.first, given.computed) == (2, 0, 16)
    # 16 cos(pi/8 k): 14, 11, 6, 0 stay masked.
    assert [(s.known, s.predicted) for s in mask] == [(0, 2), (2, 3), (5, 5), (10, 6)]
    assert [s.head_steps for s in mask] == [10, 8, 6, 4]  # levels 7, 5, 2 and 0 of 7: 10, 8.3, 5.7, 4
    assert [s.branches for s in mask] == [1, 2, 2, 1]
    assert [s.guidance == 1 for s in mask] == [True, False, False, True]
    # Step 1 is whole since the second branch comes back, step 3 by its turn. Step 2: from 2 to 10, eight positions.
    assert [(s.first, s.computed) for s in mask] == [(0, 16), (0, 16), (2, 8), (0, 16)]


def test_structure_first_gives_the_details_their_own_steps() -> None:
    sampling = SMALL.but(height=32, width=32, mask_steps=6, order="structure", detail_steps=2)
    assert ClipSteps.of(DEMO, sampling, 1).counts == (1, 2, 2, 3, 4, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": "spiral"}, "order is 'spiral', expected one of random, structure, spread; change --order"),
        ({"detail_steps": 2}, "detail steps is 2 with the order random, which has no details; add --order structure"),
        ({"order": "structure", "detail_steps": 24}, "detail steps is 24 of 24 mask steps, expected fewer"),
        ({"head_steps_end": 26}, "head steps end is 26, expected at most the 25 head steps"),
        ({"guidance_start": 1.5}, "guidance start is 1.5, expected 0 to 1; change --guidance-start"),
        ({"guidance_start": 0.97}, "guidance from 0.97 to 1 of a frame holds none of its 24 mask steps; widen"),
        ({"refresh_every": 0}, "refresh every is 0, expected at least 1 mask step; change --refresh-every"),
        ({"known_share": 0.5}, "known share is 0.5, but every mask step computes the whole frame; add --refresh-every"),
    ],
)
def test_dials_that_do_not_go_together_are_refused_with_what_to_change(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        DEMO.sampling.but(**options)
    assert str(caught.value).startswith(message)


def test_every_dial_is_off_by_default_and_named_when_it_is_not() -> None:
    assert DEMO.sampling.dials == {}
    assert DEMO.sampling.but(order="spread", refresh_every=2).dials == {"order": "spread", "refresh_every": 2}


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
        ({}, 0, "there is no picture, and demo was not trained to make a clip's first frame from the sentence alone"),
        ({}, -8, "conditioning frames is -8, expected 1 + 8k, such as 1; change --given"),
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
