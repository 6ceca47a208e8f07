"""What an ONNX graph may not hold, found before a builder or a device gets it wrong in silence.

Rules with their reasons; a finding is data. Knows nothing of weights' values but zero points, and never runs a graph.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from videomar.graphs import DIFFUSION_HEAD, HEAD_STEP

LINEARS = ("MatMul", "Gemm", "Conv")
# TensorRT's parser drops the first without a word, and its kernels got the second wrong; ONNX Runtime honours both.
SILENT = ("nonpad_kv_seqlen", "key_value_lengths")
ATTENTION_INPUTS = {4: "past_key", 5: "past_value", 6: "nonpad_kv_seqlen"}
ATTENTION_OUTPUTS = {1: "present_key", 2: "present_value", 3: "qk_matmul_output"}
# FP32 whatever the weights are: the head's loop multiplies every rounding of its state.
LOOP_STATE = {
    HEAD_STEP: ("x", "step_coefficients", "draw", "guidance", "next"),
    DIFFUSION_HEAD: ("initial", "coefficients", "draws", "guidance", "sampled"),
}


@dataclass(frozen=True)
class Finding:
    """One thing that may not be, and what to do about it."""

    graph: str
    node: str  # operator and name, or a tensor
    rule: str
    what: str
    mend: str

    def __str__(self) -> str:
        return f"graph {self.graph}, {self.node}: {self.what} [{self.rule}]; {self.mend}"


def lint_file(file: Path, tensorrt: bool = True, max_opset: int | None = None) -> list[Finding]:
    """Findings in one file named as its graph, large weights unread."""
    return lint(onnx.load(file, load_external_data=False), file.stem, tensorrt, max_opset, file.parent)


def lint(
    model: onnx.ModelProto, name: str, tensorrt: bool = True, max_opset: int | None = None, base: Path = Path(".")
) -> list[Finding]:
    """Findings in one graph; `tensorrt` adds what only TensorRT cannot do, `max_opset` is the target's where known."""
    graph = _Graph(model, name, base)
    rules = [_attention(graph), _quantization(graph), _rope(graph), _loop_state(graph)]
    if tensorrt:
        rules += [_domains(graph), _fp32_attention(graph), _cache(graph)]
    found = [finding for rule in rules for finding in rule]
    opset = max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0)
    if max_opset is not None and opset > max_opset:
        what = f"uses opset {opset}, the target reads up to {max_opset}"
        found.append(Finding(name, "the file", "opset", what, "export with --emitter portable"))
    return found


class _Graph:
    """A model with what the rules ask of it: types, producers, consumers, constants."""

    def __init__(self, model: onnx.ModelProto, name: str, base: Path) -> None:
        self.name, self.base, self.nodes = name, base, list(_nodes(model.graph))
        try:
            typed = onnx.shape_inference.infer_shapes(model).graph
        except Exception:  # an odd graph has fewer types; the rules that need one stay silent
            typed = model.graph
        values = [*typed.value_info, *typed.input, *typed.output]
        self.types = {v.name: v.type.tensor_type.elem_type for v in values}
        self.shapes = {v.name: v.type.tensor_type.shape for v in values}
        self.weights = {t.name: t for t in model.graph.initializer}
        self.types |= {n: t.data_type for n, t in self.weights.items()}
        self.inputs = [v.name for v in model.graph.input]
        self.outputs = [v.name for v in model.graph.output]
        self.makers = {out: node for node in self.nodes for out in node.output if out}
        self.users: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            if node.op_type == "Constant" and (value := _attribute(node, "value")) is not None:
                self.weights[node.output[0]] = value.t
                self.types[node.output[0]] = value.t.data_type
            for tensor in node.input:
                self.users.setdefault(tensor, []).append(node)

    def constant(self, tensor: str) -> bool:
        """Whether it is a weight, or made of one without arithmetic."""
        while (maker := self.makers.get(tensor)) is not None and maker.op_type in (
            *("DequantizeLinear", "QuantizeLinear", "Transpose", "Reshape", "Identity", "Cast"),
        ):
            tensor = maker.input[0]
        return tensor in self.weights

    def value(self, tensor: str) -> np.ndarray:
        return numpy_helper.to_array(self.weights[tensor], str(self.base))

    def finding(self, node: onnx.NodeProto | str, rule: str, what: str, mend: str) -> Finding:
        where = node if isinstance(node, str) else f"{node.op_type} {node.name}".strip()
        return Finding(self.name, where, rule, what, mend)


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _nodes(attribute.g)


def _attribute(node: onnx.NodeProto, name: str) -> onnx.AttributeProto | None:
    return next((a for a in node.attribute if a.name == name), None)


def _attention(graph: _Graph) -> Iterator[Finding]:
    mend = "bind exactly the valid keys and values instead (docs/build.md)"
    for node in graph.nodes:
        for word in SILENT:
            if _attribute(node, word) is not None or any(word in tensor for tensor in node.input):
                yield graph.finding(node, "silent-length", f"has {word}, which TensorRT drops or gets wrong", mend)
        if node.op_type != "Attention":
            continue
        for names, tensors in ((ATTENTION_INPUTS, node.input), (ATTENTION_OUTPUTS, node.output)):
            for i, tensor in enumerate(tensors):
                if tensor and i in names and not any(word in tensor for word in SILENT):
                    yield graph.finding(
                        node, "attention-cache", f"has {names[i]}, which TensorRT rejects or drops", mend
                    )
        if (cap := _attribute(node, "softcap")) is not None and cap.f != 0:
            yield graph.finding(node, "softcap", "has softcap, which TensorRT rejects", "write it as operators")
        if _attribute(node, "softmax_precision") is not None:
            yield graph.finding(
                node, "softmax-precision", "has softmax_precision, which TensorRT rejects", "leave it out"
            )


def _quantization(graph: _Graph) -> Iterator[Finding]:
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


def _zero_point(graph: _Graph, node: onnx.NodeProto, quantizes: bool) -> Iterator[Finding]:
    mend = "quantize symmetrically to int8 with zero point 0"
    if len(node.input) > 2 and node.input[2]:
        dtype = graph.types.get(node.input[2])
        if node.input[2] not in graph.weights or np.any(graph.value(node.input[2])):
            yield graph.finding(node, "zero-point", "has a zero point other than 0", mend)
    else:
        declared = _attribute(node, "output_dtype")
        # ONNX: without a zero point QuantizeLinear makes uint8, DequantizeLinear takes what it is given
        dtype = (declared.i if declared else TensorProto.UINT8) if quantizes else graph.types.get(node.input[0])
    if dtype is not None and dtype != TensorProto.INT8:
        got = TensorProto.DataType.Name(dtype).lower()
        yield graph.finding(node, "int8", f"is {got}, which TensorRT takes for int8 or not at all", mend)


def _scale(graph: _Graph, node: onnx.NodeProto) -> Iterator[Finding]:
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
    given = _attribute(node, "axis")
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
    transposed = _attribute(linear, "transB")
    return rank - 2 if linear.op_type == "Gemm" and transposed is not None and transposed.i else rank - 1


def _around_linears(graph: _Graph, node: onnx.NodeProto) -> Iterator[Finding]:
    mend = "quantize the inputs of linear layers only"
    users = list(graph.users.get(node.output[0], []))
    while any(u.op_type == "Transpose" for u in users):  # weights stored the other way round
        users = [v for u in users for v in (graph.users.get(u.output[0], []) if u.op_type == "Transpose" else [u])]
    for user in users:
        if user.op_type not in LINEARS:
            yield graph.finding(node, "linears-only", f"feeds {user.op_type} {user.name}".strip(), mend)
        elif not any(graph.constant(tensor) for tensor in user.input[:2]):
            yield graph.finding(node, "attention", f"feeds {user.op_type} {user.name} of two activations", mend)


def _rope(graph: _Graph) -> Iterator[Finding]:
    mend = "give the tables in the activations' dtype"
    for node in graph.nodes:
        if node.op_type == "RotaryEmbedding":
            kinds = [graph.types.get(t, 0) for t in node.input[:3]]
            if all(kinds) and len(set(kinds)) > 1:
                yield graph.finding(node, "rope-dtype", "has tables of another dtype than its input", mend)
    kinds = {graph.types[n] for n in graph.inputs if n.startswith(("rope_", "past_key_", "text_key_"))}
    if any(n.startswith("rope_") for n in graph.inputs) and len(kinds) > 1:
        yield graph.finding("rope_cos, rope_sin", "rope-dtype", "are of another dtype than keys and values", mend)


def _loop_state(graph: _Graph) -> Iterator[Finding]:
    mend = "keep the loop's state, schedule and noise in FP32 (docs/build.md)"
    for tensor in LOOP_STATE.get(graph.name, ()):
        if graph.types.get(tensor, TensorProto.FLOAT) != TensorProto.FLOAT:
            yield graph.finding(tensor, "fp32-loop", "is not FP32", mend)
    if graph.name == HEAD_STEP and (maker := graph.makers.get("next")) is not None and maker.op_type == "Cast":
        yield graph.finding(maker, "fp32-loop", "rounds the loop's state", mend)


def _domains(graph: _Graph) -> Iterator[Finding]:
    for node in graph.nodes:
        if node.domain not in ("", "ai.onnx"):
            yield graph.finding(node, "domain", f"is of {node.domain}, which TensorRT does not have", "export it again")


def _fp32_attention(graph: _Graph) -> Iterator[Finding]:
    for node in graph.nodes:
        if node.op_type == "Attention" and graph.types.get(node.input[0]) == TensorProto.FLOAT:
            what = "is FP32 Attention, which TensorRT has no kernel for"
            yield graph.finding(node, "fp32-attention", what, "export with --precision fp16 or --emitter portable")
            return  # every layer has one


def _cache(graph: _Graph) -> Iterator[Finding]:
    for node in graph.nodes:
        if node.op_type == "TensorScatter" and (shape := graph.shapes.get(node.input[0])) is not None:
            axis = _attribute(node, "axis")
            if not shape.dim[axis.i if axis else -2].HasField("dim_value"):
                what = "writes into a cache of no fixed length, which TensorRT cannot"
                yield graph.finding(node, "fixed-cache", what, "export with --cache-tokens N")
                return
