"""Signals: every long command ends with one line and leaves nothing, and what kill -9 leaves goes with the next run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from videomar.cli import main
from videomar.stopping import Stopped, stoppable
from videomar.unfinished import scratch

PROMPT = "a red circle falls"
ENDLESS = tuple("--frames 2001 --mask-steps 64 --height 64 --width 64".split())
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    file = tmp_path / "start.png"
    cv2.imwrite(str(file), np.zeros((64, 64, 3), np.uint8))
    return file


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


@pytest.fixture
def temporary(tmp_path: Path) -> Path:
    """The system's folder for temporary files, as the started commands see it."""
    (tmp_path / "temporary").mkdir()
    return tmp_path / "temporary"


@pytest.fixture
def start(temporary: Path) -> Iterator[Start]:
    """Start a command in a process of its own."""
    started: list[subprocess.Popen[str]] = []

    def do(*argv: object) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "videomar", *map(str, argv)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "TMPDIR": str(temporary), "PYTHONUNBUFFERED": "1"},
            # Where the tests run in the background or under nohup, signals are ignored, and children inherit that.
            preexec_fn=heard,
        )
        started.append(process)
        return process

    yield do
    for process in started:
        process.kill()
        process.communicate()


def heard() -> None:
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def wait_for(ready: Callable[[], object], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 100
    while not ready():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def stop(process: subprocess.Popen[str], number: int) -> str:
    """Send the signal; the last line of standard error."""
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 128 + number, error
    assert "Traceback" not in error and "Exception ignored" not in error
    return error.splitlines()[-1]


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("clip.mp4", signal.SIGINT),
        ("clip.mp4", signal.SIGHUP),
        ("frames", signal.SIGTERM),
    ],
    ids=str,
)
def test_a_signal_stops_generate_with_one_line_and_nothing_left(
    name: str, number: signal.Signals, tiny_artifacts: Path, picture: Path, out: Path, temporary: Path, start: Start
) -> None:
    process = start("generate", tiny_artifacts, "--image", picture, "--prompt", PROMPT, *ENDLESS, "-o", out / name)
    wait_for(lambda: list(out.glob(".*/*")), process)  # the hidden beginnings of the output
    time.sleep(0.2)
    assert stop(process, number) == "videomar generate: stopped; nothing half-written is left"
    assert not list(out.iterdir()) and not list(temporary.glob("*videomar*"))


CASE = ("--image", "{picture}", "--prompt", PROMPT)
LONG = {  # command -> its options, with {} for what was exported and out for where it writes
    "export": ("{checkpoint}", "-o", "{out}/made"),
    "calibrate": ("{artifacts}", "-o", "{out}/made", "--demo", 4, "--size", 64, "--mask-steps", 64, "--head-steps", 20),
    "record": ("{artifacts}", "-o", "{out}/made", *ENDLESS, *CASE),
    "compare": ("{artifacts}", "{half}", *ENDLESS, *CASE, "--json", "{out}/made.json"),
    "bisect": ("{artifacts}", "{half}", *ENDLESS, *CASE, "--json", "{out}/made.json"),
    "evaluate": ("{artifacts}", "--cases", 10**5, "--json", "{out}/made.json"),
    "train": ("tokenizer", "-o", "{out}/made"),
}


@pytest.mark.parametrize("command", LONG)
def test_sigterm_stops_every_long_command_with_one_line_and_nothing_left(
    command: str,
    tiny_checkpoint: Path,
    tiny_artifacts: Path,
    tiny_half: Path,
    picture: Path,
    out: Path,
    temporary: Path,
    start: Start,
) -> None:
    places = {
        "checkpoint": tiny_checkpoint,
        "artifacts": tiny_artifacts,
        "half": tiny_half,
        "picture": picture,
        "out": out,
    }
    process = start(command, *(str(word).format(**places) for word in LONG[command]))
    if command in ("compare", "bisect", "evaluate"):
        assert process.stderr and "backend" in process.stderr.readline()
    else:
        wait_for(lambda: list(out.iterdir()) or list(temporary.glob("*videomar*")), process)
    time.sleep(0.3)
    assert stop(process, signal.SIGTERM) == f"videomar {command}: stopped; nothing half-written is left"
    assert not list(out.iterdir()) and not list(temporary.glob("*videomar*"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_calibrate_names_what_it_keeps_and_a_finished_run_keeps_nothing(
    number: signal.Signals, tiny_artifacts: Path, out: Path, temporary: Path, start: Start
) -> None:
    square = ("--size", 64, "--threads", 1)
    process = start("calibrate", tiny_artifacts, "-o", out / "int8", "--demo", 40, *square)
    wait_for(lambda: list(out.glob(".int8.*.ranges.npz")), process)
    line = stop(process, number)
    (kept,) = out.iterdir()
    assert str(kept) in line and "goes on from there" in line and "nothing" not in line
    assert not list(temporary.glob("*videomar*"))
    if number == signal.SIGINT:
        command = ("calibrate", tiny_artifacts, "-o", out / "int8", "--demo", 4, *square)
        assert main([str(word) for word in command]) == 0
        assert [path.name for path in out.iterdir()] == ["int8"]


def test_what_kill_9_left_goes_with_the_next_run_and_a_living_run_keeps_its_own(
    tiny_artifacts: Path, picture: Path, out: Path, start: Start
) -> None:
    command = ("generate", tiny_artifacts, "--image", picture, "--prompt", PROMPT, "-o", out / "clip.mp4")
    dead = start(*command, *ENDLESS)
    wait_for(lambda: list(out.glob(".*/*")), dead)
    dead.kill()
    dead.wait()
    (leftover,) = out.iterdir()
    alive = start(*command, *ENDLESS)
    wait_for(lambda: [path for path in out.glob(".*/*") if path.parent != leftover], alive)
    assert not leftover.exists()
    (living,) = out.iterdir()
    short = "--frames 9 --mask-steps 1 --head-steps 1 --threads 1".split()
    assert main([*map(str, command), *short]) == 0
    assert {path.name for path in out.iterdir()} == {living.name, "clip.mp4"}
    assert "stopped" in stop(alive, signal.SIGTERM)
    assert [path.name for path in out.iterdir()] == ["clip.mp4"]


def test_scratch_of_a_killed_run_goes_with_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    code = "import os, signal\nfrom videomar.unfinished import scratch\nwith scratch('trials') as folder:\n"
    code += "    (folder / 'large').write_bytes(b'x' * 999)\n    os.kill(os.getpid(), signal.SIGKILL)"
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    assert subprocess.run([sys.executable, "-c", code], env=env, check=False).returncode == -signal.SIGKILL
    assert len(list(tmp_path.rglob("large"))) == 1
    with scratch("ranges") as other:  # another purpose, whose runs may be many
        assert len(list(tmp_path.iterdir())) == 2
        with scratch("trials") as folder:
            assert set(tmp_path.iterdir()) == {other, folder} and folder.stat().st_mode & 0o777 == 0o700
    assert not list(tmp_path.iterdir())


def test_a_second_signal_does_not_interrupt_the_cleaning() -> None:
    steps = []
    with pytest.raises(Stopped) as stopped, stoppable():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)
        finally:
            steps.append("begun")
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)
            steps.append("done")
    assert steps == ["begun", "done"] and stopped.value.number == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_signals_that_are_ignored_or_handled_stay_so(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    ignored = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with stoppable():
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(0.01)
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.signal(signal.SIGHUP, ignored)
    assert seen == [signal.SIGTERM]


def test_a_signal_that_comes_inside_a_finalizer_is_not_lost() -> None:
    class Thing:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            for _ in range(1000):  # here Python sees the signal, and drops what its handler raises
                pass

    reached = False
    with pytest.raises(Stopped) as stopped, stoppable():
        thing = Thing()
        del thing
        reached = True
        time.sleep(20)
    assert reached and stopped.value.number == signal.SIGTERM


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_that_a_library_made_another_error_of_is_a_stop(number: signal.Signals) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
    try:
        with pytest.raises(KeyboardInterrupt) as stopped, stoppable():
            try:
                os.kill(os.getpid(), number)
                time.sleep(20)
            except KeyboardInterrupt as stop:  # as pybind11 does while a module is imported
                raise ImportError("initialization failed") from stop
    finally:
        signal.signal(signal.SIGINT, before)
    assert getattr(stopped.value, "number", signal.SIGINT) == number


def test_an_error_of_its_own_stays_what_it_is() -> None:
    with pytest.raises(ImportError, match="none"), stoppable():
        raise ImportError("none") from ValueError("why")
