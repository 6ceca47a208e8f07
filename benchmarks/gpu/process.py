"""One command in a process group of its own, with a time limit; whatever becomes of it, what it said is kept.

Knows nothing of what is run.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

TAIL = 4000  # characters of an output that are kept
GRACE = 3.0  # seconds between asking a command to end and ending it


@dataclass(frozen=True)
class Outcome:
    """status: "ok", "failed" (it returned another code than 0, or a signal ended it) or "timed out"."""

    status: str
    code: int | None
    seconds: float
    stdout: str  # the end of each
    stderr: str


def run(
    command: Sequence[str], seconds: float, log: Path, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> Outcome:
    """Run until it ends or the time is up, then everything it started is ended too.

    log: outputs go to files beside it (LOG.out, LOG.err), so that nothing a command leaves behind can hold us up.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    out, err = log.with_suffix(".out"), log.with_suffix(".err")
    began = time.monotonic()
    with open(out, "wb") as stdout, open(err, "wb") as stderr:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                env=env,
                cwd=cwd,
                start_new_session=True,
            )
        except OSError as error:
            return Outcome("failed", None, 0.0, "", f"{command[0]}: {error.strerror}")
        late = False
        try:
            process.wait(max(0.0, seconds))
        except subprocess.TimeoutExpired:
            late = True
            _signal(process.pid, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
        finally:
            _signal(process.pid, signal.SIGKILL)
            process.wait()
    status = "timed out" if late else "ok" if process.returncode == 0 else "failed"
    return Outcome(status, process.returncode, time.monotonic() - began, tail(out), tail(err))


def tool(name: str) -> str | None:
    """Where a program of CUDA's toolkit lies; its folder is not on every path."""
    return shutil.which(name) or shutil.which(f"/usr/local/cuda/bin/{name}")


def tail(file: Path, characters: int = TAIL) -> str:
    """The end of a text file that may hold anything."""
    with open(file, "rb") as opened:
        opened.seek(max(0, file.stat().st_size - 4 * characters))
        return opened.read().decode("utf-8", "replace").replace("\0", "")[-characters:]


def _signal(group: int, number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)
