"""The table of TensorRT versions is what code decides by."""

from __future__ import annotations

import pytest

from videomar.capabilities import NATIVE_OPS, TABLE, capabilities, check_graphs
from videomar.errors import InputError


@pytest.mark.parametrize(
    ("version", "rtx", "row"),
    [
        ("10.3.0.26", False, (10, 3)),
        ("10.6.0", False, (10, 3)),
        ("10.7.0", False, (10, 7)),
        ("10.13.3.9", False, (10, 13)),
        ("10.14.1", False, (10, 13)),
        ("10.15.0", False, (10, 15)),
        ("10.16.2", False, (10, 16)),
        ("11.4.1", False, (11, 0)),
        ("12.0", False, (11, 0)),
        ("1.7.1.116", True, (1, 7)),
    ],
)
def test_a_version_gets_the_newest_row_not_newer_than_itself(version: str, rtx: bool, row: tuple[int, int]) -> None:
    got = capabilities(version, rtx)
    assert (got.version, got.rtx) == (row, rtx)


@pytest.mark.parametrize(("version", "rtx"), [("10.2.0", False), ("8.6.1", False), ("1.4.0", True), ("", False)])
def test_too_old_a_version_is_refused_with_what_is_needed(version: str, rtx: bool) -> None:
    with pytest.raises(InputError, match=r"TensorRT.* expected TensorRT.* or newer; upgrade it"):
        capabilities(version, rtx)


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_every_row_builds_portable_graphs_and_native_ones_only_with_all_their_operators(row: object) -> None:
    check_graphs(row, "portable", 18)  # type: ignore[arg-type]
    if row.native_ops == NATIVE_OPS:  # type: ignore[attr-defined]
        check_graphs(row, "native", 24)  # type: ignore[arg-type]
        return
    with pytest.raises(InputError, match=r"has no Attention.*TensorScatter; export with --emitter portable"):
        check_graphs(row, "native", 24)  # type: ignore[arg-type]


def test_an_opset_newer_than_the_parser_is_refused() -> None:
    with pytest.raises(InputError, match=r"opset 23, TensorRT 10\.3 reads up to 20"):
        check_graphs(capabilities("10.3"), "portable", 23)


def test_weak_typing_ends_with_the_ten_series() -> None:
    assert {row.name for row in TABLE if row.weak_typing} == {row.name for row in TABLE if row.version[0] == 10}
    assert all("device_memory_size" not in row.memory_size for row in TABLE if not row.weak_typing)


def test_only_rtx_names_the_gpus_it_compiles_for() -> None:
    assert [sorted(row.gpus) for row in TABLE if row.gpus] == [[75, 80, 86, 89, 120, 121]]
