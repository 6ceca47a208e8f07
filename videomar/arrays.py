"""Arrays out of NumPy's files, which may say that they hold anything: sizes are looked at before memory is taken.

Knows nothing of what the arrays mean. Unpickles nothing.
"""

from __future__ import annotations

import io
import math
import zipfile
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.lib import format as npy

from videomar.files import regular

Arrays = dict[str, np.ndarray]
KINDS = "biufU"  # truth values, numbers and text


def read_arrays(path: Path, most: int) -> Arrays:
    """Every array of an .npz of at most `most` bytes unpacked.

    Raises OSError for a file that cannot be read, ValueError for any other that is none, or that holds more.
    """
    try:
        with zipfile.ZipFile(regular(path)) as archive:
            total = sum(member.file_size for member in archive.infolist())
            if total > most:
                raise ValueError(f"it holds {total} bytes, expected at most {most}")
            return {member.filename.removesuffix(".npy"): _read(archive.read(member)) for member in archive.infolist()}
    except OSError:
        raise
    except Exception as error:  # zipfile and its compressions tell damage in a dozen ways, some of them undocumented
        raise ValueError(str(error) or type(error).__name__) from None


def read_array(data: bytes) -> np.ndarray:
    """The array of a .npy file; raises ValueError for any other data."""
    return _read(data)


def _read(data: bytes) -> np.ndarray:
    file = io.BytesIO(data)
    try:
        shape, fortran, dtype = _header(file)
    except Exception as error:  # the header is a Python literal, which fails in as many ways as Python
        raise ValueError(f"a damaged array ({error!s:.60})") from None
    if dtype.kind not in KINDS or not dtype.itemsize or any(type(n) is not int or n < 0 for n in shape):
        raise ValueError(f"an array of {dtype!s:.40} {list(shape)!s:.40}, expected numbers")
    size, left = math.prod(shape) * dtype.itemsize, len(data) - file.tell()
    if size != left:
        raise ValueError(f"an array of {size} bytes, of which {left} are there")
    flat = np.frombuffer(data, dtype, math.prod(shape), file.tell()) if size else np.zeros(math.prod(shape), dtype)
    array: np.ndarray = flat.reshape(shape, order="F" if fortran else "C").copy()
    return array


def _header(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = npy.read_magic(file)
    reader = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(version)
    if reader is None:
        raise ValueError(f"an array of format {version}, expected 1.0 or 2.0")
    return reader(file)
