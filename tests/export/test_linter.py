"""What the linter finds, on graphs made to break one rule each; and that it finds nothing in ours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from videomar.export.lint_graph import Finding
from videomar.export.linter import lint, lint_file
from videomar.graphs import GRAPHS, HEAD_STEP, TRANSFORMER_STEP

FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16


def model(
    nodes: list, inputs: dict, weights: dict | None = None, output: str = "y", opset: int = 24
) -> onnx.ModelProto:
    """inputs: name -> (type, shape); weights: name -> array."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(n, kind, shape) for n, (kind, shape) in inputs.items()],
        [helper.make_tensor_value_info(output, FLOAT, None)],
        [numpy_helper.from_array(v, n) for n, v in (weights or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])


def rules(found: list[Finding]) -> set[str]:
    return {f.rule for f in found}


def attention(inputs: list[str], outputs: tuple = ("y",), kind: int = HALF, **attributes: object) -> onnx.ModelProto:
    named = {n: (TensorProto.INT64 if n == "lengths" else kind, None) for n in inputs if n}
    return model([helper.make_node("Attention", inputs, list(outputs), "attend", **attributes)], named)


QKV = ["q", "k", "v"]


def test_plain_attention_passes() -> None:
    assert lint(attention(QKV, scale=1.0), "g") == []


@pytest.mark.parametrize(
    ("graph", "rule"),
    [
        (attention([*QKV, "", "", "", "nonpad_kv_seqlen"]), "silent-length"),
        (attention([*QKV, "", "", "", "lengths"]), "attention-cache"),
        (attention([*QKV, "", "", "", "key_value_lengths"]), "silent-length"),
        (attention([*QKV, "", "past_k", "past_v"]), "attention-cache"),
        (attention(QKV, ("y", "present_k", "present_v")), "attention-cache"),
        (attention(QKV, softcap=2.0), "softcap"),
        (attention(QKV, softmax_precision=1), "softmax-precision"),
        (attention(QKV, kind=FLOAT), "fp32-attention"),
    ],
)
def test_what_tensorrt_drops_or_rejects_is_found(graph: onnx.ModelProto, rule: str) -> None:
    assert rules(lint(graph, "g")) == {rule}


def test_fp32_attention_is_only_tensorrts_trouble() -> None:
    assert lint(attention(QKV, kind=FLOAT), "g", tensorrt=False) == []


def test_rules_look_into_loops() -> None:
    inner = attention(QKV, softcap=2.0).graph
    loop = helper.make_node("Scan", ["x"], ["y"], body=inner, num_scan_inputs=1)
    assert rules(lint(model([loop], {"x": (HALF, None)}), "g")) == {"softcap"}


# --- quantization -----------------------------------------------------------------------------------------------


def quantized(
    linear: str = "MatMul",
    zero: np.ndarray | None = np.zeros((), np.int8),  # noqa: B008
    scales: int = 4,
    axis: int = 1,
    activation_scales: tuple = (),
    **attributes: object,
) -> onnx.ModelProto:
    """An activation [2, 3] and weights [3, 4], both through Q/DQ, into a linear layer."""
    weights = {
        "w": np.zeros((3, 4), np.int8),
        "sw": np.ones(scales, np.float32),
        "zw": np.zeros(scales, np.int8),
        "sx": np.ones(activation_scales, np.float32),
    }
    if zero is not None:
        weights["zx"] = zero
    extra = [] if zero is None else ["zx"]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "sx", *extra], ["qx"], "quantize"),
        helper.make_node("DequantizeLinear", ["qx", "sx", *extra], ["dx"], "dequantize"),
        helper.make_node("DequantizeLinear", ["w", "sw", "zw"], ["dw"], "weights", axis=axis),
        helper.make_node(linear, ["dx", "dw"], ["y"], "linear", **attributes),
    ]
    return model(nodes, {"x": (FLOAT, [2, 3])}, weights)


def test_a_linear_layer_quantized_by_the_rules_passes() -> None:
    assert lint(quantized(), "g") == []
    assert lint(quantized("Gemm"), "g") == []


@pytest.mark.parametrize(
    ("graph", "rule"),
    [
        (quantized(zero=np.zeros((), np.uint8)), "int8"),
        (quantized(zero=None), "int8"),  # ONNX makes that uint8
        (quantized(zero=np.ones((), np.int8)), "zero-point"),
        (quantized(scales=3, axis=0), "axis"),  # valid ONNX, built by TensorRT, wrong
        (quantized(scales=4, axis=0), "axis"),
        (quantized("Gemm", scales=4, axis=1, transB=1), "axis"),
        (quantized(activation_scales=(3,)), "per-tensor"),
        (quantized("Add"), "linears-only"),
        (quantized("Softmax"), "linears-only"),
    ],
)
def test_every_quantization_rule_finds_its_breach(graph: onnx.ModelProto, rule: str) -> None:
    assert rule in rules(lint(graph, "g", tensorrt=False))


def test_quantized_attention_products_are_found() -> None:
    nodes = [n for n in quantized().graph.node if n.name in ("quantize", "dequantize")]
    nodes.append(helper.make_node("MatMul", ["dx", "k"], ["y"], "scores"))
    weights = {"sx": np.ones((), np.float32), "zx": np.zeros((), np.int8)}
    graph = model(nodes, {"x": (FLOAT, [2, 3]), "k": (FLOAT, [3, 2])}, weights)
    assert rules(lint(graph, "g")) == {"attention"}


def test_a_computed_scale_and_a_lone_quantizer_are_found() -> None:
    nodes = [helper.make_node("QuantizeLinear", ["x", "s", "z"], ["y"], "quantize")]
    graph = model(nodes, {"x": (FLOAT, [2]), "s": (FLOAT, [])}, {"z": np.zeros((), np.int8)})
    assert rules(lint(graph, "g")) == {"scale", "pair"}


# --- the rest ---------------------------------------------------------------------------------------------------


def test_rope_tables_of_another_dtype_are_found() -> None:
    node = helper.make_node("RotaryEmbedding", ["x", "c", "s"], ["y"])
    tables = {"x": (HALF, None), "c": (FLOAT, None), "s": (FLOAT, None)}
    assert rules(lint(model([node], tables), "g")) == {"rope-dtype"}
    step = {"rope_cos": (FLOAT, None), "past_key_0": (HALF, None)}
    assert rules(lint(model([helper.make_node("Identity", ["rope_cos"], ["y"])], step), "g")) == {"rope-dtype"}


def test_a_head_loop_that_is_not_fp32_is_found() -> None:
    half = model([helper.make_node("Identity", ["x"], ["next"])], {"x": (HALF, None)}, output="next")
    assert rules(lint(half, HEAD_STEP)) == {"fp32-loop"}
    rounded = model([helper.make_node("Cast", ["x"], ["next"], to=FLOAT)], {"x": (FLOAT, None)}, output="next")
    assert rules(lint(rounded, HEAD_STEP)) == {"fp32-loop"}


def test_a_cache_of_no_fixed_length_is_found() -> None:
    node = helper.make_node("TensorScatter", ["cache", "new", "start"], ["y"], axis=2)
    others = {"new": (HALF, [2, 2, 4, 8]), "start": (TensorProto.INT64, [2])}
    assert rules(lint(model([node], {"cache": (HALF, [2, 2, "total", 8]), **others}), "g")) == {"fixed-cache"}
    assert lint(model([node], {"cache": (HALF, [2, 2, 64, 8]), **others}), "g") == []


def test_opset_and_foreign_operators_are_found() -> None:
    node = helper.make_node("Gelu", ["x"], ["y"], domain="com.microsoft")
    assert rules(lint(model([node], {"x": (HALF, None)}), "g", max_opset=20)) == {"domain", "opset"}


def test_a_finding_says_where_and_what_to_do() -> None:
    (found,) = lint(attention(QKV, kind=FLOAT), TRANSFORMER_STEP)
    assert str(found) == (
        "graph transformer_step, Attention attend: is FP32 Attention, which TensorRT has no kernel for "
        "[fp32-attention]; export with --precision fp16 or --emitter portable"
    )


def test_our_graphs_hold_nothing_of_this(tiny_artifacts: Path, tiny_fixed: Path) -> None:
    for name in GRAPHS:
        assert lint_file(tiny_artifacts / f"{name}.onnx") == []
    fixed = lint_file(tiny_fixed / f"{TRANSFORMER_STEP}.onnx")
    assert rules(fixed) == {"fp32-attention"}  # for ONNX Runtime only
