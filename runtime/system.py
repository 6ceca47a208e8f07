"""This machine, as `videomar doctor` and `--backend auto` ask about it: an object, so that tests can be others.

Nothing here raises or waits for long: what cannot be learnt is None, "" or empty. Knows nothing of what answers mean.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from glob import glob
from pathlib import Path

from videomar.fingerprint import this_machine

ABSENT = ""  # what `gpu` says for the name where there is none


class System:
    """The machine this process runs on."""

    @property
    def arch(self) -> str:
        """x86_64, aarch64, ..."""
        return platform.machine()

    @property
    def python(self) -> str:
        """Version of this Python."""
        return platform.python_version()

    def cores(self) -> tuple[int, int]:
        """Processors of the machine, and those that this process may run on."""
        present = os.cpu_count() or 1
        return present, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else present

    def run(self, command: Sequence[str], timeout: float = 10) -> str | None:
        """Standard output of a command that exits with 0 in time, else None. It gets no input and cannot ask."""
        with suppress(OSError, ValueError, subprocess.SubprocessError):
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout, errors="replace", text=True
            )
            return done.stdout if done.returncode == 0 else None
        return None

    def evaluate(self, code: str, timeout: float = 60) -> tuple[bool, str]:
        """Run Python code in a process of its own: (True, its output) or (False, the last line of the error).

        Apart from us, since a library that does not fit this machine may crash or hang where it is imported.
        """
        try:
            done = subprocess.run(
                [sys.executable, "-c", code],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=timeout,
                errors="replace",
                text=True,
            )
        except subprocess.TimeoutExpired:
            return False, f"no answer in {timeout:.0f} s"
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            return False, str(error)
        if done.returncode < 0:
            return False, f"crashed with signal {-done.returncode}"
        lines = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines() or [""]
        return done.returncode == 0, lines[-1]

    def read(self, path: str) -> str | None:
        """A small text file, None if it cannot be read."""
        with suppress(OSError, ValueError):
            return Path(path).read_text(errors="replace").replace("\0", "")
        return None

    def files(self, pattern: str) -> list[str]:
        """Paths that match, sorted."""
        with suppress(OSError):
            return sorted(glob(pattern))
        return []

    def has(self, module: str) -> bool:
        """Whether a Python module is installed; it is not imported (its parents are)."""
        with suppress(Exception):  # whatever a parent package does when it is imported
            return importlib.util.find_spec(module) is not None
        return False

    def version(self, *distributions: str) -> str | None:
        """Version of the first of these packages that is installed."""
        for name in distributions:
            with suppress(Exception):
                return importlib.metadata.version(name)
        return None

    def onnxruntime(self) -> tuple[str, tuple[str, ...]] | None:
        """Version and providers of ONNX Runtime, imported here; None where that fails."""
        with suppress(Exception):
            ort = importlib.import_module("onnxruntime")
            return ort.__version__, tuple(ort.get_available_providers())
        return None

    def gpu(self) -> tuple[str, str]:
        """Name and SM ("87") of the GPU that this process sees; ABSENT where the driver gives none."""
        with suppress(Exception):
            machine = this_machine("", rtx=False)
            if machine.has_gpu:
                return machine.gpu, machine.sm
        return ABSENT, ""

    def free_disk(self, path: str) -> int | None:
        """Bytes free where `path` is."""
        with suppress(OSError):
            return shutil.disk_usage(path).free
        return None


def numbers(version: str | None) -> tuple[int, ...]:
    """ "10.3.0.26" -> (10, 3, 0, 26), to compare; empty for what is no version."""
    found: list[int] = []
    for part in (version or "").replace("+", ".").split("."):
        if not part.isdigit():
            break
        found.append(int(part))
    return tuple(found)
