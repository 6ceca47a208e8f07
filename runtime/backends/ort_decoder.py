"""A clip's decoding in ONNX Runtime: what is carried changes places between two sets of bound buffers.

Knows nothing of what is carried, or of which device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from videomar.carried import decoder_axes
from videomar.graphs import TOKENIZER_DECODER
from videomar.runtime.backends.ort_memory import Buffer

if TYPE_CHECKING:
    from videomar.runtime.backends.ort import OrtBackend


class OrtDecoder:
    """Buffers and bindings of one clip's decoding."""

    def __init__(self, backend: OrtBackend, frames: int, h: int, w: int) -> None:
        spec, memory = backend.specs[TOKENIZER_DECODER], backend.memory
        self._memory, self._session, self._done = memory, backend.session(TOKENIZER_DECODER), 0
        self._binding = self._session.io_binding()
        axes = decoder_axes(backend.config.tokenizer, frames, h, w)
        (self._latents, self._count, *self._past), (self._pixels, *self._present) = (
            [(t.name, memory.zeros([axes[a] if isinstance(a, str) else a for a in t.axes], t.dtype)) for t in tensors]
            for tensors in (spec.inputs, spec.outputs)
        )
        memory.bind_output(self._binding, *self._pixels)

    def next(self, latent: np.ndarray) -> np.ndarray:
        memory, binding = self._memory, self._binding
        memory.put(binding, *self._latents, latent[None, :, None])
        memory.put(binding, *self._count, np.int64(self._done))
        for named in self._past:
            memory.bind_input(binding, *named)
        for named in self._present:
            memory.bind_output(binding, *named)
        memory.run(self._session, binding, TOKENIZER_DECODER)
        self._past, self._present = _exchanged(self._past, self._present), _exchanged(self._present, self._past)
        pixels = memory.read(self._pixels[1])
        self._done += 1
        return pixels if self._done > 1 else pixels[:, :, -1:]

    def close(self) -> None:
        self._binding.clear_binding_inputs()
        self._binding.clear_binding_outputs()
        self._past, self._present = [], []


def _exchanged(ours: list[tuple[str, Buffer]], theirs: list[tuple[str, Buffer]]) -> list[tuple[str, Buffer]]:
    """Our names with their buffers."""
    return [(name, buffer) for (name, _), (_, buffer) in zip(ours, theirs, strict=True)]
