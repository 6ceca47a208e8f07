"""What an ONNX graph may not hold, found before a builder or a device gets it wrong in silence.

Rules with their reasons; a finding is data. Knows nothing of weights' values but zero points, and never runs a graph.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx
from onnx import TensorProto

from videomar.export.lint_graph import Finding, Graph, attribute
from videomar.export.lint_quantization import quantization
from videomar.graphs import DIFFUSION_HEAD, HEAD_STEP

# TensorRT's parser drops the first without a word, and its kernels got the second wrong; ONNX Runtime honours both.
SILENT = ("nonpad_kv_seqlen", "key_value_lengths")
ATTENTION_INPUTS = {4: "past_key", 5: "past_value", 6: "nonpad_kv_seqlen"}
ATTENTION_OUTPUTS = {1: "present_key", 2: "present_value", 3: "qk_matmul_output"}
# FP32 whatever the weights are: the head's loop multiplies every rounding of its state.
LOOP_STATE = {
    HEAD_STEP: ("x", "step_coefficients", "draw", "guidance", "next"),
    DIFFUSION_HEAD: ("initial", "coefficients", "draws", "guidance", "sampled"),
}


def lint_file(file: Path, tensorrt: bool = True, max_opset: int | None = None) -> list[Finding]:
    """Findings in one file named as its graph, large weights unread."""
    return lint(onnx.load(file, load_external_data=False), file.stem, tensorrt, max_opset, file.parent)


def lint(
    model: onnx.ModelProto, name: str, tensorrt: bool = True, max_opset: int | None = None, base: Path = Path(".")
) -> list[Finding]:
    """Findings in one graph; `tensorrt` adds what only TensorRT cannot do, `max_opset` is the target's where known."""
    graph = Graph(model, name, base)
    rules = [_attention(graph), quantization(graph), _rope(graph), _loop_state(graph)]
    if tensorrt:
        rules += [_domains(graph), _fp32_attention(graph), _cache(graph)]
    found = [finding for rule in rules for finding in rule]
    opset = max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0)
    if max_opset is not None and opset > max_opset:
        what = f"uses opset {opset}, the target reads up to {max_opset}"
        found.append(Finding(name, "the file", "opset", what, "export with --emitter portable"))
    return found


def _attention(graph: Graph) -> Iterator[Finding]:
    mend = "bind exactly the valid keys and values instead (docs/build.md)"
    for node in graph.nodes:
        for word in SILENT:
            if attribute(node, word) is not None or any(word in tensor for tensor in node.input):
                yield graph.finding(node, "silent-length", f"has {word}, which TensorRT drops or gets wrong", mend)
        if node.op_type != "Attention":
            continue
        for names, tensors in ((ATTENTION_INPUTS, node.input), (ATTENTION_OUTPUTS, node.output)):
            for i, tensor in enumerate(tensors):
                if tensor and i in names and not any(word in tensor for word in SILENT):
                    yield graph.finding(
                        node, "attention-cache", f"has {names[i]}, which TensorRT rejects or drops", mend
                    )
        if (cap := attribute(node, "softcap")) is not None and cap.f != 0:
            yield graph.finding(node, "softcap", "has softcap, which TensorRT rejects", "write it as operators")
        if attribute(node, "softmax_precision") is not None:
            yield graph.finding(
                node, "softmax-precision", "has softmax_precision, which TensorRT rejects", "leave it out"
            )


def _rope(graph: Graph) -> Iterator[Finding]:
    mend = "give the tables in the activations' dtype"
    for node in graph.nodes:
        if node.op_type == "RotaryEmbedding":
            kinds = [graph.types.get(t, 0) for t in node.input[:3]]
            if all(kinds) and len(set(kinds)) > 1:
                yield graph.finding(node, "rope-dtype", "has tables of another dtype than its input", mend)
    kinds = {graph.types[n] for n in graph.inputs if n.startswith(("rope_", "past_key_", "text_key_"))}
    if any(n.startswith("rope_") for n in graph.inputs) and len(kinds) > 1:
        yield graph.finding("rope_cos, rope_sin", "rope-dtype", "are of another dtype than keys and values", mend)


def _loop_state(graph: Graph) -> Iterator[Finding]:
    mend = "keep the loop's state, schedule and noise in FP32 (docs/build.md)"
    for tensor in LOOP_STATE.get(graph.name, ()):
        if graph.types.get(tensor, TensorProto.FLOAT) != TensorProto.FLOAT:
            yield graph.finding(tensor, "fp32-loop", "is not FP32", mend)
    if graph.name == HEAD_STEP and (maker := graph.makers.get("next")) is not None and maker.op_type == "Cast":
        yield graph.finding(maker, "fp32-loop", "rounds the loop's state", mend)


def _domains(graph: Graph) -> Iterator[Finding]:
    for node in graph.nodes:
        if node.domain not in ("", "ai.onnx"):
            yield graph.finding(node, "domain", f"is of {node.domain}, which TensorRT does not have", "export it again")


def _fp32_attention(graph: Graph) -> Iterator[Finding]:
    for node in graph.nodes:
        if node.op_type == "Attention" and graph.types.get(node.input[0]) == TensorProto.FLOAT:
            what = "is FP32 Attention, which TensorRT has no kernel for"
            yield graph.finding(node, "fp32-attention", what, "export with --precision fp16 or --emitter portable")
            return  # every layer has one


def _cache(graph: Graph) -> Iterator[Finding]:
    for node in graph.nodes:
        if node.op_type == "TensorScatter" and (shape := graph.shapes.get(node.input[0])) is not None:
            axis = attribute(node, "axis")
            if not shape.dim[axis.i if axis else -2].HasField("dim_value"):
                what = "writes into a cache of no fixed length, which TensorRT cannot"
                yield graph.finding(node, "fixed-cache", what, "export with --cache-tokens N")
                return
