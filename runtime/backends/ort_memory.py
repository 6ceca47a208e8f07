"""Where ONNX Runtime's bound tensors live: in numpy arrays, or behind pointers of a device such as CUDA's.

Knows how memory is taken, filled, bound and read. Knows nothing of graphs, K/V or clips.

A view is a run of a buffer's elements in another shape. ONNX Runtime cannot slice a device's OrtValue; binding the
address with the shape does the same.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import onnxruntime as ort

from videomar.errors import ArtifactError, DeviceError
from videomar.runtime.backends.ort_session import open_session
from videomar.runtime.backends.small_graphs import concat_graph, drop_graph, extend_graph

Values = np.ndarray | np.generic  # a tensor's, or one number for all of it


@dataclass(frozen=True)
class Buffer:
    """A tensor's memory, or a view of one."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    value: ort.OrtValue  # on the host over `array`; on a device the whole allocation, which a view keeps alive
    array: np.ndarray | None = None  # on the host only
    offset: int = 0  # bytes from the start of `value`; on a device only


class Memory(Protocol):
    """One place for tensors. Whoever binds a buffer keeps it alive: bindings hold addresses."""

    def zeros(self, shape: Sequence[int], dtype: Any) -> Buffer:
        """Take memory for a tensor, all zero."""

    def view(self, buffer: Buffer, shape: Sequence[int], skip: int = 0) -> Buffer:
        """The buffer's elements from number `skip` on in another shape."""

    def bind_input(self, binding: ort.IOBinding, name: str, buffer: Buffer) -> None: ...

    def bind_output(self, binding: ort.IOBinding, name: str, buffer: Buffer) -> None: ...

    def put(self, binding: ort.IOBinding, name: str, buffer: Buffer, array: Values) -> None:
        """Fill a whole buffer (no view) and bind it as an input.

        Together, since ONNX Runtime looks when it binds: an input that its graph wants on the other side (on the CPU,
        for an operator without a CUDA kernel) is copied there then, and later contents would not be seen.
        """

    def read(self, buffer: Buffer) -> np.ndarray:
        """A whole buffer's contents; valid until it is written again."""

    def widen(self, source: Buffer, target: Buffer) -> None:
        """Copy [b, h, past, d] to the first `past` of the target's [b, h, total, d]."""

    def drop(self, source: Buffer, target: Buffer, start: int) -> None:
        """Copy [b, h, n, d] to [b, h, n - gone, d] without the tokens from `start` on that there is no room for."""

    def numbers(self, values: np.ndarray) -> Buffer:
        """Take memory for these int64 values."""

    def extend(self, source: Buffer, other: Buffer, rows: Buffer, target: Buffer) -> None:
        """Copy [b, h, past, d] and behind it the tokens `rows` [n] int64 of the other's [b, h, total, d]."""

    def run(self, session: ort.InferenceSession, binding: ort.IOBinding, what: str, last: bool = False) -> None:
        """Run `what`, a graph's name, and wait for it. last: passes of this size end here, free what they needed."""


class HostMemory:
    """numpy arrays, bound in place: a step writes into them and nothing is copied."""

    def __init__(self) -> None:
        self.shrink = ort.RunOptions()  # the arena gives back what it does not use
        self.shrink.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")

    def zeros(self, shape: Sequence[int], dtype: Any) -> Buffer:
        return self._wrap(np.zeros(shape, dtype))

    def _wrap(self, array: np.ndarray) -> Buffer:
        return Buffer(array.shape, array.dtype, ort.OrtValue.ortvalue_from_numpy(array), array)

    def view(self, buffer: Buffer, shape: Sequence[int], skip: int = 0) -> Buffer:
        return self._wrap(_array(buffer).reshape(-1)[skip : skip + int(np.prod(shape))].reshape(shape))

    def bind_input(self, binding: ort.IOBinding, name: str, buffer: Buffer) -> None:
        binding.bind_ortvalue_input(name, buffer.value)

    def bind_output(self, binding: ort.IOBinding, name: str, buffer: Buffer) -> None:
        binding.bind_ortvalue_output(name, buffer.value)

    def put(self, binding: ort.IOBinding, name: str, buffer: Buffer, array: Values) -> None:
        _array(buffer)[...] = array
        self.bind_input(binding, name, buffer)

    def read(self, buffer: Buffer) -> np.ndarray:
        return _array(buffer)

    def widen(self, source: Buffer, target: Buffer) -> None:
        _array(target)[:, :, : source.shape[2]] = _array(source)

    def drop(self, source: Buffer, target: Buffer, start: int) -> None:
        gone = source.shape[2] - target.shape[2]
        _array(target)[:, :, :start] = _array(source)[:, :, :start]
        _array(target)[:, :, start:] = _array(source)[:, :, start + gone :]

    def numbers(self, values: np.ndarray) -> Buffer:
        return self._wrap(np.array(values, np.int64))

    def extend(self, source: Buffer, other: Buffer, rows: Buffer, target: Buffer) -> None:
        past = source.shape[2]
        _array(target)[:, :, :past] = _array(source)
        _array(target)[:, :, past:] = _array(other)[:, :, _array(rows)]

    def run(self, session: ort.InferenceSession, binding: ort.IOBinding, what: str, last: bool = False) -> None:
        try:
            session.run_with_iobinding(binding, self.shrink if last else None)
        except Exception as error:  # ONNX Runtime's own exception types are not public
            raise host_failed(what, error) from error
        if last:
            trim()


class DeviceMemory:
    """Memory of a device that ONNX Runtime has a provider for, bound by address.

    The host is a device too ("cpu"), which is how all of this is tested where there is no GPU.
    """

    def __init__(self, device: str = "cuda", index: int = 0, providers: Sequence[Any] = ()) -> None:
        """providers: for the one small graph of our own that copies between strides on the device."""
        self._device, self._index = device, index
        self._providers = list(providers) or ["CPUExecutionProvider"]
        self._copiers: dict[Any, ort.InferenceSession] = {}
        self._rest: Buffer | None = None

    def zeros(self, shape: Sequence[int], dtype: Any) -> Buffer:
        value = ort.OrtValue.ortvalue_from_shape_and_type(list(shape), np.dtype(dtype).type, self._device, self._index)
        if 0 not in shape:
            value.update_inplace(np.zeros(shape, dtype))
        return Buffer(tuple(shape), np.dtype(dtype), value)

    def view(self, buffer: Buffer, shape: Sequence[int], skip: int = 0) -> Buffer:
        if skip + np.prod(shape) > np.prod(buffer.shape):
            raise ValueError(f"a view of {list(shape)} from {skip} on does not fit into {list(buffer.shape)}")
        return Buffer(tuple(shape), buffer.dtype, buffer.value, offset=buffer.offset + skip * buffer.dtype.itemsize)

    def bind_input(self, binding: ort.IOBinding, name: str, buffer: Buffer) -> None:
        binding.bind_input(name, *self._described(buffer))

    def bind_output(self, binding: ort.IOBinding, name: str, buffer: Buffer) -> None:
        binding.bind_output(name, *self._described(buffer))

    def _described(self, buffer: Buffer) -> tuple[str, int, Any, list[int], int]:
        return self._device, self._index, buffer.dtype.type, list(buffer.shape), buffer.value.data_ptr() + buffer.offset

    def put(self, binding: ort.IOBinding, name: str, buffer: Buffer, array: Values) -> None:
        buffer.value.update_inplace(np.ascontiguousarray(np.broadcast_to(array, buffer.shape), buffer.dtype))
        self.bind_input(binding, name, buffer)

    def read(self, buffer: Buffer) -> np.ndarray:
        array: np.ndarray = buffer.value.numpy()
        return array

    def widen(self, source: Buffer, target: Buffer) -> None:
        """By a Concat with zeros, run where the memory is: there is no other strided copy in ONNX Runtime's API."""
        b, h, past, d = source.shape
        if not past:
            return
        rest = (b, h, target.shape[2] - past, d)
        if self._rest is None or (self._rest.shape, self._rest.dtype) != (rest, source.dtype):
            self._rest = self.zeros(rest, source.dtype)
        self._copy(concat_graph, {"head": source, "tail": self._rest}, target)

    def drop(self, source: Buffer, target: Buffer, start: int) -> None:
        gone = source.shape[2] - target.shape[2]
        bounds = self.zeros((2, 2), np.int64)  # of the two pieces that stay: where each begins, where each ends
        bounds.value.update_inplace(np.array([[0, start], [start + gone, source.shape[2]]], np.int64))
        pieces = {name: self.view(bounds, (1,), at) for at, name in enumerate(("from_0", "to_0", "from_1", "to_1"))}
        self._copy(drop_graph, {"whole": source, **pieces}, target)

    def numbers(self, values: np.ndarray) -> Buffer:
        buffer = self.zeros(values.shape, np.int64)
        if len(values):
            buffer.value.update_inplace(np.ascontiguousarray(values, np.int64))
        return buffer

    def extend(self, source: Buffer, other: Buffer, rows: Buffer, target: Buffer) -> None:
        self._copy(extend_graph, {"head": source, "whole": other, "rows": rows}, target)

    def _copy(self, graph: Callable[[np.dtype[Any]], bytes], given: Mapping[str, Buffer], target: Buffer) -> None:
        key = (graph, target.dtype)
        if key not in self._copiers:
            self._copiers[key] = open_session(graph(target.dtype), providers=self._providers)
        copier = self._copiers[key]
        binding = copier.io_binding()
        for name, buffer in given.items():
            self.bind_input(binding, name, buffer)
        self.bind_output(binding, "copied", target)
        self.run(copier, binding, "the K/V copy")

    def run(self, session: ort.InferenceSession, binding: ort.IOBinding, what: str, last: bool = False) -> None:
        try:
            binding.synchronize_inputs()
            session.run_with_iobinding(binding)
            binding.synchronize_outputs()
        except Exception as error:  # ONNX Runtime's own exception types are not public
            raise device_failed(self._device, what, error) from error


def trim() -> None:
    """Hand freed memory back to the system: glibc keeps it for itself."""
    if call := _malloc_trim():
        call(0)


@functools.cache
def _malloc_trim() -> Callable[[int], int] | None:
    """glibc's call, None where there is another C library."""
    with contextlib.suppress(AttributeError, OSError, TypeError):
        return ctypes.CDLL(None).malloc_trim
    return None


def host_failed(what: str, error: Exception) -> Exception:
    """What a failure on the host means: the error itself where memory did not suffice, else the graph is not whole."""
    if isinstance(error, MemoryError) or "Failed to allocate" in str(error):
        return error
    why = (str(error).strip() or type(error).__name__).splitlines()[0]
    return ArtifactError(
        f"{what} failed in ONNX Runtime ({why:.200}), expected a graph that runs; export the checkpoint again"
    )


def device_failed(device: str, what: str, error: Exception) -> DeviceError:
    """What a failure on a device means to whoever asked for a clip."""
    why = (str(error).strip() or type(error).__name__).splitlines()[0]
    if any(sign in str(error) for sign in ("Failed to allocate", "out of memory", "CUDA failure 2:")):
        return DeviceError(
            f"{device} has too little memory for {what} ({why:.200}); ask for fewer --frames or a smaller --height and "
            "--width, or use --backend ort-cpu"
        )
    return DeviceError(f"{device} failed in {what} ({why:.200}); see `videomar doctor`, or use --backend ort-cpu")


def _array(buffer: Buffer) -> np.ndarray:
    assert buffer.array is not None
    return buffer.array
