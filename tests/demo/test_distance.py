from dataclasses import replace

import numpy as np
import pytest

from videomar.demo.chance import CHANCES, draw
from videomar.demo.distance import FILTERS, distances, features, frechet
from videomar.demo.world import futures, render, sample_scene
from videomar.errors import InputError


def normal(rng: np.random.Generator, n: int, mean: float, deviation: float, width: int = 3) -> np.ndarray:
    """Rows whose sample mean and covariance are exactly mean and deviation^2 I."""
    x = rng.standard_normal((n, width))
    x -= x.mean(axis=0)
    values, vectors = np.linalg.eigh(np.cov(x, rowvar=False))
    return mean + deviation * (x @ (vectors / np.sqrt(values)) @ vectors.T)


def test_the_distance_of_two_gaussians_agrees_with_its_closed_form():
    rng = np.random.default_rng(0)
    a, b = normal(rng, 50, 0, 1), normal(rng, 80, 2, 3)
    # |m1 - m2|^2 + sum (s1 - s2)^2 for covariances that are multiples of one matrix
    assert frechet(a, b) == pytest.approx(3 * 2**2 + 3 * (3 - 1) ** 2)
    assert frechet(b, a) == pytest.approx(frechet(a, b))


def test_covariances_that_do_not_commute_agree_with_the_root_of_their_product():
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((60, 4)) @ rng.standard_normal((4, 4)), rng.standard_normal((60, 4)) * [1, 2, 3, 4]
    first, second = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    values = np.linalg.eigvals(first @ second)  # of the unsymmetric product itself
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(first + second) - 2 * np.sqrt(values.real).sum()
    assert frechet(a, b) == pytest.approx(expected)


def test_a_set_is_no_distance_from_itself():
    x = np.random.default_rng(2).standard_normal((20, 30))  # fewer rows than columns: a covariance without inverse
    assert frechet(x, x) == pytest.approx(0, abs=1e-6)


def test_features_agree_with_a_naive_loop():
    picture = np.random.default_rng(3).random((1, 20, 20, 3)).astype(np.float32)
    filters = np.random.default_rng(0).standard_normal((3, 8 * 8, FILTERS))
    filters = (filters - filters.mean(axis=1, keepdims=True)).reshape(3, 8, 8, FILTERS)  # channel, row, column
    filters /= np.sqrt((filters**2).sum(axis=(0, 1, 2)))
    response = np.zeros((4, 4, FILTERS))
    for i in range(4):
        for j in range(4):
            window = picture[0, 4 * i : 4 * i + 8, 4 * j : 4 * j + 8]
            for f in range(FILTERS):
                total = sum((window[..., c] * filters[c, ..., f]).sum() for c in range(3))
                response[i, j, f] = max(0.0, total)
    quarters = [response[a : a + 2, b : b + 2].mean(axis=(0, 1)) for a in (0, 2) for b in (0, 2)]
    assert features(picture)[0] == pytest.approx(np.concatenate(quarters), rel=1e-5)


def test_true_clips_are_near_and_torn_or_one_sided_ones_are_far():
    rng, truth, again, torn, always = np.random.default_rng(4), [], [], [], []
    for i in range(120):
        scene = sample_scene(rng, tuple(CHANCES)[i % len(CHANCES)])
        every = {future.outcome: render(future) for future in futures(scene)}
        truth.append(every[scene.outcome])
        again.append(every[draw(rng, scene.motion)])
        always.append(every[next(iter(every))])
        mosaic = rng.choice(list(every), (8, 8))  # every token of a future of its own
        clip = truth[-1].copy()
        for (row, column), outcome in np.ndenumerate(mosaic):
            part = np.s_[1:, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
            clip[part] = every[outcome][part]
        torn.append(clip)
    floor, bad, one_sided = (distances(side, truth) for side in (again, torn, always))
    for part in ("frames", "motion"):
        assert bad[part] > 1.5 * floor[part] and one_sided[part] > 1.5 * floor[part]
    assert distances(truth, truth) == {"frames": pytest.approx(0, abs=1e-6), "motion": pytest.approx(0, abs=1e-6)}


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(InputError, match="two or more rows"):
        frechet(np.zeros((1, 3)), np.zeros((5, 3)))
    with pytest.raises(InputError, match="two or more rows"):
        frechet(np.zeros((4, 3)), np.zeros((5, 2)))
    with pytest.raises(InputError, match="too small"):
        features(np.zeros((1, 8, 8, 3), np.float32))


def test_a_still_world_moves_nowhere():
    scene = replace(sample_scene(np.random.default_rng(5), "stays still"), x=32.0, y=32.0)
    assert features(np.diff(render(scene)[::4].astype(np.float32), axis=0)) == pytest.approx(0)
