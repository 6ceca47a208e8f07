"""K/V of finished frames and of the current one in ONNX Runtime's bound buffers. Knows nothing of what a frame holds,
or of which device.

A pass says where it goes before it runs (`place`): which binding, how many branches, which positions of the frame.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np
import onnxruntime as ort

from videomar.errors import InputError
from videomar.graphs import layer_names
from videomar.runtime.backends.base import ClipPlan
from videomar.runtime.backends.ort_memory import Buffer

if TYPE_CHECKING:
    from videomar.runtime.backends.ort import OrtBackend


class Cache(Protocol):
    """K/V of the branches of one call of the transformer."""

    def place(self, binding: ort.IOBinding, branches: int, first: int, part: int) -> None:
        """Bind for a pass over `part` positions of the frame from `first` on, of the first so many branches."""

    def keep(self) -> None:
        """The frame just computed, whole, is finished."""

    def close(self) -> None:
        """Let go of the memory."""


class GrowingCache:
    """Exactly as many tokens as count: finished K/V are read from one buffer, finished and new ones lie in another.

    A graph that concatenates fills the second buffer itself; before it computes a part of the frame, finished K/V and
    those of the frame's other positions are put together in a third. One that writes in place is given a second buffer
    that already holds the finished tokens: copied once a frame (the longer tensor has other strides), never in a step.
    """

    def __init__(self, backend: OrtBackend, plan: ClipPlan, dtype: np.dtype) -> None:
        t = backend.config.transformer
        self._memory, self._plan, self._in_place = backend.memory, plan, backend.in_place
        self._heads, self._dim = t.heads, t.head_dim
        self._past, self._present = layer_names("past", t.depth), layer_names("present", t.depth)
        size = plan.branches * t.heads * (plan.seen + 1) * plan.tokens * t.head_dim
        parts = not self._in_place and len(plan.parts) > 1
        self._old, self._new, self._both = (
            [self._memory.zeros((size,), dtype) for _ in self._past] if wanted else [] for wanted in (True, True, parts)
        )
        self._starts = {n: self._memory.zeros((n,), np.int64) for n in {1, plan.branches} if self._in_place}
        self._finished, self._widened = 0, -1
        self._bound: tuple[ort.IOBinding, int, int, int] | None = None
        self._at = np.arange(plan.tokens)  # where in the new part of the second buffer a position lies

    def _view(self, flat: Buffer, branches: int, length: int) -> Buffer:
        return self._memory.view(flat, (branches, self._heads, length, self._dim))

    def place(self, binding: ort.IOBinding, branches: int, first: int, part: int) -> None:
        past, whole = min(self._finished, self._plan.seen) * self._plan.tokens, part == self._plan.tokens
        if whole and self._bound == (binding, branches, first, part):
            return
        self._bound = (binding, branches, first, part)
        if self._in_place:
            self._widen(past)
            self._memory.put(binding, "start", self._starts[branches], np.int64(past + first))
        kept = np.delete(np.arange(self._plan.tokens), np.s_[first : first + part])
        rows = self._memory.numbers(past + self._at[kept]) if self._both and not whole else None
        for i, (name, result) in enumerate(zip(self._past, self._present, strict=True)):
            new = self._view(self._new[i], branches, past + self._plan.tokens)
            read = new if self._in_place else self._view(self._old[i], branches, past)
            if rows is not None:
                both = self._view(self._both[i], branches, past + len(kept))
                self._memory.extend(read, new, rows, both)
                read = both
            self._memory.bind_input(binding, name, read)
            self._memory.bind_output(binding, result, new)
        if not self._in_place:
            self._at[kept], self._at[first : first + part] = np.arange(len(kept)), len(kept) + np.arange(part)

    def _widen(self, past: int) -> None:
        if self._widened == self._finished:
            return
        self._widened = self._finished
        for old, new in zip(self._old, self._new, strict=True):
            source = self._view(old, self._plan.branches, past)
            self._memory.widen(source, self._view(new, self._plan.branches, past + self._plan.tokens))

    def keep(self) -> None:
        if self._finished + 1 == self._plan.frames:
            return  # nothing follows that could see it
        self._finished, self._bound = self._finished + 1, None
        if self._plan.drops(self._finished):  # the oldest frame but the first goes, and the others move together
            branches, tokens, seen = self._plan.branches, self._plan.tokens, self._plan.seen
            for old, new in zip(self._old, self._new, strict=True):
                whole, less = self._view(new, branches, (seen + 1) * tokens), self._view(old, branches, seen * tokens)
                self._memory.drop(whole, less, tokens)
        else:
            self._old, self._new = self._new, self._old

    def close(self) -> None:
        self._old, self._new, self._both = [], [], []


class FixedCache:
    """One buffer a tensor for the longest clip, written in place; `reach` says how many tokens count. No copies.

    A frame that is no longer seen is written over by a new one: attention does not ask for an order.
    """

    def __init__(self, backend: OrtBackend, plan: ClipPlan, dtype: np.dtype) -> None:
        t, length = backend.config.transformer, backend.cache_tokens or 0
        need = (plan.seen + 1) * plan.tokens
        if need > length:
            raise InputError(
                f"the clip needs K/V of {need} tokens, these artifacts hold {length}; ask for fewer frames or a "
                f"shorter --kv-window, or export with --cache-tokens {need}"
            )
        memory = self._memory = backend.memory
        self._plan, self._finished = plan, 0
        names = layer_names("past", t.depth), layer_names("present", t.depth)
        self._row = (t.heads, length, t.head_dim)
        shape = (plan.branches, *self._row)
        self._caches = [(past, present, memory.zeros(shape, dtype)) for past, present in zip(*names, strict=True)]
        self._starts = {n: memory.zeros((n,), np.int64) for n in {1, plan.branches}}
        self._reach = memory.zeros((length,), np.float32)
        self._bound: tuple[ort.IOBinding, int] | None = None

    def place(self, binding: ort.IOBinding, branches: int, first: int, part: int) -> None:
        memory, plan = self._memory, self._plan
        memory.put(binding, "start", self._starts[branches], np.int64(plan.slot(self._finished) * plan.tokens + first))
        # Again for every frame and every change: should a device have no kernel for the write, ONNX Runtime copied the
        # cache elsewhere when it was bound, and what was written since then would be missing there.
        if self._bound == (binding, branches):
            return
        self._bound = (binding, branches)
        reach = (min(self._finished, plan.seen) + 1) * plan.tokens
        memory.bind_input(binding, "reach", memory.view(self._reach, (reach,)))
        for past, present, cache in self._caches:
            some = memory.view(cache, (branches, *self._row))
            memory.bind_input(binding, past, some)
            memory.bind_output(binding, present, some)

    def keep(self) -> None:
        if self._finished + 1 < self._plan.frames:
            self._finished, self._bound = self._finished + 1, None

    def close(self) -> None:
        self._caches = []
