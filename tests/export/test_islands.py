"""FP32 islands: what FP16 cannot hold is computed in FP32, and nothing else changes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.conftest import GraphFile
from videomar.errors import InputError
from videomar.export.islands import keep_fp32, named_islands, read_islands
from videomar.graphs import TRANSFORMER_STEP
from videomar.runtime.backends.ort_session import open_session

RNG = np.random.default_rng(0)
MATRIX = RNG.standard_normal((8, 8)).astype(np.float16)


def chain() -> onnx.ModelProto:
    """x -> large = x * 30000 -> moved (transposed) -> small = moved / 60000 -> y = small @ MATRIX."""
    value = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Mul", ["x", "factor"], ["large"]),
        helper.make_node("Transpose", ["large"], ["moved"], perm=[1, 0]),
        helper.make_node("Div", ["moved", "divisor"], ["small"]),
        helper.make_node("MatMul", ["small", "matrix"], ["y"]),
    ]
    weights = {"factor": np.float16(30000), "divisor": np.float16(60000), "matrix": MATRIX}
    graph = helper.make_graph(
        nodes, "chain", [value("x", TensorProto.FLOAT16, [8, 8])], [value("y", TensorProto.FLOAT16, [8, 8])],
        [numpy_helper.from_array(np.asarray(v), n) for n, v in weights.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def run(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    as_written = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return open_session(model.SerializeToString(), graph_optimization_level=as_written).run(None, feeds)


def test_an_overflow_is_gone_and_only_what_touches_it_is_wide() -> None:
    x = RNG.uniform(1, 8, (8, 8)).astype(np.float16)
    expected = (x.astype(np.float32) * 30000).T / 60000 @ MATRIX.astype(np.float32)
    # By numpy: ONNX Runtime's CPU computes these operators in FP32 and would hide it.
    with np.errstate(over="ignore"):
        assert np.isinf((x * np.float16(30000)).T / np.float16(60000)).any()
    model = chain()
    assert keep_fp32(model, {"large"}) == 3  # the factor, the transposition behind it, and the division that reads it
    onnx.checker.check_model(model, full_check=True)
    (got,) = run(model, {"x": x})
    assert got.dtype == np.float16
    assert np.abs(got.astype(np.float32) - expected).max() <= 2e-3 * np.abs(expected).max()
    dtypes = {t.name: t.data_type for t in model.graph.initializer}
    assert dtypes["matrix"] == TensorProto.FLOAT16 and "factor" not in dtypes and "factor/fp32" in dtypes


def test_naming_nothing_changes_nothing() -> None:
    model = chain()
    assert keep_fp32(model, set()) == 0
    assert model == chain()


def test_islands_of_the_transformer_leave_it_the_same_model_and_interface(tiny_graph: GraphFile) -> None:
    """All sums of the residual stream in FP32."""
    plain = onnx.load(tiny_graph(TRANSFORMER_STEP, "fp16"))
    model = onnx.load(tiny_graph(TRANSFORMER_STEP, "fp16"))
    adds = [name for node in plain.graph.node for name in node.output if node.op_type == "Add"]
    names = {name for name in adds if re.fullmatch(r"decoder_blocks\.\d+(/add(_\d+)?)?", name)}
    assert len(names) >= 4
    assert keep_fp32(model, names) > len(names)
    onnx.checker.check_model(model, full_check=True)
    assert list(model.graph.input) == list(plain.graph.input) and list(model.graph.output) == list(plain.graph.output)
    sizes = {"tokens": 6, "predicted": 2, "text": 3, "branches": 2, "past": 6}
    feeds = {}
    for tensor in plain.graph.input:
        kind = helper.tensor_dtype_to_np_dtype(tensor.type.tensor_type.elem_type)
        shape = [d.dim_value or sizes[d.dim_param] for d in tensor.type.tensor_type.shape.dim]
        feeds[tensor.name] = (RNG.standard_normal(shape) * 0.5).astype(kind)
    feeds["predict"] = np.array([1, 4])
    for got, want in zip(run(model, feeds), run(plain, feeds), strict=True):
        assert np.linalg.norm(got.astype(np.float64) - want) <= 5e-3 * np.linalg.norm(want.astype(np.float64))


def test_a_name_that_no_module_has_is_told() -> None:
    assert keep_fp32(chain(), {"module/counted"}) == 0, "operators are counted otherwise in other precisions"
    with pytest.raises(InputError, match="the graph makes no tensor 'nothing', which was to be in FP32"):
        keep_fp32(chain(), {"large", "nothing"})


def test_islands_are_read_from_what_calibration_wrote(tmp_path: Path) -> None:
    row = {"graph": "text_encoder", "tensor": "t", "verdict": "island"}
    rows = [row, row | {"tensor": "u", "verdict": "overflow"}, row | {"tensor": "v", "verdict": "ok"}]
    (tmp_path / "calibration.json").write_text(json.dumps({"fp16": rows}))
    assert read_islands(tmp_path / "calibration.json") == {"text_encoder": {"t", "u"}}


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"fp16": [1]}'])
def test_other_files_are_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(InputError, match=r"is no calibration\.json \(.*\); run `videomar calibrate`"):
        read_islands(tmp_path / "x.json")
    with pytest.raises(InputError, match="cannot be read"):
        read_islands(tmp_path / "none.json")


def test_islands_are_named_by_graph_and_tensor() -> None:
    assert named_islands(["head_step:a.b", "head_step:c"], {"transformer_step": {"x"}}) == {
        "head_step": {"a.b", "c"},
        "transformer_step": {"x"},
    }
    for name in ("a.b", "head_step:", "nothing:x"):
        with pytest.raises(InputError, match="expected GRAPH:TENSOR with one of text_encoder"):
            named_islands([name], {})
