"""Hundreds of damaged files: each is read or refused in one line, soon and in little memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.mutate import Kind, attempt, kinds, mutants, prepare, try_kind
from videomar.errors import InputError

FEW = ("manifest", "pack's manifest", "pack's clip", "pack's inputs", "pack's outputs")  # those that take longer
NAMES = (
    "manifest",
    "manifest, to be built",
    "manifest, inspected and planned",
    "manifest of engines",
    "config",
    "weights",
    "tokenizer",
    "graph",
    "pack's manifest",
    "pack's clip",
    "pack's inputs",
    "pack's outputs",
    "calibration",
    "ranges",
    "embedding",
    "picture",
    "clip",
    "clip, its beginning",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_artifacts: Path, tiny_checkpoint: Path) -> Path:
    place = tmp_path_factory.mktemp("files")
    prepare(place, tiny_artifacts, tiny_checkpoint)
    return place


def test_every_kind_is_tried(folder: Path) -> None:
    assert tuple(kinds(folder)) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_file_is_read_or_refused(folder: Path, name: str) -> None:
    kind = kinds(folder)[name]
    whole = (folder / kind.file).read_bytes()
    kind.read(folder / kind.file)  # whole, it is read
    outcome = try_kind(name, kind, folder, 25 if name in FEW else 50, seed=1)
    assert outcome.faults == []
    assert outcome.cases["refused"] > 5
    assert (folder / kind.file).read_bytes() == whole


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (InputError("a line"), "refused"),
        (InputError("two\nlines"), "a message of 9"),
        (KeyError("x"), "KeyError: 'x'"),
        (None, "read"),
    ],
)
def test_what_is_no_line_of_text_is_a_fault(error: Exception | None, said: str) -> None:
    def act() -> None:
        if error:
            raise error

    assert attempt(act)[0] == said


def test_a_kind_whose_reader_breaks_is_reported(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"x": [1, 2]}')

    def read(file: Path) -> None:
        raise RuntimeError("broken")

    outcome = try_kind("a", Kind("a.json", read), tmp_path, 5, 0)
    assert len(outcome.faults) == 5 == outcome.cases["fault"] and "RuntimeError: broken" in outcome.faults[0]


def test_the_same_seed_damages_the_same_way() -> None:
    data = b'{"a": {"b": [1, 2, 3]}, "c": "d"}'
    made, again = (mutants(data, "a.json", np.random.default_rng(4)) for _ in range(2))
    first, second = ([next(made) for _ in range(20)] for _ in range(2))
    assert first != second  # it goes on
    assert [next(again) for _ in range(20)] == first
