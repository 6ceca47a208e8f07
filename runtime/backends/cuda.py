"""The CUDA runtime through cuda-python: every call checked, every failure one DeviceError that names it.

Knows streams, events, memory and graphs. Knows nothing of TensorRT, of models, or of what is computed.

Releasing never raises: what a release reports is an earlier failure, and whoever cleans up has to go on.
"""

from __future__ import annotations

import ctypes
import importlib
import logging
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from videomar.errors import DeviceError

log = logging.getLogger(__name__)

# Alike in every cuda-python; the enumerations are looked up by name where a call insists on its type.
NON_BLOCKING, NO_TIMING = 1, 2
OUT_OF_MEMORY = 2
CAPTURE_CODES = {801, *range(900, 909)}  # not supported, and cudaErrorStreamCapture*
MENDS = {
    OUT_OF_MEMORY: "close what else uses the GPU, or ask for fewer frames or a smaller size",
    35: "update the NVIDIA driver; `videomar doctor` says to what",
    100: "run `videomar doctor`, or use --backend ort-cpu",
}


class CudaError(DeviceError):
    """A CUDA call failed with this code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class CaptureRefused(DeviceError):
    """This work cannot be captured in a CUDA graph here; it can still be enqueued."""


def load_runtime() -> ModuleType:
    """The runtime API of cuda-python; raises DeviceError where it is not installed."""
    for name in ("cuda.bindings.runtime", "cuda.cudart"):  # the second: cuda-python before 12.8
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise DeviceError(
        "cuda-python is not installed, the TensorRT backend needs it; run `pip install cuda-python`, "
        "or use --backend ort-cpu"
    )


class Cuda:
    """Checked calls of one process's current device."""

    def __init__(self) -> None:
        self._api = load_runtime()
        self._to_device = self._api.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._to_host = self._api.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._on_device = self._api.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        self._capture_mode = self._api.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal

    def _call(self, function: str, *args: Any) -> Any:
        code, *values = getattr(self._api, function)(*args)
        if int(code):
            name, text = self._describe(code)
            mend = MENDS.get(int(code), "run it again; if it fails again, run `videomar doctor`")
            raise CudaError(
                f"the GPU failed: {function} returned error {int(code)} ({name}, {text}); {mend}", int(code)
            )
        return values[0] if len(values) == 1 else values

    def _release(self, function: str, *args: Any) -> None:
        try:
            self._call(function, *args)
        except CudaError as error:
            log.debug("while releasing: %s", error)

    def _describe(self, code: Any) -> tuple[str, str]:
        text = self._api.cudaGetErrorString(code)[1]
        return getattr(code, "name", "unknown"), text.decode() if isinstance(text, bytes) else str(text)

    # ---- memory

    def free_memory(self) -> int:
        """Bytes that can still be allocated."""
        free, _ = self._call("cudaMemGetInfo")
        integrated = self._call(
            "cudaDeviceGetAttribute", self._api.cudaDeviceAttr.cudaDevAttrIntegrated, self._call("cudaGetDevice")
        )
        # On a Jetson CUDA does not count what the kernel would give back, such as the pages of a file just read.
        return max(int(free), available_host_memory()) if integrated else int(free)

    def require_memory(self, size: int, what: str, mend: str) -> None:
        """Raise DeviceError unless `size` bytes are free."""
        free = self.free_memory()
        if size > free:
            raise DeviceError(f"{what} needs {gib(size)} of GPU memory, {gib(free)} is free; {mend}")

    def malloc(self, size: int) -> int:
        return int(self._call("cudaMalloc", size))

    def free(self, address: int) -> None:
        self._release("cudaFree", address)

    def malloc_host(self, size: int) -> int:
        return int(self._call("cudaMallocHost", size))

    def free_host(self, address: int) -> None:
        self._release("cudaFreeHost", address)

    # ---- copies, in stream order; host memory is pinned unless it may block

    def upload(self, device: int, host: int, size: int, stream: Any) -> None:
        self._call("cudaMemcpyAsync", device, host, size, self._to_device, stream)

    def download(self, host: int, device: int, size: int, stream: Any) -> None:
        self._call("cudaMemcpyAsync", host, device, size, self._to_host, stream)

    def copy_rows(self, to: int, pitch: int, source: int, source_pitch: int, row: int, rows: int, stream: Any) -> None:
        """`rows` rows of `row` bytes from one device table to another whose rows lie `pitch` bytes apart."""
        self._call("cudaMemcpy2DAsync", to, pitch, source, source_pitch, row, rows, self._on_device, stream)

    # ---- streams and events

    def stream(self) -> Any:
        """A stream of its own: TensorRT synchronises on the default one."""
        return self._call("cudaStreamCreateWithFlags", NON_BLOCKING)

    def synchronize(self, stream: Any) -> None:
        self._call("cudaStreamSynchronize", stream)

    def drain(self, stream: Any) -> None:
        """Wait until nothing uses what is about to be released."""
        self._release("cudaStreamSynchronize", stream)

    def destroy_stream(self, stream: Any) -> None:
        self._release("cudaStreamDestroy", stream)

    def event(self) -> Any:
        return self._call("cudaEventCreateWithFlags", NO_TIMING)

    def record(self, event: Any, stream: Any) -> None:
        self._call("cudaEventRecord", event, stream)

    def wait(self, event: Any) -> None:
        self._call("cudaEventSynchronize", event)

    def destroy_event(self, event: Any) -> None:
        self._release("cudaEventDestroy", event)

    # ---- graphs

    def capture(self, stream: Any, enqueue: Callable[[], None]) -> Any:
        """What `enqueue` puts on the stream, as an executable graph; nothing runs.

        Raises CaptureRefused when it cannot be captured; the stream is usable again. If `enqueue` itself fails, that
        is a refusal too: TensorRT does not say why, and what is truly broken fails again without capture.
        """
        try:
            self._call("cudaStreamBeginCapture", stream, self._capture_mode)
            try:
                enqueue()
            except BaseException as error:
                self._abandon_capture(stream)
                if isinstance(error, DeviceError):
                    raise CaptureRefused(str(error)) from None
                raise
            graph = self._call("cudaStreamEndCapture", stream)
            try:
                return self._call("cudaGraphInstantiate", graph, 0)
            finally:
                self._release("cudaGraphDestroy", graph)
        except CudaError as error:
            if error.code not in CAPTURE_CODES:
                raise
            raise CaptureRefused(str(error)) from None
        finally:
            self._api.cudaGetLastError()  # a refusal must not be found by the next library that asks

    def _abandon_capture(self, stream: Any) -> None:
        code, *values = self._api.cudaStreamEndCapture(stream)  # no graph if something invalidated the capture
        if not int(code):
            self._release("cudaGraphDestroy", values[0])

    def launch(self, graph: Any, stream: Any) -> None:
        self._call("cudaGraphLaunch", graph, stream)

    def destroy_graph(self, graph: Any) -> None:
        self._release("cudaGraphExecDestroy", graph)


class Memory:
    """Everything one owner allocated; freed together, newest first."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._frees: list[Callable[[], None]] = []

    def device(self, size: int) -> int:
        """Address of `size` bytes on the device; an empty tensor has one too."""
        address = self._cuda.malloc(max(size, 1))
        self._frees.append(lambda: self._cuda.free(address))
        return address

    def pinned(self, size: int) -> np.ndarray:
        """[size] uint8 of page-locked host memory, zeros; dead after `close`."""
        address = self._cuda.malloc_host(max(size, 1))
        self._frees.append(lambda: self._cuda.free_host(address))
        array = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))
        array[:] = 0
        return array

    def close(self) -> None:
        while self._frees:
            self._frees.pop()()


def available_host_memory() -> int:
    """Bytes Linux could hand out, reclaimable pages included; 0 where it does not say."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
