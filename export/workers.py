"""Runs one build job in a worker process and turns what goes wrong there into one clear line.

Knows nothing of TensorRT: a worker that crashes, is killed or says no is told apart by its exit and its words.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from videomar.errors import BuildError, InputError

OnProgress = Callable[[str, float], None]  # stage, part done
MIB = 1 << 20
# How TensorRT and the system say that memory did not suffice; the last often means it (NVIDIA/TensorRT 2642, 2712).
_OUT_OF_MEMORY = re.compile(
    r"out ?of ?memory|bad_alloc|insufficient memory|cannot allocate|failed to allocate|MEM_ALLOC_FAILED"
    r"|requested amount of GPU memory|cudaErrorMemoryAllocation|could not find any implementation",
    re.IGNORECASE,
)
# Memory to build, as a multiple of the weights: the file, TensorRT's copy, the engine. Measured: docs/build.md.
BUILD_FACTOR = 3.3


def run_job(job: dict[str, Any], folder: Path, progress: OnProgress = lambda stage, done: None) -> dict[str, Any]:
    """Run one job in a worker; its outcome, with "signal" or "exit" when it died without one.

    The worker's stderr goes to the job's log. It dies with this process, and when this function is left.
    """
    file, result = folder / "job.json", folder / "result.json"
    result.unlink(missing_ok=True)
    job = {**job, "result": str(result)}
    file.write_text(json.dumps(job))
    log = Path(job.get("log", os.devnull))
    with open(f"{log}.stderr" if "log" in job else os.devnull, "w+b") as errors:
        worker = subprocess.Popen(
            [sys.executable, "-m", "videomar.export.build_worker", str(file)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            errors="replace",
        )
        assert worker.stdout is not None
        try:
            for line in worker.stdout:
                if line.startswith('{"stage"'):
                    said = json.loads(line)
                    progress(said["stage"], said["done"])
            code = worker.wait()
        finally:
            worker.kill()
            worker.wait()
            worker.stdout.close()
        errors.seek(max(0, errors.seek(0, os.SEEK_END) - 10000))
        last_words = errors.read().decode(errors="replace").strip()
    if "log" in job:
        Path(f"{log}.stderr").unlink()
        if last_words:
            with open(log, "a", encoding="utf-8") as whole:
                whole.write(f"\nstderr of the worker:\n{last_words}\n")
    if result.is_file():
        outcome: dict[str, Any] = json.loads(result.read_text())
        if code in (0, 1):
            return outcome
    died = {"signal": signal.Signals(-code).name} if code < 0 else {"exit": code}
    return {**died, "stage": "build", "node": "", "error": last_words.splitlines()[-1] if last_words else ""}


def failure(graph: str, outcome: dict[str, Any], weights: int, workspace: int, free: int, log: Path) -> Exception:
    """The one-line error for a worker's outcome that is a failure."""
    why, stage, died = outcome["error"], outcome["stage"], outcome.get("signal")
    if stage == "user":
        return InputError(why)
    seen = f"the log is {log}" if log.is_file() else "it left no log"
    if died == "SIGKILL" or (stage in ("build", "verify") and _OUT_OF_MEMORY.search(why)):
        said = "the system killed it (SIGKILL), as it does when memory runs out" if died == "SIGKILL" else _short(why)
        return BuildError(
            f"building {graph} ran out of memory: {said}. Weights {_size(weights)}, workspace limit "
            f"{_size(workspace)}, free memory at the start {_size(free)}. {smallest_change(weights, workspace, free)}; "
            f"{seen}"
        )
    if died or "exit" in outcome:
        how = f"was ended by {died}" if died else f"ended with code {outcome['exit']}"
        return BuildError(
            f"building {graph} failed: TensorRT's process {how} {f'({_short(why)})' if why else ''}; {seen}"
        )
    at = f" at {outcome['node']}" if outcome["node"] else ""
    verb = {"parse": "cannot be read by TensorRT", "contract": "is not of this export"}.get(stage, "cannot be built")
    return BuildError(f"{graph} {verb}{at}: {_short(why)}; {seen}")


def smallest_change(weights: int, workspace: int, free: int) -> str:
    """What to change so that a build fits: a smaller workspace where that is enough, else memory, else the clip."""
    need = int(BUILD_FACTOR * weights)
    room = (free - need) // (64 * MIB) * 64  # MiB, in steps that a build notices
    if need + workspace > free and room >= 64:
        return f"About {_size(need)} is needed besides the workspace: try --workspace {room}"
    if need > free:
        return (
            f"About {_size(need)} is needed, so {_size(need - free)} more must be free: close other programs, stop the "
            "desktop (sudo systemctl isolate multi-user.target) or add swap"
        )
    smaller = max(64, workspace // MIB // 2)
    return f"Try --workspace {smaller}, then a smaller clip (--frames, --height, --width)"


def free_memory() -> int:
    """Bytes that can be taken without swapping; a Jetson's GPU shares them. 0 where it cannot be told."""
    try:
        text = Path("/proc/meminfo").read_text()
    except OSError:
        return 0
    found = re.search(r"MemAvailable:\s+(\d+) kB", text)
    return int(found[1]) * 1024 if found else 0


def _short(message: str) -> str:
    line = " ".join(message.split())
    return line if len(line) <= 300 else line[:297] + "..."


def _size(count: int) -> str:
    return f"{count / (1 << 30):.1f} GiB" if count >= 1 << 30 else f"{count / MIB:.0f} MiB"
