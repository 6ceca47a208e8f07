"""Arrays are read as NumPy reads them, and what only says that it is one is refused before memory is taken."""

from __future__ import annotations

import io
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from videomar.arrays import read_array, read_arrays

SOME = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "f": np.asfortranarray(np.arange(12).reshape(3, 4)),
    "t": np.array("words"),
    "b": np.array([True, False]),
    "none": np.zeros((0, 4), np.float16),
    "one": np.float64(3.5),
}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_what_numpy_wrote_is_read(tmp_path: Path, save: object) -> None:
    save(tmp_path / "a.npz", **SOME)  # type: ignore[operator]
    found = read_arrays(tmp_path / "a.npz", 1 << 20)
    assert list(found) == list(SOME)
    for name, value in SOME.items():
        assert found[name].dtype == np.asarray(value).dtype and np.array_equal(found[name], value)
        found[name].setflags(write=True)


def npy(header: str, data: bytes = b"") -> bytes:
    text = header.encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data


def said(shape: str, descr: str = "'<f4'") -> bytes:
    return npy(f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n", b"1234")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x93NUMPY",
        said("(1099511627776,)"),
        said("(2147483648, 2147483648, 2147483648)"),
        said("(-1,)"),
        said("(2,)"),
        said("(1,)", "'|O'"),
        said("(1000000000,)", "'<U0'"),
        said("(1,)", "[('a', '<f4')]"),
        said("'x'"),
        npy("("),
        npy("{" * 3000),
        npy("'''\n"),
        b"\x93NUMPY\x09\x00" + said("(1,)")[8:],
    ],
)
def test_a_header_that_lies_costs_nothing(data: bytes) -> None:
    tracemalloc.start()
    with pytest.raises(ValueError):
        read_array(data)
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()


def test_an_array_of_one_is_read() -> None:
    assert read_array(said("(1,)")).view(np.uint8).tolist() == [*b"1234"]


def test_an_archive_that_unpacks_to_too_much_is_refused(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", a=np.zeros(1 << 22, np.uint8))
    assert (tmp_path / "a.npz").stat().st_size < 20_000
    with pytest.raises(ValueError, match="holds 4194432 bytes, expected at most 4000000"):
        read_arrays(tmp_path / "a.npz", 4_000_000)
    assert read_arrays(tmp_path / "a.npz", 5_000_000)["a"].shape == (1 << 22,)


def test_a_damaged_archive_is_a_value_error(tmp_path: Path) -> None:
    data = io.BytesIO()
    np.savez_compressed(data, a=np.arange(1000))
    whole = data.getvalue()
    for at in range(0, len(whole), 7):
        (tmp_path / "a.npz").write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
        try:
            read_arrays(tmp_path / "a.npz", 1 << 20)
        except (ValueError, OSError):
            continue
    with pytest.raises(FileNotFoundError):
        read_arrays(tmp_path / "none.npz", 1)
    with zipfile.ZipFile(tmp_path / "b.npz", "w") as archive:
        archive.writestr("a.npy", b"hello")
    with pytest.raises(ValueError):
        read_arrays(tmp_path / "b.npz", 100)
