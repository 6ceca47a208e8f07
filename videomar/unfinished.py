"""What is not finished yet: hidden beside its target or in the system's folder for scratch, under its writer's lock.

A name is `.NAME.PID-TOKEN.tmp`. The kernel drops the lock when its writer dies, so a free lock tells a leftover, and
the next writer of the same NAME removes it; the PID is for people (in a container every run may have the same one).
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


@contextmanager
def beside(target: Path) -> Iterator[Path]:
    """A new name beside `target`, to be made and locked; leftovers of dead writers go first, what has it last goes too.

    Raises OSError where there is no such place.
    """
    leftover = re.compile(rf"\.{re.escape(target.name)}\.\d+-[0-9a-f]{{8}}\.tmp")
    for path in target.parent.iterdir():
        if leftover.fullmatch(path.name):
            with suppress(OSError), opened(path) as fd:
                if lock(fd):
                    _remove(path)
    path = another(target)
    try:
        yield path
    finally:
        _remove(path)


@contextmanager
def folder(target: Path, mode: int = 0o777) -> Iterator[Path]:
    """A new hidden directory beside `target`, locked, that goes with all it holds; raises OSError likewise."""
    with beside(target) as path:
        path.mkdir(mode)
        with opened(path) as fd:
            lock(fd)
            yield path


@contextmanager
def scratch(purpose: str) -> Iterator[Path]:
    """A folder of the system's for what nobody wants later; what killed runs left there for this purpose goes first."""
    with folder(Path(tempfile.gettempdir()) / f"videomar-{purpose}", 0o700) as path:
        yield path


@contextmanager
def made(target: Path, here: bool = True) -> Iterator[None]:
    """A directory that is made at once, where a mistake costs nothing, and goes again if nothing comes into it.

    here: false for one of many processes that leaves it to another. Raises OSError where it cannot be.
    """
    new = [path for path in (target, *target.parents) if not path.exists()] if here else []
    if here:
        target.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        with suppress(OSError):  # it holds something
            for path in new:
                path.rmdir()


def another(target: Path) -> Path:
    """One more such name."""
    return target.with_name(f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """A descriptor of a file or directory, for locks and fsync; of nothing that would wait for another process."""
    fd = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    try:
        yield fd
    finally:
        os.close(fd)


def lock(fd: int) -> bool:
    """Take the lock of what is open, for as long as it stays so; whether it was free."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # held, or a file system without locks: then leftovers stay rather than live writers lose theirs
        return False
    return True


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
