"""A short look at this machine: how fast a core multiplies and copies. numpy only, a fifth of a second."""

from __future__ import annotations

import time

import numpy as np


def core_speed(seconds: float = 0.1) -> tuple[float, float]:
    """(operations/s of a matrix product on the threads numpy uses, bytes/s read and written by a large copy)."""
    a, b = np.ones((768, 768), np.float32), np.ones((768, 768), np.float32)
    source = np.ones(32 << 20, np.uint8)
    target = np.empty_like(source)
    products = _rate(lambda: a @ b, seconds)
    copies = _rate(lambda: np.copyto(target, source), seconds)
    return products * 2 * 768**3, copies * 2 * source.nbytes


def _rate(work: object, seconds: float) -> float:
    """Calls a second: the best of several, since a shared machine is only ever slower than itself."""
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        work()  # type: ignore[operator]
        best = min(best, time.perf_counter() - start)
    return 1 / best
