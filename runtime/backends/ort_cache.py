"""K/V of finished frames in ONNX Runtime's bound buffers. Knows nothing of what a frame holds, or of which device."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnxruntime as ort

from videomar.errors import InputError
from videomar.graphs import layer_names
from videomar.runtime.backends.base import ClipPlan
from videomar.runtime.backends.ort_memory import Buffer

if TYPE_CHECKING:
    from videomar.runtime.backends.ort import OrtBackend


class GrowingCache:
    """Exactly as many tokens as count: finished K/V are read from one buffer, finished and new ones lie in another.

    A graph that concatenates fills the second buffer itself. One that writes in place is given a second buffer that
    already holds the finished tokens: copied once a frame (the longer tensor has other strides), never in a step.
    """

    def __init__(self, backend: OrtBackend, binding: ort.IOBinding, plan: ClipPlan, dtype: np.dtype) -> None:
        t = backend.config.transformer
        self._memory, self._binding, self._plan, self._in_place = backend.memory, binding, plan, backend.in_place
        self._shape = (plan.branches, t.heads, t.head_dim)
        self._past, self._present = layer_names("past", t.depth), layer_names("present", t.depth)
        size = plan.branches * t.heads * (plan.seen + 1) * plan.tokens * t.head_dim
        self._old = [self._memory.zeros((size,), dtype) for _ in self._past]
        self._new = [self._memory.zeros((size,), dtype) for _ in self._past]
        self._finished = 0
        if self._in_place:
            self._start = self._memory.zeros((plan.branches,), np.int64)
        self._bind()

    def _view(self, flat: Buffer, length: int) -> Buffer:
        branches, heads, dim = self._shape
        return self._memory.view(flat, (branches, heads, length, dim))

    def _bind(self) -> None:
        past = min(self._finished, self._plan.seen) * self._plan.tokens
        total = past + self._plan.tokens
        if self._in_place:
            self._memory.put(self._binding, "start", self._start, np.int64(past))
        for i, (name, result) in enumerate(zip(self._past, self._present, strict=True)):
            old, new = self._view(self._old[i], past), self._view(self._new[i], total)
            if self._in_place:
                self._memory.widen(old, new)
                self._memory.bind_input(self._binding, name, new)
            else:
                self._memory.bind_input(self._binding, name, old)
            self._memory.bind_output(self._binding, result, new)

    def keep(self) -> None:
        """The frame just computed is finished."""
        self._finished += 1
        if self._plan.drops(self._finished):  # the oldest frame but the first goes, and the others move together
            tokens, seen = self._plan.tokens, self._plan.seen
            for old, new in zip(self._old, self._new, strict=True):
                self._memory.drop(self._view(new, (seen + 1) * tokens), self._view(old, seen * tokens), tokens)
        else:
            self._old, self._new = self._new, self._old
        if self._finished < self._plan.frames:
            self._bind()

    def close(self) -> None:
        """Let go of the memory."""
        self._old, self._new = [], []


class FixedCache:
    """One buffer a tensor for the longest clip, written in place; `reach` says how many tokens count. No copies.

    A frame that is no longer seen is written over by a new one: attention does not ask for an order.
    """

    def __init__(self, backend: OrtBackend, binding: ort.IOBinding, plan: ClipPlan, dtype: np.dtype) -> None:
        t, length = backend.config.transformer, backend.cache_tokens or 0
        need = (plan.seen + 1) * plan.tokens
        if need > length:
            raise InputError(
                f"the clip needs K/V of {need} tokens, these artifacts hold {length}; ask for fewer frames or a "
                f"shorter --kv-window, or export with --cache-tokens {need}"
            )
        memory = self._memory = backend.memory
        self._binding, self._plan, self._finished = binding, plan, 0
        names = layer_names("past", t.depth), layer_names("present", t.depth)
        shape = (plan.branches, t.heads, length, t.head_dim)
        self._caches = [(past, present, memory.zeros(shape, dtype)) for past, present in zip(*names, strict=True)]
        self._start = memory.zeros((plan.branches,), np.int64)
        self._reach = memory.zeros((length,), np.float32)
        self._bind()

    def _bind(self) -> None:
        memory, binding = self._memory, self._binding
        memory.put(binding, "start", self._start, np.int64(self._plan.slot(self._finished) * self._plan.tokens))
        reach = (min(self._finished, self._plan.seen) + 1) * self._plan.tokens
        memory.bind_input(binding, "reach", memory.view(self._reach, (reach,)))
        # Again for every frame: should a device have no kernel for the write, ONNX Runtime copied the cache elsewhere
        # when it was bound, and the frames finished since then would be missing there.
        for past, present, cache in self._caches:
            memory.bind_input(binding, past, cache)
            memory.bind_output(binding, present, cache)

    def keep(self) -> None:
        """The frame just computed is finished."""
        self._finished += 1
        if self._finished < self._plan.frames:
            self._bind()

    def close(self) -> None:
        """Let go of the memory."""
        self._caches = []
