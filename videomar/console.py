"""What a command says besides its results: one logger, on standard error; results are printed on standard output.

Silent in a program that uses the library, which sets up no handler for it.
"""

from __future__ import annotations

import codecs
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress

log = logging.getLogger("videomar.command")


def _as_given(error: UnicodeError) -> tuple[bytes, int]:
    """Bytes of a path that are no text here go out as they came in; else what the stream cannot show is escaped."""
    assert isinstance(error, UnicodeEncodeError)
    given = (character for character in error.object[error.start : error.end])
    shown = (
        bytes([ord(c) - 0xDC00]) if 0xDC80 <= ord(c) <= 0xDCFF else c.encode("ascii", "backslashreplace") for c in given
    )
    return b"".join(shown), error.end


codecs.register_error("as-given", _as_given)


def show_paths() -> None:
    """Let standard output and error show paths of any bytes, whatever the locale."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, ValueError):  # replaced by something else, or closed
            stream.reconfigure(errors="as-given")  # type: ignore[union-attr]


@contextmanager
def saying(quiet: bool = False, verbose: bool = False) -> Iterator[None]:
    """Write what the commands log to standard error: quiet, only warnings; verbose, details too."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    handler.handleError = lambda record: None  # type: ignore[method-assign]  # nobody reads it: no reason to stop
    level, propagate = log.level, log.propagate
    log.addHandler(handler)
    log.setLevel(logging.WARNING if quiet else logging.DEBUG if verbose else logging.INFO)
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
        log.propagate = propagate


@contextmanager
def noting(command: str) -> Iterator[None]:
    """Show what the runtime warns of as one line of the command."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: log.warning("videomar %s: note: %s", command, message)
        yield


def peak_memory() -> int | None:
    """Bytes that this process held at most; None where the system does not say."""
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def say_peak_memory() -> None:
    """Log it."""
    if peak := peak_memory():
        log.info("peak memory %.2f GiB", peak / 2**30)
