"""Clips as people have them: several containers, codecs, sizes and rates, with a sentence each."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

NAMES = ["a.mp4", "b.avi", "c.webm", "d.mov", "e.mkv", "ein Ball, von rechts.m4v"]


@pytest.fixture(scope="session")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the example's clips with captions.jsonl in it."""
    spec = importlib.util.spec_from_file_location("clips", Path(__file__).parents[2] / "examples" / "clips.py")
    assert spec is not None and spec.loader is not None
    clips = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(clips)
    folder = tmp_path_factory.mktemp("films")
    clips.write_folder(folder, NAMES)
    return folder


@pytest.fixture(scope="session")
def own_clips(films: Path) -> list[str]:
    """The options that train on them."""
    return ["--clips", str(films), "--captions", str(films / "captions.jsonl")]
