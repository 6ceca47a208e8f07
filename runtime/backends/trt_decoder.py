"""A clip's decoding on TensorRT: allocates once; a frame is one upload, one pass and one download.

Shapes never change inside a clip; what is carried changes places between two sets of buffers. Knows nothing of what is
carried.
"""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np

from videomar.carried import decoder_axes
from videomar.config import TokenizerConfig
from videomar.graphs import TOKENIZER_DECODER
from videomar.runtime.backends.cuda import Memory
from videomar.runtime.backends.trt_buffers import SMALLER
from videomar.runtime.backends.trt_clip import Device
from videomar.runtime.backends.trt_engines import Context, shapes_of
from videomar.runtime.backends.trt_memory import Upload, size_of


class TrtDecoder:
    """Device state of one clip's decoding."""

    def __init__(self, device: Device, config: TokenizerConfig, frames: int, h: int, w: int) -> None:
        """Raises InputError for a clip the engine was not built for, DeviceError when there is no memory for it."""
        engine, cuda, stream = device.engines[TOKENIZER_DECODER], device.cuda, device.stream
        axes = decoder_axes(config, frames, h, w)
        engine.profile(axes)
        self._cuda, self._stream, self._done, self._open = cuda, stream, 0, True
        given, made = (
            {t.name: (shape, t.dtype) for t, shape in zip(tensors, shapes_of(tensors, axes).values(), strict=True)}
            for tensors in (engine.spec.inputs, engine.spec.outputs)
        )
        uploaded, pixels = {name: given.pop(name) for name in ("latents", "done")}, made.pop("pixels")
        carried = sum(size_of(*of) for tensors in (given, made) for of in tensors.values())
        need = carried + size_of(*pixels) + Upload.size(uploaded)
        cuda.require_memory(need, f"decoding {frames} latent frames of {h} x {w}", SMALLER)
        self._stack = ExitStack()
        try:
            memory = Memory(cuda)
            self._stack.callback(memory.close)
            self._sent = Upload(cuda, memory, stream, uploaded)
            self._stack.callback(self._sent.close)
            self._at = memory.device(size_of(*pixels))
            self._pixels = memory.pinned(size_of(*pixels)).view(pixels[1]).reshape(pixels[0])
            self._names = list(given), list(made)
            self._sets = [[memory.device(size_of(*of)) for of in given.values()] for _ in range(2)]
            self._context = Context(engine, device.block, stream)
            self._stack.callback(self._context.close)
            self._context.resize(axes)
            self._context.bind({**self._sent.addresses, "pixels": self._at})
        except BaseException:
            self.close()
            raise

    def next(self, latent: np.ndarray) -> np.ndarray:
        into = self._sent.fill()
        into["latents"][0, :, 0], into["done"][0] = latent, self._done
        self._sent.send()
        read = self._done % 2
        for names, addresses in zip(self._names, (self._sets[read], self._sets[1 - read]), strict=True):
            self._context.bind(dict(zip(names, addresses, strict=True)))
        self._context.enqueue()
        self._cuda.download(self._pixels.ctypes.data, self._at, self._pixels.nbytes, self._stream)
        self._cuda.synchronize(self._stream)
        self._sent.arrived()
        self._done += 1
        return self._pixels if self._done > 1 else self._pixels[:, :, -1:]

    def close(self) -> None:
        """Context, then memory; again is harmless."""
        if self._open:
            self._open = False
            self._cuda.drain(self._stream)
        self._stack.close()
