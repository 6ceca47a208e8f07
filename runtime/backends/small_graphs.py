"""The runtime's own little ONNX models, encoded by hand: it has no onnx package. Protobuf is fields of (number, value).

Knows nothing of sessions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_ELEMENTS = {"float32": 1, "uint8": 2, "int8": 3, "int32": 6, "int64": 7, "float16": 10}
_INT64 = np.dtype(np.int64)


def concat_graph(dtype: np.dtype[Any]) -> bytes:
    """An ONNX model, opset 13: head [b, h, past, d] + tail [b, h, new, d] -> copied [b, h, past + new, d]."""
    nodes = _node("Concat", ("head", "tail"), "copied", axis=2)
    return _model(nodes, {"head": (dtype, 4), "tail": (dtype, 4)}, {"copied": (dtype, 4)})


def extend_graph(dtype: np.dtype[Any]) -> bytes:
    """An ONNX model, opset 13: head [b, h, past, d] + tokens `rows` [n] of whole [b, h, total, d] -> copied."""
    nodes = _node("Gather", ("whole", "rows"), "tail", axis=2) + _node("Concat", ("head", "tail"), "copied", axis=2)
    return _model(nodes, {"head": (dtype, 4), "whole": (dtype, 4), "rows": (_INT64, 1)}, {"copied": (dtype, 4)})


def drop_graph(dtype: np.dtype[Any]) -> bytes:
    """An ONNX model, opset 13: whole [b, h, n, d] -> copied, its tokens from_0..to_0 and from_1..to_1 (each [1])."""
    bounds = dict.fromkeys(("from_0", "to_0", "from_1", "to_1"), (_INT64, 1))
    # An axis is an input of Slice; the constant two comes from a node.
    nodes = _node("Constant", (), "axes", value_ints=(2,))
    for piece in "01":
        nodes += _node("Slice", ("whole", f"from_{piece}", f"to_{piece}", "axes"), f"piece_{piece}")
    nodes += _node("Concat", ("piece_0", "piece_1"), "copied", axis=2)
    return _model(nodes, {"whole": (dtype, 4), **bounds}, {"copied": (dtype, 4)})


def product_graph() -> bytes:
    """An ONNX model, opset 13: left uint8 [rows, k], right int8 [k, columns] -> product int32 [rows, columns]."""
    inputs = {"left": (np.dtype(np.uint8), 2), "right": (np.dtype(np.int8), 2)}
    nodes = _node("MatMulInteger", ("left", "right"), "product")
    return _model(nodes, inputs, {"product": (np.dtype(np.int32), 2)})


def _node(kind: str, inputs: Sequence[str], output: str, **attributes: int | tuple[int, ...]) -> bytes:
    """A node as a field of its graph; attributes are whole numbers, one or several."""
    node = b"".join(_field(1, name.encode()) for name in inputs) + _field(2, output.encode()) + _field(4, kind.encode())
    for name, value in attributes.items():
        one, several = (_field(3, value), 2) if isinstance(value, int) else (b"".join(_field(8, v) for v in value), 7)
        node += _field(5, _field(1, name.encode()) + one + _field(20, several))
    return _field(1, node)


Tensors = Mapping[str, tuple[np.dtype[Any], int]]  # name -> dtype, number of axes, all of them free


def _model(nodes: bytes, inputs: Tensors, outputs: Tensors) -> bytes:
    def tensor(name: str, dtype: np.dtype[Any], rank: int) -> bytes:
        dimensions = b"".join(_field(1, _field(2, f"{name}_{axis}".encode())) for axis in range(rank))
        kind = _field(1, _ELEMENTS[dtype.name]) + _field(2, dimensions)
        return _field(1, name.encode()) + _field(2, _field(1, kind))

    graph = nodes + _field(2, b"small") + b"".join(_field(11, tensor(n, *t)) for n, t in inputs.items())
    graph += b"".join(_field(12, tensor(n, *t)) for n, t in outputs.items())
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
