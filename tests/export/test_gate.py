"""NVIDIA's own builder takes our graphs: TensorRT-RTX on the CPU. It proves types, shapes and kernels, no numbers."""

from __future__ import annotations

from pathlib import Path

import pytest

from videomar.cli import main
from videomar.errors import InputError
from videomar.export.gate import Row, gate
from videomar.export.profiles import ENGINES
from videomar.export.sources import BuildOptions
from videomar.graphs import TRANSFORMER_STEP
from videomar.runtime.backends.trt_module import load_tensorrt

OPTIONS = BuildOptions(builder="tensorrt-rtx", compute_capabilities=(120,), optimization_level=0)


@pytest.fixture(autouse=True)
def builder() -> None:
    try:
        load_tensorrt("tensorrt-rtx")
    except InputError as error:
        pytest.skip(str(error))


def test_every_graph_builds_from_both_emitters_in_every_precision(
    tiny_artifacts: Path, tiny_half: Path, tiny_half_fixed: Path
) -> None:
    """Of the tiny model; `make gate` exports and builds those of the demo."""
    rows = list(gate([tiny_artifacts, tiny_half, tiny_half_fixed], OPTIONS))
    assert {row.graph: row.error for row in rows if row.error} == {}
    built = {(row.emitter, row.precision, row.graph) for row in rows if not row.note}
    expected = {("portable", precision, name) for precision in ("fp16", "fp32") for name in ENGINES}
    assert built == expected | {("native", "fp16", TRANSFORMER_STEP)}  # only the transformer differs between emitters
    assert all(row.engine_bytes > 1000 and row.peak_bytes > 0 for row in rows if not row.note)


def test_a_planted_graph_that_cannot_build_fails_the_gate_by_name(tiny_fixed: Path) -> None:
    (row,) = gate([tiny_fixed], OPTIONS, (TRANSFORMER_STEP,))  # native and FP32: there is no such kernel
    assert row.engine_bytes == 0
    assert "transformer_step cannot be built" in row.error and "Attention" in row.error


def test_the_command_prints_what_it_proves_and_fails_with_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def rows(*args: object, **more: object) -> list[Row]:
        return [
            Row("head_step", "portable", "fp16", 1 << 20, 1.5, 1 << 30),
            Row("x", "native", "fp32", error="no kernel"),
        ]

    monkeypatch.setattr("videomar.export.gate.gate", rows)
    assert main(["build", "--gate", str(tmp_path)]) == 1
    told = capsys.readouterr().out
    assert "1 of 2 graphs built. tensorrt-rtx, ahead of time" in told
    assert "It proves no numbers, no speed, and nothing of a Jetson" in told
    assert "FAILED: no kernel" in told
