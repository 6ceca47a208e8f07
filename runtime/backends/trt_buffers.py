"""All memory of one clip beside TensorRT's own, allocated once: where each tensor lies, and the uploads that fill it.

Knows the contract's shapes. Knows nothing of engines, contexts or graphs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from videomar.config import ModelConfig
from videomar.graphs import layer_names, modulation_names
from videomar.runtime.backends.base import ClipPlan
from videomar.runtime.backends.cuda import Cuda, Memory
from videomar.runtime.backends.trt_loop import LoopShape, loop_shapes
from videomar.runtime.backends.trt_memory import Cache, Fields, Upload, size_of

SMALLER = "ask for fewer frames or a smaller size, or close what else uses the GPU"


class Buffers:
    """at: tensor (or buffer) -> address. Rows beyond those asked for repeat the first, so that shapes never change."""

    def __init__(
        self,
        cuda: Cuda,
        stream: Any,
        config: ModelConfig,
        dtype: np.dtype,
        caches: Sequence[Cache],
        plan: ClipPlan,
        text: int,
    ) -> None:
        """text: tokens of the prompt. Raises DeviceError when there is too little memory, before asking for any."""
        self._cuda, self._stream, self._plan = cuda, stream, plan
        self._config, self._dtype = config, dtype
        self.rows = max(plan.counts)
        self.loops = loop_shapes(config, dtype, plan)
        sizes = self._sizes(caches, text)
        uploads = self._uploads()
        need = sum(sizes.values()) + sum(Upload.size(fields) for fields in uploads)
        cuda.require_memory(need, f"a clip of {plan.frames} latent frames of {plan.tokens} tokens", SMALLER)
        self._memory, self._sent = Memory(cuda), []
        try:
            self.at = {name: self._memory.device(size) for name, size in sizes.items()}
            shape = (self.rows, config.transformer.token_channels)
            self._sampled = self._memory.pinned(size_of(shape, np.float32)).view(np.float32).reshape(shape)
            # Two slots: the pass that stores a frame and the first of the next frame are not waited for in between.
            for fields, slots in zip(uploads, (2, 1, 1), strict=True):
                self._sent.append(upload := Upload(cuda, self._memory, stream, fields, slots))
                self.at |= upload.addresses
        except BaseException:
            self.close()
            raise

    def _sizes(self, caches: Sequence[Cache], text: int) -> dict[str, int]:
        plan, t = self._plan, self._config.transformer
        state = size_of((self.rows, t.token_channels), np.float32)
        per_text = size_of((2, t.heads, text, t.head_dim), self._dtype)
        halves = dict.fromkeys(layer_names("text", t.depth), per_text // 2)
        halves["z"] = size_of((self.rows, t.width), self._dtype)
        modulations = max(loop.modulations for loop in self.loops.values())
        self._second = halves if plan.passes == 2 else {}  # bytes of what the second branch's own pass has
        return {
            "states": size_of((text, self._config.text.width), self._dtype),
            **dict.fromkeys(layer_names("text", t.depth), per_text),
            **{name: size for cache in caches for name, size in cache.buffers.items()},
            "z": size_of((plan.branches, self.rows, t.width), self._dtype),
            **dict.fromkeys(modulation_names(self._config.head, "modulations"), modulations),
            **{f"second {name}": size for name, size in self._second.items()},
            "x 0": state,
            "x 1": state,
        }

    def _uploads(self) -> tuple[Fields, Fields, Fields]:
        """What goes up with every pass, with every mask step, and once."""
        plan, t, rows = self._plan, self._config.transformer, self.rows
        longest = max(self.loops.values(), key=lambda loop: loop.steps)
        tables = ((plan.tokens, t.head_dim // 2), self._dtype)
        return (
            {
                "tokens": ((plan.tokens, t.token_channels), np.float32),
                "masked": ((plan.tokens,), np.bool_),
                "predict": ((rows,), np.int64),
                "rope_cos": tables,
                "rope_sin": tables,
                "start": ((plan.branches,), np.int64),
            },
            {
                "guidance": ((1,), np.float32),
                "initial": ((rows, t.token_channels), np.float32),
                "draws": ((longest.steps, longest.draw_pitch // 4), np.float32),
            },
            dict(field for loop in self.loops.values() for field in loop.fields.items()),
        )

    def of_pass(self, group: int) -> dict[str, int]:
        """Where a pass finds and leaves what is its own: the second, in copies, since TensorRT wants aligned starts."""
        return {name: self.at[f"second {name}"] for name in self._second} if group else {}

    def send_second(self) -> None:
        """Text K/V of the second branch to where its own pass finds them."""
        for name, size in self._second.items():
            if name != "z":
                self._copy(self.at[f"second {name}"], self.at[name] + size, size)

    def gather(self) -> None:
        """The second pass's outputs beside the first's, as the head reads both."""
        if self._second:
            size = self._second["z"]
            self._copy(self.at["z"] + size, self.at["second z"], size)

    def _copy(self, to: int, source: int, size: int) -> None:
        self._cuda.copy_rows(to, size, source, size, size, 1, self._stream)

    def send_first(self, states: np.ndarray) -> None:
        """Text states and the clip's schedule, and zeros as inputs of the passes that warm up."""
        states = np.ascontiguousarray(states, self._dtype)
        self._cuda.upload(self.at["states"], states.ctypes.data, states.nbytes, self._stream)
        constants = self._sent[2].fill()
        for loop in self.loops.values():
            loop.fill(constants)
        for upload in self._sent:
            upload.send()
        self.wait()  # `states` ends here

    def send_pass(
        self, tokens: np.ndarray, masked: np.ndarray, predict: np.ndarray, cos: np.ndarray, sin: np.ndarray, start: int
    ) -> None:
        """Inputs of one transformer pass, over all of the frame or less of it; from token `start` of the K/V on."""
        into, part, count = self._sent[0].fill(), len(tokens), len(predict)
        into["tokens"][:part], into["masked"][:part] = tokens, masked
        into["predict"][:count], into["predict"][count:] = predict, predict[0]
        into["rope_cos"][:part], into["rope_sin"][:part] = cos, sin
        into["start"][:] = start
        self._sent[0].send()

    def send_noise(self, guidance: float, initial: np.ndarray, draws: np.ndarray) -> None:
        """Inputs of one diffusion loop."""
        into, (count, channels) = self._sent[1].fill(), initial.shape
        into["guidance"][0] = guidance
        into["initial"][:count], into["initial"][count:] = initial, initial[0]
        rows = into["draws"][: len(draws), : self.rows * channels].reshape(-1, self.rows, channels)
        rows[:, :count], rows[:, count:] = draws, draws[:, :1]
        self._sent[1].send()

    def read_sampled(self, loop: LoopShape, count: int) -> np.ndarray:
        """Wait for the loop that ran and read its first rows: [count, C] float32, the caller's own."""
        rows: np.ndarray = self._sampled[:count]
        self._cuda.download(rows.ctypes.data, self.at[loop.result], rows.nbytes, self._stream)
        self.wait()
        return np.array(rows)

    def read_z(self, branches: int, count: int) -> np.ndarray:
        """Wait for the last pass and read its first rows: [branches, count, width] float32; for comparisons."""
        z = np.empty((self._plan.branches, self.rows, self._config.transformer.width), self._dtype)
        self._cuda.download(z.ctypes.data, self.at["z"], z.nbytes, self._stream)
        self.wait()
        return z[:branches, :count].astype(np.float32)

    def write_z(self, z: np.ndarray) -> None:
        """Put `z` [branches, count, width] where the last pass left its own; the other rows repeat the first."""
        rows = np.concatenate([z, np.repeat(z[:, :1], self.rows - z.shape[1], axis=1)], axis=1)
        rows = np.ascontiguousarray(rows, self._dtype)
        self._cuda.upload(self.at["z"], rows.ctypes.data, rows.nbytes, self._stream)
        self.wait()

    def wait(self) -> None:
        """Until the stream has done everything."""
        self._cuda.synchronize(self._stream)
        for upload in self._sent:
            upload.arrived()

    def close(self) -> None:
        for upload in self._sent:
            upload.close()
        self._memory.close()
