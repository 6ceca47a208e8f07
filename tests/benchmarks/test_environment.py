"""A fresh place for packages: what was brought is there, the checkout too, and what cannot be had is told."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from benchmarks.gpu import environment
from benchmarks.gpu.wheels import split

ROOT = Path(__file__).parents[2]


def wheel(place: Path, name: str, tag: str = "py3-none-any") -> Path:
    """A package of one module that says its own name."""
    file = place / f"{name}-1.0-{tag}.whl"
    with zipfile.ZipFile(file, "w") as made:
        made.writestr(f"{name}.py", f"me = {name!r}\n")
        made.writestr(f"{name}-1.0.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        made.writestr(f"{name}-1.0.dist-info/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n")
        made.writestr(f"{name}-1.0.dist-info/RECORD", "")
    return file


@pytest.fixture
def brought(tmp_path: Path) -> Path:
    place = tmp_path / "brought"
    place.mkdir()
    wheel(place, "brought_whole")
    split(wheel(tmp_path, "brought_in_slices"), place, 300)
    wheel(place, "of_another_python", "cp27-cp27m-win32")
    (place / "broken-1.0-py3-none-any.whl").write_bytes(b"no zip")
    (tmp_path / "art").mkdir()
    (tmp_path / "art" / "manifest.json").write_text("{}")
    with tarfile.open(place / "graphs.tar", "w") as tar:
        tar.add(tmp_path / "art", "art")
    (place / "torn.tar").write_bytes(b"no archive")
    return place


def test_what_can_be_installed_is_and_the_rest_is_told(brought: Path, tmp_path: Path) -> None:
    made = environment.make(ROOT, brought, tmp_path / "place", 60)
    code = (
        "import brought_whole, brought_in_slices, benchmarks.gpu.report\n"
        "import videomar.runtime.kernels, videomar.parity.measures\n"
        "from importlib.metadata import version\n"
        "print(videomar.runtime.kernels.__file__, version('videomar'), version('brought_whole'))"
    )
    # -S and -I would hide PYTHONPATH; another directory shows that none of the checkout is found by being there.
    done = subprocess.run(
        [sys.executable, "-c", code], env=made.variables(), cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert str(tmp_path / "place" / "site") in done.stdout and "0.1.0 1.0" in done.stdout
    notes = made.notes
    assert notes["brought_whole-1.0-py3-none-any.whl"] == notes["brought_in_slices-1.0-py3-none-any.whl"] == "installed"
    assert "not a supported wheel" in notes["of_another_python-1.0-cp27-cp27m-win32.whl"]
    assert notes["broken-1.0-py3-none-any.whl"] not in ("", "installed")
    assert notes["graphs.tar"] == "unpacked" and "torn.tar" in notes
    assert made.artifacts == {"art": (tmp_path / "place" / "artifacts" / "art").resolve()}


def test_a_missing_slice_leaves_the_other_wheels(brought: Path, tmp_path: Path) -> None:
    (brought / "brought_in_slices-1.0-py3-none-any.whl.001").unlink()
    made = environment.make(ROOT, brought, tmp_path / "place", 60)
    assert "brought_in_slices-1.0-py3-none-any.whl.001 is missing" in made.notes["slices"]
    assert made.notes["brought_whole-1.0-py3-none-any.whl"] == "installed"


def test_nvidias_libraries_are_found_wherever_python_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("cu13", "cudnn"):
        (tmp_path / "nvidia" / name / "lib").mkdir(parents=True)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("LD_LIBRARY_PATH", "/told")
    folders = environment.Environment(tmp_path / "site").variables()["LD_LIBRARY_PATH"].split(":")
    assert folders[:2] == [str(tmp_path / "nvidia" / name / "lib") for name in ("cu13", "cudnn")]
    assert folders[-1] == "/told"
