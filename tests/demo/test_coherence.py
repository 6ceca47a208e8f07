from dataclasses import replace

import numpy as np
import pytest

from videomar.demo.chance import CHANCES
from videomar.demo.coherence import MOST_WRONG, judge, patch_errors
from videomar.demo.world import Scene, background, futures, render, sample_scene, trajectory
from videomar.errors import InputError


def scenes(each: int, seed: int = 0) -> list[Scene]:
    rng = np.random.default_rng(seed)
    return [sample_scene(rng, sentence) for sentence in CHANCES for _ in range(each)]


def other(scene: Scene) -> Scene:
    """Another future of the scene."""
    return next(future for future in futures(scene) if future.outcome != scene.outcome)


def test_true_clips_are_coherent_and_show_the_outcome_that_was_drawn():
    for scene in scenes(8):
        shown = judge(render(scene), scene)
        assert shown.coherent and shown.wrong == 0 and shown.outcome == scene.outcome


def test_noise_and_a_pixel_of_displacement_are_borne():
    rng = np.random.default_rng(1)
    for scene in scenes(4, seed=1):
        clip = render(replace(scene, x=scene.x + 1)).astype(float) + rng.normal(0, 5, (17, 64, 64, 3))
        shown = judge(np.clip(np.round(clip), 0, 255).astype(np.uint8), scene)
        assert shown.coherent and shown.outcome == scene.outcome


def test_halves_of_two_futures_are_not_coherent():
    for scene in scenes(6, seed=2):
        clip, wrong = render(scene), render(other(scene))
        middle = round(scene.y if scene.motion in ("drifts left or right", "drifts mostly left") else scene.x)
        if scene.motion in ("drifts left or right", "drifts mostly left"):
            clip[1:, middle:] = wrong[1:, middle:]
        else:
            clip[1:, :, middle:] = wrong[1:, :, middle:]
        assert not judge(clip, scene).coherent, scene


def test_a_shape_in_two_places_and_a_shape_in_none_are_not_coherent():
    for scene in [s for s in scenes(4, seed=3) if s.motion.startswith("drifts")]:
        clip, wrong = render(scene), render(other(scene))
        empty = np.clip(np.round(background(scene) * 255), 0, 255).astype(np.uint8)
        twice = np.where((wrong != empty).any(axis=-1, keepdims=True), wrong, clip)
        gone = np.concatenate([clip[:1], np.repeat(empty[None], 16, axis=0)])
        assert not judge(twice, scene).coherent and not judge(gone, scene).coherent


def test_a_token_of_another_future_anywhere_in_a_shape_is_enough():
    scene = replace(sample_scene(np.random.default_rng(4), "drifts left or right"), outcome="drifts left")
    clip, wrong = render(scene), render(other(scene))
    column, row = round(scene.x - 17.6), round(scene.y)  # where the shape is in the end
    clip[-1, row - 4 : row + 4, column - 4 : column + 4] = wrong[-1, row - 4 : row + 4, column - 4 : column + 4]
    shown = judge(clip, scene)
    assert shown.outcome == "drifts left" and not shown.coherent
    # The token is all background: wrong by the whole contrast, give or take the gradient.
    assert shown.wrong == pytest.approx(1, abs=0.35)


def test_two_colours_in_one_shape_are_not_coherent():
    for scene in scenes(12, seed=5):
        clip = render(scene)
        x, y, _ = trajectory(scene)[-1].round().astype(int)
        part = np.s_[-1:, y - 4 : y + 4, x - 4 : x + 4]
        clip[part] = render(replace(scene, color="red" if scene.color != "red" else "blue"))[part]
        assert not judge(clip, scene).coherent


def test_a_patch_error_by_hand():
    scene = replace(sample_scene(np.random.default_rng(6), "drifts away"), color="white")
    scene = replace(scene, corner_colors=((0.35, 0.35, 0.35), (0.35, 0.35, 0.35)))
    truth = np.full((2, 64, 64, 3), 100, np.uint8)
    frames = truth.copy()
    frames[1, 20:24, 30:38] += 51  # half a patch, 0.2 in every channel; white is 0.6 above the background
    assert patch_errors(frames, truth, scene) == pytest.approx([0, 0.5 * 0.2 / 0.6], abs=1e-5)
    assert MOST_WRONG == 0.4


def test_frames_that_were_given_do_not_count():
    scene = sample_scene(np.random.default_rng(7), "drifts up or down")
    clip = render(scene)
    clip[:9] = 0
    assert judge(clip, scene, given=9).coherent and not judge(clip, scene).coherent


def test_larger_and_longer_clips_are_judged_by_their_own_size():
    scene = sample_scene(np.random.default_rng(8), "drifts away", 25, 96)
    shown = judge(render(scene, 25, 96), scene)
    assert shown.coherent and shown.outcome == scene.outcome


def test_unusable_clips_are_refused_with_what_was_got():
    scene = sample_scene(np.random.default_rng(9), "drifts away")
    clip = render(scene)
    for wrong in (clip.astype(np.float32), clip[0], clip[:, :32]):
        with pytest.raises(InputError, match="expected uint8"):
            judge(wrong, scene)
    with pytest.raises(InputError, match="given frames is 17"):
        judge(clip, scene, given=17)
