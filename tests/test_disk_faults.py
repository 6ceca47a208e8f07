"""A disk that fails once, at any write, sync or rename of any command: old results stay whole, the message says why."""

from __future__ import annotations

import builtins
import errno
import hashlib
import io
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from videomar.cli import main

MOST = 12  # faults a command: all of its calls, or so many evenly over them
FEW = "--frames 9 --mask-steps 1 --head-steps 2 --threads 1 --backend ort-cpu".split()
PROMPT = ["--prompt", "a red circle falls"]


class Full(io.BufferedWriter):
    """A file on a disk that is full: it exists, and nothing goes into it."""

    def __init__(self, path: Any, mode: str, error: OSError) -> None:
        super().__init__(io.FileIO(path, mode.replace("b", "").replace("t", "")))
        self.error = error

    def write(self, data: Any) -> int:
        raise self.error


class Disk:
    """Counts calls that change anything below a folder; the one of number `fails` fails, once."""

    def __init__(self, folder: Path, fails: int = -1, number: int = errno.ENOSPC) -> None:
        self.folder, self.fails, self.calls = str(folder), fails, list[str]()
        self.number = number

    def fault(self, what: str, path: Any) -> OSError | None:
        """The error of this call, None for one that works."""
        name = path
        if isinstance(path, int):
            name = os.readlink(f"/proc/self/fd/{path}")
        if not str(os.path.abspath(name)).startswith(self.folder):
            return None
        self.calls.append(what)
        if len(self.calls) - 1 != self.fails:
            return None
        return OSError(self.number, os.strerror(self.number), None if isinstance(path, int) else str(path))

    def wrapped(self, what: str, real: Callable[..., Any], target: int = 0) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            if error := self.fault(what, args[target]):
                raise error
            return real(*args, **options)

        return call

    def opened(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
            if not set(mode) & set("wxa+") or isinstance(path, int) or options.get("opener"):  # of a file without name
                return real(path, mode, *args, **options)
            if error := self.fault("open", path):
                raise error
            if error := self.fault("write", path):
                full = Full(path, mode, OSError(self.number, os.strerror(self.number)))
                return full if "b" in mode else io.TextIOWrapper(full, write_through=True)
            return real(path, mode, *args, **options)

        return call

    @contextmanager
    def between(self) -> Iterator[None]:
        """Stand between the program and the disk."""
        with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
            stack.callback(patch.undo)
            for name, target in (("replace", 1), ("rename", 1), ("fsync", 0), ("mkdir", 0), ("link", 1)):
                patch.setattr(os, name, self.wrapped(name, getattr(os, name), target))
            patch.setattr(shutil, "_USE_CP_SENDFILE", False)  # it would copy behind our back
            patch.setattr(builtins, "open", self.opened(builtins.open))
            patch.setattr(io, "open", self.opened(io.open))
            yield


def tree(folder: Path) -> dict[str, str]:
    """Every file and directory below a folder, hidden ones too, with a hash of what it holds."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "directory"
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory, tiny_artifacts: Path, tiny_checkpoint: Path) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("given")
    cv2.imwrite(str(place / "start.png"), np.full((16, 24, 3), 90, np.uint8))
    assert main(["record", str(tiny_artifacts), "-o", str(place / "pack"), *PROMPT, *FEW]) == 0
    return {
        "artifacts": tiny_artifacts,
        "checkpoint": tiny_checkpoint,
        "picture": place / "start.png",
        "pack": place / "pack",
    }


# command -> its arguments after the name, of which {out} is a folder that the command may change
COMMANDS: dict[str, list[str]] = {
    "generate": ["{artifacts}", "--image", "{picture}", *PROMPT, *FEW, "-o", "{out}/clip.mp4"],
    "generate, pictures": ["{artifacts}", "--image", "{picture}", *PROMPT, *FEW, "-o", "{out}/frames"],
    "embed": ["{artifacts}", *PROMPT, "-o", "{out}/words.npz"],
    "record": ["{artifacts}", *PROMPT, *FEW, "-o", "{out}/pack", "--force"],
    "replay": ["{pack}", "{artifacts}", "--json", "{out}/r.json", "--html", "{out}/r.html", "--png", "{out}/r.png"],
    "plan": ["{artifacts}", "--device", "orin-nx-16", "--svg", "{out}/plan.svg"],
    "export": ["{checkpoint}", "-o", "{out}/graphs", "--force"],
}


@pytest.fixture
def quick_export(monkeypatch: pytest.MonkeyPatch, tiny_artifacts: Path) -> None:
    """`export` with graphs that are made already: what is looked at is how it writes."""
    from videomar.export import export

    class Made:
        wide: dict[str, int]

        def __init__(self, *_: Any) -> None:
            self.wide = {}

        def build(self, name: str) -> str:
            return name

    monkeypatch.setattr(export, "GraphBuilder", Made)
    monkeypatch.setattr(export, "save", lambda name, file: shutil.copyfile(tiny_artifacts / f"{name}.onnx", file))
    monkeypatch.setattr(export, "check_graph", lambda *_: {"z": 0.0})
    monkeypatch.setattr(export, "lint_file", lambda *_, **__: [])


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_fails_once_leaves_old_results_whole(
    name: str,
    number: int,
    given: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    quick_export: None,
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    command = [name.split(",")[0], *(word.format(out=out, **given) for word in COMMANDS[name])]
    counting = Disk(out)
    with counting.between():
        assert main(command) == 0, capsys.readouterr().err
    calls, new = len(counting.calls), name == "generate, pictures"
    assert calls >= 2, "what the command does to the disk is seen"
    if new:  # it wants a directory that is not there yet
        shutil.rmtree(out / "frames")
    old = tree(out)
    capsys.readouterr()
    # Both numbers together try every call, each of them half.
    for at in range(number == errno.EIO, calls, max(2, 2 * calls // MOST)):
        disk = Disk(out, at, number)
        with disk.between():
            code = main(command)
        error = capsys.readouterr().err.splitlines()[-1:]
        if disk.calls[at] == "mkdir" and code == 0:  # of a folder that is there: nothing was lost
            old = tree(out)
            continue
        assert code == 2, f"call {at}, {disk.calls[at]}: {error}"
        assert len(error) == 1 and error[0].startswith(f"videomar {command[0]}: "), error
        assert os.strerror(number) in error[0], error
        assert tree(out) == old, f"call {at}, {disk.calls[at]}"


def test_the_disk_fails_once_and_where_it_is_told(tmp_path: Path) -> None:
    for at, seen in ((0, ["open"]), (1, ["open", "write"])):
        disk = Disk(tmp_path, at)
        with disk.between(), pytest.raises(OSError, match="No space left"), open(tmp_path / "a", "w") as file:
            file.write("text")
        assert disk.calls == seen
    with Disk(tmp_path / "elsewhere", 0).between():
        (tmp_path / "a").write_text("text")
    assert (tmp_path / "a").read_text() == "text"
