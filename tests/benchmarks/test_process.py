"""A command that fails, hangs or is killed is over in time, with all that it started, and what it said is kept."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from benchmarks.gpu.process import TAIL, run


def python(code: str, tmp_path: Path, seconds: float = 30.0):  # type: ignore[no-untyped-def]
    return run([sys.executable, "-c", code], seconds, tmp_path / "log")


def test_a_command_that_ends_well_is_ok(tmp_path: Path) -> None:
    done = python("import sys; print('out'); print('err', file=sys.stderr)", tmp_path)
    assert (done.status, done.code, done.stdout, done.stderr) == ("ok", 0, "out\n", "err\n")


def test_an_exception_keeps_the_end_of_what_it_said(tmp_path: Path) -> None:
    done = python("import sys; print('x' * 100_000, file=sys.stderr); raise ValueError('the reason')", tmp_path)
    assert done.status == "failed" and done.code == 1
    assert done.stderr.endswith("ValueError: the reason\n") and len(done.stderr) == TAIL


@pytest.mark.parametrize("deaf", [False, True])
def test_a_command_that_hangs_is_ended_with_what_it_started(tmp_path: Path, deaf: bool, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr("benchmarks.gpu.process.GRACE", 0.2)
    code = (
        "import signal, subprocess, sys, time\n"
        f"{'signal.signal(signal.SIGTERM, signal.SIG_IGN)' if deaf else ''}\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(600)"
    )
    done = python(code, tmp_path, 1.5)
    assert done.status == "timed out" and done.seconds < 30
    child = int(done.stdout)
    for _ in range(100):  # until the system has buried it
        if not Path(f"/proc/{child}").exists() or "Z" in Path(f"/proc/{child}/stat").read_text().split(")")[1][:3]:
            break
        time.sleep(0.05)
    else:
        pytest.fail("the grandchild lives on")


def test_a_killed_command_says_by_which_signal(tmp_path: Path) -> None:
    done = python(f"import os; print('so far', flush=True); os.kill(os.getpid(), {int(signal.SIGKILL)})", tmp_path)
    assert (done.status, done.code, done.stdout) == ("failed", -signal.SIGKILL, "so far\n")


def test_a_command_that_is_not_there_is_a_failure_and_no_exception(tmp_path: Path) -> None:
    done = run(["/no/such/command"], 5, tmp_path / "log")
    assert done.status == "failed" and "No such file" in done.stderr


def test_bytes_that_are_no_text_are_kept_as_well_as_they_can(tmp_path: Path) -> None:
    done = python(r"import os; os.write(2, b'\xff\x00\xfe the end')", tmp_path)
    assert done.stderr.endswith(" the end") and "\0" not in done.stderr


def test_outputs_left_open_by_a_daemon_hold_nobody_up(tmp_path: Path) -> None:
    code = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])"
    began = time.monotonic()
    assert python(code, tmp_path).status == "ok"
    assert time.monotonic() - began < 20 and os.path.exists(tmp_path / "log.out")
