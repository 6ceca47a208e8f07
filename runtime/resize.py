"""Frames of any size -> frames of the clip's size: cropped or stretched, bilinear with antialias. NumPy only.

The filter is the one of `torch.nn.functional.interpolate(mode="bilinear", antialias=True)`, of torchvision's Resize and
of Pillow's BILINEAR: a triangle as wide as two source pixels when growing and as two target pixels when shrinking.
"""

from __future__ import annotations

import numpy as np

from videomar.config import FITS


def fit(frames: np.ndarray, height: int, width: int, how: str = "crop") -> np.ndarray:
    """Frames of another size: uint8 [h, w, 3] or [t, h, w, 3] -> [..., height, width, 3].

    how: "crop" keeps the picture's shape and the centre of it, "stretch" keeps all of it and squeezes it into shape.
    Frames that have the size already are returned untouched. Raises ValueError for other arrays and other words.
    """
    if frames.dtype != np.uint8 or frames.ndim not in (3, 4) or frames.shape[-1] != 3 or not frames.size:
        raise ValueError(f"got {frames.dtype} {list(frames.shape)}, expected uint8 [..., height, width, 3], not empty")
    if how not in FITS:
        raise ValueError(f"how is {how!r}, expected one of {', '.join(FITS)}")
    h, w = frames.shape[-3:-1]
    if (h, w) == (height, width):
        return frames
    if how == "crop":  # before scaling, or a long thin picture would be scaled to something enormous
        crop_h, crop_w = min(h, max(1, round(w * height / width))), min(w, max(1, round(h * width / height)))
        top, left = (h - crop_h) // 2, (w - crop_w) // 2
        frames = frames[..., top : top + crop_h, left : left + crop_w, :]
    rows, columns = frames.shape[-3] != height, frames.shape[-2] != width
    if not rows and not columns:
        return np.ascontiguousarray(frames)
    scaled = [_scaled(frame, height, width) for frame in frames.reshape(-1, *frames.shape[-3:])]
    return np.stack(scaled).reshape(*frames.shape[:-3], height, width, 3)


def _scaled(frame: np.ndarray, height: int, width: int) -> np.ndarray:
    """[h, w, 3] uint8 -> [height, width, 3] uint8; by rows: a photo in FP32 takes four times its bytes."""
    level: np.ndarray = _rows(_rows(frame, height).swapaxes(0, 1), width).swapaxes(0, 1)
    return np.ascontiguousarray((np.clip(level, 0, 255) + np.float32(0.5)).astype(np.uint8))


def _rows(frame: np.ndarray, count: int) -> np.ndarray:
    """[n, m, 3] -> [count, m, 3] float32: every new row is a weighted mean of old ones."""
    if len(frame) == count:
        return frame.astype(np.float32)
    new = np.empty((count, *frame.shape[1:]), np.float32)
    scale = len(frame) / count
    reach = max(scale, 1.0)
    for row in range(count):
        centre = (row + 0.5) * scale
        first, last = max(0, int(centre - reach + 0.5)), min(len(frame), int(centre + reach + 0.5))
        weights = 1 - np.abs(np.arange(first, last) + 0.5 - centre) / reach
        new[row] = np.tensordot((weights / weights.sum()).astype(np.float32), frame[first:last].astype(np.float32), 1)
    return new
