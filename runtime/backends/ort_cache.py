"""K/V of finished frames in ONNX Runtime's bound buffers. Knows nothing of what a frame holds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnxruntime as ort

from videomar.errors import InputError
from videomar.graphs import layer_names
from videomar.runtime.backends.base import ClipPlan

if TYPE_CHECKING:
    from videomar.runtime.backends.ort import OrtBackend


def wrap(array: np.ndarray) -> ort.OrtValue:
    """An OrtValue over the array's own memory; the caller keeps the array alive."""
    return ort.OrtValue.ortvalue_from_numpy(array)


class GrowingCache:
    """Exactly as many tokens as count: finished K/V are read from one buffer, finished and new ones lie in another.

    A graph that concatenates fills the second buffer itself. One that writes in place is given a second buffer that
    already holds the finished tokens: copied once a frame (the longer tensor has other strides), never in a step.
    """

    def __init__(self, backend: OrtBackend, binding: ort.IOBinding, plan: ClipPlan, dtype: np.dtype) -> None:
        t = backend.config.transformer
        self._binding, self._plan, self._in_place = binding, plan, backend.in_place
        self._shape = (plan.branches, t.heads, t.head_dim)
        self._past, self._present = layer_names("past", t.depth), layer_names("present", t.depth)
        size = plan.branches * t.heads * plan.frames * plan.tokens * t.head_dim
        self._old = [np.zeros(size, dtype) for _ in self._past]
        self._new = [np.zeros(size, dtype) for _ in self._past]
        self._finished = 0
        self._start = np.zeros(plan.branches, np.int64)
        if self._in_place:
            binding.bind_ortvalue_input("start", wrap(self._start))
        self._bind()

    def _view(self, flat: np.ndarray, length: int) -> np.ndarray:
        branches, heads, dim = self._shape
        return flat[: branches * heads * length * dim].reshape(branches, heads, length, dim)

    def _bind(self) -> None:
        past, total = self._finished * self._plan.tokens, (self._finished + 1) * self._plan.tokens
        self._start[:] = past
        for i, (name, result) in enumerate(zip(self._past, self._present, strict=True)):
            old, new = self._view(self._old[i], past), self._view(self._new[i], total)
            value = wrap(new)
            if self._in_place:
                new[:, :, :past] = old
                self._binding.bind_ortvalue_input(name, value)
            else:
                self._binding.bind_ortvalue_input(name, wrap(old))
            self._binding.bind_ortvalue_output(result, value)

    def keep(self) -> None:
        """The frame just computed is finished."""
        self._finished += 1
        self._old, self._new = self._new, self._old
        if self._finished < self._plan.frames:
            self._bind()

    def close(self) -> None:
        """Let go of the memory."""
        self._old, self._new = [], []


class FixedCache:
    """One buffer a tensor for the longest clip, written in place; `reach` says how many tokens count. No copies."""

    def __init__(self, backend: OrtBackend, binding: ort.IOBinding, plan: ClipPlan, dtype: np.dtype) -> None:
        t, length = backend.config.transformer, backend.cache_tokens or 0
        if plan.frames * plan.tokens > length:
            raise InputError(
                f"the clip needs K/V of {plan.frames * plan.tokens} tokens, these artifacts hold {length}; "
                f"ask for fewer frames or export with --cache-tokens {plan.frames * plan.tokens}"
            )
        self._binding, self._plan, self._finished = binding, plan, 0
        self._memory = [np.zeros((plan.branches, t.heads, length, t.head_dim), dtype) for _ in range(2 * t.depth)]
        self._start = np.zeros(plan.branches, np.int64)
        self._reach = np.zeros(length, np.float32)
        binding.bind_ortvalue_input("start", wrap(self._start))
        for past, present, array in zip(
            layer_names("past", t.depth), layer_names("present", t.depth), self._memory, strict=True
        ):
            value = wrap(array)
            binding.bind_ortvalue_input(past, value)
            binding.bind_ortvalue_output(present, value)
        self._bind()

    def _bind(self) -> None:
        self._start[:] = self._finished * self._plan.tokens
        self._binding.bind_ortvalue_input("reach", wrap(self._reach[: (self._finished + 1) * self._plan.tokens]))

    def keep(self) -> None:
        """The frame just computed is finished."""
        self._finished += 1
        if self._finished < self._plan.frames:
            self._bind()

    def close(self) -> None:
        """Let go of the memory."""
        self._memory = []
