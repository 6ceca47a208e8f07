"""How far one array is from another. Pure functions; what is not finite gives None, never a number.

cosine, relative_l2, max_abs and psnr compare a tensor with the reference's, in float64; psnr's peak is the reference's
range. `frame_psnr` and `frame_ssim` compare pictures.
"""

from __future__ import annotations

import cv2
import numpy as np

Measures = dict[str, float | None]
NAMES = ("cosine", "relative_l2", "max_abs", "psnr")
BETTER_WHEN_LARGER = ("cosine", "psnr", "ssim")
EQUAL = 200.0  # dB, stands for no difference at all, and is the most that is told


def compare_arrays(got: np.ndarray, reference: np.ndarray) -> Measures:
    """All of NAMES at once; every one None if either holds a NaN or an infinity. Raises ValueError for other shapes."""
    if got.shape != reference.shape:
        raise ValueError(f"arrays of shape {list(got.shape)} and {list(reference.shape)} cannot be compared")
    a, b = got.astype(np.float64).ravel(), reference.astype(np.float64).ravel()
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return dict.fromkeys(NAMES)
    difference, norms = a - b, (float(np.linalg.norm(a)), float(np.linalg.norm(b)))
    error = float(np.linalg.norm(difference))
    return {
        "cosine": _cosine(a, b, error, norms),
        "relative_l2": error / norms[1] if norms[1] else (0.0 if error == 0 else None),
        "max_abs": float(np.abs(difference).max(initial=0.0)),
        "psnr": decibels(float(np.ptp(b)) if b.size else 0.0, error**2 / max(1, b.size)),
    }


def _cosine(a: np.ndarray, b: np.ndarray, error: float, norms: tuple[float, float]) -> float | None:
    if error == 0:
        return 1.0
    if not all(norms):
        return None
    # 1 - |a/|a| - b/|b||^2 / 2: near 1 the dot product would lose half of the digits.
    return float(1 - np.sum((a / norms[0] - b / norms[1]) ** 2) / 2)


def decibels(peak: float, mean_square: float) -> float | None:
    """PSNR in dB, at most EQUAL; None when the reference has no range to speak of."""
    if mean_square == 0:
        return EQUAL
    return float(min(EQUAL, 10 * np.log10(peak**2 / mean_square))) if peak > 0 else None


def frame_psnr(a: np.ndarray, b: np.ndarray) -> float:
    """PSNR of two uint8 pictures of one shape, in dB; EQUAL when they are."""
    if a.shape != b.shape or a.dtype != np.uint8 or b.dtype != np.uint8:
        raise ValueError(f"got {a.dtype} {list(a.shape)} and {b.dtype} {list(b.shape)}, expected uint8 of one shape")
    value = decibels(255.0, float(np.mean((a.astype(np.float64) - b) ** 2)))
    assert value is not None
    return value


def frame_ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Mean structural similarity of two [height, width, 3] uint8 pictures, over channels (Wang et al. 2004).

    Gaussian windows of 11 pixels (sigma 1.5), mirrored at the edges; smaller pictures get smaller windows.
    """
    if a.shape != b.shape or a.dtype != np.uint8 or b.dtype != np.uint8 or a.ndim != 3:
        raise ValueError(f"got {a.dtype} {list(a.shape)} and {b.dtype} {list(b.shape)}, expected uint8 of one shape")
    side = min(11, *(n - 1 + n % 2 for n in a.shape[:2]))
    x, y, c1, c2 = a.astype(np.float64), b.astype(np.float64), (0.01 * 255) ** 2, (0.03 * 255) ** 2

    def blur(values: np.ndarray) -> np.ndarray:
        return cv2.GaussianBlur(values, (side, side), 1.5, borderType=cv2.BORDER_REFLECT_101)

    mx, my = blur(x), blur(y)
    vx, vy, cov = blur(x * x) - mx * mx, blur(y * y) - my * my, blur(x * y) - mx * my
    similarity = (2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    return float(similarity.mean())


def worse(name: str, a: float | None, b: float | None) -> bool:
    """Whether `a` is worse than `b` as values of one measure; None is the worst of all."""
    if a is None or b is None:
        return a is None and b is not None
    return a < b if name in BETTER_WHEN_LARGER else a > b
