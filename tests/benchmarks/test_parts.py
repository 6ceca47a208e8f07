"""What parts read from others' records, and the check of the kernels, which has to find a wrong one."""

from __future__ import annotations

import ctypes
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from benchmarks.gpu.parts import kernels_check
from benchmarks.gpu.parts.copies import read_operators, read_records
from videomar.runtime.backends import cuda
from videomar.runtime.kernels import binding

ROOT = Path(__file__).parents[2]


def test_copies_and_kernels_are_added_up_by_kind() -> None:
    events = [
        {"cat": "gpu_memcpy", "name": "Memcpy DtoD (Device -> Device)", "dur": 2.0, "args": {"bytes": 100}},
        {"cat": "gpu_memcpy", "name": "Memcpy DtoD (Device -> Device)", "dur": 3.5, "args": {"bytes": 50}},
        {"cat": "gpu_memset", "name": "Memset (Device)", "dur": 1.0, "args": {"bytes": 8}},
        {"cat": "kernel", "name": "gemm", "dur": 10.0, "args": {}},
        {"cat": "kernel", "name": "gemm", "dur": 11.0},
        {"cat": "cpu_op", "name": "aten::mm", "dur": 99.0},
        {"ph": "M", "name": "process_name"},
    ]
    copies, kernels = read_records({"traceEvents": events})
    assert copies == {"Memcpy DtoD (Device -> Device)": (2, 150, 5.5), "Memset (Device)": (1, 8, 1.0)}
    assert kernels == {"gemm": (2, 21.0)}


def test_operators_are_those_of_the_last_run() -> None:
    def node(ts: int, kind: str, provider: str, name: str = "n_kernel_time") -> dict[str, Any]:
        return {"cat": "Node", "name": name, "ts": ts, "dur": 5, "args": {"op_name": kind, "provider": provider}}

    events = [
        {"cat": "Session", "name": "model_run", "ts": 0, "dur": 9},
        node(1, "MatMul", "CUDAExecutionProvider"),
        {"cat": "Session", "name": "model_run", "ts": 10, "dur": 9},
        node(11, "MatMul", "CUDAExecutionProvider"),
        node(12, "MatMul", "CUDAExecutionProvider"),
        node(13, "MatMul", "CUDAExecutionProvider", "n_fence_before"),
        node(14, "TensorScatter", "CPUExecutionProvider"),
    ]
    assert read_operators(events) == {
        ("CUDAExecutionProvider", "MatMul"): (2, 10.0),
        ("CPUExecutionProvider", "TensorScatter"): (1, 5.0),
    }


# ---- the kernels


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = tmp_path_factory.mktemp("kernels") / "sources"
    shutil.copytree(ROOT / "runtime" / "kernels", copy, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


def compiled(sources: Path, name: str) -> ctypes.CDLL:
    if (compiler := shutil.which("c++")) is None:
        pytest.skip("a C++ compiler is missing")
    made = sources.parent / f"{name}.so"
    command = [compiler, "-std=c++17", "-O1", "-ffp-contract=off", "-shared", "-fPIC", "-o", str(made)]
    subprocess.run([*command, str(sources / "kernels.cpp")], check=True)
    return binding.load(made)


def test_a_right_library_passes_and_each_planted_fault_is_found(sources: Path) -> None:
    good = list(kernels_check.checked(compiled(sources, "good"), kernels_check.HostDevice(), brief=True))
    assert len(good) == 8 and all(row["equal"] for row in good)
    elements = sources / "elements.h"
    right = elements.read_text()
    for old, new, kernel in (
        ("p * start + q * x[at]", "p * start + q * start", "guided step"),
        ("value > clip ? clip : value", "value", "scatter"),
        ("position * width + column", "position * width", "gather"),
        ("* 127.5f + 0.5f", "* 127.5f", "pixels"),
    ):
        assert old in right
        elements.write_text(right.replace(old, new, 1))
        rows = kernels_check.checked(compiled(sources, kernel.replace(" ", "-")), kernels_check.HostDevice(), True)
        assert {row["kernel"].split(",")[0] for row in rows if not row["equal"]} == {kernel}
    elements.write_text(right)


def load_fake() -> ModuleType:
    file = ROOT / "tests" / "runtime" / "fake_gpu.py"
    spec = importlib.util.spec_from_file_location("fake_gpu_of_benchmarks", file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


class OnFakeGpu:
    """The CPU library, called with addresses of the fake device: work is put on the stream, as a launch is."""

    def __init__(self, library: ctypes.CDLL, gpu: Any, fake: ModuleType) -> None:
        self._library, self._gpu, self._fake = library, gpu, fake

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._library, name)

        def launch(*args: Any) -> int:
            stream = next(t for t in self._gpu.things if getattr(t, "number", None) == args[-1])

            def run() -> None:
                blocks = {a: self._gpu.blocks[a] for a in args if isinstance(a, int) and a in self._gpu.blocks}
                copies = {a: np.array(block.data) for a, block in blocks.items()}
                host = [copies[a].ctypes.data if isinstance(a, int) and a in copies else a for a in args[:-1]]
                assert function(*host, None) == binding.OK
                for address, data in copies.items():
                    self._gpu.write(address, data)

            self._gpu.enqueue(stream, self._fake.Op(name, run))
            return binding.OK

        return launch


def test_the_same_check_runs_on_a_gpu_and_from_captured_graphs(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = load_fake()
    gpu = fake.FakeGpu()
    monkeypatch.setattr(cuda, "load_runtime", lambda: fake.cuda_module(gpu))
    library: Any = OnFakeGpu(compiled(sources, "good"), gpu, fake)
    rows = list(kernels_check.checked(library, kernels_check.CudaDevice(), brief=True))
    assert len(rows) == 8 and all(row["equal"] for row in rows)
    assert gpu.log.count("launch") == 2 * 2 * 3 * 2 and not gpu.faults  # twice a size, branch and precision
