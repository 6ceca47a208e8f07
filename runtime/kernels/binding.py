"""The native kernels by ctypes: where the library is found, that it is ours, and how its functions are called.

One signature table serves libvideomar_kernels.so and libvideomar_kernels_cuda.so; NativeKernels calls the first on
numpy arrays, a GPU backend calls what `load` returns for the second with device pointers and a stream.
Knows nothing of argument checks: `__init__` makes them.
"""

from __future__ import annotations

import ctypes
import os
from ctypes import c_char_p, c_float, c_int, c_int32, c_int64, c_void_p
from pathlib import Path
from typing import Any

import numpy as np

from videomar.errors import ArtifactError

ABI_VERSION = 1  # VM_ABI_VERSION of videomar_kernels.h
CPU_LIBRARY, CUDA_LIBRARY = "libvideomar_kernels.so", "libvideomar_kernels_cuda.so"
VARIABLE = "VIDEOMAR_KERNELS"
BUILD = "cmake -S . -B build && cmake --build build"

OK, BAD_ARGUMENT, BAD_POSITION, LAUNCH_FAILED = range(4)
DTYPES: dict[np.dtype[Any], int] = {np.dtype(np.float32): 0, np.dtype(np.float16): 1}

SIGNATURES: dict[str, tuple[type, ...]] = {
    # output, dtype, branches, n, channels, x, coefficients, draw, scale, next, stream
    "vm_guided_step": (c_void_p, c_int32, *[c_int64] * 3, *[c_void_p] * 6),
    # sampled, positions, n, channels, size, clip, tokens, masked, stream
    "vm_scatter_tokens": (c_void_p, c_void_p, *[c_int64] * 3, c_float, *[c_void_p] * 3),
    # table, dtype, positions, n, size, width, rows, stream
    "vm_gather_rows": (c_void_p, c_int32, c_void_p, *[c_int64] * 3, c_void_p, c_void_p),
    # pixels, dtype, frames, height, width, strides (channel, frame, row, column), frame, rgb, stream
    "vm_pixels_to_frame": (c_void_p, c_int32, *[c_int64] * 8, c_void_p, c_void_p),
}


def find(name: str = CPU_LIBRARY) -> Path | None:
    """The library called `name`: where VIDEOMAR_KERNELS says (a file or directory), here, or in the checkout's build/.

    Raises ArtifactError when VIDEOMAR_KERNELS names nothing; None when there is just no library.
    """
    here = Path(__file__).resolve().parent
    candidates = [here / name, here.parents[1] / "build" / name]
    told = os.environ.get(VARIABLE)
    if told:
        place = Path(told)
        if not place.exists():
            raise ArtifactError(f"{VARIABLE} is {told}, which does not exist; unset it, or build there: {BUILD}")
        # A file is the CPU library under whatever name; other libraries lie beside it.
        candidates = [place / name if place.is_dir() else place if name == CPU_LIBRARY else place.parent / name]
    return next((path for path in candidates if path.is_file()), None)


def load(path: Path) -> ctypes.CDLL:
    """Open a kernel library, of either kind, with all signatures set. No GPU or driver is needed to load.

    Raises ArtifactError for a file that cannot be loaded, is not ours or has another ABI version.
    """
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise ArtifactError(f"{path} cannot be loaded ({error}); build it on this machine: {BUILD}") from error
    try:
        version = library.vm_abi_version()
        if version != ABI_VERSION:
            raise ArtifactError(f"{path} has kernel ABI version {version}, expected {ABI_VERSION}; rebuild it: {BUILD}")
        library.vm_build_info.restype = c_char_p
        for name, arguments in SIGNATURES.items():
            function = getattr(library, name)
            function.argtypes, function.restype = arguments, c_int
    except AttributeError as error:
        raise ArtifactError(f"{path} is not a VideoMAR kernel library ({error}); rebuild it: {BUILD}") from error
    return library


class NativeKernels:
    """videomar_kernels.h on numpy arrays; a position out of range raises IndexError before anything is written.

    Raises ArtifactError as `load` does, and for a CUDA library, which would take host memory for a GPU's.
    """

    def __init__(self, path: Path) -> None:
        self._library = load(path)
        self.name = self._library.vm_build_info().decode()
        if not self.name.startswith("cpu"):
            raise ArtifactError(f"{path} is built for {self.name}, expected the CPU library {CPU_LIBRARY} beside it")

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
        status = self._library.vm_guided_step(
            output.ctypes.data,
            DTYPES[output.dtype],
            len(output),
            *x.shape,
            x.ctypes.data,
            coefficients.ctypes.data,
            draw.ctypes.data,
            ctypes.byref(c_float(scale)),
            out.ctypes.data,
            None,
        )
        check(status, "guided step")

    def scatter_tokens(
        self, tokens: np.ndarray, masked: np.ndarray, positions: np.ndarray, sampled: np.ndarray, clip: float
    ) -> None:
        """tokens[positions] = sampled within [-clip, clip]; masked[positions] = 0."""
        status = self._library.vm_scatter_tokens(
            sampled.ctypes.data,
            positions.ctypes.data,
            *sampled.shape,
            len(tokens),
            clip,
            tokens.ctypes.data,
            masked.ctypes.data,
            None,
        )
        check(status, f"scatter into {len(tokens)} tokens")

    def gather_rows(self, table: np.ndarray, positions: np.ndarray, out: np.ndarray) -> None:
        """out[i] = table[positions[i]]."""
        status = self._library.vm_gather_rows(
            table.ctypes.data,
            DTYPES[table.dtype],
            positions.ctypes.data,
            len(positions),
            *table.shape,
            out.ctypes.data,
            None,
        )
        check(status, f"gather from {len(table)} rows")

    def pixels_to_frame(self, pixels: np.ndarray, frame: int, out: np.ndarray) -> None:
        """One frame of [3, T, H, W] in [-1, 1] as [H, W, 3] uint8, rounded half up."""
        status = self._library.vm_pixels_to_frame(
            pixels.ctypes.data,
            DTYPES[pixels.dtype],
            *pixels.shape[1:],
            *(stride // pixels.itemsize for stride in pixels.strides),
            frame,
            out.ctypes.data,
            None,
        )
        check(status, f"frame {frame} of {pixels.shape[1]}")


def check(status: int, what: str) -> None:
    """Raise what a kernel's status means: ValueError, IndexError or, for a launch that CUDA refused, RuntimeError."""
    if status == BAD_ARGUMENT:
        raise ValueError(f"{what}: the kernel refused its arguments")
    if status == BAD_POSITION:
        raise IndexError(f"{what}: a position is out of range")
    if status != OK:
        raise RuntimeError(f"{what}: CUDA refused the launch; vm_build_info names the architectures it was built for")
