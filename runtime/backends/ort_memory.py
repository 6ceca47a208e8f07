"""Where ONNX Runtime's bound tensors live: in numpy arrays, or behind pointers of a device such as CUDA's.

Knows how memory is taken, filled, bound and read. Knows nothing of graphs, K/V or clips.

A view is always the first elements of a buffer in another shape, so it has the buffer's address. ONNX Runtime cannot
slice a device's OrtValue; binding the address with the shape does the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import onnxruntime as ort

from videomar.errors import DeviceError


@dataclass(frozen=True)
class Buffer:
    """A tensor's memory, or a view of one."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    value: ort.OrtValue  # on the host over `array`; on a device the whole allocation, which a view keeps alive
    array: np.ndarray | None = None  # on the host only


class Memory(Protocol):
    """One place for tensors. Whoever binds a buffer keeps it alive: bindings hold addresses."""

    def zeros(self, shape: Sequence[int], dtype: Any) -> Buffer:
        """Take memory for a tensor, all zero."""

    def view(self, buffer: Buffer, shape: Sequence[int]) -> Buffer:
        """The buffer's first elements in another shape."""

    def bind_input(self, binding: ort.IOBinding, name: str, buffer: Buffer) -> None: ...

    def bind_output(self, binding: ort.IOBinding, name: str, buffer: Buffer) -> None: ...

    def put(self, binding: ort.IOBinding, name: str, buffer: Buffer, array: np.ndarray) -> None:
        """Fill a whole buffer (no view) and bind it as an input.

        Together, since ONNX Runtime looks when it binds: an input that its graph wants on the other side (on the CPU,
        for an operator without a CUDA kernel) is copied there then, and later contents would not be seen.
        """

    def read(self, buffer: Buffer) -> np.ndarray:
        """A whole buffer's contents; valid until it is written again."""

    def widen(self, source: Buffer, target: Buffer) -> None:
        """Copy [b, h, past, d] to the first `past` of the target's [b, h, total, d]."""

    def run(self, session: ort.InferenceSession, binding: ort.IOBinding, what: str) -> None:
        """Run `what`, a graph's name, and wait for it."""


class HostMemory:
    """numpy arrays, bound in place: a step writes into them and nothing is copied."""

    def zeros(self, shape: Sequence[int], dtype: Any) -> Buffer:
        return self._wrap(np.zeros(shape, dtype))

    def _wrap(self, array: np.ndarray) -> Buffer:
        return Buffer(array.shape, array.dtype, ort.OrtValue.ortvalue_from_numpy(array), array)

    def view(self, buffer: Buffer, shape: Sequence[int]) -> Buffer:
        return self._wrap(_array(buffer).reshape(-1)[: int(np.prod(shape))].reshape(shape))

    def bind_input(self, binding: ort.IOBinding, name: str, buffer: Buffer) -> None:
        binding.bind_ortvalue_input(name, buffer.value)

    def bind_output(self, binding: ort.IOBinding, name: str, buffer: Buffer) -> None:
        binding.bind_ortvalue_output(name, buffer.value)

    def put(self, binding: ort.IOBinding, name: str, buffer: Buffer, array: np.ndarray) -> None:
        _array(buffer)[...] = array
        self.bind_input(binding, name, buffer)

    def read(self, buffer: Buffer) -> np.ndarray:
        return _array(buffer)

    def widen(self, source: Buffer, target: Buffer) -> None:
        _array(target)[:, :, : source.shape[2]] = _array(source)

    def run(self, session: ort.InferenceSession, binding: ort.IOBinding, what: str) -> None:
        session.run_with_iobinding(binding)


class DeviceMemory:
    """Memory of a device that ONNX Runtime has a provider for, bound by address.

    The host is a device too ("cpu"), which is how all of this is tested where there is no GPU.
    """

    def __init__(self, device: str = "cuda", index: int = 0, providers: Sequence[Any] = ()) -> None:
        """providers: for the one small graph of our own that copies between strides on the device."""
        self._device, self._index = device, index
        self._providers = list(providers) or ["CPUExecutionProvider"]
        self._copiers: dict[np.dtype[Any], ort.InferenceSession] = {}
        self._rest: Buffer | None = None

    def zeros(self, shape: Sequence[int], dtype: Any) -> Buffer:
        value = ort.OrtValue.ortvalue_from_shape_and_type(list(shape), np.dtype(dtype).type, self._device, self._index)
        if 0 not in shape:
            value.update_inplace(np.zeros(shape, dtype))
        return Buffer(tuple(shape), np.dtype(dtype), value)

    def view(self, buffer: Buffer, shape: Sequence[int]) -> Buffer:
        if np.prod(shape) > np.prod(buffer.shape):
            raise ValueError(f"a view of {list(shape)} does not fit into {list(buffer.shape)}")
        return Buffer(tuple(shape), buffer.dtype, buffer.value)

    def bind_input(self, binding: ort.IOBinding, name: str, buffer: Buffer) -> None:
        binding.bind_input(name, *self._described(buffer))

    def bind_output(self, binding: ort.IOBinding, name: str, buffer: Buffer) -> None:
        binding.bind_output(name, *self._described(buffer))

    def _described(self, buffer: Buffer) -> tuple[str, int, Any, list[int], int]:
        return self._device, self._index, buffer.dtype.type, list(buffer.shape), buffer.value.data_ptr()

    def put(self, binding: ort.IOBinding, name: str, buffer: Buffer, array: np.ndarray) -> None:
        buffer.value.update_inplace(np.ascontiguousarray(np.broadcast_to(array, buffer.shape), buffer.dtype))
        self.bind_input(binding, name, buffer)

    def read(self, buffer: Buffer) -> np.ndarray:
        return buffer.value.numpy()

    def widen(self, source: Buffer, target: Buffer) -> None:
        """By a Concat with zeros, run where the memory is: there is no other strided copy in ONNX Runtime's API."""
        b, h, past, d = source.shape
        if not past:
            return
        if source.dtype not in self._copiers:
            options = ort.SessionOptions()
            options.log_severity_level = 3
            self._copiers[source.dtype] = ort.InferenceSession(
                concat_graph(source.dtype), options, providers=self._providers
            )
        rest = (b, h, target.shape[2] - past, d)
        if self._rest is None or (self._rest.shape, self._rest.dtype) != (rest, source.dtype):
            self._rest = self.zeros(rest, source.dtype)
        copier = self._copiers[source.dtype]
        binding = copier.io_binding()
        self.bind_input(binding, "head", source)
        self.bind_input(binding, "tail", self._rest)
        self.bind_output(binding, "whole", target)
        self.run(copier, binding, "the K/V copy")

    def run(self, session: ort.InferenceSession, binding: ort.IOBinding, what: str) -> None:
        try:
            binding.synchronize_inputs()
            session.run_with_iobinding(binding)
            binding.synchronize_outputs()
        except Exception as error:  # ONNX Runtime's own exception types are not public
            raise device_failed(self._device, what, error) from error


def device_failed(device: str, what: str, error: Exception) -> DeviceError:
    """What a failure on a device means to whoever asked for a clip."""
    why = (str(error).strip() or type(error).__name__).splitlines()[0]
    if any(sign in str(error) for sign in ("Failed to allocate", "out of memory", "CUDA failure 2:")):
        return DeviceError(
            f"{device} has too little memory for {what} ({why:.200}); ask for fewer --frames or a smaller --height and "
            "--width, or use --backend ort-cpu"
        )
    return DeviceError(f"{device} failed in {what} ({why:.200}); see `videomar doctor`, or use --backend ort-cpu")


def concat_graph(dtype: np.dtype[Any]) -> bytes:
    """An ONNX model, opset 13: head [b, h, past, d] + tail [b, h, new, d] -> whole [b, h, past + new, d].

    Encoded by hand, since the runtime has no onnx package: protobuf is fields of (number, bytes or number).
    """
    element = {"float32": 1, "float16": 10}[dtype.name]

    def tensor(name: str) -> bytes:
        dimensions = b"".join(_field(1, _field(2, f"{name}_{axis}".encode())) for axis in range(4))
        return _field(1, name.encode()) + _field(2, _field(1, _field(1, element) + _field(2, dimensions)))

    axis = _field(1, b"axis") + _field(3, 2) + _field(20, 2)  # an integer
    node = _field(1, b"head") + _field(1, b"tail") + _field(2, b"whole") + _field(4, b"Concat") + _field(5, axis)
    graph = _field(1, node) + _field(2, b"copy") + _field(11, tensor("head")) + _field(11, tensor("tail"))
    graph += _field(12, tensor("whole"))
    return _field(1, 8) + _field(7, graph) + _field(8, _field(1, b"") + _field(2, 13))


def _field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    low = b""
    while value > 127:
        low, value = low + bytes([value & 127 | 128]), value >> 7
    return low + bytes([value])


def _array(buffer: Buffer) -> np.ndarray:
    assert buffer.array is not None
    return buffer.array
