"""TensorRT and TensorRT-RTX: the backend of the engine directories that `videomar build` writes.

Loads engines, owns the stream and the one block of device memory that all contexts share, and runs the graphs that run
once a clip; what runs in the loop is `trt_clip`. Knows nothing of how engines are built, or of masks and schedules.

Needs `tensorrt` or `tensorrt_rtx`, cuda-python and numpy, and imports the first two only when a backend is opened.
"""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from types import ModuleType

import numpy as np

from videomar.artifacts import Manifest
from videomar.errors import ArtifactError
from videomar.fingerprint import Machine, check_fingerprint, this_machine
from videomar.graphs import (
    HEAD_CONDITION,
    HEAD_STEP,
    TEXT_ENCODER,
    TEXT_KEY_VALUES,
    TOKENIZER_DECODER,
    TOKENIZER_ENCODER,
    TRANSFORMER_STEP,
    contract,
    require_engine_width,
)
from videomar.runtime.backends.base import Backend, ClipPlan
from videomar.runtime.backends.cuda import Cuda, Memory
from videomar.runtime.backends.trt_buffers import SMALLER
from videomar.runtime.backends.trt_clip import Device, TrtClip
from videomar.runtime.backends.trt_decoder import TrtDecoder
from videomar.runtime.backends.trt_engines import Context, Engine, make_runtime
from videomar.runtime.backends.trt_memory import Cache, FixedCache, GrowingCache
from videomar.runtime.backends.trt_module import load_tensorrt

MODULES = {"trt": "tensorrt", "trt-rtx": "tensorrt-rtx"}
ONCE = (TEXT_ENCODER, TEXT_KEY_VALUES, TOKENIZER_ENCODER)
NEEDED = (*ONCE, TOKENIZER_DECODER, TRANSFORMER_STEP, HEAD_CONDITION, HEAD_STEP)


class TrtBackend(Backend):
    """All engines of an engine directory on the current GPU."""

    def __init__(
        self,
        directory: Path,
        manifest: Manifest,
        name: str = "trt",
        check: Callable[[Manifest, Machine], None] = check_fingerprint,
        capture: bool = True,
        lean: bool = False,
    ) -> None:
        """name: "trt" or "trt-rtx". check: raises ArtifactError for engines of another machine. capture: use graphs.
        lean: the text encoder is there only while it runs, and the other engines from their first use on.

        Raises ArtifactError for engines that are not this GPU's, this TensorRT's or this export's, DeviceError for a
        GPU that is missing, too small or failing. Whatever is raised, nothing stays allocated.
        """
        self.name, self.config, self._capture, self._lean = name, manifest.config, capture, lean
        self.execution = ""  # of the last clip begun: "cuda-graphs" or "enqueue"
        self._rebuild = _rebuild(directory, manifest)
        if manifest.kind != "engine":
            raise ArtifactError(f"{directory} holds ONNX graphs, TensorRT needs engines made of them; {self._rebuild}")
        self._cache_tokens: int | None = manifest.cache_tokens
        if manifest.emitter == "native" and self._cache_tokens is None:
            raise ArtifactError(
                f"{directory} has a K/V cache of any length, TensorRT wants a fixed one; export with --emitter native "
                f"--cache-tokens N, then {self._rebuild}"
            )
        require_engine_width(manifest.config.head)
        self.specs = contract(manifest.config, manifest.activations, manifest.emitter == "native", self._cache_tokens)
        self._dtype = np.dtype(self.specs[TRANSFORMER_STEP].outputs[0].dtype)
        self._begun: weakref.WeakSet[TrtClip | TrtDecoder] = weakref.WeakSet()
        self._stack = ExitStack()
        try:
            trt, rtx = load_tensorrt(MODULES[name])
            try:
                check(manifest, this_machine(trt.__version__, rtx))
            except ArtifactError as error:
                raise ArtifactError(f"{directory}: {error}") from None
            self._open(directory, trt)
            if not lean:
                self._device  # noqa: B018, loads them
        except BaseException:
            self.close()
            raise

    def _open(self, directory: Path, trt: ModuleType) -> None:
        """Stream and TensorRT's runtime."""
        self._files = {name: directory / f"{name}.engine" for name in NEEDED}
        for file in self._files.values():
            if not file.is_file():
                raise ArtifactError(f"{file} is missing, expected an engine; {self._rebuild}")
        self._trt, self._cuda = trt, Cuda()
        self._stream = self._cuda.stream()
        self._stack.callback(self._cuda.destroy_stream, self._stream)
        self._runtime = make_runtime(trt)

    @cached_property
    def _device(self) -> Device:
        """The engines that stay."""
        return self._load([name for name in NEEDED if not (self._lean and name == TEXT_ENCODER)], self._stack)

    def _load(self, names: Sequence[str], stack: ExitStack) -> Device:
        """Engines, their working memory, and contexts of those that run once a clip; `stack` releases them."""
        cuda, engines, contexts = self._cuda, dict[str, Engine](), dict[str, Context]()
        size = sum(self._files[name].stat().st_size for name in names)
        cuda.require_memory(size, "loading the engines", SMALLER)
        for name in names:
            engines[name] = Engine(self._trt, *self._runtime, self._files[name], self.specs[name], self._rebuild)
            stack.callback(engines[name].close)
        block = max(engine.device_memory for engine in engines.values())
        cuda.require_memory(block, "the engines' working memory", f"close what else uses the GPU, or {self._rebuild}")
        memory = Memory(cuda)
        stack.callback(memory.close)
        address = memory.device(block)
        for name in ONCE:
            if name in engines:
                contexts[name] = Context(engines[name], address, self._stream)
                stack.callback(contexts[name].close)
        stack.callback(cuda.drain, self._stream)
        return Device(cuda, self._stream, address, engines, contexts)

    def encode_text(self, ids: np.ndarray) -> np.ndarray:
        return self._run(TEXT_ENCODER, ids)

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        return self._run(TOKENIZER_ENCODER, pixels)

    def decoder(self, frames: int, h: int, w: int) -> TrtDecoder:
        decoder = TrtDecoder(self._device, self.config.tokenizer, frames, h, w)
        self._begun.add(decoder)
        return decoder

    def _run(self, name: str, value: np.ndarray) -> np.ndarray:
        spec = self.specs[name]
        return self.run_graph(name, {spec.inputs[0].name: value})[spec.outputs[0].name]

    def has_graph(self, name: str) -> bool:
        """Whether `run_graph` can run it."""
        return name in NEEDED

    def run_graph(self, name: str, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run one graph of the contract once: inputs by name, every output by name; the host waits.

        Memory is for this call only. K/V that are written in place are returned as they are afterwards.
        """
        if self._lean and name == TEXT_ENCODER:
            with ExitStack() as stack:
                return self._run_on(self._load([name], stack), name, feeds)
        return self._run_on(self._device, name, feeds)

    def _run_on(self, device: Device, name: str, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        spec, cuda, stream = self.specs[name], self._cuda, self._stream
        given = {t.name: np.ascontiguousarray(feeds[t.name], t.dtype) for t in spec.inputs}
        sizes = {
            axis: size
            for t in spec.inputs
            for axis, size in zip(t.axes, given[t.name].shape, strict=True)
            if isinstance(axis, str)
        }
        with ExitStack() as stack:
            context = device.contexts.get(name)
            if context is None:
                context = Context(device.engines[name], device.block, stream)
                stack.callback(context.close)
            context.resize(sizes)
            made = {t.name: np.empty(context.output_shape(t.name), t.dtype) for t in spec.outputs}
            cuda.require_memory(sum(a.nbytes for a in (*given.values(), *made.values())), f"running {name}", SMALLER)
            memory = Memory(cuda)
            stack.callback(memory.close)
            stack.callback(cuda.drain, stream)  # whatever happens, nothing is in flight when memory goes
            at = {n: memory.device(max(1, a.nbytes)) for n, a in given.items()}
            in_place = "start" in given
            for n, a in made.items():
                shared = at.get(n.replace("present_", "past_")) if in_place else None
                at[n] = shared or memory.device(max(1, a.nbytes))
            context.bind_named(at)
            for n, a in given.items():
                if a.nbytes:
                    cuda.upload(at[n], a.ctypes.data, a.nbytes, stream)
            context.enqueue()
            for n, a in made.items():
                cuda.download(a.ctypes.data, at[n], a.nbytes, stream)
            cuda.synchronize(stream)
        return made

    def begin(self, states: np.ndarray, plan: ClipPlan) -> TrtClip:
        t, length = self.config.transformer, self._cache_tokens
        if plan.branches == 2 and self._device.engines[TRANSFORMER_STEP].most("branches") == 1:
            plan = dataclasses.replace(plan, passes=2)  # built for guidance in two passes
        one, caches = dataclasses.replace(plan, branches=plan.branches // plan.passes), list[Cache]()
        for group in range(plan.passes):
            if length is None:
                caches.append(GrowingCache(t, one, self._dtype, group))
            else:
                caches.append(FixedCache(t, one, self._dtype, length, self._rebuild, group))
        clip = TrtClip(self._device, self.config, self._dtype, caches, states, plan, self._capture)
        self._begun.add(clip)
        self.execution = clip.execution
        return clip

    def close(self) -> None:
        """Clips, decoders, contexts, memory, engines, stream; again is harmless."""
        for each in list(self._begun):
            each.close()
        self._stack.close()


def _rebuild(directory: Path, manifest: Manifest) -> str:
    command = manifest.extra.get("fingerprint", {}).get("command") or f"videomar build ONNX_DIR -o {directory}"
    return f"run `{command}`"
