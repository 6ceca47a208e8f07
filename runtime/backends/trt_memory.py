"""What a clip keeps on the device beside TensorRT's own memory: uploads through pinned memory, and K/V of frames.

Knows addresses and bytes. Knows nothing of engines, or of what the numbers mean.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from videomar.config import TransformerConfig
from videomar.errors import InputError
from videomar.graphs import layer_names
from videomar.runtime.backends.base import ClipPlan
from videomar.runtime.backends.cuda import Cuda, Memory

Fields = Mapping[str, tuple[tuple[int, ...], Any]]  # name -> shape, dtype
ALIGNMENT = 256  # of every address that TensorRT is given


def aligned(size: int) -> int:
    """The next multiple of ALIGNMENT."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def size_of(shape: tuple[int, ...], dtype: Any) -> int:
    """Bytes of a tensor."""
    return int(np.prod(shape, dtype=np.int64) * np.dtype(dtype).itemsize)


class Upload:
    """Arrays that go to the device together, in one asynchronous copy from pinned memory.

    With several slots the host fills one while another is still being copied. A slot is waited for only if it was
    sent and nothing since then (`arrived`) says that it came.
    """

    def __init__(self, cuda: Cuda, memory: Memory, stream: Any, fields: Fields, slots: int = 1) -> None:
        self._cuda, self._stream = cuda, stream
        self._events: list[Any] = []
        self._on_the_way = [False] * slots
        self._at = 0
        offsets, size = {}, 0
        for name, (shape, dtype) in fields.items():
            offsets[name] = size
            size += aligned(size_of(shape, dtype))
        self._size = size
        base = memory.device(size)
        self.addresses = {name: base + offset for name, offset in offsets.items()}
        self._pinned = [memory.pinned(size) for _ in range(slots)]
        self._views = [
            {
                name: pinned[offsets[name] : offsets[name] + size_of(shape, dtype)].view(dtype).reshape(shape)
                for name, (shape, dtype) in fields.items()
            }
            for pinned in self._pinned
        ]
        try:
            for _ in range(slots):
                self._events.append(cuda.event())
        except BaseException:
            self.close()
            raise

    @staticmethod
    def size(fields: Fields) -> int:
        """Bytes that these arrays take on the device."""
        return sum(aligned(size_of(shape, dtype)) for shape, dtype in fields.values())

    def fill(self) -> dict[str, np.ndarray]:
        """The arrays to write before `send`."""
        if self._on_the_way[self._at]:
            self._cuda.wait(self._events[self._at])
            self._on_the_way[self._at] = False
        return self._views[self._at]

    def send(self) -> None:
        """Copy what was written, in stream order, and turn to the next slot."""
        base = min(self.addresses.values())
        self._cuda.upload(base, self._pinned[self._at].ctypes.data, self._size, self._stream)
        self._cuda.record(self._events[self._at], self._stream)
        self._on_the_way[self._at] = True
        self._at = (self._at + 1) % len(self._events)

    def arrived(self) -> None:
        """The stream was waited for: every slot can be written again."""
        self._on_the_way = [False] * len(self._on_the_way)

    def close(self) -> None:
        while self._events:
            self._cuda.destroy_event(self._events.pop())


@dataclass(frozen=True)
class Rows:
    """A strided copy on the device: `rows` rows of `row` bytes."""

    to: int
    pitch: int
    source: int
    source_pitch: int
    row: int
    rows: int


class Cache(Protocol):
    """K/V of the frames that are seen and of the current one, of the branches of one pass."""

    buffers: dict[str, int]  # name -> bytes, to be allocated by the caller

    def sizes(self, seen: int, part: int) -> dict[str, int]:
        """The contract's axes `past` and `total` of a pass over `part` positions of a frame that sees so many."""

    def bindings(self, seen: int, part: int, addresses: Mapping[str, int]) -> dict[str, int]:
        """Tensor -> address for such a pass; `addresses` are those of `buffers`."""

    def place(self, seen: int, branches: int, part: slice, addresses: Mapping[str, int]) -> list[Rows]:
        """What to copy before such a pass over these positions, of the first so many branches; called for every one."""

    def keep(self, finished: int, addresses: Mapping[str, int]) -> Iterator[Rows]:
        """What to copy now that this many frames are finished."""


class GrowingCache:
    """Exactly as many tokens as count, in two buffers a tensor: a pass reads one and writes the other.

    The graph's own Concat moves finished K/V; keeping a frame only changes which buffer is read. Once a frame falls
    out of the window the buffers stay as they are, and the new frame is copied over it: attention asks for no order.
    A pass over a part of the frame reads a third buffer, in which finished K/V and those of the frame's other positions
    are put together before.
    """

    def __init__(self, t: TransformerConfig, plan: ClipPlan, dtype: np.dtype, group: int = 0) -> None:
        """plan: of the branches of pass number `group` alone."""
        self._plan, self._group = plan, group
        self._names = layer_names("past", t.depth), layer_names("present", t.depth)
        self._heads, self._rows = t.heads, plan.branches * t.heads
        self._token = size_of((t.head_dim,), dtype)
        self._row = plan.tokens * self._token
        self._at = np.arange(plan.tokens)  # where in the frame written last a position lies
        # After n frames a pass writes n + 1 into the buffer of that parity; the shorter one never holds the last.
        most = plan.seen + 1
        longest = {most % 2: most, (most + 1) % 2: most - 1}
        self.buffers = {
            self._buffer(name, parity): self._rows * self._row * frames
            for name in self._names[0]
            for parity, frames in longest.items()
        }
        if len(plan.parts) > 1:
            self.buffers |= {self._both(name): self._rows * self._row * most for name in self._names[0]}

    def _both(self, name: str) -> str:
        return f"{name} both {self._group}"

    def _buffer(self, name: str, frames: int) -> str:
        return f"{name} {frames % 2} {self._group}"

    def sizes(self, seen: int, part: int) -> dict[str, int]:
        total = (seen + 1) * self._plan.tokens
        return {"past": total - part, "total": total}

    def bindings(self, seen: int, part: int, addresses: Mapping[str, int]) -> dict[str, int]:
        bound = {}
        for name, present in zip(*self._names, strict=True):
            read = self._buffer(name, seen) if part == self._plan.tokens else self._both(name)
            bound[name], bound[present] = addresses[read], addresses[self._buffer(name, seen + 1)]
        return bound

    def place(self, seen: int, branches: int, part: slice, addresses: Mapping[str, int]) -> list[Rows]:
        kept = np.delete(np.arange(self._plan.tokens), part)
        copies = list(self._together(seen, branches, kept, addresses)) if len(kept) else []
        self._at[kept], self._at[part] = np.arange(len(kept)), np.arange(len(kept), self._plan.tokens)
        return copies

    def _together(self, seen: int, branches: int, kept: np.ndarray, addresses: Mapping[str, int]) -> Iterator[Rows]:
        """Finished K/V and behind them those of these positions of the frame, run by run as they lie."""
        tokens, token, at = self._plan.tokens, self._token, self._at[kept]
        runs = np.split(at, np.flatnonzero(np.diff(at) != 1) + 1)
        read, written, pitch = seen * tokens, (seen + 1) * tokens, seen * tokens + len(kept)
        # Which buffer, tokens in one of its rows, first of them to copy, how many.
        pieces = [(seen, read, 0, read), *((seen + 1, written, read + int(run[0]), len(run)) for run in runs)]
        for name in self._names[0]:
            to = addresses[self._both(name)]
            for frames, length, first, count in pieces:
                source = addresses[self._buffer(name, frames)] + first * token
                yield Rows(to, pitch * token, source, length * token, count * token, branches * self._heads)
                to += count * token

    def keep(self, finished: int, addresses: Mapping[str, int]) -> Iterator[Rows]:
        seen, row = self._plan.seen, self._row
        if not self._plan.drops(finished):
            return
        slot = 1 + (finished - 2) % (seen - 1)  # of the frame that falls out; the one just finished is `finished` - 1
        for name in self._names[0]:
            read, written = addresses[self._buffer(name, seen)], addresses[self._buffer(name, seen + 1)]
            yield Rows(read + slot * row, seen * row, written + seen * row, (seen + 1) * row, row, self._rows)


class FixedCache:
    """One buffer a tensor, as long as the engine's, bound as input and output; the graph writes the frame in place."""

    def __init__(
        self, t: TransformerConfig, plan: ClipPlan, dtype: np.dtype, length: int, rebuild: str, group: int = 0
    ) -> None:
        """plan: of the branches of pass number `group` alone."""
        need = (plan.seen + 1) * plan.tokens
        if need > length:
            raise InputError(
                f"the clip needs K/V of {need} tokens, these engines hold {length}; ask for fewer frames or a shorter "
                f"--kv-window, or export with --cache-tokens {need} and {rebuild}"
            )
        self._plan, self._group = plan, group
        self._names = layer_names("past", t.depth), layer_names("present", t.depth)
        size = size_of((plan.branches, t.heads, length, t.head_dim), dtype)
        self.buffers = {self._buffer(name): size for name in self._names[0]} | {"reach": size_of((need,), np.float32)}

    def _buffer(self, name: str) -> str:
        return f"{name} {self._group}"

    def sizes(self, seen: int, part: int) -> dict[str, int]:
        past = seen * self._plan.tokens
        return {"past": past, "total": past + self._plan.tokens}

    def bindings(self, seen: int, part: int, addresses: Mapping[str, int]) -> dict[str, int]:
        bound = {"reach": addresses["reach"]}
        for past, present in zip(*self._names, strict=True):
            bound[past] = bound[present] = addresses[self._buffer(past)]
        return bound

    def place(self, seen: int, branches: int, part: slice, addresses: Mapping[str, int]) -> list[Rows]:
        """Nothing: the other positions' K/V lie where they were written."""
        return []

    def keep(self, finished: int, addresses: Mapping[str, int]) -> Iterator[Rows]:
        """Nothing: a frame that is no longer seen is written over by the next."""
        return iter(())
