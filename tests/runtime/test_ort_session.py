"""INT8 means the same on every CPU: products that 16 bits cannot hold are exact, wherever this runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from videomar.runtime.backends import ort_session
from videomar.runtime.backends.ort_session import EXACT_INTEGERS, open_session
from videomar.runtime.backends.small_graphs import product_graph

ROOT = Path(__file__).parents[2]


def linear(weight: np.ndarray, scale: float, scales: np.ndarray) -> bytes:
    """What `calibrate` writes for one linear: symmetric int8, x [rows, k] per tensor, weight [k, n] per channel."""
    tensors = {"x_scale": np.float32(scale), "x_zero": np.int8(0), "w_q": weight, "w_scale": scales}
    tensors["w_zero"] = np.zeros(len(scales), np.int8)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "x_scale", "x_zero"], ["x_q"]),
        helper.make_node("DequantizeLinear", ["x_q", "x_scale", "x_zero"], ["x_d"]),
        helper.make_node("DequantizeLinear", ["w_q", "w_scale", "w_zero"], ["w"], axis=1),
        helper.make_node("MatMul", ["x_d", "w"], ["y"]),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", None]) for name in "xy")
    stored = [numpy_helper.from_array(np.asarray(value), name) for name, value in tensors.items()]
    graph = helper.make_graph(nodes, "linear", [x], [y], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()


def integers(rng: np.random.Generator, least: int, shape: tuple[int, int]) -> np.ndarray:
    """int8 of at least `least` in size, and the two ends."""
    values = rng.integers(least, 128, shape) * rng.choice([-1, 1], shape)
    values.flat[0], values.flat[-1] = 127, -127
    return values.astype(np.int8)


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(1, 40), k=st.integers(2, 260), n=st.integers(1, 70), least=st.sampled_from([0, 90, 127]),
    aligned=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_a_product_beyond_16_bits_is_the_integers_own(
    rows: int, k: int, n: int, least: int, aligned: bool, seed: int
) -> None:
    """All numbers are whole and below 2**24 (or scaled by a power of two), so that FP32 holds them exactly."""
    rng = np.random.default_rng(seed)
    x, weight = integers(rng, least, (rows, k)), integers(rng, least, (k, n))
    if aligned:  # every product of a column has one sign: the sums grow as far as they can
        x, weight = np.abs(x), np.abs(weight) * rng.choice([-1, 1], n).astype(np.int8)
    scales = np.exp2(rng.integers(-9, 3, n)).astype(np.float32)
    made = open_session(linear(weight, 0.125, scales), 1).run(None, {"x": 0.125 * x.astype(np.float32)})[0]
    np.testing.assert_array_equal(made, (x.astype(np.int64) @ weight.astype(np.int64)) * (0.125 * scales))


@pytest.mark.parametrize("k", [2, 64, 1000])
def test_two_products_of_the_largest_numbers(k: int) -> None:
    """By hand: 127 x 127 x k. Pairs of (127 + 128) x 127 cut at 32767, the 128 taken off again, make it 127.5 x k."""
    weight = np.full((k, 16), 127, np.int8)
    made = open_session(linear(weight, 1, np.ones(16, np.float32)), 1).run(None, {"x": np.full((4, k), 127, "f4")})[0]
    assert np.unique(made).tolist() == [16129 * k]


def test_these_products_are_made_of_integers(tmp_path: Path) -> None:
    """Otherwise the tests above would ask nothing: FP32 would be exact, too."""
    file, weight = tmp_path / "made.onnx", np.ones((64, 16), np.int8)
    open_session(linear(weight, 1, np.ones(16, np.float32)), log_severity_level=4, optimized_model_filepath=str(file))
    assert "MatMulIntegerToFloat" in {node.op_type for node in onnx.load(file).graph.node}


@pytest.mark.parametrize("saturates", [True, False])
def test_the_slower_exact_kernels_are_asked_for_where_the_others_lose_bits(
    saturates: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []

    def opened(graph: bytes, options: ort.SessionOptions, **_: object) -> None:
        try:
            asked.append(options.get_session_config_entry(EXACT_INTEGERS[0]) == "1")
        except RuntimeError:  # no such entry
            asked.append(False)

    monkeypatch.setattr(ort_session, "saturates", lambda: saturates)
    monkeypatch.setattr(ort, "InferenceSession", opened)
    open_session(b"")
    assert asked == [saturates]


def test_the_product_that_is_tried_is_a_valid_model() -> None:
    onnx.checker.check_model(onnx.load_from_string(product_graph()), full_check=True)


def test_products_are_exact_with_the_kernels_of_the_other_kind_of_cpu() -> None:
    """Those of AVX2, on a CPU that has more; there they saturate unless asked otherwise, which the script checks."""
    script, test = ROOT / "benchmarks" / "avx2.py", f"{__file__}::{test_two_products_of_the_largest_numbers.__name__}"
    pytest_ = [sys.executable, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", test]
    done = subprocess.run(
        [sys.executable, str(script), *pytest_], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    if "that look like MLAS's" in done.stderr:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0 and done.stdout.startswith("..."), done.stdout + done.stderr
