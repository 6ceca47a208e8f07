"""A disk that fails once, at any write, sync or rename of any command: old results stay whole, the message says why."""

from __future__ import annotations

import builtins
import errno
import hashlib
import importlib.util
import io
import os
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from datetime import datetime, timezone
from itertools import islice
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from videomar.capabilities import TABLE
from videomar.cli import main
from videomar.graphs import HEAD_STEP, TRANSFORMER_STEP

ROOT = Path(__file__).parents[1]
MOST = 12  # faults a command: all of its calls, or so many evenly over them
FEW = "--frames 9 --mask-steps 1 --head-steps 2 --threads 1 --backend ort-cpu".split()
PROMPT = ["--prompt", "a red circle falls"]


def load(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


originals = load("originals", ROOT / "tests" / "export" / "originals.py")


class Full(io.BufferedWriter):
    """A file on a disk that is full: it exists, and nothing goes into it."""

    def __init__(self, path: Any, mode: str, disk: Disk) -> None:
        super().__init__(io.FileIO(path, mode.replace("b", "").replace("t", "")))
        self.disk = disk

    def write(self, data: Any) -> int:
        self.disk.failed = True
        raise OSError(self.disk.number, os.strerror(self.disk.number))

    def read(self, *_: Any) -> bytes:
        return b""


class Disk:
    """Counts calls that change anything below a folder; the one of number `fails` fails, once."""

    def __init__(self, folder: Path, fails: int = -1, number: int = errno.ENOSPC) -> None:
        self.folder, self.fails, self.calls = str(folder), fails, list[str]()
        self.number, self.failed = number, False

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
                self.failed = True
                raise error
            return real(*args, **options)

        return call

    def opened(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
            if not set(mode) & set("wxa+") or isinstance(path, int) or options.get("opener"):  # of a file without name
                return real(path, mode, *args, **options)
            if error := self.fault("open", path):
                self.failed = True
                raise error
            if self.fault("write", path):
                full = Full(path, mode, self)
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


def clear(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


@pytest.fixture(scope="module")
def given(
    tmp_path_factory: pytest.TempPathFactory, tiny_artifacts: Path, tiny_native: Path, tiny_checkpoint: Path
) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("given")
    cv2.imwrite(str(place / "start.png"), np.full((16, 24, 3), 90, np.uint8))
    assert main(["record", str(tiny_artifacts), "-o", str(place / "pack"), *PROMPT, *FEW]) == 0
    (place / "list.txt").write_text(f"{place}/start.png\t{PROMPT[1]}\n")
    (place / "originals").mkdir()
    originals.write_all(place / "originals")
    return {
        "artifacts": tiny_artifacts,
        "native": tiny_native,
        "checkpoint": tiny_checkpoint,
        "picture": place / "start.png",
        "pack": place / "pack",
        "originals": place / "originals",
        "list": place / "list.txt",
        "cache": place / "timing",
    }


SMALL = "--size 64 --mask-steps 1 --head-steps 2 --threads 1".split()
IMPORTED = "--transformer {originals}/videomar.pth --tokenizer {originals}/cosmos --text {originals}/qwen".split()
PAGES = "--json {out}/r.json --html {out}/r.html --png {out}/r.png".split()
# command -> its arguments after the name, of which {out} is a folder that the command may change
COMMANDS: dict[str, list[str]] = {
    "generate": ["{artifacts}", "--image", "{picture}", *PROMPT, *FEW, "-o", "{out}/clip.mp4"],
    "generate, new": ["{artifacts}", "--image", "{picture}", *PROMPT, *FEW, "-o", "{out}/frames"],
    "embed": ["{artifacts}", *PROMPT, "-o", "{out}/words.npz"],
    "record": ["{artifacts}", *PROMPT, *FEW, "-o", "{out}/pack", "--force"],
    "replay": ["{pack}", "{artifacts}", "--threads", "1", *PAGES],
    "plan": ["{artifacts}", "--device", "orin-nx-16", "--svg", "{out}/plan.svg"],
    "export": ["{checkpoint}", "-o", "{out}/graphs", "--force"],
    "import": [*IMPORTED, "-o", "{out}/imported", "--force"],
    "export-official": ["{checkpoint}", "-o", "{out}/official", "--force"],
    "calibrate": ["{artifacts}", "-o", "{out}/int8", "--demo", "4", *SMALL, "--force"],
    "build": [
        "{artifacts}",
        "-o",
        "{out}/engines",
        "--builder",
        "tensorrt-rtx",
        "--timing-cache",
        "{cache}",
        "--force",
    ],
    "evaluate": ["{artifacts}", "--cases", "2", "--threads", "1", "--json", "{out}/figures.json"],
    "compare": ["{artifacts}", "{native}", "--image", "{picture}", *PROMPT, *FEW, *PAGES],
    "tune": ["{native}", "--cases", "{list}", *FEW, "-o", "{out}/found.json", "--html", "{out}/found.html"],
    "tune, new": ["{native}", "--cases", "{list}", *FEW, "-o", "{out}/found.json"],
    "train": ["transformer", "--from", "{checkpoint}", "-o", "{out}/trained", "--steps", "3", "--force"],
}
# What makes another result than the one that is there: half of each would be seen.
OTHERS = {name: ["--seed", "1"] for name in ("generate", "record", "train")} | {"import": ["--weights", "model"]}


def once(real: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, whose first result is its only one: what is looked at is how commands write."""
    found: list[Any] = []

    def call(*args: Any, **options: Any) -> Any:
        if not found:
            found.append(real(*args, **options))
        return found[0]

    return call


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, tiny_artifacts: Path) -> None:
    """What takes long is done once, or is done already."""
    from videomar.calibration import calibrate, writing
    from videomar.demo import evaluate
    from videomar.export import export
    from videomar.parity import environment
    from videomar.parity.comparing import compare
    from videomar.parity.tuning import grid
    from videomar.training import world
    from videomar.training.loss import TrainingLoss

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

    collect = once(calibrate.collect)

    def collected(*args: Any) -> Any:
        ranges = collect(*args)
        ranges.save(args[4])
        return ranges

    monkeypatch.setattr(calibrate, "collect", collected)
    for place, name in (
        (calibrate, "record"),
        (calibrate, "_find"),
        (writing, "measure"),
        (writing, "_timing"),
        (evaluate, "evaluate"),
        (compare, "climb_all"),
    ):
        monkeypatch.setattr(place, name, once(getattr(place, name)))
    # A report tells the minute; it may turn between two runs.
    noon = datetime(2026, 1, 1, 12, tzinfo=timezone.utc)
    monkeypatch.setattr(environment, "datetime", SimpleNamespace(now=lambda _: noon))
    settings = grid.settings
    monkeypatch.setattr(grid, "settings", lambda clip: dict(islice(settings(clip).items(), 2)))
    monkeypatch.setattr(world, "POOL", 4)
    monkeypatch.setattr(world.WorldClips, "_draw", once(world.WorldClips._draw))

    def forward(self: TrainingLoss, *_: Any) -> torch.Tensor:
        return sum((torch.randn_like(p) * p).mean() for p in self.parameters() if p.requires_grad)

    monkeypatch.setattr(TrainingLoss, "forward", forward)


@pytest.fixture
def worker_in_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT's worker in this process, so that the disk fails it, too; with the fake TensorRT of tests/export."""
    from videomar.export import build_worker, engine, sources, workers

    class Worker:
        def __init__(self, command: list[str], stderr: Any, **_: Any) -> None:
            self.stdout, self.code = io.StringIO(), 1
            try:
                with redirect_stdout(self.stdout):
                    self.code = build_worker.main(command[-1])
            except Exception:
                stderr.write(traceback.format_exc().encode())
            self.stdout.seek(0)

        def wait(self) -> int:
            return self.code

        def kill(self) -> None: ...

    monkeypatch.syspath_prepend(ROOT / "tests" / "export" / "fake_tensorrt")
    monkeypatch.delitem(sys.modules, "tensorrt_rtx", raising=False)
    version = next(row.version for row in TABLE if row.rtx)
    monkeypatch.setenv("FAKE_TRT_VERSION", ".".join(map(str, (*version, 1))))
    monkeypatch.setattr(workers, "subprocess", SimpleNamespace(Popen=Worker, PIPE=None, DEVNULL=None))
    monkeypatch.setattr(build_worker, "_die_with_parent", lambda: None)
    for module in (engine, sources):
        monkeypatch.setattr(module, "ENGINES", (TRANSFORMER_STEP, HEAD_STEP))


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_fails_once_leaves_old_results_whole(
    name: str,
    number: int,
    given: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    quick: None,
    request: pytest.FixtureRequest,
) -> None:
    if name == "build":
        request.getfixturevalue("worker_in_here")
    out = tmp_path / "out"
    out.mkdir()
    command = [name.split(",")[0], *(word.format(out=out, **given) for word in COMMANDS[name])]
    counting = Disk(out)
    with counting.between():
        assert main(command) == 0, capsys.readouterr().err
    calls = len(counting.calls)
    assert calls >= 2, "what the command does to the disk is seen"
    if new := "new" in name:
        clear(out)
    old = tree(out)
    command += OTHERS.get(name, [])
    capsys.readouterr()
    # Both numbers together try every call, each of them half.
    for at in range(number == errno.EIO, calls, max(2, 2 * calls // MOST)):
        disk = Disk(out, at, number)
        with disk.between():
            code = main(command)
        error = capsys.readouterr().err.splitlines()[-1:]
        # Nothing was lost: a folder that is there all the same, a link that a rename does for, a file that nothing was
        # written to, or fewer calls.
        if code == 0 and (not disk.failed or disk.calls[at] in ("mkdir", "link")):
            if new:
                clear(out)
            old = tree(out)
            continue
        assert code == 2, f"call {at}, {disk.calls[at]}: {error}"
        assert len(error) == 1 and error[0].startswith(f"videomar {command[0]}: "), error
        assert os.strerror(number) in error[0], error
        for kept in (path for path in out.iterdir() if path.name not in old and str(path) in error[0]):
            kept.unlink()  # what is left on purpose is named: a log, what has been measured so far
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
