"""A fresh place for Python packages over the machine's own: the wheels that were brought, and the checkout.

Not a virtual environment: one made from within another would lose what that holds (PyTorch, usually). Packages in
PYTHONPATH come before the machine's and hide what they replace. No network is asked, nothing else is touched.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from dataclasses import dataclass, field
from glob import glob
from pathlib import Path

import tomllib

from benchmarks.gpu.wheels import SliceError, join

PIP = ("-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile", "--no-cache-dir", "--upgrade")
STUB = '''"""Stands in for PyAV, which is not installed: no clip is read or written here."""


def __getattr__(name):
    raise ImportError(f"PyAV is not installed, and av.{name} was asked for")
'''


@dataclass
class Environment:
    """Where packages and artifacts lie, and the variables of a process that uses them."""

    site: Path
    artifacts: dict[str, Path] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)  # wheel or file -> "installed", or why not

    def variables(self) -> dict[str, str]:
        """For every part: our packages first, the working directory never, NVIDIA's libraries found by their names."""
        libraries = [*_nvidia_libraries(), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
        paths = [str(self.site), *filter(None, [os.environ.get("PYTHONPATH")])]
        return os.environ | {
            "PYTHONPATH": os.pathsep.join(paths),
            "PYTHONSAFEPATH": "1",  # or the checkout's own folder `videomar` would come first, without its parts
            "PYTHONUNBUFFERED": "1",
            "PYTHONFAULTHANDLER": "1",
            "LD_LIBRARY_PATH": os.pathsep.join(libraries),
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }


def make(checkout: Path, brought: Path | None, place: Path, seconds: float) -> Environment:
    """Install what `brought` holds into `place`: wheels, slices of wheels, and archives of artifacts (.tar).

    What cannot be installed is noted and left away: the parts that need it will say so.
    """
    made = Environment(place / "site")
    made.site.mkdir(parents=True, exist_ok=True)
    for file in _whole_files(brought, place / "wheels", made.notes) if brought else []:
        if file.suffix == ".whl":
            made.notes[file.name] = _installed(file, made.site, seconds)
        elif file.suffix == ".tar":
            made.notes[file.name] = _unpacked(file, place / "artifacts")
    _link(checkout, made.site)
    if subprocess.run([sys.executable, "-c", "import av"], env=made.variables(), capture_output=True).returncode:
        (made.site / "av.py").write_text(STUB)
        made.notes["av"] = "not installed: a stub stands in, clips are not written"
    find_artifacts(place / "artifacts", made)
    return made


def find_artifacts(folder: Path, made: Environment) -> None:
    """Take every directory with a manifest as artifacts of its name."""
    for manifest in sorted(folder.glob("*/manifest.json")):
        made.artifacts[manifest.parent.name] = manifest.parent.resolve()


def _whole_files(brought: Path, place: Path, notes: dict[str, str]) -> list[Path]:
    try:
        return join(brought, place)
    except SliceError as error:
        notes["slices"] = str(error)
        return sorted(place.iterdir())
    except OSError as error:
        notes[str(brought)] = str(error)
        return []


def _installed(wheel: Path, site: Path, seconds: float) -> str:
    try:
        done = subprocess.run(
            [sys.executable, *PIP, "--target", str(site), str(wheel)],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
        )
    except subprocess.TimeoutExpired:
        return f"not installed in {seconds:.0f} s"
    return "installed" if done.returncode == 0 else done.stderr.strip()[-500:]


def _unpacked(archive: Path, place: Path) -> str:
    place.mkdir(parents=True, exist_ok=True)
    try:
        with tarfile.open(archive) as tar:
            safe = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # Python 3.11.2 has no filters yet
            tar.extractall(place, **safe)
    except (tarfile.TarError, OSError) as error:
        return str(error)
    return "unpacked"


def _link(checkout: Path, site: Path) -> None:
    """The checkout's packages where pyproject.toml says that they belong, by links: nothing is built or copied."""
    project = tomllib.loads((checkout / "pyproject.toml").read_text())
    folders = project["tool"]["setuptools"]["package-dir"]
    name, version = project["project"]["name"], project["project"]["version"]
    top = site / name
    top.mkdir(exist_ok=True)
    for entry in (checkout / folders[name]).iterdir():
        _linked(top / entry.name, entry)
    for package, folder in folders.items():
        if package != name:
            _linked(top / package.removeprefix(f"{name}."), checkout / folder)
    _linked(site / "benchmarks", checkout / "benchmarks")
    metadata = site / f"{name}-{version}.dist-info"
    metadata.mkdir(exist_ok=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def _linked(link: Path, target: Path) -> None:
    link.unlink(missing_ok=True)
    link.symlink_to(target.resolve())


def _nvidia_libraries() -> list[str]:
    """Folders of CUDA's libraries as NVIDIA's wheels lay them, of every place that Python looks in."""
    return [folder for path in sys.path if path for folder in sorted(glob(f"{path}/nvidia/*/lib"))]
