"""Every exported function of a kernel library on a device's memory against numpy; prints one JSON list.

    python -m benchmarks.gpu.parts.kernels_check LIBRARY cuda|cpu [--brief]

--brief: a few small sizes, for tools that slow everything down. Needs numpy, and cuda-python for "cuda".
"""

from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from videomar.runtime.kernels import binding
from videomar.runtime.kernels.fallback import NumpyKernels

SIZES = ((1, 1), (3, 16), (36, 16), (129, 7), (1440, 64))  # rows, columns
CLOSE = 5 * 2.0**-23  # of the noise term: exp is rounded differently by every library


class Device(Protocol):
    """Memory and a stream; addresses are numbers."""

    stream: int | None

    def put(self, array: np.ndarray) -> int: ...

    def get(self, address: int, like: np.ndarray) -> np.ndarray: ...


class HostDevice:
    """The CPU library's: addresses of numpy arrays."""

    stream = None

    def __init__(self) -> None:
        self._held: dict[int, np.ndarray] = {}

    def put(self, array: np.ndarray) -> int:
        copy = np.array(array, order="C")
        self._held[copy.ctypes.data] = copy
        return copy.ctypes.data

    def get(self, address: int, like: np.ndarray) -> np.ndarray:
        return self._held[address]


class CudaDevice:
    """The runtime's own CUDA calls, each one checked."""

    def __init__(self) -> None:
        from videomar.runtime.backends.cuda import Cuda, Memory

        self.cuda = Cuda()
        self._stream, self._memory = self.cuda.stream(), Memory(self.cuda)
        self.stream = int(self._stream)

    def put(self, array: np.ndarray) -> int:
        dense = np.ascontiguousarray(array)
        address = self._memory.device(dense.nbytes)
        self.cuda.upload(address, dense.ctypes.data, dense.nbytes, self._stream)
        self.cuda.synchronize(self._stream)
        return address

    def get(self, address: int, like: np.ndarray) -> np.ndarray:
        made = np.empty_like(like, order="C")
        self.cuda.download(made.ctypes.data, address, made.nbytes, self._stream)
        self.cuda.synchronize(self._stream)
        return made

    def captured(self, work: Callable[[], None]) -> None:
        """Run `work` from a captured graph, twice."""
        graph = self.cuda.capture(self._stream, work)
        for _ in range(2):
            self.cuda.launch(graph, self._stream)
        self.cuda.synchronize(self._stream)
        self.cuda.destroy_graph(graph)


Rows = list[dict[str, Any]]


def guided_step(library: ctypes.CDLL, device: Device, n: int, channels: int, half: bool, branches: int) -> np.ndarray:
    """Device's result less numpy's, over what `exp` may differ by: at most 1."""
    rng = np.random.default_rng(n + channels)
    dtype = np.dtype(np.float16 if half else np.float32)
    output = rng.standard_normal((branches, n, 2 * channels), np.float32).astype(dtype)
    x, draw = (rng.standard_normal((n, channels), np.float32) for _ in range(2))
    coefficients, scale = rng.uniform(0.1, 2.0, 6).astype(np.float32), np.array([2.3], np.float32)
    expected = np.empty_like(x)
    NumpyKernels().guided_step(output, x, coefficients, draw, float(scale[0]), expected)
    at = [device.put(a) for a in (output, x, coefficients, draw, scale, np.full_like(x, np.nan))]

    def launch() -> None:
        status = library.vm_guided_step(at[0], binding.DTYPES[dtype], branches, n, channels, *at[1:6], device.stream)
        binding.check(status, "guided step")

    launch()
    got = device.get(at[5], x).copy()
    if isinstance(device, CudaDevice):  # the same from a graph; x is only read, so it may run again
        device.captured(launch)
        if not np.array_equal(device.get(at[5], x), got):
            raise AssertionError("a captured step is not the step")
    allowed = CLOSE * (np.abs(expected) + np.abs(draw) * 8 + np.abs(x) * 8)
    return np.abs(got - expected) / allowed


def scatter_tokens(library: ctypes.CDLL, device: Device, n: int, channels: int, clip: float) -> bool:
    rng = np.random.default_rng(n)
    size = 2 * n + 1
    tokens, sampled = (rng.standard_normal((rows, channels), np.float32) for rows in (size, n))
    positions, masked = rng.permutation(size)[:n].astype(np.int64), np.ones(size, np.uint8)
    at = [device.put(a) for a in (sampled, positions, tokens, masked)]
    binding.check(
        library.vm_scatter_tokens(at[0], at[1], n, channels, size, clip, at[2], at[3], device.stream), "scatter"
    )
    got = device.get(at[2], tokens), device.get(at[3], masked)
    NumpyKernels().scatter_tokens(tokens, masked, positions, sampled, clip)
    return np.array_equal(got[0], tokens) and np.array_equal(got[1], masked)


def gather_rows(library: ctypes.CDLL, device: Device, n: int, width: int, half: bool) -> bool:
    rng = np.random.default_rng(n + width)
    dtype = np.dtype(np.float16 if half else np.float32)
    table = rng.standard_normal((2 * n, width), np.float32).astype(dtype)
    positions = rng.integers(0, 2 * n, n)
    expected, made = np.empty((n, width), dtype), np.zeros((n, width), dtype)
    at = [device.put(a) for a in (table, positions, made)]
    status = library.vm_gather_rows(at[0], binding.DTYPES[dtype], at[1], n, 2 * n, width, at[2], device.stream)
    binding.check(status, "gather")
    NumpyKernels().gather_rows(table, positions, expected)
    return np.array_equal(device.get(at[2], made), expected)


def pixels_to_frame(library: ctypes.CDLL, device: Device, height: int, width: int, half: bool) -> bool:
    dtype = np.dtype(np.float16 if half else np.float32)
    pixels = np.random.default_rng(height).uniform(-1.3, 1.3, (3, 2, height, width)).astype(dtype)
    pixels.flat[0] = np.nan
    expected = np.empty((height, width, 3), np.uint8)
    at = [device.put(pixels), device.put(np.zeros_like(expected))]
    strides = [s // pixels.itemsize for s in pixels.strides]
    status = library.vm_pixels_to_frame(
        at[0], binding.DTYPES[dtype], 2, height, width, *strides, 1, at[1], device.stream
    )
    binding.check(status, "pixels")
    NumpyKernels().pixels_to_frame(pixels, 1, expected)
    return np.array_equal(device.get(at[1], expected), expected)


def checked(library: ctypes.CDLL, device: Device, brief: bool) -> Iterator[dict[str, Any]]:
    """A row a kernel and precision: the worst of all sizes."""
    sizes = SIZES[:3] if brief else SIZES
    for half in (False, True):
        precision = "FP16" if half else "FP32"
        worst = max(
            float(guided_step(library, device, *size, half, branches).max()) for size in sizes for branches in (1, 2)
        )
        yield {"kernel": f"guided step, {precision}", "equal": worst <= 1.0, "of_the_allowed_error": worst}
        for name, kernel in (("gather", gather_rows), ("pixels", pixels_to_frame)):
            yield {"kernel": f"{name}, {precision}", "equal": all(kernel(library, device, *s, half) for s in sizes)}
    for clip in (0.5, float("inf")):
        equal = all(scatter_tokens(library, device, *size, clip) for size in sizes)
        yield {"kernel": f"scatter, clip {clip}", "equal": equal}


def main() -> None:
    library = binding.load(Path(sys.argv[1]))
    device: Device = CudaDevice() if sys.argv[2] == "cuda" else HostDevice()
    print(json.dumps(list(checked(library, device, "--brief" in sys.argv))))


if __name__ == "__main__":
    main()
