"""The measures against hand-worked values and naive loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from videomar.parity.measures import EQUAL, NAMES, compare_arrays, decibels, frame_psnr, frame_ssim, worse

ARRAYS = hnp.arrays(np.float32, 12, elements=st.floats(-100, 100, width=32))


def test_the_measures_of_a_worked_example() -> None:
    # a - b = (0, 0, 2), |b| = 3, |a| = sqrt(17), a.b = 1 + 4 + 8 = 13; b's range is 1, mean square error 4/3
    got = compare_arrays(np.array([1.0, 2.0, 4.0], np.float32) * [1, 1, 1], np.array([1.0, 2.0, 2.0], np.float32))
    assert got["cosine"] == pytest.approx(13 / (3 * math.sqrt(21)))
    assert got["relative_l2"] == pytest.approx(2 / 3)
    assert got["max_abs"] == 2
    assert got["psnr"] == pytest.approx(10 * math.log10(1 / (4 / 3)))


@given(ARRAYS, ARRAYS)
def test_the_measures_equal_plain_loops(a: np.ndarray, b: np.ndarray) -> None:
    got = compare_arrays(a, b)
    x, y = [float(v) for v in a], [float(v) for v in b]
    error = math.sqrt(sum((p - q) ** 2 for p, q in zip(x, y, strict=True)))
    norm_a, norm_b = math.sqrt(sum(p * p for p in x)), math.sqrt(sum(q * q for q in y))
    assert got["max_abs"] == max(abs(p - q) for p, q in zip(x, y, strict=True))
    if norm_b:
        assert got["relative_l2"] == pytest.approx(error / norm_b, rel=1e-9)
    if norm_a > 1e-20 and norm_b > 1e-20:
        cosine = sum(p * q for p, q in zip(x, y, strict=True)) / norm_a / norm_b
        assert got["cosine"] == pytest.approx(cosine, abs=1e-12)


def test_a_cosine_near_one_keeps_its_digits() -> None:
    b = np.ones(1000)
    a = b.copy()
    a[0] += 1e-6  # 1 - cosine is 1e-12 * 999 / 1000 / 2 / 1000
    assert 1 - float(compare_arrays(a, b)["cosine"] or 0) == pytest.approx(0.4995e-15, rel=0.3)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("side", [0, 1])
def test_what_is_not_finite_gives_no_number_at_all(bad: float, side: int) -> None:
    pair = [np.ones(4), np.ones(4)]
    pair[side][2] = bad
    assert compare_arrays(*pair) == dict.fromkeys(NAMES)


def test_equal_arrays_are_equal_by_every_measure_even_zeros() -> None:
    for value in (np.zeros(3), np.ones(3), np.arange(3.0)):
        assert compare_arrays(value, value) == {"cosine": 1, "relative_l2": 0, "max_abs": 0, "psnr": EQUAL}


def test_something_against_nothing_has_no_relative_error() -> None:
    got = compare_arrays(np.ones(3), np.zeros(3))
    assert got["relative_l2"] is None and got["cosine"] is None and got["max_abs"] == 1


def test_half_precision_is_measured_in_double() -> None:
    b = np.full(100, 300, np.float16)  # its square is beyond float16
    assert compare_arrays(b * np.float16(1.01), b)["relative_l2"] == pytest.approx(0.01, rel=0.05)


def test_arrays_of_other_shapes_are_not_compared() -> None:
    with pytest.raises(ValueError, match=r"\[3\] and \[1, 3\]"):
        compare_arrays(np.ones(3), np.ones((1, 3)))


def test_psnr_of_pictures_is_that_of_a_worked_example() -> None:
    a, b = np.zeros((2, 2, 3), np.uint8), np.zeros((2, 2, 3), np.uint8)
    a[0, 0, 0] = 6  # mean square error 36 / 12 = 3
    assert frame_psnr(a, b) == pytest.approx(10 * math.log10(255**2 / 3))
    assert frame_psnr(b, b) == EQUAL
    a[:] = 255
    assert frame_psnr(a, b) == 0  # and no wrap of uint8


def naive_ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Wang et al. 2004, eq. 13, pixel by pixel with an 11 x 11 Gaussian and mirrored edges."""
    height, width, channels = a.shape
    weights = [[math.exp(-((i - 5) ** 2 + (j - 5) ** 2) / (2 * 1.5**2)) for j in range(11)] for i in range(11)]
    norm = sum(map(sum, weights))
    c1, c2, total = (0.01 * 255) ** 2, (0.03 * 255) ** 2, 0.0

    def mirror(i: int, n: int) -> int:
        return -i if i < 0 else (2 * n - 2 - i if i >= n else i)

    for c in range(channels):
        for y in range(height):
            for x in range(width):
                mx = my = xx = yy = xy = 0.0
                for i in range(11):
                    for j in range(11):
                        at = mirror(y + i - 5, height), mirror(x + j - 5, width), c
                        p, q, g = float(a[at]), float(b[at]), weights[i][j] / norm
                        mx, my, xx, yy, xy = mx + g * p, my + g * q, xx + g * p * p, yy + g * q * q, xy + g * p * q
                vx, vy, cov = xx - mx * mx, yy - my * my, xy - mx * my
                total += (2 * mx * my + c1) * (2 * cov + c2) / ((mx * mx + my * my + c1) * (vx + vy + c2))
    return total / (height * width * channels)


def test_ssim_equals_a_naive_implementation() -> None:
    rng = np.random.default_rng(0)
    a = rng.integers(0, 256, (13, 12, 3), dtype=np.uint8)
    b = np.clip(a.astype(int) + rng.integers(-40, 40, a.shape), 0, 255).astype(np.uint8)
    assert frame_ssim(a, b) == pytest.approx(naive_ssim(a, b), abs=1e-9)
    assert 0.2 < frame_ssim(a, b) < 0.99
    assert frame_ssim(a, a) == pytest.approx(1)


def test_ssim_takes_pictures_smaller_than_its_window() -> None:
    a = np.random.default_rng(1).integers(0, 256, (4, 7, 3), dtype=np.uint8)
    assert frame_ssim(a, a) == pytest.approx(1)
    assert frame_ssim(a, 255 - a) < 0.5


@pytest.mark.parametrize("other", [np.zeros((4, 4, 3), np.float32), np.zeros((4, 5, 3), np.uint8)])
def test_pictures_of_another_kind_are_not_compared(other: np.ndarray) -> None:
    for measure in (frame_psnr, frame_ssim):
        with pytest.raises(ValueError, match="expected uint8 of one shape"):
            measure(np.zeros((4, 4, 3), np.uint8), other)


def test_decibels_are_bounded_and_need_a_range() -> None:
    assert decibels(1.0, 0.0) == EQUAL and decibels(1.0, 1e-30) == EQUAL
    assert decibels(0.0, 1.0) is None
    assert decibels(10.0, 1.0) == pytest.approx(20)


def test_worse_knows_which_way_a_measure_goes_and_that_no_number_is_worst() -> None:
    assert worse("cosine", 0.9, 0.99) and not worse("cosine", 0.99, 0.9)
    assert worse("relative_l2", 0.2, 0.1) and not worse("relative_l2", 0.1, 0.2)
    assert worse("psnr", None, 3.0) and not worse("psnr", 3.0, None) and not worse("psnr", None, None)
