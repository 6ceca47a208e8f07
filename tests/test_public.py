"""What a user's own program sees: the public names, their types, and what importing them costs."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

import videomar

ROOT = Path(__file__).parents[1]
PROGRAM = """
from videomar import Pipeline, Video, __version__
with Pipeline.open("artifacts") as pipe:
    video: Video = pipe("ball.png", "a red circle falls", frames=17, seed=7)
    reveal_type(pipe.stream("ball.png", "a red circle falls", token_clip=None))
    reveal_type(__version__)
"""
WRONG = """
from videomar import Pipeline
with Pipeline.open("artifacts") as pipe:
    pipe("ball.png", "a red circle falls", frame=17)
    pipe("ball.png", "a red circle falls", frames="17")
"""


def load_wheels() -> ModuleType:
    spec = importlib.util.spec_from_file_location("wheels", Path(__file__).with_name("wheels.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def fresh(code: str, **options: object) -> str:
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stderr
    return str(done.stdout)


def test_importing_the_package_loads_nothing_that_is_not_used() -> None:
    heavy = ("numpy", "onnxruntime", "cv2", "av", "tokenizers", "torch")
    assert fresh(f"import videomar, sys; print([n for n in {heavy} if n in sys.modules])").strip() == "[]"
    assert fresh("import videomar; print(videomar.__version__)").strip() == videomar.__version__
    names = fresh("from videomar import *; print(Pipeline.__name__, Video.__name__, __version__)").split()
    assert names == ["Pipeline", "Video", videomar.__version__]


def test_an_unknown_name_says_which_there_are() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Pipelin'; it has: Pipeline, Video, __version__"):
        videomar.Pipelin  # noqa: B018
    assert {"Pipeline", "Video", "__version__"} <= set(dir(videomar))


def test_the_module_runs_in_the_checkout_whether_or_not_it_is_installed_there() -> None:
    code = "import sys, runpy; sys.meta_path = [f for f in sys.meta_path if 'editable' not in repr(f)]\n"
    code += f"sys.path.insert(0, {str(ROOT)!r}); sys.argv = ['videomar', 'export', '-h']\n"
    code += "import videomar.export.linter, videomar.runtime.pipeline\n"
    code += "print(videomar.runtime.pipeline.__file__)\n"
    code += "runpy.run_module('videomar', run_name='__main__')"
    shown = fresh(code)
    assert str(ROOT / "runtime" / "pipeline.py") in shown and "usage: videomar export" in shown


def interpreter(place: Path, packages: Path) -> Path:
    """A new environment's interpreter that also sees what is installed here; and its site-packages."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(place)], check=True)
    (site,) = place.glob("lib/python*/site-packages")
    (site / "here.pth").write_text(f"{packages}\n")
    return site


def as_wheel(wheel: Path, site: Path) -> None:
    zipfile.ZipFile(wheel).extractall(site)


def as_editable(wheel: Path, site: Path) -> None:
    source = wheel.parent / "source"
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    command += ["--config-settings", "editable_mode=strict", "--target", str(site), "-e", str(source)]
    subprocess.run(command, check=True, capture_output=True)


@pytest.mark.slow
@pytest.mark.parametrize("install", [as_wheel, as_editable])
def test_a_type_checker_follows_a_users_program(
    install: Callable[[Path, Path], None], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    for needed in ("mypy", "setuptools"):
        pytest.importorskip(needed, reason="pip install 'videomar[test]' setuptools")
    packages = Path(str(importlib.util.find_spec("numpy").origin)).parents[1]  # type: ignore[union-attr]
    wheel = load_wheels().build(tmp_path_factory.getbasetemp() / "wheel")
    site = interpreter(tmp_path / "env", packages)
    install(wheel, site)
    for name, text in (("good.py", PROGRAM), ("wrong.py", WRONG)):
        (tmp_path / name).write_text(text)

    def check(name: str) -> str:
        command = [sys.executable, "-m", "mypy", "--strict", "--python-executable", str(tmp_path / "env/bin/python")]
        command += ["--cache-dir", str(tmp_path / "cache"), name]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        return done.stdout + done.stderr

    good = check("good.py")
    assert "Success: no issues found in 1 source file" in good, good
    assert 'Revealed type is "typing.Iterator[numpy.ndarray' in good
    assert re.search(r'Revealed type is "(builtins\.)?str"', good)
    wrong = check("wrong.py")
    assert 'Unexpected keyword argument "frame" for "__call__" of "Pipeline"' in wrong, wrong
    assert 'Argument "frames" to "__call__" of "Pipeline" has incompatible type "str"; expected "int"' in wrong
