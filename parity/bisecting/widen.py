"""Operators and stored tensors of a piece turned to FP32, and activations left unquantized. Pure edits of nodes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper


def wide_node(node: onnx.NodeProto) -> onnx.NodeProto:
    """The same operator for FP32."""
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    for attribute in copy.attribute:
        if attribute.name in ("to", "dtype", "output_dtype") and attribute.i == TensorProto.FLOAT16:
            attribute.i = TensorProto.FLOAT
        if attribute.HasField("t"):
            attribute.t.CopyFrom(wide_tensor(attribute.t))
    return copy


def wide_tensor(tensor: TensorProto) -> TensorProto:
    """The same numbers in FP32, if they are FP16."""
    if tensor.data_type != TensorProto.FLOAT16:
        return tensor
    return numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name)


def unquantized(nodes: Sequence[onnx.NodeProto], weights: Iterable[str]) -> list[onnx.NodeProto]:
    """Without the Q/DQ pairs around activations; stored integers are still turned into numbers."""
    stored, sources, kept = set(weights), {}, []
    for node in nodes:
        node.input[:] = [sources.get(name, name) for name in node.input]
        if node.op_type == "QuantizeLinear" or (node.op_type == "DequantizeLinear" and node.input[0] not in stored):
            sources[node.output[0]] = node.input[0]
        else:
            kept.append(node)
    return kept
