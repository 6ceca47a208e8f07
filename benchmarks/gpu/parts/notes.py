"""How a part is started and how it tells what it found: values and rows, on disk as soon as they are known.

A part that is stopped half-way has said everything up to there.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from benchmarks.gpu.results import write_json


@dataclass
class Notes:
    """values: what goals are judged by. tables: title -> rows of named cells."""

    file: Path
    values: dict[str, Any] = field(default_factory=dict)
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def value(self, name: str, value: Any) -> Any:
        self.values[name] = value
        self.write()
        return value

    def row(self, table: str, **cells: Any) -> None:
        self.tables.setdefault(table, []).append({k.replace("_", " "): v for k, v in cells.items()})
        self.write()

    @contextmanager
    def trying(self, what: str) -> Iterator[None]:
        """Go on when this fails, and keep the message."""
        try:
            yield
        except Exception as error:
            self.problems.append(f"{what}: {type(error).__name__}: {str(error)[-1500:]}")
            self.write()

    def write(self) -> None:
        write_json(self.file, {"values": self.values, "tables": self.tables, "problems": self.problems})


@dataclass(frozen=True)
class Job:
    """What a part is told."""

    notes: Notes
    device: str  # "cuda" or "cpu"
    artifacts: Path
    scratch: Path
    words: tuple[str, ...]
    until: float  # monotonic seconds at which the part will be stopped

    @property
    def cuda(self) -> bool:
        return self.device == "cuda"

    @property
    def backend(self) -> str:
        """ONNX Runtime's, as --backend calls it."""
        return "ort-cuda" if self.cuda else "ort-cpu"

    def left(self) -> float:
        """Seconds."""
        return self.until - time.monotonic()

    def inner(self) -> float:
        """Seconds for a command of the part's own, so that the part lives to tell of it."""
        return max(1.0, self.left() - 4.0)


def begin(argv: Sequence[str] | None = None) -> Job:
    """Read a part's command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("words", nargs="*")
    parser.add_argument("--notes", type=Path, required=True)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--artifacts", type=Path, required=True)
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--until", type=float, help="monotonic seconds, at which it will be stopped")
    args = parser.parse_args(argv)
    args.scratch.mkdir(parents=True, exist_ok=True)
    until = args.until or time.monotonic() + 3600
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends what the part has started, too
    faulthandler.dump_traceback_later(
        max(1.0, until - time.monotonic() - 2.0)
    )  # where it hangs, just before it is stopped
    return Job(Notes(args.notes), args.device, args.artifacts, args.scratch, tuple(args.words), until)


def start(main: Callable[[Job], None]) -> NoReturn:
    """Run a part as this process, which ends with it: taking PyTorch and CUDA down in order can take seconds."""
    code = 0
    try:
        main(begin())
    except SystemExit as ended:
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def median_seconds(work: Callable[[], object], wait: Callable[[], object], repeats: int, inner: int = 1) -> float:
    """Of one `work`, run `inner` times between two waits; the first round warms up."""
    found = []
    for _ in range(repeats + 1):
        wait()
        began = time.perf_counter()
        for _ in range(inner):
            work()
        wait()
        found.append((time.perf_counter() - began) / inner)
    return sorted(found[1:])[len(found[1:]) // 2]
