"""What is split is joined to the same bytes, and nothing else is ever joined."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.gpu.wheels import SliceError, join, split


@given(data=st.binary(min_size=1, max_size=400), size=st.integers(1, 500))
def test_a_file_is_the_same_after_any_split(tmp_path_factory: pytest.TempPathFactory, data: bytes, size: int) -> None:
    place = tmp_path_factory.mktemp("split")
    (place / "a.whl").write_bytes(data)
    slices = split(place / "a.whl", place / "slices", size)
    assert all(0 < len(s.read_bytes()) <= size for s in slices) and len(slices) == -(-len(data) // size)
    (whole,) = join(place / "slices", place / "out")
    assert whole.name == "a.whl" and whole.read_bytes() == data


@pytest.fixture
def slices(tmp_path: Path) -> Path:
    for name in ("a.whl", "b.whl"):
        (tmp_path / name).write_bytes(bytes(range(100)))
        split(tmp_path / name, tmp_path / "slices", 40)
    (tmp_path / "slices" / "c.whl").write_bytes(b"whole")
    return tmp_path / "slices"


def test_slices_may_come_one_after_another(slices: Path, tmp_path: Path) -> None:
    late = (slices / "b.whl.002").rename(tmp_path / "late")
    with pytest.raises(SliceError, match=r"b\.whl\.002 is missing"):
        join(slices, tmp_path / "out")
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"a.whl", "c.whl"}  # what was whole is there
    late.rename(slices / "b.whl.002")
    assert {p.name for p in join(slices, tmp_path / "out")} == {"a.whl", "b.whl", "c.whl"}


def test_a_slice_whose_index_is_missing_is_no_file_of_its_own(slices: Path, tmp_path: Path) -> None:
    (slices / "a.whl.slices.json").unlink()
    with pytest.raises(SliceError, match=r"^a\.whl\.slices\.json is missing$"):
        join(slices, tmp_path / "out")
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"b.whl", "c.whl"}


def test_an_altered_slice_is_never_joined(slices: Path, tmp_path: Path) -> None:
    data = bytearray((slices / "a.whl.001").read_bytes())
    data[7] ^= 1
    (slices / "a.whl.001").write_bytes(data)
    with pytest.raises(SliceError, match=r"a\.whl\.001 is altered"):
        join(slices, tmp_path / "out")
    assert not (tmp_path / "out" / "a.whl").exists()


def test_a_joined_file_that_was_altered_is_joined_again(slices: Path, tmp_path: Path) -> None:
    join(slices, tmp_path / "out")
    (tmp_path / "out" / "a.whl").write_bytes(bytes(100))
    join(slices, tmp_path / "out")
    assert (tmp_path / "out" / "a.whl").read_bytes() == bytes(range(100))
