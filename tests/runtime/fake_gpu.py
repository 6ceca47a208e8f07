"""A GPU without one: stands in for `cuda.bindings.runtime`, keeps every rule it knows, and writes down every call.

Device memory lies at addresses that no host pointer has, poisoned when new and gone when freed. A stream is a queue
that is worked off as late as CUDA may: when somebody waits. So whoever forgets to wait, or overwrites pinned memory
too early, gets wrong numbers here too. What is enqueued during a capture is only recorded, with the addresses of that
moment, and runs when its graph is launched.

Breaking a rule raises Violation, which is no DeviceError; where nothing can be raised (destructors) it is kept in
`faults`. `fail` names the call (by its number) that fails, and with which code.
"""

from __future__ import annotations

import ctypes
import enum
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

FIRST_ADDRESS, GAP, ALIGNMENT = 0x7_0000_0000_0000, 1 << 16, 256
NEW, SCRATCH = 0xFF, 0xEE  # poison: a NaN in every float, -1 in integers
PERFORMED = ("Free", "Destroy", "Synchronize")  # calls that do their work even when they report an earlier failure


class Violation(AssertionError):
    """A rule of CUDA or TensorRT was broken."""


class Code(enum.IntEnum):
    """cudaError_t; any other number is a member without a name here."""

    cudaSuccess = 0
    cudaErrorMemoryAllocation = 2
    cudaErrorLaunchFailure = 719
    cudaErrorNotSupported = 801
    cudaErrorStreamCaptureUnsupported = 900
    cudaErrorStreamCaptureInvalidated = 901


class Kind(enum.IntEnum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2
    cudaMemcpyDeviceToDevice = 3


class Mode(enum.IntEnum):
    cudaStreamCaptureModeThreadLocal = 1


@dataclass(eq=False)
class Block:
    """Device memory; `written` says which bytes ever were."""

    base: int
    data: np.ndarray
    written: np.ndarray


@dataclass(eq=False)
class Op:
    """Work on a stream; `owner` is the context that a captured pass replays."""

    name: str
    run: Callable[[], None]
    owner: Any = None


@dataclass(eq=False)
class Graph:
    ops: list[Op] = field(default_factory=list)
    alive: bool = True
    executable: bool = False


@dataclass(eq=False)
class Stream:
    number: int
    queue: list[Op] = field(default_factory=list)
    graph: Graph | None = None  # being captured
    invalid: bool = False
    alive: bool = True

    def __int__(self) -> int:
        return self.number


@dataclass(eq=False)
class Event:
    at: Op | None = None
    stream: Stream | None = None
    alive: bool = True


class FakeGpu:
    """One device. `calls` are the names of all calls so far, `log` what was done to it, in order."""

    op_type = Op

    def __init__(self, free: int = 1 << 30) -> None:
        self.calls: list[str] = []
        self.log: list[str] = []
        self.faults: list[str] = []
        self.fail: Callable[[int, str], int] = lambda index, name: 0
        self.free = free
        self.can_capture = True
        self.integrated = False
        self.blocks: dict[int, Block] = {}
        self.pinned: dict[int, np.ndarray] = {}
        self.things: list[Any] = []  # streams, events, graphs
        self.alive: Counter[str] = Counter()  # of TensorRT's objects
        self.contexts: list[Any] = []  # weak references of living contexts
        self._next = FIRST_ADDRESS

    # ---- what tests ask

    def leaked(self) -> dict[str, int]:
        """What is still there, by kind."""
        left = Counter({k: n for k, n in self.alive.items() if n})
        left.update(type(thing).__name__ for thing in self.things if thing.alive)
        return dict(left | Counter(device=len(self.blocks), pinned=len(self.pinned)) - Counter())

    def forget(self) -> None:
        """Start a new record; what is alive stays."""
        self.calls.clear(), self.log.clear()
        self.things = [thing for thing in self.things if thing.alive]
        self.contexts = [reference for reference in self.contexts if reference() is not None]

    def call(self, name: str) -> int:
        """Write a call down; the code it has to fail with, or 0."""
        self.calls.append(name)
        return self.fail(len(self.calls) - 1, name)

    # ---- memory

    def block(self, address: int, size: int) -> Block:
        for block in self.blocks.values():
            if block.base <= address and address + size <= block.base + block.data.size:
                return block
        raise Violation(f"{size} bytes at {address:#x} are not inside an allocation")

    def read(self, address: int, size: int, what: str, must: bool = True) -> np.ndarray:
        block = self.block(address, size)
        part = slice(address - block.base, address - block.base + size)
        if must and not block.written[part].all():
            raise Violation(f"{what} is read before it was written")
        return block.data[part].copy()

    def write(self, address: int, data: np.ndarray) -> None:
        raw = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
        block = self.block(address, raw.size)
        part = slice(address - block.base, address - block.base + raw.size)
        block.data[part], block.written[part] = raw, True

    def spoil(self, address: int, size: int) -> None:
        """Leave rubbish behind, as TensorRT does in its working memory."""
        block = self.block(address, size)
        block.data[address - block.base : address - block.base + size] = SCRATCH

    def is_pinned(self, address: int, size: int) -> bool:
        return any(base <= address and address + size <= base + a.size for base, a in self.pinned.items())

    # ---- streams

    def enqueue(self, stream: Stream, op: Op) -> None:
        if not stream.alive:
            raise Violation(f"{op.name} on a destroyed stream")
        self.log.append(op.name)
        if stream.graph is not None:
            stream.graph.ops.append(op)
        else:
            stream.queue.append(op)

    def work_off(self, stream: Stream, until: Op | None = None) -> None:
        while stream.queue:
            op = stream.queue.pop(0)
            op.run()
            if op is until:
                return

    def idle(self) -> bool:
        return not any(thing.queue for thing in self.things if isinstance(thing, Stream))

    def forbidden_in_capture(self, name: str) -> None:
        for thing in self.things:
            if isinstance(thing, Stream) and thing.graph is not None:
                raise Violation(f"{name} during a capture")


class _Api:
    """The functions, each returning a tuple without the code; wrapped by `cuda_module`."""

    def __init__(self, gpu: FakeGpu) -> None:
        self.gpu = gpu

    def cudaMemGetInfo(self) -> tuple[int, int]:
        used = sum(b.data.size for b in self.gpu.blocks.values())
        return self.gpu.free - used, self.gpu.free

    def cudaGetDevice(self) -> tuple[int]:
        return (0,)

    def cudaDeviceGetAttribute(self, attribute: Any, device: int) -> tuple[int]:
        assert attribute == 18
        return (int(self.gpu.integrated),)

    def cudaMalloc(self, size: int) -> tuple[int]:
        gpu = self.gpu
        gpu.forbidden_in_capture("cudaMalloc")
        base = gpu._next
        gpu._next += (size + GAP) // ALIGNMENT * ALIGNMENT + GAP
        gpu.blocks[base] = Block(base, np.full(size, NEW, np.uint8), np.zeros(size, bool))
        gpu.log.append("malloc")
        return (base,)

    def cudaFree(self, address: int) -> tuple[()]:
        gpu = self.gpu
        gpu.forbidden_in_capture("cudaFree")
        if address not in gpu.blocks:
            raise Violation(f"{address:#x} is freed and was not allocated")
        if not gpu.idle():
            raise Violation("memory is freed while work is pending")
        block = gpu.blocks.pop(address)
        for reference in gpu.contexts:
            context = reference()
            if context is not None and context.uses(block):
                gpu.faults.append("memory is freed before a context that works in it")
        gpu.log.append("free")
        return ()

    def cudaMallocHost(self, size: int) -> tuple[int]:
        self.gpu.forbidden_in_capture("cudaMallocHost")
        array = np.full(size, NEW, np.uint8)
        self.gpu.pinned[array.ctypes.data] = array
        self.gpu.log.append("malloc")
        return (array.ctypes.data,)

    def cudaFreeHost(self, address: int) -> tuple[()]:
        self.gpu.forbidden_in_capture("cudaFreeHost")
        if not self.gpu.idle():
            raise Violation("pinned memory is freed while work is pending")
        del self.gpu.pinned[address]
        self.gpu.log.append("free")
        return ()

    def cudaMemcpyAsync(self, to: int, source: int, size: int, kind: Kind, stream: Stream) -> tuple[()]:
        gpu = self.gpu
        if kind == Kind.cudaMemcpyDeviceToDevice:
            name = "copy"
            gpu.block(source, size), gpu.block(to, size)
            op = Op(name, lambda: gpu.write(to, gpu.read(source, size, "a copy's source")))
            gpu.enqueue(stream, op)
            return ()
        up = kind == Kind.cudaMemcpyHostToDevice
        host, device = (source, to) if up else (to, source)
        gpu.block(device, size)
        memory = (ctypes.c_uint8 * size).from_address(host)

        def run() -> None:
            if up:
                gpu.write(device, np.frombuffer(memory, np.uint8).copy())
            else:
                np.ctypeslib.as_array(memory)[:] = gpu.read(device, size, "what is read back")

        name = "upload" if up else "download"
        if gpu.is_pinned(host, size):
            gpu.enqueue(stream, Op(name, run))
        else:  # pageable memory: CUDA waits
            gpu.forbidden_in_capture("a copy of pageable memory")
            gpu.work_off(stream)
            gpu.log.append(f"blocking {name}")
            run()
        return ()

    def cudaMemcpy2DAsync(
        self, to: int, pitch: int, source: int, source_pitch: int, width: int, rows: int, kind: Kind, stream: Stream
    ) -> tuple[()]:
        assert kind == Kind.cudaMemcpyDeviceToDevice and width <= min(pitch, source_pitch)

        def run() -> None:
            for row in range(rows):
                self.gpu.write(to + row * pitch, self.gpu.read(source + row * source_pitch, width, "a copied row"))

        self.gpu.enqueue(stream, Op("copy", run))
        return ()

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Stream]:
        assert flags == 1
        stream = Stream(0x1000 + len(self.gpu.things))
        self.gpu.things.append(stream)
        return (stream,)

    def cudaStreamSynchronize(self, stream: Stream) -> tuple[()]:
        self.gpu.forbidden_in_capture("cudaStreamSynchronize")
        self.gpu.log.append("sync")
        self.gpu.work_off(stream)
        return ()

    def cudaStreamDestroy(self, stream: Stream) -> tuple[()]:
        if any(thing.alive for thing in self.gpu.things if thing is not stream) or self.gpu.alive.total():
            self.gpu.faults.append("the stream is destroyed before what uses it")
        self._destroy(stream, "stream")
        return ()

    def cudaEventCreateWithFlags(self, flags: int) -> tuple[Event]:
        assert flags == 2
        self.gpu.things.append(event := Event())
        return (event,)

    def cudaEventRecord(self, event: Event, stream: Stream) -> tuple[()]:
        event.at, event.stream = Op("event", lambda: None), stream
        self.gpu.enqueue(stream, event.at)
        return ()

    def cudaEventSynchronize(self, event: Event) -> tuple[()]:
        self.gpu.forbidden_in_capture("cudaEventSynchronize")
        self.gpu.log.append("wait")
        if event.stream is not None and event.at in event.stream.queue:
            self.gpu.work_off(event.stream, event.at)
        return ()

    def cudaEventDestroy(self, event: Event) -> tuple[()]:
        self._destroy(event, "event")
        return ()

    def cudaStreamBeginCapture(self, stream: Stream, mode: Mode) -> tuple[()]:
        assert isinstance(mode, Mode) and stream.graph is None
        stream.graph, stream.invalid = Graph(), not self.gpu.can_capture
        self.gpu.things.append(stream.graph)
        return ()

    def cudaStreamEndCapture(self, stream: Stream) -> tuple[Graph]:
        graph, stream.graph = stream.graph, None
        assert graph is not None
        return (graph,)

    def cudaGraphInstantiate(self, graph: Graph, flags: int) -> tuple[Graph]:
        assert graph.alive
        executable = Graph(list(graph.ops), executable=True)
        for op in executable.ops:
            if op.owner is not None:
                op.owner.join(executable)
        self.gpu.things.append(executable)
        self.gpu.log.append("instantiate")
        return (executable,)

    def cudaGraphLaunch(self, graph: Graph, stream: Stream) -> tuple[()]:
        if not (graph.alive and graph.executable):
            raise Violation("a destroyed graph is launched")
        self.gpu.log.append("launch")
        stream.queue.extend(graph.ops)
        return ()

    def cudaGraphExecDestroy(self, graph: Graph) -> tuple[()]:
        assert graph.executable
        self._destroy(graph, "graph")
        return ()

    def cudaGraphDestroy(self, graph: Graph) -> tuple[()]:
        assert not graph.executable and graph.alive
        graph.alive = False
        return ()

    def _destroy(self, thing: Any, name: str) -> None:
        if not thing.alive:
            raise Violation(f"a {name} is destroyed twice")
        if not self.gpu.idle():
            raise Violation(f"a {name} is destroyed while work is pending")
        thing.alive = False
        self.gpu.log.append(f"destroy {name}")


VALUES = {"cudaMemGetInfo": 2, "cudaStreamEndCapture": 1, "cudaGraphInstantiate": 1, "cudaMalloc": 1}
VALUES |= dict.fromkeys(("cudaMallocHost", "cudaStreamCreateWithFlags", "cudaEventCreateWithFlags"), 1)
VALUES |= dict.fromkeys(("cudaGetDevice", "cudaDeviceGetAttribute"), 1)


def cuda_module(gpu: FakeGpu) -> ModuleType:
    """What `import cuda.bindings.runtime` gives."""
    module: Any = ModuleType("cuda.bindings.runtime")
    module.cudaMemcpyKind, module.cudaStreamCaptureMode = Kind, Mode
    module.cudaDeviceAttr = SimpleNamespace(cudaDevAttrIntegrated=18)
    module.cudaGetErrorString = lambda code: (Code.cudaSuccess, b"as asked by the test")
    module.cudaGetLastError = lambda: (Code.cudaSuccess,)
    api = _Api(gpu)
    for name in (n for n in dir(_Api) if n.startswith("cuda")):
        setattr(module, name, _wrapped(gpu, api, name))
    return module


def _wrapped(gpu: FakeGpu, api: _Api, name: str) -> Callable[..., tuple[Any, ...]]:
    function = getattr(api, name)

    def call(*args: Any) -> tuple[Any, ...]:
        if any(isinstance(a, (np.ndarray, np.generic)) for a in args):
            raise Violation(f"{name} is given numpy objects, cuda-python takes plain numbers")
        code = gpu.call(name)
        if name == "cudaStreamEndCapture" and (code or args[0].invalid):  # the capture ends, without a graph
            api.cudaStreamEndCapture(*args)[0].alive = False
            return _code(code or 901), None
        if code and not any(word in name for word in PERFORMED):
            return (_code(code), *[None] * VALUES.get(name, 0))
        return (_code(code), *function(*args))

    return call


def _code(number: int) -> Any:
    try:
        return Code(number)
    except ValueError:
        return number
