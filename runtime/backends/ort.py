"""ONNX Runtime, on the CPU the reference backend and the one that works anywhere; on a GPU the second choice there.

Every buffer is allocated when a clip begins and bound. Knows nothing of masks, orders or schedules; ort_memory.py
knows where the buffers lie, ort_providers.py what ONNX Runtime is told of a device.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import onnxruntime as ort

from videomar.artifacts import Manifest
from videomar.config import ANCESTRAL, TransformerConfig
from videomar.errors import ArtifactError, InputError, UserError
from videomar.graphs import (
    DIFFUSION_HEAD,
    TEXT_ENCODER,
    TEXT_KEY_VALUES,
    TOKENIZER_DECODER,
    TOKENIZER_ENCODER,
    TRANSFORMER_STEP,
    contract,
    layer_names,
    steps_ahead,
)
from videomar.runtime.backends.base import Backend, ClipPlan, predicted_sizes
from videomar.runtime.backends.ort_cache import Cache, FixedCache, GrowingCache
from videomar.runtime.backends.ort_decoder import OrtDecoder
from videomar.runtime.backends.ort_memory import (
    Buffer,
    DeviceMemory,
    HostMemory,
    Memory,
    device_failed,
    host_failed,
    trim,
)
from videomar.runtime.backends.ort_providers import CPU, Providers
from videomar.runtime.backends.ort_session import open_session
from videomar.schedule import DiffusionSchedule
from videomar.steps import Diffusion

NEEDED = (TEXT_ENCODER, TEXT_KEY_VALUES, TOKENIZER_ENCODER, TOKENIZER_DECODER, TRANSFORMER_STEP, DIFFUSION_HEAD)

T = TypeVar("T")


class OrtBackend(Backend):
    """All graphs of an artifact directory as ONNX Runtime sessions on one device."""

    def __init__(
        self,
        directory: Path,
        manifest: Manifest,
        threads: int | None = None,
        providers: Providers = CPU,
        memory: Memory | None = None,
        lean: bool = False,
    ) -> None:
        """threads: for one operator; None: one a core. lean: load what is needed
        when it is needed, and let the text encoder go once it has been used."""
        if threads is not None and threads < 1:
            raise InputError(f"threads is {threads}, expected at least 1")
        self.name = providers.backend
        self.config = manifest.config
        self.in_place = manifest.emitter == "native"
        self.cache_tokens: int | None = manifest.cache_tokens
        self.specs = contract(manifest.config, manifest.activations, self.in_place, self.cache_tokens)
        self._device = providers.device
        self.memory = memory or (
            DeviceMemory(providers.device, 0, providers.copying) if providers.device != "cpu" else HostMemory()
        )
        self._directory, self._manifest, self._threads, self._providers = directory, manifest, threads, providers
        self.sessions: dict[str, ort.InferenceSession] = {}
        self._lean = lean
        if not lean:
            for name in NEEDED:
                self.session(name)

    def session(self, name: str) -> ort.InferenceSession:
        """A graph's session, loaded if it is not."""
        if name not in self.sessions:
            file = self._directory / f"{name}.onnx"
            try:
                # A pattern is one block beside the arena that already holds as much; without it every size costs once.
                session = open_session(
                    file,
                    self._threads,
                    self._providers.of(self.specs[name]),
                    enable_mem_pattern=self._device != "cpu",
                )
            except Exception as error:  # ONNX Runtime's own exception types are not public
                raise self._not_loaded(file, self._manifest, error) from None
            self._providers.check(session.get_providers())
            self.sessions[name] = session
            trim()  # of what parsing the file left
        return self.sessions[name]

    def _not_loaded(self, file: Path, manifest: Manifest, error: Exception) -> UserError:
        if "opset" in str(error) or "Unsupported model IR version" in str(error):
            return ArtifactError(
                f"{file.name} uses ONNX opset {manifest.opset} ({manifest.emitter}), newer than ONNX Runtime "
                f"{ort.__version__} runs; upgrade onnxruntime or export with --emitter portable"
            )
        if self._device != "cpu":
            return device_failed(self._device, f"loading {file.name}", error)
        why = str(error).splitlines()[0]
        return ArtifactError(f"{file} cannot be loaded by ONNX Runtime ({why}); export the checkpoint again")

    def encode_text(self, ids: np.ndarray) -> np.ndarray:
        states = self._run(TEXT_ENCODER, ids)
        if self._lean:
            del self.sessions[TEXT_ENCODER]
            trim()
        return states

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        return self._run(TOKENIZER_ENCODER, pixels)

    def decoder(self, frames: int, h: int, w: int) -> OrtDecoder:
        return self._made("the decoder's buffers", lambda: OrtDecoder(self, frames, h, w))

    def _run(self, name: str, value: np.ndarray) -> np.ndarray:
        try:
            options = self.memory.shrink if isinstance(self.memory, HostMemory) else None
            result: np.ndarray = self.session(name).run(None, {self.specs[name].inputs[0].name: value}, options)[0]
            trim()
            return result
        except Exception as error:
            raise self._failed(name, error) from error

    def _failed(self, name: str, error: Exception) -> Exception:
        if isinstance(error, UserError):
            return error
        return host_failed(name, error) if self._device == "cpu" else device_failed(self._device, name, error)

    def has_graph(self, name: str) -> bool:
        """Whether `run_graph` can run it."""
        return (self._directory / f"{name}.onnx").is_file()

    def run_graph(self, name: str, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run one graph of the contract once: inputs by name, every output by name; for comparisons."""
        spec = self.specs[name]
        given = {t.name: np.ascontiguousarray(feeds[t.name], t.dtype) for t in spec.inputs}
        try:
            made = self.session(name).run([t.name for t in spec.outputs], given)
        except Exception as error:
            raise self._failed(name, error) from error
        return {t.name: value for t, value in zip(spec.outputs, made, strict=True)}

    def begin(self, states: np.ndarray, plan: ClipPlan) -> OrtClip:
        return self._made("a clip's buffers", lambda: OrtClip(self, states, plan))

    def _made(self, what: str, make: Callable[[], T]) -> T:
        try:
            return make()
        except UserError:
            raise
        except Exception as error:
            if self._device == "cpu":
                raise
            raise device_failed(self._device, what, error) from error

    def close(self) -> None:
        self.sessions.clear()


class OrtClip:
    """Buffers and bindings of one clip."""

    def __init__(self, backend: OrtBackend, states: np.ndarray, plan: ClipPlan) -> None:
        t, memory = backend.config.transformer, backend.memory
        spec = backend.specs[TRANSFORMER_STEP]
        dtype = np.dtype(next(tensor.dtype for tensor in spec.outputs))
        self._memory, self._session = memory, backend.session
        self._head = backend.session(DIFFUSION_HEAD).io_binding()

        self._inputs = {
            part: {
                "tokens": memory.zeros((part, t.token_channels), np.float32),
                "masked": memory.zeros((part,), np.bool_),
                "rope_cos": memory.zeros((part, t.head_dim // 2), dtype),
                "rope_sin": memory.zeros((part, t.head_dim // 2), dtype),
            }
            for part in plan.parts
        }

        # Text K/V of both branches; a clip without guidance binds the first.
        binding, (both, length) = backend.session(TEXT_KEY_VALUES).io_binding(), (2, states.shape[1])
        binding.bind_cpu_input("states", np.ascontiguousarray(states, dtype))
        text = {n: memory.zeros((both, t.heads, length, t.head_dim), dtype) for n in layer_names("text", t.depth)}
        for name, buffer in text.items():
            memory.bind_output(binding, name, buffer)
        memory.run(backend.session(TEXT_KEY_VALUES), binding, TEXT_KEY_VALUES, last=True)
        self._text = text
        count = plan.branches // plan.passes
        each = dataclasses.replace(plan, branches=count)
        make = GrowingCache if backend.cache_tokens is None else FixedCache
        self._caches: list[Cache] = [make(backend, each, dtype) for _ in range(plan.passes)]
        self._every = [_Pass(backend, i * count, count, text, cache) for i, cache in enumerate(self._caches)]
        # The first branch by itself, where some steps leave the second out.
        self._alone = self._every[:1] if count == 1 or not plan.alone else [_Pass(backend, 0, 1, text, self._caches[0])]

        self._loops = {n: _chunks(backend, plan, schedule, dtype) for n, schedule in plan.schedules.items()}
        self._sizes = {n: _Buffers(memory, n, plan, t, dtype, self._loops) for n in predicted_sizes(plan.counts)}
        self._now, self._z = self._sizes[1], self._sizes[1].z
        self._guidance = memory.zeros((1,), np.float32)

    def step(
        self,
        tokens: np.ndarray,
        masked: np.ndarray,
        predict: np.ndarray,
        cos: np.ndarray,
        sin: np.ndarray,
        first: int = 0,
        branches: int | None = None,
    ) -> None:
        memory = self._memory
        values = {"tokens": tokens, "masked": masked, "rope_cos": cos, "rope_sin": sin}
        self._now = now = self._sizes[len(predict)]
        alone = branches is not None and branches < now.z.shape[0]
        self._z = self._alone[0].rows_of(now.z) if alone else now.z
        for each in self._alone if alone else self._every:
            for name, buffer in self._inputs[len(tokens)].items():
                memory.put(each.binding, name, buffer, values[name])
            memory.put(each.binding, "predict", now.predict, predict)
            memory.bind_output(each.binding, "z", each.rows_of(now.z))
            each.cache.place(each.binding, each.count, first, len(tokens))
            last = not masked.any()  # it only stores the frame's K/V: the next frame's passes are larger
            memory.run(self._session(TRANSFORMER_STEP), each.binding, TRANSFORMER_STEP, last)

    def sample(self, guidance: float, initial: np.ndarray, draws: np.ndarray, solver: str = ANCESTRAL) -> np.ndarray:
        memory, binding, now, chunks = self._memory, self._head, self._now, self._loops[len(draws), solver]
        memory.bind_input(binding, "z", self._z)
        memory.put(binding, "guidance", self._guidance, np.float32(guidance))
        memory.put(binding, "initial", now.states[0], initial)
        for i, chunk in enumerate(chunks):  # x goes from one buffer to the other
            if i:
                memory.bind_input(binding, "initial", now.states[i % 2])
            memory.bind_output(binding, "sampled", now.states[(i + 1) % 2])
            memory.put(binding, "timesteps", chunk.timesteps, chunk.schedule.timesteps)
            memory.put(binding, "coefficients", chunk.coefficients, chunk.schedule.coefficients)
            memory.put(binding, "draws", now.draws[len(draws)][i], draws[chunk.at])
            memory.run(self._session(DIFFUSION_HEAD), binding, DIFFUSION_HEAD)
        return memory.read(now.states[len(chunks) % 2])

    def z(self) -> np.ndarray:
        whole = self._memory.read(self._now.z).astype(np.float32)
        return whole[: self._z.shape[0]]

    def force(self, z: np.ndarray) -> None:
        whole = np.zeros(self._now.z.shape, np.float32)
        whole[: len(z)] = z
        self._memory.put(self._head, "z", self._now.z, whole)

    def keep(self) -> None:
        for cache in self._caches:
            cache.keep()

    def close(self) -> None:
        for binding in (*(each.binding for each in (*self._every, *self._alone)), self._head):
            binding.clear_binding_inputs()
            binding.clear_binding_outputs()
        for cache in self._caches:
            cache.close()
        for held in (self._every, self._alone, self._caches, self._inputs, self._text, self._sizes, self._loops):
            held.clear()


class _Pass:
    """One call of the transformer in a step: all branches or one of them, beside K/V of their own."""

    def __init__(self, backend: OrtBackend, first: int, count: int, text: dict[str, Buffer], cache: Cache) -> None:
        """first, count: which branches; text: K/V of all."""
        self._memory, self._first, self.count, self.cache = backend.memory, first, count, cache
        self.binding = backend.session(TRANSFORMER_STEP).io_binding()
        self._text = {name: self.rows_of(buffer) for name, buffer in text.items()}
        for name, buffer in self._text.items():
            self._memory.bind_input(self.binding, name, buffer)

    def rows_of(self, buffer: Buffer) -> Buffer:
        """These branches of a tensor of all."""
        size = int(np.prod(buffer.shape[1:]))
        return self._memory.view(buffer, (self.count, *buffer.shape[1:]), self._first * size)


class _Buffers:
    """What depends on the number of predicted tokens."""

    def __init__(
        self,
        memory: Memory,
        count: int,
        plan: ClipPlan,
        t: TransformerConfig,
        dtype: np.dtype,
        loops: Mapping[Diffusion, list[_Chunk]],
    ) -> None:
        self.predict = memory.zeros((count,), np.int64)
        self.z = memory.zeros((plan.branches, count, t.width), dtype)
        self.states = [memory.zeros((count, t.token_channels), np.float32) for _ in range(2)]
        self.draws = {
            steps: [memory.zeros((len(c.schedule.timesteps), count, t.token_channels), np.float32) for c in chunks]
            for (steps, _), chunks in loops.items()
            if (count, steps) in plan.loops
        }


@dataclass(frozen=True)
class _Chunk:
    """Diffusion steps whose modulations are computed at once: one call of the head's graph."""

    at: slice
    schedule: DiffusionSchedule
    timesteps: Buffer
    coefficients: Buffer


def _chunks(backend: OrtBackend, plan: ClipPlan, schedule: DiffusionSchedule, dtype: np.dtype) -> list[_Chunk]:
    steps, rows, chunks = len(schedule.timesteps), plan.branches * max(plan.counts), []
    length = steps_ahead(backend.config.head, rows, steps, np.dtype(dtype).itemsize)
    for start in range(0, steps, length):
        at = slice(start, min(start + length, steps))
        part = DiffusionSchedule(schedule.timesteps[at], schedule.coefficients[at])
        buffers = (backend.memory.zeros(each.shape, np.float32) for each in (part.timesteps, part.coefficients))
        chunks.append(_Chunk(at, part, *buffers))
    return chunks
