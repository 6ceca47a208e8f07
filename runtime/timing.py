"""Where a clip's time goes, by stage. Knows nothing of what the stages do."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager


class Timing:
    """Seconds and calls of each stage since `begin`; what no stage claims is the loop's own Python."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.calls: dict[str, int] = defaultdict(int)
        self.first_frame: float | None = None
        self._began = time.perf_counter()
        self._ended: float | None = None

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - began
            self.calls[name] += 1

    @property
    def total(self) -> float:
        """Seconds from this object's making to `finish`, or to now."""
        return (self._ended or time.perf_counter()) - self._began

    def finish(self) -> None:
        """Stop the clock."""
        self.mark_first_frame()
        self._ended = time.perf_counter()

    def mark_first_frame(self) -> None:
        """Note when the first generated pixel frame was ready; later calls change nothing."""
        if self.first_frame is None:
            self.first_frame = self.total
