"""Builds the wheel of this checkout, from a copy: the checkout's own build/ and egg-info are never touched or used."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = {"videomar": "videomar"} | {
    f"videomar.{n}": n for n in ("export", "runtime", "training", "calibration", "parity", "serving")
}


def build(place: Path) -> Path:
    """The wheel in `place`, built there unless it is there already; with setuptools here, no index is asked."""
    if not place.is_dir():
        source = place / "source"
        source.mkdir(parents=True)
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            if (ROOT / name).is_file():
                shutil.copy(ROOT / name, source)
        for name in FOLDERS.values():
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
        isolation = ["--no-build-isolation"] if importlib.util.find_spec("setuptools") else []
        command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", *isolation, "-w", str(place), str(source)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    (wheel,) = place.glob("*.whl")
    return wheel


def sources() -> dict[str, Path]:
    """Every Python file of the packages by its place in the wheel."""
    found = {}
    for package, folder in FOLDERS.items():
        for file in (ROOT / folder).rglob("*.py"):
            found[f"{package.replace('.', '/')}/{file.relative_to(ROOT / folder).as_posix()}"] = file
    return found
