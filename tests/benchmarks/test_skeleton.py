"""A graph without its weights travels as a small file and is filled to one of the same shapes and the same spread."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from videomar.artifacts import Manifest, read_manifest, verify, write_manifest
from videomar.config import DEMO
from videomar.runtime.backends.ort_session import open_session

onnx = pytest.importorskip("onnx")

from benchmarks.gpu.skeleton import WEIGHTS, fill, hollow_graph  # noqa: E402


@pytest.fixture
def skeleton(tmp_path: Path) -> Path:
    """x [4, 200] times a large weight plus a large bias, then a small scale that stays inside."""
    rng = np.random.default_rng(0)
    large = {
        "w": (0.3 * rng.standard_normal((200, 400))).astype(np.float16),
        "b": rng.normal(2.0, 0.1, (400, 200)).astype(np.float16),
    }
    small = {"s": np.array([2.0], np.float16), "where": np.arange(20_000)}
    helper = onnx.helper
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("MatMul", ["h", "b"], ["k"]),
        helper.make_node("Mul", ["k", "s"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT16, [4, 200])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT16, [4, 200])],
        [onnx.numpy_helper.from_array(a, n) for n, a in (large | small).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    data, weights = hollow_graph(model, "g", tmp_path)
    place = tmp_path / "skeleton"
    place.mkdir()
    (place / "g.onnx").write_bytes(data)
    (place / WEIGHTS).write_text(json.dumps([asdict(w) for w in weights]))
    write_manifest(place, Manifest("onnx", "fp16", "native", 24, DEMO))
    return place


def test_only_large_weights_are_left_behind(skeleton: Path) -> None:
    model = onnx.load(skeleton / "g.onnx", load_external_data=False)
    outside = {t.name: bool(t.external_data) for t in model.graph.initializer}
    assert outside == {"w": True, "b": True, "s": False, "where": False}
    assert (skeleton / "g.onnx").stat().st_size < 200_000


def test_what_is_filled_runs_and_has_the_weights_spread(skeleton: Path, tmp_path: Path) -> None:
    written = fill(skeleton, tmp_path / "filled")
    assert written >= 2 * 2 * 200 * 400
    manifest = read_manifest(tmp_path / "filled")
    verify(tmp_path / "filled", manifest, hashes=False)
    assert WEIGHTS not in manifest.files
    weights = onnx.load(tmp_path / "filled" / "g.onnx").graph.initializer
    assert {t.name: t.data_type for t in weights}["w"] == onnx.TensorProto.FLOAT16
    got = {t.name: onnx.numpy_helper.to_array(t).astype(np.float64) for t in weights}
    assert got["w"].shape == (200, 400)
    assert abs(got["w"].std() / 0.3 - 1) < 0.05 and abs(got["w"].mean()) < 0.01
    assert abs(got["b"].mean() - 2) < 0.01 and abs(got["b"].std() / 0.1 - 1) < 0.05
    assert not np.array_equal(got["w"].reshape(-1)[:100], (got["b"].reshape(-1)[:100] - 2) * 3)  # other numbers
    session = open_session(tmp_path / "filled" / "g.onnx")
    (y,) = session.run(None, {"x": np.ones((4, 200), np.float16)})
    assert np.isfinite(y).all() and y.astype(np.float64).std() > 0


def test_the_same_seed_fills_alike(skeleton: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        fill(skeleton, tmp_path / name, seed)
    data = [(tmp_path / name / "g.onnx.data").read_bytes() for name in "abc"]
    assert data[0] == data[1] != data[2]
