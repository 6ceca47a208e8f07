"""NVIDIA's own builder takes our graphs: TensorRT-RTX on the CPU. It proves types, shapes and kernels, no numbers."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from videomar.artifacts import read_manifest, write_directory, write_manifest
from videomar.cli import main
from videomar.errors import InputError
from videomar.export.gate import Row, gate
from videomar.export.profiles import ENGINES
from videomar.export.sources import BuildOptions
from videomar.graphs import HEAD_CONDITION, HEAD_STEP, TEXT_KEY_VALUES, TRANSFORMER_STEP
from videomar.runtime.backends.trt_module import load_tensorrt

OPTIONS = BuildOptions(builder="tensorrt-rtx", compute_capabilities=(120,))
CHEAP = (TEXT_KEY_VALUES, TRANSFORMER_STEP, HEAD_CONDITION, HEAD_STEP)  # seconds each; the others take half a minute


@pytest.fixture(autouse=True)
def builder() -> None:
    try:
        load_tensorrt("tensorrt-rtx")
    except InputError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def fp16(tmp_path_factory: pytest.TempPathFactory, tiny_artifacts: Path, tiny_graph: Callable[..., Path]) -> list[Path]:
    """Artifact directories of FP16, portable and native; the graphs that are not built here are FP32's."""
    made = []
    for emitter, cache in (("portable", None), ("native", 64)):
        manifest = read_manifest(tiny_artifacts)
        out = tmp_path_factory.mktemp("gate") / emitter
        with write_directory(out) as directory:
            for name in ENGINES:
                file = tiny_graph(name, "fp16", emitter, cache) if name in CHEAP else tiny_artifacts / f"{name}.onnx"
                os.link(file, directory / f"{name}.onnx")
            shutil.copy(tiny_artifacts / "tokenizer.json", directory)
            changed = dataclasses.replace(
                manifest,
                precision="fp16",
                emitter=emitter,
                opset=24 if cache else 18,
                extra={"cache_tokens": cache},
            )
            write_manifest(directory, changed)
        made.append(out)
    return made


def test_fp16_builds_from_both_emitters(fp16: list[Path]) -> None:
    rows = list(gate(fp16, OPTIONS, CHEAP))
    assert [(r.graph, r.error) for r in rows] == [(name, "") for _ in fp16 for name in CHEAP]
    assert all(row.engine_bytes > 10000 and row.peak_bytes > 0 for row in rows if not row.note)
    # Only the transformer differs between emitters: the rest is not built twice.
    assert [row.graph for row in rows[len(CHEAP) :] if not row.note] == [TRANSFORMER_STEP]


def test_fp32_builds_from_the_portable_emitter(tiny_artifacts: Path) -> None:
    (row,) = gate([tiny_artifacts], OPTIONS, (TRANSFORMER_STEP,))
    assert row.error == ""


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
