"""The loop's small computations outside the engines, natively where a library was built, else in numpy.

    guided_step       guidance and one diffusion step    scatter_tokens    sampled rows into the frame, mask cleared
    pixels_to_frame   a decoded frame as 8-bit RGB       gather_rows       rows at positions

Both ways give the same numbers (docs/kernels.md says how nearly). Arrays of a wrong shape, dtype or layout are our bug:
ValueError; positions out of range: IndexError, with nothing written. Knows nothing of engines, schedules or files.
"""

from __future__ import annotations

import functools
import math
import os
import warnings
from typing import Any, Protocol

import numpy as np

from videomar.runtime.kernels.binding import BUILD, DTYPES, VARIABLE, NativeKernels, find
from videomar.runtime.kernels.fallback import NumpyKernels

__all__ = ["available", "gather_rows", "guided_step", "pixels_to_frame", "scatter_tokens"]

Dtypes = tuple["np.dtype[Any]", ...]
FLOATS: Dtypes = tuple(DTYPES)
F32: Dtypes = (np.dtype(np.float32),)
I64: Dtypes = (np.dtype(np.int64),)
FLAGS: Dtypes = (np.dtype(np.bool_), np.dtype(np.uint8))


class Kernels(Protocol):
    """What both implementations offer; arguments are checked already."""

    name: str

    def guided_step(
        self,
        output: np.ndarray,
        x: np.ndarray,
        coefficients: np.ndarray,
        draw: np.ndarray,
        scale: float,
        out: np.ndarray,
    ) -> None: ...

    def scatter_tokens(
        self, tokens: np.ndarray, masked: np.ndarray, positions: np.ndarray, sampled: np.ndarray, clip: float
    ) -> None: ...

    def gather_rows(self, table: np.ndarray, positions: np.ndarray, out: np.ndarray) -> None: ...

    def pixels_to_frame(self, pixels: np.ndarray, frame: int, out: np.ndarray) -> None: ...


@functools.cache
def implementation() -> Kernels:
    """What this process uses, chosen at the first call; VIDEOMAR_KERNELS=numpy asks for numpy.

    Raises ArtifactError for a library that is found but cannot be used. Warns, once, when none is found.
    """
    if os.environ.get(VARIABLE) == "numpy":
        return NumpyKernels()
    path = find()
    if path is not None:
        return NativeKernels(path)
    warnings.warn(
        f"native kernels are not built, numpy is used: same result, slower; build them with {BUILD}, "
        f"or set {VARIABLE}=numpy",
        RuntimeWarning,
        stacklevel=3,  # who called guided_step or its like
    )
    return NumpyKernels()


def available() -> str:
    """What the kernels run on: "numpy", or the library's build, e.g. "cpu x86_64, GNU 12.2.0"."""
    return implementation().name


def guided_step(
    output: np.ndarray,
    x: np.ndarray,
    coefficients: np.ndarray,
    draw: np.ndarray,
    scale: float,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Guidance and one ancestral diffusion step, in FP32; `videomar.model.head.ancestral_step` after guidance.

    output: the head's, [branches, N, 2C] float32 or float16, noise then variance; text first, `fake_latent` last.
    x: [N, C] float32. coefficients: [6] float32, a row of DiffusionSchedule. draw: [N, C] float32, times temperature.
    Returns the next x, [N, C] float32; `out` may be x.
    """
    _check("x", x, F32, (None, None))
    n, channels = x.shape
    _check("output", output, FLOATS, (None, n, 2 * channels))
    if len(output) not in (1, 2):
        raise ValueError(f"output has {len(output)} branches, expected 1 or 2")
    _check("coefficients", coefficients, F32, (6,))
    _check("draw", draw, F32, (n, channels))
    out = np.empty_like(x) if out is None else out
    _check("out", out, F32, (n, channels), writable=True)
    _check_apart(out, output, draw, coefficients)
    if out is not x and np.may_share_memory(out, x) and out.ctypes.data != x.ctypes.data:
        raise ValueError("out overlaps x in part, expected x itself or other memory")
    implementation().guided_step(output, x, coefficients, draw, scale, out)
    return out


def scatter_tokens(
    tokens: np.ndarray, masked: np.ndarray, positions: np.ndarray, sampled: np.ndarray, clip: float | None = None
) -> None:
    """Write sampled rows into the frame at `positions`, within [-clip, clip] if given, and clear their mask; in place.

    tokens: [S, C] float32. masked: [S] bool or uint8. positions: [N] int64, distinct. sampled: [N, C] float32.
    """
    _check("tokens", tokens, F32, (None, None), writable=True)
    _check("masked", masked, FLAGS, (len(tokens),), writable=True)
    _check("positions", positions, I64, (None,))
    _check("sampled", sampled, F32, (len(positions), tokens.shape[1]))
    if tokens.shape[1] == 0:
        raise ValueError("tokens have no channels, expected at least 1")
    if clip is not None and not clip >= 0:
        raise ValueError(f"clip is {clip}, expected at least 0")
    _check_apart(tokens, masked, positions, sampled)
    _check_apart(masked, positions, sampled)
    implementation().scatter_tokens(tokens, masked, positions, sampled, math.inf if clip is None else clip)


def gather_rows(table: np.ndarray, positions: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """Rows of `table` at `positions`: [S, W] float32 or float16, [N] int64 -> [N, W]."""
    _check("table", table, FLOATS, (None, None))
    _check("positions", positions, I64, (None,))
    shape = (len(positions), table.shape[1])
    out = np.empty(shape, table.dtype) if out is None else out
    _check("out", out, (table.dtype,), shape, writable=True)
    _check_apart(out, table, positions)
    implementation().gather_rows(table, positions, out)
    return out


def pixels_to_frame(pixels: np.ndarray, frame: int = 0, out: np.ndarray | None = None) -> np.ndarray:
    """One frame of pixels in [-1, 1] as 8-bit RGB, rounded half up and clipped; NaN becomes 0.

    pixels: [3, H, W] or [3, T, H, W] float32 or float16, of any strides. Returns [H, W, 3] uint8.
    """
    pixels = pixels[:, None] if pixels.ndim == 3 else pixels
    _check("pixels", pixels, FLOATS, (3, None, None, None), dense=False)
    if not 0 <= frame < pixels.shape[1]:
        raise IndexError(f"frame is {frame}, expected 0 to {pixels.shape[1] - 1}")
    shape = (*pixels.shape[2:], 3)
    out = np.empty(shape, np.uint8) if out is None else out
    _check("out", out, (np.dtype(np.uint8),), shape, writable=True)
    _check_apart(out, pixels)
    implementation().pixels_to_frame(pixels, frame, out)
    return out


def _check(
    name: str,
    array: np.ndarray,
    dtypes: Dtypes,
    shape: tuple[int | None, ...],
    writable: bool = False,
    dense: bool = True,
) -> None:
    """Shape (None is any size), dtype and layout: the kernels believe what they are told."""
    if array.dtype not in dtypes:
        raise ValueError(f"{name} is {array.dtype}, expected {' or '.join(str(dtype) for dtype in dtypes)}")
    if array.shape != shape:
        if array.ndim != len(shape) or any(
            want not in (None, got) for want, got in zip(shape, array.shape, strict=True)
        ):
            raise ValueError(f"{name} is {list(array.shape)}, expected {['any' if s is None else s for s in shape]}")
    if dense and not array.flags.c_contiguous:
        raise ValueError(f"{name} is not contiguous")
    if not array.flags.aligned or (writable and not array.flags.writeable):
        raise ValueError(f"{name} is {'read-only' if array.flags.aligned else 'not aligned'}")


def _check_apart(written: np.ndarray, *others: np.ndarray) -> None:
    if any(np.may_share_memory(written, other) for other in others):
        raise ValueError("an output overlaps an input")
