"""What a user installs, on every Python we support that is present: a clean environment far from the checkout.

Slow: each environment is downloaded (or taken from pip's cache); `pytest -m "not slow"` leaves them out.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import av
import cv2
import numpy as np
import pytest

pytestmark = pytest.mark.slow

VERSIONS = ("3.10", "3.11", "3.12", "3.13")
UNREACHABLE = re.compile(r"connection|timed out|name resolution|proxy|ssl", re.IGNORECASE)
OPTIONS = "--frames 9 --mask-steps 2 --head-steps 2 --seed 5 --threads 1 --backend ort-cpu".split()


def load_wheels() -> ModuleType:
    spec = importlib.util.spec_from_file_location("wheels", Path(__file__).with_name("wheels.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclass(frozen=True)
class Installed:
    """An environment with the wheel and its dependencies, no extras."""

    version: str
    place: Path

    @property
    def programs(self) -> Path:
        return self.place / ("Scripts" if os.name == "nt" else "bin")

    def run(self, directory: Path, program: str, *argv: object) -> subprocess.CompletedProcess[str]:
        """A program of the environment, with nothing of ours in its way."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
        command = [str(self.programs / program), *map(str, argv)]
        return subprocess.run(
            command, cwd=directory, env=kept, capture_output=True, text=True, timeout=300, check=False
        )

    def python(self, directory: Path, code: str) -> str:
        done = self.run(directory, "python", "-c", code)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()


def interpreter(version: str) -> str | None:
    """A working Python of this version: this one, one on the PATH, or pyenv's."""
    candidates = [sys.executable, shutil.which(f"python{version}")]
    candidates += map(str, sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python")))
    code = "import sys, venv; print('%d.%d' % sys.version_info[:2])"
    for candidate in filter(None, candidates):
        done = subprocess.run([candidate, "-c", code], capture_output=True, text=True, check=False)
        if done.stdout.strip() == version:
            return candidate
    return None


@pytest.fixture(scope="module", params=VERSIONS)
def installed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installed]:
    python = interpreter(request.param)
    if python is None:
        pytest.skip(f"there is no Python {request.param} on the PATH or in ~/.pyenv")
    wheel = load_wheels().build(tmp_path_factory.getbasetemp() / "wheel")
    environment = Installed(request.param, tmp_path_factory.mktemp("environment") / request.param)
    subprocess.run([python, "-m", "venv", "--without-pip", str(environment.place)], check=True)
    # Without --no-compile half of the time goes into files that nobody imports.
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(environment.programs / "python"),
        "install",
        "-q",
        "--no-compile",
    ]
    done = subprocess.run(
        [*pip, "--prefer-binary", "--retries", "2", "--timeout", "60", str(wheel)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode and UNREACHABLE.search(done.stderr):
        pytest.skip(f"pip reaches no index: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    yield environment
    shutil.rmtree(environment.place)  # half a gigabyte


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A directory outside the checkout, with a picture to start from."""
    assert not tmp_path.is_relative_to(Path(__file__).parents[1])
    cv2.imwrite(str(tmp_path / "start.png"), np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8))
    return tmp_path


def generate(environment: Installed, directory: Path, artifacts: Path, name: str) -> subprocess.CompletedProcess[str]:
    local = directory / "artifacts"
    if not local.exists():
        shutil.copytree(artifacts, local)
    command = ("generate", "artifacts", "--image", "start.png", "--prompt", "a red circle falls", "-o", name)
    return environment.run(directory, "videomar", *command, *OPTIONS)


def test_the_installation_is_the_wheels_and_holds_no_pytorch(installed: Installed, elsewhere: Path) -> None:
    code = "import videomar.runtime.pipeline as p; print(p.__file__)"
    assert Path(installed.python(elsewhere, code)).is_relative_to(installed.place)
    names = ("torch", "onnx", "onnxscript", "diffusers", "transformers", "safetensors", "export", "runtime", "training")
    code = f"from importlib.util import find_spec; print([n for n in {names} if find_spec(n)])"
    assert installed.python(elsewhere, code) == "[]"


def test_a_video_is_generated_and_the_same_seed_gives_the_same_bytes(
    installed: Installed, elsewhere: Path, tiny_artifacts: Path
) -> None:
    for name in ("a.mp4", "b.mp4"):
        done = generate(installed, elsewhere, tiny_artifacts, name)
        assert (done.returncode, done.stdout) == (0, f"{name}\n")
        assert "generated frames/s" in done.stderr
    assert (elsewhere / "a.mp4").read_bytes() == (elsewhere / "b.mp4").read_bytes()
    with av.open(str(elsewhere / "a.mp4")) as container:
        assert container.streams.video[0].codec_context.name == "h264"
        assert sum(1 for _ in container.decode(video=0)) == 9


def test_native_artifacts_run_or_one_line_names_the_portable_emitter(
    installed: Installed, elsewhere: Path, tiny_native: Path
) -> None:
    version = installed.python(elsewhere, "import onnxruntime; print(onnxruntime.__version__)")
    done = generate(installed, elsewhere, tiny_native, "clip.mp4")
    if tuple(map(int, version.split(".")[:2])) >= (1, 24):
        assert (done.returncode, done.stdout) == (0, "clip.mp4\n")
        return
    assert installed.version == "3.10", f"pip gave ONNX Runtime {version} to Python {installed.version}"
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("videomar generate: ") and "--emitter portable" in done.stderr
    assert version in done.stderr
    assert sorted(path.name for path in elsewhere.iterdir()) == ["artifacts", "start.png"]


def test_export_says_which_extra_it_needs(installed: Installed, elsewhere: Path, tiny_checkpoint: Path) -> None:
    done = installed.run(elsewhere, "videomar", "export", tiny_checkpoint, "-o", "artifacts")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "pip install 'videomar[export]'" in done.stderr
    assert [path.name for path in elsewhere.iterdir()] == ["start.png"]
