"""What is installed: every package and nothing else, under the one name `videomar`."""

from __future__ import annotations

import hashlib
import importlib.util
import re
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = {"torch", "onnx", "onnx-ir", "onnxscript", "diffusers", "transformers", "safetensors"}
APACHE = "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"


def load_wheels() -> ModuleType:
    spec = importlib.util.spec_from_file_location("wheels", Path(__file__).with_name("wheels.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


wheels = load_wheels()


@pytest.fixture(scope="module")
def pyproject() -> dict[str, Any]:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no TOML reader")
    with open(ROOT / "pyproject.toml", "rb") as file:
        return dict(tomllib.load(file))


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    return zipfile.ZipFile(wheels.build(tmp_path_factory.getbasetemp() / "wheel"))


def requirement(line: str) -> str:
    """The package's name."""
    return re.split(r"[^\w.-]", line.strip())[0].lower()


def test_every_folder_with_code_is_a_package_that_pyproject_lists(pyproject: dict[str, Any]) -> None:
    files = [PurePosixPath(name) for name in wheels.sources()]
    packages = {".".join(file.parent.parts) for file in files if file.name == "__init__.py"}
    assert {".".join(file.parent.parts) for file in files} == packages, "a folder of code lacks its __init__.py"
    listed = pyproject["tool"]["setuptools"]["packages"]
    assert sorted(listed) == sorted(packages)


def test_every_top_level_folder_is_mapped_below_videomar_and_its_bare_name_banned(pyproject: dict[str, Any]) -> None:
    present = {package: folder for package, folder in wheels.FOLDERS.items() if (ROOT / folder).is_dir()}
    assert pyproject["tool"]["setuptools"]["package-dir"] == present
    banned = pyproject["tool"]["ruff"]["lint"]["flake8-tidy-imports"]["banned-api"]
    assert set(present.values()) - {"videomar"} <= set(banned)


def test_the_runtimes_dependencies_hold_nothing_of_the_export(pyproject: dict[str, Any]) -> None:
    needed = {requirement(line) for line in pyproject["project"]["dependencies"]}
    assert {"numpy", "onnxruntime", "av"} <= needed and not needed & HEAVY
    export = pyproject["project"]["optional-dependencies"]["export"]
    # What only fills a gap of an older Python is small.
    assert HEAVY == {requirement(line) for line in export if "python_version" not in line}


def test_the_wheel_holds_one_top_level_name(wheel: zipfile.ZipFile) -> None:
    top = {name.split("/")[0] for name in wheel.namelist()}
    assert {name for name in top if not re.fullmatch(r"videomar-[\d.]+\.dist-info", name)} == {"videomar"}


def test_the_wheel_holds_every_python_file_of_the_source_tree_and_no_other(wheel: zipfile.ZipFile) -> None:
    packed = {name for name in wheel.namelist() if name.endswith(".py")}
    assert packed == set(wheels.sources())
    for name, file in wheels.sources().items():
        assert wheel.read(name) == file.read_bytes(), name
    assert "videomar/py.typed" in wheel.namelist()


def test_the_wheel_makes_the_command_and_asks_for_the_export_packages_only_as_an_extra(wheel: zipfile.ZipFile) -> None:
    (metadata,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    always = [r for r in Parser().parsestr(wheel.read(metadata).decode()).get_all("Requires-Dist", []) if ";" not in r]
    assert always and not {requirement(line) for line in always} & HEAVY
    entry_points = wheel.read(metadata.replace("METADATA", "entry_points.txt")).decode()
    assert "videomar = videomar.cli:main" in entry_points


def test_the_wheel_says_its_licence_and_holds_its_whole_text(wheel: zipfile.ZipFile) -> None:
    (metadata,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    fields = Parser().parsestr(wheel.read(metadata).decode())
    assert fields["License-Expression"] == "Apache-2.0" and fields.get_all("License-File") == ["LICENSE"]
    text = wheel.read(metadata.replace("METADATA", "licenses/LICENSE"))
    assert hashlib.sha256(text).hexdigest() == APACHE, "not the text of apache.org/licenses/LICENSE-2.0.txt"


def test_no_folder_is_importable_by_its_bare_name(tmp_path: Path) -> None:
    names = sorted(set(wheels.FOLDERS.values()) - {"videomar"})
    code = f"from importlib.util import find_spec; print([n for n in {names} if find_spec(n)], find_spec('videomar'))"
    done = subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("[] ModuleSpec(")
