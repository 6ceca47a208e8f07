"""TensorRT without a GPU: stands in for `tensorrt`, with "engines" that are ONNX files run by ONNX Runtime.

A context keeps TensorRT's rules: every shape and address set, addresses aligned, one plain pass before a capture, one
context a captured graph, working memory that is there and is spoilt by every pass. It behaves like 10.0
(`old`), like 10.1 to 11 (`new`) or like TensorRT-RTX (`rtx`); an engine is for one version and one GPU.
"""

from __future__ import annotations

import enum
import functools
import hashlib
import json
import weakref
from collections.abc import Mapping
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort

from videomar.runtime.backends.ort_session import open_session

Shape = tuple[int, ...]
TYPES = {
    "tensor(float)": ("FLOAT", np.float32),
    "tensor(float16)": ("HALF", np.float16),
    "tensor(int64)": ("INT64", np.int64),
    "tensor(bool)": ("BOOL", np.bool_),
}
VERSION, GPU = "10.16.0", "Fake GPU"


class DataType(enum.Enum):
    FLOAT, HALF, INT64, BOOL = range(4)


class TensorIOMode(enum.Enum):
    INPUT, OUTPUT = range(2)


class TensorLocation(enum.Enum):
    DEVICE, HOST = range(2)


class Strategy(enum.Enum):
    STATIC, USER_MANAGED = range(2)


class Kernels(enum.Enum):
    LAZY, EAGER, NONE = range(3)


class ILogger:
    class Severity(enum.Enum):
        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    def __init__(self) -> None: ...

    def log(self, severity: Any, message: str) -> None:
        raise NotImplementedError


@functools.cache
def session(file: str) -> ort.InferenceSession:
    """One thread, so that every run gives the same bits; the same session for the fake and for whoever compares."""
    return open_session(Path(file), 1)


def write_engine(
    file: Path, onnx: Path, *profiles: Mapping[str, tuple[int, int]], version: str = VERSION, gpu: str = GPU
) -> None:
    """An "engine" of a graph; a profile says which range each axis of the contract has. Zeros behind, like weights."""
    made: list[dict[str, Any]] = []
    for ranges in profiles:
        made.append({})
        for tensor in session(str(onnx)).get_inputs():
            if any(isinstance(a, str) for a in tensor.shape):
                both = [[ranges[a][i] if isinstance(a, str) else a for a in tensor.shape] for i in (0, 1)]
                made[-1][tensor.name] = [both[0], both[1], both[1]]
    data = {"version": version, "gpu": gpu, "onnx": str(onnx), "profiles": made, "memory": 1000}
    file.write_bytes(json.dumps(data).encode() + b"\n" + bytes(512))


class Engine:
    _size_name = "device_memory_size_v2"

    def __init__(self, gpu: Any, data: Mapping[str, Any]) -> None:
        self._gpu, self._data = gpu, data
        self._session = session(data["onnx"])
        self._tensors = {t.name: (t, TensorIOMode.INPUT) for t in self._session.get_inputs()}
        self._tensors |= {t.name: (t, TensorIOMode.OUTPUT) for t in self._session.get_outputs()}
        self._contexts = 0
        self.num_io_tensors = len(self._tensors)
        self.num_optimization_profiles = len(data["profiles"])
        setattr(self, self._size_name, data["memory"])
        gpu.alive["engine"] += 1

    def __del__(self) -> None:
        self._gpu.alive["engine"] -= 1
        self._gpu.log.append("destroy engine")
        if self._contexts:
            self._gpu.faults.append("an engine is destroyed before its contexts")

    def get_tensor_name(self, index: int) -> str:
        return list(self._tensors)[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return self._tensors[name][1]

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType[TYPES[self._tensors[name][0].type][0]]

    def get_tensor_location(self, name: str) -> TensorLocation:
        return TensorLocation.DEVICE

    def get_tensor_shape(self, name: str) -> Shape:
        return tuple(-1 if isinstance(a, str) else a for a in self._tensors[name][0].shape)

    def get_tensor_profile_shape(self, name: str, index: int) -> list[Shape]:
        return [tuple(shape) for shape in self._data["profiles"][index][name]]

    def create_execution_context(self, strategy: Strategy = Strategy.STATIC) -> Context | None:
        assert strategy is Strategy.USER_MANAGED, "a context would allocate working memory of its own"
        return self._context(NewContext)

    def _context(self, kind: type[Context]) -> Context | None:
        if self._gpu.call("create_execution_context"):
            return None
        self._gpu.forbidden_in_capture("create_execution_context")
        return kind(self._gpu, self, self._data["memory"])


class RtxEngine(Engine):
    """TensorRT-RTX's, whose contexts are made from a configuration."""

    def create_runtime_config(self) -> SimpleNamespace:
        config = SimpleNamespace(strategy=None, dynamic_shapes_kernel_specialization_strategy=None)
        config.set_execution_context_allocation_strategy = lambda strategy: vars(config).update(strategy=strategy)
        return config

    def create_execution_context(self, config: Any = None) -> Context | None:
        assert config.strategy is Strategy.USER_MANAGED, "a context would allocate working memory of its own"
        assert config.dynamic_shapes_kernel_specialization_strategy is Kernels.EAGER
        return self._context(RtxContext)


class OldEngine(Engine):
    """As before 10.1."""

    _size_name = "device_memory_size"

    def create_execution_context_without_device_memory(self) -> Context | None:
        return self._context(Context)


class Context:
    def __init__(self, gpu: Any, engine: Engine, memory: int) -> None:
        self._gpu, self._session, self._tensors, self._need = gpu, engine._session, engine._tensors, memory
        self._profiles, self._engine = engine._data["profiles"], weakref.ref(engine)
        self._shapes: dict[str, Shape] | None = None
        self._addresses: dict[str, int] = {}
        self._block = 0
        self._warm: dict[str, Shape] | None = None
        self._graph: Any = None
        self._profile = 0
        engine._contexts += 1
        gpu.alive["context"] += 1
        gpu.contexts.append(weakref.ref(self))

    def __del__(self) -> None:
        self._gpu.alive["context"] -= 1
        self._gpu.log.append("destroy context")
        if (engine := self._engine()) is not None:
            engine._contexts -= 1
        if self._graph is not None and self._graph.alive:
            self._gpu.faults.append("a context is destroyed before the graph captured from it")

    def _work_in(self, memory: int, size: int) -> None:
        assert size >= self._need and memory % 256 == 0
        self._gpu.block(memory, size)
        self._block = memory

    device_memory = property(None, lambda self, memory: self._work_in(memory, self._need))

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        if self._gpu.call("set_optimization_profile_async"):
            return False
        streams = [t for t in self._gpu.things if getattr(t, "number", 0) == stream]
        self._gpu.enqueue(streams[0], self._gpu.op_type("profile", lambda: None))
        self._profile, self._shapes, self._warm = index, {}, None
        return True

    def set_input_shape(self, name: str, shape: Shape) -> bool:
        if self._gpu.call("set_input_shape"):
            return False
        assert self._shapes is not None, "no profile was chosen"
        if self._graph is not None and self._graph.alive and self._shapes.get(name) != shape:
            self._gpu.faults.append("a captured context gets another shape")
        low, _, high = self._profiles[self._profile].get(name, [shape] * 3)
        if not all(a <= n <= b for a, n, b in zip(low, shape, high, strict=True)):
            return False
        self._shapes[name] = tuple(shape)
        return True

    def infer_shapes(self) -> list[str]:
        if self._gpu.call("infer_shapes"):
            return ["what the test says"]
        return [n for n, (_, mode) in self._tensors.items() if mode is TensorIOMode.INPUT and n not in self._shapes]

    def get_tensor_shape(self, name: str) -> Shape:
        return _output_shapes(self._session, tuple(self._shapes.items()))[name]

    def set_tensor_address(self, name: str, address: int) -> bool:
        if self._gpu.call("set_tensor_address"):
            return False
        if name not in self._tensors or not isinstance(address, int) or address % 256 or address == 0:
            raise AssertionError(f"{name} is bound to {address!r}")
        self._addresses[name] = address
        return True

    def uses(self, block: Any) -> bool:
        """Whether the working memory is this allocation."""
        return self._block in range(block.base, block.base + block.data.size)

    def execute_async_v3(self, stream_number: int) -> bool:
        gpu = self._gpu
        if gpu.call("execute_async_v3"):
            return False
        streams = [t for t in gpu.things if getattr(t, "number", 0) == stream_number and t.alive]
        assert stream_number and len(streams) == 1, "passes go to a stream of our own"
        assert set(self._addresses) == set(self._tensors), "a tensor is not bound"
        assert self._block, "no working memory"
        (stream,) = streams
        if stream.graph is not None:
            assert self._warm == self._shapes, "a capture before a plain pass of the same shapes"
            if stream.invalid:
                return False
        else:
            self._warm = dict(self._shapes)
        shapes, addresses = dict(self._shapes), dict(self._addresses)
        gpu.enqueue(stream, _op(gpu, self, self._session, shapes, addresses, self._block, self._need))
        return True

    def join(self, graph: Any) -> None:
        """Called when a graph that holds a pass of this context becomes executable."""
        assert self._graph in (None, graph) or not self._graph.alive, "one context is captured in two graphs"
        self._graph = graph


class NewContext(Context):
    """As since 10.1."""

    def set_device_memory(self, memory: int, size: int) -> None:
        self._work_in(memory, size)


class RtxContext(NewContext):
    """TensorRT-RTX's says whether it can be captured."""

    def is_stream_capturable(self, stream: int) -> bool:
        return bool(self._gpu.can_capture)


def _op(gpu: Any, context: Context, run: Any, shapes: Any, addresses: Any, block: int, need: int) -> Any:
    from_context = weakref.ref(context)
    op_type = gpu.op_type

    def execute() -> None:
        feeds, spans = {}, {}
        for tensor in run.get_inputs():
            dtype, address = np.dtype(TYPES[tensor.type][1]), addresses[tensor.name]
            size = int(np.prod(shapes[tensor.name])) * dtype.itemsize
            # K/V of a warm-up are anything; whatever of them reaches a result makes it a NaN.
            must = not tensor.name.startswith("past_") and tensor.name != "reach"
            data = gpu.read(address, size, tensor.name, must)
            feeds[tensor.name] = data.view(dtype).reshape(shapes[tensor.name])
            spans[tensor.name] = range(address, address + size)
        gpu.spoil(block, need)
        results = dict(zip([t.name for t in run.get_outputs()], _run(run, feeds), strict=True))
        for name, value in results.items():
            span = range(addresses[name], addresses[name] + value.nbytes)
            for other, taken in spans.items():
                alias = name.replace("present_", "past_") == other
                if max(span.start, taken.start) < min(span.stop, taken.stop) and not (alias and span == taken):
                    raise AssertionError(f"output {name} overlaps {other}")
            if "reach" in feeds and name.startswith("present_"):
                assert span == spans[name.replace("present_", "past_")], "the cache is not written in place"
            spans[name] = span
        for name, value in results.items():
            gpu.write(addresses[name], value)

    return op_type("pass", execute, _Owner(from_context))


_DONE: dict[bytes, list[np.ndarray]] = {}


def _run(run: Any, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Remembered by the inputs' bytes: failing at each call in turn computes the same passes hundreds of times."""
    digest = hashlib.blake2b(str(id(run)).encode())
    for value in feeds.values():
        digest.update(value.tobytes())
        digest.update(str(value.shape).encode())
    key = digest.digest()
    if key not in _DONE:
        _DONE[key] = run.run(None, feeds)
    return _DONE[key]


class _Owner:
    """A graph must not keep its context alive."""

    def __init__(self, context: Any) -> None:
        self._context = context

    def join(self, graph: Any) -> None:
        self._context().join(graph)


@functools.cache
def _output_shapes(run: Any, shapes: tuple[tuple[str, Shape], ...]) -> dict[str, Shape]:
    """By running once on zeros: the tokenizer's output axes are no input's."""
    types = {t.name: TYPES[t.type][1] for t in run.get_inputs()}
    values = run.run(None, {name: np.zeros(shape, types[name]) for name, shape in shapes})
    return {t.name: v.shape for t, v in zip(run.get_outputs(), values, strict=True)}


ENGINES = {"old": OldEngine, "new": Engine, "rtx": RtxEngine}


def tensorrt_module(gpu: Any, kind: str = "new") -> ModuleType:
    """What `import tensorrt` gives: old, new, or (`import tensorrt_rtx`) rtx."""
    module: Any = ModuleType("tensorrt_rtx" if kind == "rtx" else "tensorrt")
    module.__spec__ = ModuleSpec(module.__name__, None)
    module.__version__ = VERSION
    module.Builder = object
    module.ILogger, module.DataType = ILogger, DataType
    module.TensorIOMode, module.TensorLocation = TensorIOMode, TensorLocation
    if kind == "rtx":
        module.DynamicShapesKernelSpecializationStrategy = Kernels
    if kind != "old":
        module.ExecutionContextAllocationStrategy = Strategy

    class Runtime:
        def __init__(self, logger: ILogger) -> None:
            self._logger = logger

        def deserialize_cuda_engine(self, data: Any) -> Engine | None:
            if gpu.call("deserialize_cuda_engine"):
                return None
            text, _, weights = bytes(data).partition(b"\n")
            reason = "Error Code 1: Serialization (the file ends too early)"
            if len(weights) == 512:
                read = json.loads(text)
                if (read["version"], read["gpu"]) == (VERSION, GPU):
                    return ENGINES[kind](gpu, read)
                reason = f"Error Code 6: made by {read['version']} on {read['gpu']}"
            self._logger.log(ILogger.Severity.ERROR, reason)
            return None

    module.Runtime = Runtime
    return module
