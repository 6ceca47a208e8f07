"""What installing promises: least versions that are tried, extras that the README names, an untouched home."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from videomar.export.sources import BuildOptions, _timing_cache
from videomar.fingerprint import Machine

ROOT = Path(__file__).parents[1]
PYPROJECT = (ROOT / "pyproject.toml").read_text()


def test_the_least_version_of_every_dependency_is_tried() -> None:
    spec = importlib.util.spec_from_file_location("lowest", ROOT / ".ci" / "lowest.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    text = 'dependencies = [\n    "numpy>=1.26",\n    "av>=15",\n    "a-b>=1.2.3",\n]\nother = ["x>=1"]\n'
    assert module.lowest(text) == ["numpy==1.26.0.*", "av==15.0.0.*", "a-b==1.2.3.*"]
    listed = re.search(r"^dependencies = \[\n(.*?)^\]", PYPROJECT, re.M | re.S)
    assert listed and len(module.lowest(PYPROJECT)) == listed[1].count('"') // 2 >= 6


def test_the_readme_has_a_row_for_every_extra() -> None:
    extras = PYPROJECT.split("[project.optional-dependencies]\n")[1].split("\n[")[0]
    names = re.findall(r"^(\w+) = \[", extras, re.M)
    rows = re.findall(r"^\| `(\w+)` \|", (ROOT / "README.md").read_text(), re.M)
    assert sorted(rows) == sorted(names) and len(rows) >= 5


def test_a_timing_cache_lies_in_the_sessions_folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    place = _timing_cache(BuildOptions(), Machine("TensorRT", "10.3.0", "12.6", "Orin", "87"))
    assert place and Path(place).is_relative_to(tmp_path_factory.getbasetemp())
