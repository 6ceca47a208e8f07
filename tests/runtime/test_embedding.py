"""Prompt embeddings in a file: what was made is what is given, and nothing else is taken."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path

import numpy as np
import pytest

from videomar.config import TextConfig
from videomar.errors import InputError
from videomar.runtime.embedding import PromptEmbedding

TEXT = TextConfig(width=8, max_tokens=5)
STATES = np.arange(24, dtype=np.float32).reshape(1, 3, 8)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    PromptEmbedding("a red circle", STATES, TEXT).save(tmp_path / "e.npz")
    return tmp_path / "e.npz"


def rewrite(file: Path, **changes: object) -> None:
    with np.load(file) as found:
        np.savez(file, **{**dict(found), **changes})


def test_a_file_gives_back_what_was_saved(file: Path) -> None:
    loaded = PromptEmbedding.load(file, TEXT)
    assert loaded.prompt == "a red circle" and loaded.text == TEXT
    assert loaded.states.dtype == np.float32 and np.array_equal(loaded.states, STATES)
    with np.load(file) as plain:  # anybody's numpy reads it
        assert np.array_equal(plain["states"], STATES)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "is of format 2, expected 1"),
        ({"text": "rubbish"}, "does not say which text encoder made it"),
        ({"states": STATES.astype(np.float64)}, r"holds float64 \[1, 3, 8\], expected float32 \[1, tokens, 8\]"),
        ({"states": STATES[0]}, r"holds float32 \[3, 8\]"),
        ({"states": STATES[:, :, :7]}, r"expected float32 \[1, tokens, 8\]"),
        ({"states": STATES[:, :0]}, "holds 0 tokens, expected 1 to 5"),
        ({"states": np.tile(STATES, (1, 2, 1))}, "holds 6 tokens, expected 1 to 5"),
        ({"states": STATES * np.nan}, "of finite numbers"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(file: Path, changes: dict[str, object], message: str) -> None:
    rewrite(file, **changes)
    with pytest.raises(InputError, match=message):
        PromptEmbedding.load(file, TEXT)


def test_another_models_file_is_refused_by_name(file: Path) -> None:
    with pytest.raises(InputError, match="another text encoder: depth is 28, this model has 2"):
        PromptEmbedding.load(file, dataclasses.replace(TEXT, depth=2))


@pytest.mark.parametrize("content", [b"", b"no archive", pickle.dumps({"states": 1})])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(InputError, match="is not a NumPy archive"):
        PromptEmbedding.load(tmp_path / "x.npz", TEXT)


def test_objects_are_never_unpickled(file: Path) -> None:
    rewrite(file, states=np.array([{}], object))
    with pytest.raises(InputError, match="is not a NumPy archive"):
        PromptEmbedding.load(file, TEXT)


def test_a_missing_file_and_a_missing_key_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist, expected text embeddings; make it with `videomar embed"):
        PromptEmbedding.load(tmp_path / "none.npz", TEXT)
    np.savez(tmp_path / "e.npz", format=1)
    with pytest.raises(InputError, match="has no 'prompt'"):
        PromptEmbedding.load(tmp_path / "e.npz", TEXT)
