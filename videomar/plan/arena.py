"""ONNX Runtime's CPU arena, as far as memory is concerned: best fit, chunks that join again, regions that double.

Follows onnxruntime/core/framework/bfc_arena.cc (1.32) with its defaults. What counts is what was ever touched: a region
is reserved at once, but the system gives it page by page.
"""

from __future__ import annotations

import bisect

ALIGNMENT = 256
FIRST_REGION = 1 << 20
AFTER_SHRINK = 2 << 20
LARGEST_REGION = 1 << 30
DEAD_BYTES = 128 << 20  # a chunk may be this much too large before it is split


class Arena:
    """Handles are (region, offset) packed into one number; `peak` is bytes touched since the start."""

    def __init__(self) -> None:
        self._regions: list[list[int]] = []  # [size, highest byte touched]
        self._free: list[tuple[int, int, int]] = []  # (size, region, offset), sorted: the best fit comes first
        self._used: dict[int, tuple[int, int, int]] = {}
        self._starts: dict[tuple[int, int], int] = {}  # free chunks: (region, offset) -> size
        self._stops: dict[tuple[int, int], int] = {}  # (region, end) -> size
        self._next = FIRST_REGION

    @property
    def peak(self) -> int:
        """Bytes touched in all."""
        return sum(touched for _, touched in self._regions)

    def take(self, size: int) -> int:
        """A chunk of at least this many bytes."""
        size = max(-(-size // ALIGNMENT), 1) * ALIGNMENT
        at = bisect.bisect_left(self._free, (size, -1, -1))
        if at == len(self._free):
            self._extend(size)
            at = bisect.bisect_left(self._free, (size, -1, -1))
        length, region, offset = self._free[at]
        self._remove(length, region, offset)
        if length >= 2 * size or length - size >= DEAD_BYTES:
            self._add(length - size, region, offset + size)
            length = size
        self._regions[region][1] = max(self._regions[region][1], offset + size)
        handle = len(self._used) and max(self._used) + 1
        self._used[handle] = (length, region, offset)
        return handle

    def give(self, handle: int) -> None:
        """Free a chunk; free neighbours become one."""
        length, region, offset = self._used.pop(handle)
        if after := self._starts.get((region, offset + length)):
            self._remove(after, region, offset + length)
            length += after
        if before := self._stops.get((region, offset)):
            self._remove(before, region, offset - before)
            length, offset = length + before, offset - before
        self._add(length, region, offset)

    def _extend(self, size: int) -> None:
        grown = False
        while self._next < size:
            self._next, grown = self._next * 2, True
        self._regions.append([self._next, 0])
        self._add(self._next, len(self._regions) - 1, 0)
        if not grown:
            self._next = min(self._next * 2, max(LARGEST_REGION, self._next))

    def _add(self, size: int, region: int, offset: int) -> None:
        bisect.insort(self._free, (size, region, offset))
        self._starts[region, offset] = size
        self._stops[region, offset + size] = size

    def _remove(self, size: int, region: int, offset: int) -> None:
        self._free.pop(bisect.bisect_left(self._free, (size, region, offset)))
        del self._starts[region, offset], self._stops[region, offset + size]


class Ideal:
    """An allocator without gaps: what is alive at the same time, at most. What engines' planners come close to."""

    def __init__(self) -> None:
        self.now = self.peak = 0
        self._sizes: dict[int, int] = {}

    def take(self, size: int) -> int:
        self.now += size
        self.peak = max(self.peak, self.now)
        handle = len(self._sizes) and max(self._sizes) + 1
        self._sizes[handle] = size
        return handle

    def give(self, handle: int) -> None:
        self.now -= self._sizes.pop(handle)
