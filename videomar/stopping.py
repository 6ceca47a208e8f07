"""Signals that end a program, taken as Ctrl-C is: what runs unwinds, and removes what is not finished."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

AGAIN = 0.05  # seconds after which a signal that was dropped comes again


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
    heard, before = threading.Event(), sys.unraisablehook

    def stop(number: int, frame: FrameType | None) -> None:
        if not heard.is_set():  # a second one would interrupt the cleaning
            heard.set()
            raise Stopped(number)

    def again(number: int) -> None:
        heard.clear()
        os.kill(os.getpid(), number)

    def dropped(lost: sys.UnraisableHookArgs) -> None:
        """Python drops what is raised inside a finalizer, where the signal may have come: once more, outside of it."""
        if isinstance(lost.exc_value, Stopped):
            timer = threading.Timer(AGAIN, again, [lost.exc_value.number])
            timer.daemon = True
            timer.start()
        else:
            before(lost)

    for kind in taken:
        signal.signal(kind, stop)
    if taken:
        sys.unraisablehook = dropped
    try:
        yield
    except Exception as error:
        # A C extension that is stopped while it is imported makes an ImportError of it.
        if (stopped := _cause(error)) is None:
            raise
        raise stopped from None
    finally:
        if taken:
            sys.unraisablehook = before
        for kind in taken:
            signal.signal(kind, signal.SIG_DFL)


def _cause(error: BaseException | None) -> KeyboardInterrupt | None:
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__
    return error
