"""Signals that end a program, taken as Ctrl-C is: what runs unwinds, and removes what is not finished."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stopped(KeyboardInterrupt):
    """A signal asked for the end."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


@contextmanager
def stoppable() -> Iterator[None]:
    """Raise Stopped on SIGTERM (docker stop, systemd, schedulers) and SIGHUP (the terminal closed) from now on.

    Left alone are signals that are ignored, as under nohup, or that somebody else handles, and other threads than the
    main one, where Python allows no handlers.
    """
    kinds = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    if threading.current_thread() is not threading.main_thread():
        kinds = []
    taken = [kind for kind in kinds if signal.getsignal(kind) is signal.SIG_DFL]

    def stop(number: int, frame: FrameType | None) -> None:
        for kind in taken:
            signal.signal(kind, signal.SIG_IGN)  # the second one would interrupt the cleaning
        raise Stopped(number)

    for kind in taken:
        signal.signal(kind, stop)
    try:
        yield
    finally:
        for kind in taken:
            signal.signal(kind, signal.SIG_DFL)
