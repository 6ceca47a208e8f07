"""The linter's rules for QuantizeLinear and DequantizeLinear: TensorRT builds most breaches without a word."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import TensorProto

from videomar.export.lint_graph import Finding, Graph, attribute

LINEARS = ("MatMul", "Gemm", "Conv")


def quantization(graph: Graph) -> Iterator[Finding]:
    """Symmetric int8 with zero point 0, one scale an activation, one an output channel, around linears only."""
    for node in graph.nodes:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        quantizes = node.op_type == "QuantizeLinear"
        yield from _zero_point(graph, node, quantizes)
        if node.input[1] in graph.weights:
            yield from _scale(graph, node)
        else:
            yield graph.finding(node, "scale", "has a computed scale, which is untested on TensorRT", "use a constant")
        if quantizes:
            users = graph.users.get(node.output[0], [])
            if not users or any(u.op_type != "DequantizeLinear" for u in users):
                yield graph.finding(node, "pair", "is not followed by DequantizeLinear", "write Q and DQ in pairs")
            continue
        yield from _around_linears(graph, node)


def _zero_point(graph: Graph, node: onnx.NodeProto, quantizes: bool) -> Iterator[Finding]:
    mend = "quantize symmetrically to int8 with zero point 0"
    if len(node.input) > 2 and node.input[2]:
        dtype = graph.types.get(node.input[2])
        if node.input[2] not in graph.weights or np.any(graph.value(node.input[2])):
            yield graph.finding(node, "zero-point", "has a zero point other than 0", mend)
    else:
        declared = attribute(node, "output_dtype")
        # ONNX: without a zero point QuantizeLinear makes uint8, DequantizeLinear takes what it is given
        dtype = (declared.i if declared else TensorProto.UINT8) if quantizes else graph.types.get(node.input[0])
    if dtype is not None and dtype != TensorProto.INT8:
        got = TensorProto.DataType.Name(dtype).lower()
        yield graph.finding(node, "int8", f"is {got}, which TensorRT takes for int8 or not at all", mend)


def _scale(graph: Graph, node: onnx.NodeProto) -> Iterator[Finding]:
    dims = graph.weights[node.input[1]].dims
    if not dims:
        return
    if not graph.constant(node.input[0]):
        if list(dims) != [1]:
            mend = "one scale for an activation, one an output channel for weights"
            yield graph.finding(node, "per-tensor", f"scales an activation with {list(dims)} scales", mend)
        return
    weight = node.input[0]
    while weight not in graph.weights:
        weight = graph.makers[weight].input[0]
    shape = list(graph.weights[weight].dims)
    given = attribute(node, "axis")
    axis = (given.i if given else 1) % max(1, len(shape))
    users = [u for u in graph.users.get(node.output[0], []) if u.op_type in LINEARS]
    right = {_output_axis(u, len(shape)) for u in users}
    if list(dims) != [1] and (len(dims) != 1 or shape[axis] != dims[0] or (right and right != {axis})):
        wanted = f"axis {', '.join(map(str, sorted(right)))}" if right else "its output channels"
        what = f"has {list(dims)} scales along axis {axis} of weights {shape}, expected one a channel along {wanted}"
        yield graph.finding(
            node, "axis", what, "TensorRT builds a wrong axis without a word: quantize per output channel"
        )


def _output_axis(linear: onnx.NodeProto, rank: int) -> int:
    if linear.op_type == "Conv":
        return 0
    transposed = attribute(linear, "transB")
    return rank - 2 if linear.op_type == "Gemm" and transposed is not None and transposed.i else rank - 1


def _around_linears(graph: Graph, node: onnx.NodeProto) -> Iterator[Finding]:
    mend = "quantize the inputs of linear layers only"
    users = list(graph.users.get(node.output[0], []))
    while any(u.op_type == "Transpose" for u in users):  # weights stored the other way round
        users = [v for u in users for v in (graph.users.get(u.output[0], []) if u.op_type == "Transpose" else [u])]
    for user in users:
        if user.op_type not in LINEARS:
            yield graph.finding(node, "linears-only", f"feeds {user.op_type} {user.name}".strip(), mend)
        elif not any(graph.constant(tensor) for tensor in user.input[:2]):
            yield graph.finding(node, "attention", f"feeds {user.op_type} {user.name} of two activations", mend)
