"""A short look at this machine: how fast it multiplies and copies. numpy only, a fifth of a second."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np


def speed(cores: int, seconds: float = 0.1) -> tuple[float, float]:
    """(operations/s of matrix products on that many cores, bytes/s read and written by a large copy).

    Counted in processor time, so that what else runs here does not matter.
    """
    a, b = np.ones((512, 512), np.float32), np.ones((512, 512), np.float32)
    source = np.ones(4 << 20, np.uint8)  # stays in a cache, as the weights of a small model do
    target = np.empty_like(source)
    return cores * 2 * 512**3 * _rate(lambda: a @ b, seconds), 2 * source.nbytes * _rate(
        lambda: np.copyto(target, source), seconds
    )


def _rate(work: Callable[[], object], seconds: float) -> float:
    """Calls a second of one core, at its best."""
    best, end = float("inf"), time.perf_counter() + seconds
    while best == float("inf") or time.perf_counter() < end:
        start = time.process_time()
        work()
        best = min(best, max(time.process_time() - start, 1e-6))
    return 1 / best
