"""The oldest installation that pyproject.toml allows generates a clip: `make lowest`.

    python .ci/lowest.py ARTIFACTS            of the portable emitter, which the oldest ONNX Runtime runs

Makes an environment of the oldest Python that is there (3.10 where it is) with the least version of every dependency,
without extras and so without PyTorch, installs this checkout and continues examples/ball.png. Exit code 0 also where
no such Python is, which it says.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def lowest(pyproject: str) -> list[str]:
    """`name==version` of every dependency's least version; a version of fewer than three numbers ends in zeros."""
    listed = re.search(r"^dependencies = \[\n(.*?)^\]", pyproject, re.M | re.S)
    if listed is None:
        raise SystemExit("pyproject.toml lists no dependencies")
    found = []
    for name, version in re.findall(r'"([\w-]+)>=([\d.]+)"', listed[1]):
        numbers = [*version.split("."), "0", "0"][:3]
        found.append(f"{name}=={'.'.join(numbers)}.*")  # .* since OpenCV counts builds in a fourth
    return found


def oldest(pyproject: str) -> str | None:
    """The Python of the least version that pyproject.toml allows: on the PATH, or pyenv's."""
    required = re.search(r'^requires-python = ">=([\d.]+)"', pyproject, re.M)
    version = required[1] if required else "3.10"
    candidates = [shutil.which(f"python{version}")]
    candidates += map(str, sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python")))
    code = "import sys, venv; print('%d.%d' % sys.version_info[:2])"
    for candidate in filter(None, candidates):
        done = subprocess.run([candidate, "-c", code], capture_output=True, text=True, check=False)
        if done.stdout.strip() == version:
            return candidate
    print(f"make lowest: there is no Python {version} on the PATH or in ~/.pyenv: nothing was tried")
    return None


def main(artifacts: Path) -> int:
    """Install, generate, look at the clip."""
    pyproject = (ROOT / "pyproject.toml").read_text()
    python = oldest(pyproject)
    if python is None:
        return 0
    with tempfile.TemporaryDirectory(prefix="videomar-lowest-") as folder:
        place, clip, source = Path(folder) / "venv", Path(folder) / "ball.mp4", Path(folder) / "source"
        # From a copy: building here would leave build/ behind, and find what an earlier version left there.
        ignored = shutil.ignore_patterns(".git", ".venv*", "build", "out", "*.egg-info", "__pycache__", "models")
        shutil.copytree(ROOT, source, ignore=ignored)
        subprocess.run([python, "-m", "venv", "--without-pip", str(place)], check=True)
        pip = [sys.executable, "-m", "pip", "--python", str(place / "bin" / "python"), "install", "-q"]
        versions = lowest(pyproject)
        subprocess.run([*pip, "--only-binary", ":all:", *versions], check=True)
        subprocess.run([*pip, "--no-deps", str(source)], check=True)
        print("make lowest:", ", ".join(versions))
        words = (ROOT / "examples" / "ball.txt").read_text().strip()
        command = [str(place / "bin" / "videomar"), "generate", str(artifacts.resolve()), "--prompt", words]
        command += ["--image", str(ROOT / "examples" / "ball.png"), "-o", str(clip)]
        subprocess.run(command, check=True, cwd=folder)
        import av

        with av.open(str(clip)) as container:
            frames = sum(1 for _ in container.decode(video=0))
        print(f"make lowest: {frames} frames")
        return 0 if frames == 17 else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
