from collections import Counter
from dataclasses import asdict, replace
from json import dumps

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from videomar.demo.measure import GONE, Score, centroid_error, classify, psnr, score, summary, track
from videomar.demo.world import MOTIONS, SIZE, Scene, background, render, sample_scene, trajectory
from videomar.errors import InputError


def scenes(count: int, seed: int = 0, **where: int) -> list[Scene]:
    """Scenes over all motions in turn."""
    rng = np.random.default_rng(seed)
    return [sample_scene(rng, MOTIONS[i % len(MOTIONS)], **where) for i in range(count)]


def noisy(clip: np.ndarray, levels: float, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, levels, clip.shape)
    return np.clip(np.round(clip + noise), 0, 255).astype(np.uint8)


def empty(scene: Scene, frames: int) -> np.ndarray:
    picture = np.clip(np.round(background(scene) * 255), 0, 255).astype(np.uint8)
    return np.repeat(picture[None], frames, axis=0)


def test_the_track_of_a_true_clip_is_its_trajectory():
    for scene in scenes(65):
        found, true = track(render(scene), scene), trajectory(scene)
        assert np.hypot(*(found - true)[:, :2].T).max() < 0.35  # a triangle's tip outside the picture costs 0.25
        assert np.abs(found[:, 2] / true[:, 2] - 1).max() < 0.03
        assert found[0, 2] == pytest.approx(scene.radius)


def test_true_clips_score_as_followed_with_an_error_below_one_percent():
    scores = [score(render(scene), scene) for scene in scenes(200)]
    assert all(s.followed and s.seen_motion == s.motion for s in scores)
    assert max(s.centroid_error for s in scores) < 0.01
    assert {s.psnr for s in scores} == {100.0}


def test_a_clip_of_another_motion_is_classified_as_that_other_motion():
    rng, seen = np.random.default_rng(3), Counter()
    for _ in range(400):
        asked, shown = rng.choice(MOTIONS, 2, replace=False)
        scene = sample_scene(rng, str(shown))
        seen[shown, classify(render(scene), replace(scene, motion=str(asked)))] += 1
    wrong = {pair: count for pair, count in seen.items() if pair[0] != pair[1]}
    assert sum(wrong.values()) <= 4, wrong


def test_a_still_clip_stays_still_whatever_was_asked():
    for scene in scenes(65, seed=5):
        still = np.repeat(render(scene, 1), 17, axis=0)
        assert classify(still, scene) == "stays still"


def test_noise_of_a_few_grey_levels_changes_neither_motion_nor_place():
    for i, scene in enumerate(scenes(65, seed=6)):
        clip = noisy(render(scene), 4, seed=i)
        assert classify(clip, scene) == scene.motion
        assert centroid_error(clip, scene) < 0.01
        assert 35 < psnr(clip, render(scene)) < 38  # 20 log10(255 / 4) = 36.1, less what black and white clip away


def test_a_vanished_shape_is_gone_with_error_one():
    for i, scene in enumerate(scenes(26, seed=7)):
        clip = np.concatenate([render(scene, 1), noisy(empty(scene, 16), 3, seed=i)])
        assert np.isfinite(track(clip, scene)[0]).all() and np.isnan(track(clip, scene)[1:]).all()
        result = score(clip, scene)
        assert (result.seen_motion, result.followed, result.centroid_error) == (GONE, False, 1.0)


def test_a_shape_missing_in_one_frame_costs_that_frame_alone():
    scene = scenes(13)[2]
    clip = render(scene)
    clip[8] = empty(scene, 1)[0]
    assert classify(clip, scene) == scene.motion
    assert centroid_error(clip, scene) == pytest.approx(1 / 16, abs=0.002)
    clip[-1] = clip[8]
    assert classify(clip, scene) == GONE


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(-5, 5), st.floats(-5, 5))
def test_the_centroid_error_is_the_distance_by_which_the_shape_is_off(seed, dx, dy):
    scene = replace(
        sample_scene(np.random.default_rng(seed), "stays still"),
        shape="circle",
        x=32.0,
        y=32.0,
        corner_colors=((0.2, 0.3, 0.3), (0.3, 0.2, 0.3)),
    )
    clip = render(replace(scene, x=32 + dx, y=32 + dy))
    assert centroid_error(clip, scene) == pytest.approx(np.hypot(dx, dy) / SIZE, abs=0.002)


def test_given_frames_do_not_count():
    scene = scenes(13)[1]
    true, wrong = render(scene), render(replace(scene, motion="stays still"))
    mixed = np.concatenate([wrong[:9], true[9:]])
    result = score(mixed, scene, given=9)
    assert result.followed and result.psnr == 100 and result.centroid_error < 0.01
    assert centroid_error(mixed, scene, given=1) > 0.05


def test_larger_and_longer_clips_are_measured_by_their_own_size():
    for scene in scenes(26, seed=8, frames=25, size=96):
        result = score(render(scene, 25, 96), scene)
        assert result.followed and result.centroid_error < 0.01 and result.psnr == 100


def test_psnr_by_hand():
    black = np.zeros((2, 4, 4, 3), np.uint8)
    assert psnr(black, black) == 100
    assert psnr(black, black + np.uint8(255)) == pytest.approx(0)
    assert psnr(black + np.uint8(200), black + np.uint8(195)) == pytest.approx(34.1514, abs=1e-4)  # 20 log10(255 / 5)


def test_the_summary_counts_by_hand_and_is_json():
    def made(motion: str, seen: str, error: float, db: float) -> Score:
        return Score(f"a red circle {motion}", motion, seen, motion == seen, error, db)

    table = summary([made("falls", "falls", 0.01, 30), made("falls", GONE, 1, 20), made("grows", "grows", 0.02, 40)])
    assert table["cases"] == 3 and table["followed"] == pytest.approx(2 / 3)
    assert table["centroid_error_mean"] == pytest.approx(1.03 / 3)
    assert (table["centroid_error_median"], table["centroid_error_max"]) == (0.02, 1.0)
    assert table["psnr_mean"] == pytest.approx(30)
    assert table["motions"] == {
        "falls": {"cases": 2, "followed": 0.5, "centroid_error": pytest.approx(0.505)},
        "grows": {"cases": 1, "followed": 1.0, "centroid_error": 0.02},
    }
    scene = scenes(1)[0]
    dumps([table, summary([score(render(scene), scene)]), asdict(score(render(scene), scene))])


def test_unusable_input_is_an_error_that_says_what_was_got():
    scene = scenes(1)[0]
    clip = render(scene)
    for wrong in (clip.astype(np.float32), clip[0], clip[:, :, :32], clip[..., :1], clip[:0]):
        with pytest.raises(InputError, match="expected uint8"):
            track(wrong, scene)
    with pytest.raises(InputError, match="given frames is 17"):
        score(clip, scene, given=17)
    with pytest.raises(InputError, match="not inside a picture"):
        track(clip, replace(scene, x=500.0))
    with pytest.raises(InputError, match="expected uint8"):
        psnr(clip, clip[1:])
    with pytest.raises(InputError, match="no scores"):
        summary([])
