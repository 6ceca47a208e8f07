"""The kernels in numpy: what runs where no library was built, and what the library is compared with.

Same operations in the same order and precision as elements.h. Knows nothing of argument checks: `__init__` makes them.
"""

from __future__ import annotations

import numpy as np


class NumpyKernels:
    """videomar_kernels.h on numpy arrays; a position out of range raises IndexError before anything is written."""

    name = "numpy"

    def guided_step(
        self,
        output: np.ndarray,
        x: np.ndarray,
        coefficients: np.ndarray,
        draw: np.ndarray,
        scale: float,
        out: np.ndarray,
    ) -> None:
        """Guidance and one ancestral step in FP32, into `out` [N, C], which may be x."""
        a, b, p, q, low, high = coefficients
        values, channels = output.astype(np.float32, copy=False), x.shape[1]
        noise, variance = values[0, :, :channels], values[0, :, channels:]
        with np.errstate(all="ignore"):  # as in C: an overflow is an infinity, not a warning
            if len(values) == 2:
                without = values[1, :, :channels]
                noise = without + np.float32(scale) * (noise - without)
            share = (variance + np.float32(1)) / np.float32(2)
            start = a * x - b * noise
            deviation = np.exp(np.float32(0.5) * (share * high + (np.float32(1) - share) * low))
            out[...] = p * start + q * x + deviation * draw

    def scatter_tokens(
        self, tokens: np.ndarray, masked: np.ndarray, positions: np.ndarray, sampled: np.ndarray, clip: float
    ) -> None:
        """tokens[positions] = sampled within [-clip, clip]; masked[positions] = 0."""
        _check_positions(positions, len(tokens))
        tokens[positions] = np.clip(sampled, np.float32(-clip), np.float32(clip))
        masked[positions] = 0

    def gather_rows(self, table: np.ndarray, positions: np.ndarray, out: np.ndarray) -> None:
        """out[i] = table[positions[i]]."""
        _check_positions(positions, len(table))
        out[...] = table[positions]

    def pixels_to_frame(self, pixels: np.ndarray, frame: int, out: np.ndarray) -> None:
        """One frame of [3, T, H, W] in [-1, 1] as [H, W, 3] uint8, rounded half up."""
        with np.errstate(all="ignore"):
            values = pixels[:, frame].astype(np.float32)
            level = np.floor((values + np.float32(1)) * np.float32(127.5) + np.float32(0.5))
            level = np.where(level > 0, np.minimum(level, np.float32(255)), np.float32(0))  # NaN > 0 is false
        out[...] = level.astype(np.uint8).transpose(1, 2, 0)


def _check_positions(positions: np.ndarray, size: int) -> None:
    """Unlike numpy's own indexing, refuse negative positions too."""
    if positions.size and not (positions.min() >= 0 and positions.max() < size):
        raise IndexError(f"positions reach from {positions.min()} to {positions.max()}, expected 0 to {size - 1}")
