from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from videomar.demo.chance import CHANCES, draw
from videomar.demo.world import (
    DRIFT,
    MARGIN,
    MOTIONS,
    SIZE,
    futures,
    render,
    sample_scene,
    trajectory,
    vocabulary,
)
from videomar.errors import InputError

seeds = st.integers(0, 2**32 - 1)
sentences = st.sampled_from(tuple(CHANCES))


def test_every_sentences_probabilities_sum_to_one_and_none_is_zero():
    for sentence, outcomes in CHANCES.items():
        assert sum(outcomes.values()) == pytest.approx(1), sentence
        assert len(outcomes) > 1 and min(outcomes.values()) > 0


def test_no_sentence_is_of_both_kinds():
    assert not set(CHANCES) & set(MOTIONS)


@pytest.mark.parametrize("sentence", CHANCES)
def test_scenes_are_drawn_with_the_stated_probabilities(sentence):
    rng, draws = np.random.default_rng(0), 2000
    seen = Counter(sample_scene(rng, sentence).outcome for _ in range(draws))
    assert seen.keys() == CHANCES[sentence].keys()
    for outcome, p in CHANCES[sentence].items():
        assert abs(seen[outcome] / draws - p) < 4 * (p * (1 - p) / draws) ** 0.5  # four standard deviations


def test_a_draw_is_seeded():
    first, second = (draw(np.random.default_rng(5), "drifts away") for _ in range(2))
    assert first == second


@settings(max_examples=60, deadline=None)
@given(seeds, sentences)
def test_all_futures_of_a_scene_begin_with_one_picture_and_end_apart(seed, sentence):
    clips = [render(future) for future in futures(sample_scene(np.random.default_rng(seed), sentence))]
    assert all(np.array_equal(clip[0], clips[0][0]) for clip in clips)
    for i, a in enumerate(clips):
        for b in clips[:i]:
            assert np.abs(a[-1].astype(int) - b[-1]).max() > 60


@settings(max_examples=200, deadline=None)
@given(seeds, sentences)
def test_every_future_keeps_the_margin_in_every_frame(seed, sentence):
    for future in futures(sample_scene(np.random.default_rng(seed), sentence)):
        x, y, r = trajectory(future).T
        for centre in (x, y):
            assert (centre - r).min() >= MARGIN - 1e-9
            assert (centre + r).max() <= SIZE - MARGIN + 1e-9


def test_a_drift_agrees_with_hand_values():
    scene = replace(sample_scene(np.random.default_rng(0), "drifts away"), x=32.0, y=30.0, radius=10.0)
    assert DRIFT == 1.1
    ends = {future.outcome: tuple(trajectory(future)[10]) for future in futures(scene)}
    assert ends == {
        "drifts left": pytest.approx((21, 30, 10)),
        "drifts right": pytest.approx((43, 30, 10)),
        "drifts up": pytest.approx((32, 19, 10)),
        "drifts down": pytest.approx((32, 41, 10)),
    }


def test_the_sentence_does_not_give_the_outcome_away():
    scene = sample_scene(np.random.default_rng(0), "drifts left or right")
    assert {future.prompt for future in futures(scene)} == {f"a {scene.color} {scene.shape} drifts left or right"}


def test_a_decided_motion_has_one_future_itself():
    scene = sample_scene(np.random.default_rng(0), "falls")
    assert futures(scene) == [scene]


def test_a_scene_that_does_not_say_its_outcome_is_refused():
    scene = replace(sample_scene(np.random.default_rng(0), "drifts away"), outcome="")
    for wrong in (scene, replace(scene, outcome="drifts")):
        with pytest.raises(InputError, match="expected one of drifts left, drifts right, drifts up, drifts down"):
            render(wrong)


def test_every_prompt_of_chance_is_made_of_known_words():
    words = {word for sentence in CHANCES for word in sentence.split()}
    assert words <= set(vocabulary()) and 1 + len(vocabulary()) <= 32
