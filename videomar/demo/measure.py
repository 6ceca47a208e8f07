"""How well a clip of the demo world follows its scene: where the shape went, which motion that was, how sharp it is.

Sees only pixels and the scene's truth; knows nothing of models or of how a clip was made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from videomar.demo.world import COLORS, MOTIONS, Scene, background, render, trajectory
from videomar.errors import InputError

NOISE = 0.25  # cover below this is no shape, above 1 - this all shape; symmetric, so the area is kept
LEAST_AREA = 0.05  # of the first frame's area: with less than this the shape has vanished
GONE = "gone"  # what a clip shows whose shape vanished
MOST_PSNR = 100.0  # dB, stands for "equal"


@dataclass(frozen=True)
class Score:
    """One generated clip against the true one; the given frames do not count."""

    prompt: str
    motion: str  # that the prompt asks for
    seen_motion: str  # that the clip shows, or GONE
    followed: bool
    centroid_error: float  # share of the picture's width
    psnr: float  # dB


def track(frames: np.ndarray, scene: Scene) -> np.ndarray:
    """Where the shape is in every frame: [frames, 3] float64 as (x, y, radius), pixels; NaN where there is none.

    frames: [frames, size, size, 3] uint8. The radius comes from the area, scaled so that the true first frame has the
    scene's. Raises InputError for other arrays, or when the scene starts outside a picture of this size.
    """
    size = _size(frames)
    first = _cover(render(scene, 1, size), scene).sum()
    if first < 1:
        raise InputError(f"the scene's {scene.shape} is not inside a picture of {size} pixels; sample it for this size")
    cover = _cover(frames, scene)
    area = cover.sum(axis=(1, 2))
    area[area < LEAST_AREA * first] = np.nan
    axis = np.arange(size) + 0.5
    x, y = (cover.sum(axis=1) * axis).sum(axis=1) / area, (cover.sum(axis=2) * axis).sum(axis=1) / area
    return np.stack([x, y, scene.radius * np.sqrt(area / first)], axis=1)


def classify(frames: np.ndarray, scene: Scene, given: int = 1) -> str:
    """The motion whose true path from the scene's first frame lies nearest to the clip's, or GONE.

    Nearest by the RMS over generated frames of centroid and radius difference, both in pixels. GONE when the shape is
    missing at the end or in more than half of the generated frames.
    """
    path = _generated(track(frames, scene), given)
    missing = np.isnan(path[:, 2])
    if missing[-1] or missing.mean() > 0.5:
        return GONE

    def distance(motion: str) -> float:
        true = trajectory(replace(scene, motion=motion), len(frames), _size(frames))[given:]
        true[:, 2] = np.maximum(true[:, 2], 0)
        return float(np.nanmean(((path - true) ** 2).sum(axis=1)))

    return min(MOTIONS, key=distance)


def centroid_error(frames: np.ndarray, scene: Scene, given: int = 1) -> float:
    """Mean distance of the shape's centroid from the true one, as a share of the width; 1 for a frame without a shape.

    The first `given` frames were not generated and do not count.
    """
    size = _size(frames)
    path = _generated(track(frames, scene), given)
    off = path[:, :2] - trajectory(scene, len(frames), size)[given:, :2]
    return float(np.nan_to_num(np.hypot(off[:, 0], off[:, 1]) / size, nan=1.0).mean())


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio of two uint8 arrays of one shape, in dB, at most MOST_PSNR."""
    if a.shape != b.shape or a.dtype != np.uint8 or b.dtype != np.uint8:
        raise InputError(f"psnr got {a.dtype} {a.shape} and {b.dtype} {b.shape}, expected uint8 arrays of one shape")
    error = np.mean((a.astype(np.float64) - b) ** 2)
    return float(min(10 * np.log10(255**2 / error), MOST_PSNR)) if error else MOST_PSNR


def score(frames: np.ndarray, scene: Scene, given: int = 1) -> Score:
    """Measure the generated frames of a clip, those after the first `given`; PSNR is against the true clip."""
    seen = classify(frames, scene, given)
    return Score(
        prompt=scene.prompt,
        motion=scene.motion,
        seen_motion=seen,
        followed=seen == scene.motion,
        centroid_error=centroid_error(frames, scene, given),
        psnr=psnr(frames[given:], render(scene, len(frames), _size(frames), given)),
    )


def summary(scores: Sequence[Score]) -> dict[str, Any]:
    """Totals and a table by asked motion, ready for JSON; raises InputError when there are no scores."""
    if not scores:
        raise InputError("there are no scores to sum up, expected at least one clip")
    errors = np.array([s.centroid_error for s in scores])
    motions = {}
    for motion in MOTIONS:
        mine = [s for s in scores if s.motion == motion]
        if mine:
            motions[motion] = {
                "cases": len(mine),
                "followed": sum(s.followed for s in mine) / len(mine),
                "centroid_error": sum(s.centroid_error for s in mine) / len(mine),
            }
    return {
        "cases": len(scores),
        "followed": sum(s.followed for s in scores) / len(scores),
        "centroid_error_mean": float(errors.mean()),
        "centroid_error_median": float(np.median(errors)),
        "centroid_error_max": float(errors.max()),
        "psnr_mean": sum(s.psnr for s in scores) / len(scores),
        "motions": motions,
    }


def _size(frames: np.ndarray) -> int:
    shape = frames.shape
    if frames.dtype != np.uint8 or len(shape) != 4 or not shape[0] or shape[1] != shape[2] or shape[3] != 3:
        raise InputError(f"a clip is {frames.dtype} {shape}, expected uint8 [frames, size, size, 3]")
    return int(shape[1])


def _generated(path: np.ndarray, given: int) -> np.ndarray:
    if not 0 <= given < len(path):
        raise InputError(f"given frames is {given}, expected 0 to {len(path) - 1}: at least one has to be generated")
    return path[given:]


def _cover(frames: np.ndarray, scene: Scene) -> np.ndarray:
    """How far every pixel is from the true background towards the shape's color: [frames, size, size] float64, 0..1."""
    back = background(scene, frames.shape[1])
    towards = np.asarray(COLORS[scene.color], np.float32) - back
    weight = towards / (towards**2).sum(axis=-1, keepdims=True)
    share = np.einsum("thwc,hwc->thw", frames.astype(np.float32), weight / 255) - (back * weight).sum(axis=-1)
    return np.clip((share - NOISE) / (1 - 2 * NOISE), 0, 1).astype(np.float64)
