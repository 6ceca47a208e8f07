"""`--backend`: what `auto` picks on which machine, and that an impossible choice is one line with its mend."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from videomar import cli, options
from videomar.artifacts import Manifest
from videomar.config import ModelConfig
from videomar.errors import DeviceError, UserError
from videomar.runtime.backends import choose as choosing
from videomar.runtime.backends.choose import BACKENDS, OPENERS, choose, pick
from videomar.runtime.pipeline import Pipeline


def _load(name: str) -> ModuleType:
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / f"{name}.py")
        assert spec and spec.loader
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


machines = _load("machines")
MACHINES = {name: getattr(machines, name) for name in ("LAPTOP", "ORIN", "THOR", "SERVER")}
MACHINES["RTX"] = machines.SERVER.but(modules=("onnxruntime", "tensorrt_rtx", "cuda.bindings.runtime"))
DIRECTORY = Path("some where")


@pytest.fixture
def graphs(tiny_config: ModelConfig) -> Manifest:
    return Manifest(kind="onnx", precision="fp32", emitter="portable", opset=18, config=tiny_config)


def engines(graphs: Manifest, flavour: str) -> Manifest:
    return dataclasses.replace(graphs, kind="engine", extra={"fingerprint": {"machine": {"flavour": flavour}}})


@pytest.mark.parametrize(
    ("machine", "expected", "because"),
    [
        ("LAPTOP", "ort-cpu", "no NVIDIA GPU is visible"),
        ("ORIN", "ort-cpu", "no kernels for Orin; `videomar build` makes engines"),
        ("THOR", "ort-cpu", "no kernels for NVIDIA Thor"),
        ("SERVER", "ort-cuda", "CUDA provider runs on NVIDIA H200"),
    ],
)
def test_auto_picks_for_graphs_what_this_machine_runs_best(
    graphs: Manifest, machine: str, expected: str, because: str
) -> None:
    choice = pick(DIRECTORY, graphs, "auto", MACHINES[machine])
    assert choice.name == expected and because in choice.why
    assert choice.why.startswith(f"backend {expected}: some where holds fp32 ONNX graphs (portable)")
    assert "\n" not in choice.why


@pytest.mark.parametrize(
    ("precision", "machine", "because"),
    [("fp16", "LAPTOP", "FP16 slower than FP32"), ("int8", "SERVER", "computes INT8 layers in floating point")],
)
def test_auto_says_when_the_precision_does_not_suit_the_backend(
    graphs: Manifest, precision: str, machine: str, because: str
) -> None:
    assert because in pick(DIRECTORY, dataclasses.replace(graphs, precision=precision), "auto", MACHINES[machine]).why


def test_auto_names_the_wheel_that_an_idle_gpu_wants(graphs: Manifest) -> None:
    machine = machines.SERVER.but(loads={machines.probes.ORT_CODE: machines.ort("1.32.0")})
    choice = pick(DIRECTORY, graphs, "auto", machine)
    assert choice.name == "ort-cpu"
    assert "NVIDIA H200 cannot be used: ONNX Runtime 1.32.0 here has no CUDAExecutionProvider; pip" in choice.why


@pytest.mark.parametrize(
    ("flavour", "machine", "expected"),
    [("TensorRT", "ORIN", "trt"), ("TensorRT", "SERVER", "trt"), ("TensorRT-RTX", "RTX", "trt-rtx")],
)
def test_auto_picks_for_engines_what_they_were_built_with(
    graphs: Manifest, flavour: str, machine: str, expected: str
) -> None:
    choice = pick(DIRECTORY, engines(graphs, flavour), "auto", MACHINES[machine])
    assert choice.name == expected and f"engines of {flavour}" in choice.why


@pytest.mark.parametrize("name", ["ort-cpu", "ort-cuda", "ort-trt"])
def test_a_backend_asked_for_is_taken_where_it_can_run(graphs: Manifest, name: str) -> None:
    choice = pick(DIRECTORY, graphs, name, MACHINES["SERVER"])
    assert (choice.name, choice.why) == (name, f"backend {name}, as asked")


@pytest.mark.parametrize(
    ("machine", "name", "changes", "said", "mend"),
    [
        ("LAPTOP", "gpu", {}, "backend is 'gpu'", "expected one of auto, ort-cpu"),
        ("LAPTOP", "trt", {}, "some where holds ONNX graphs", "`videomar build 'some where' -o ENGINES`"),
        ("LAPTOP", "ort-cuda", {}, "no CUDAExecutionProvider", "pip install 'onnxruntime-gpu[cuda,cudnn]'"),
        ("ORIN", "ort-trt", {}, "no ONNX Runtime wheel for aarch64", "`videomar build`"),
        ("SERVER", "ort-trt", {"emitter": "native"}, "cannot write K/V in place", "--emitter portable"),
        (
            "ORIN",
            "auto",
            {"emitter": "native"},
            "ONNX Runtime is 1.23.2, native graphs need 1.24",
            "--emitter portable",
        ),
        ("SERVER", "ort-cpu", {"kind": "engine"}, "holds TensorRT engines", "--backend trt"),
        ("SERVER", "trt-rtx", {"kind": "engine"}, "holds engines for --backend trt", "leave --backend away"),
        ("LAPTOP", "auto", {"kind": "engine"}, "tensorrt is not installed", "pip install 'tensorrt"),
    ],
)
def test_an_impossible_choice_is_one_line_with_what_mends_it(
    graphs: Manifest, machine: str, name: str, changes: dict[str, str], said: str, mend: str
) -> None:
    with pytest.raises(UserError) as caught:
        pick(DIRECTORY, dataclasses.replace(graphs, **changes), name, MACHINES[machine])  # type: ignore[arg-type]
    assert said in str(caught.value) and mend in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"modules": ("cuda.bindings.runtime",)}, "sudo apt install nvidia-jetpack"),
        ({"modules": ("tensorrt",)}, "pip install cuda-python"),
        ({"loads": {machines.probes.GPU_CODE: "no driver"}}, "no NVIDIA GPU is visible"),
    ],
)
def test_what_engines_lack_on_a_jetson_is_said(graphs: Manifest, changes: dict[str, object], said: str) -> None:
    with pytest.raises(DeviceError, match=said):
        pick(DIRECTORY, engines(graphs, "TensorRT"), "auto", MACHINES["ORIN"].but(**changes))


def test_every_name_of_the_command_line_has_an_opener() -> None:
    assert BACKENDS == options.BACKENDS and set(BACKENDS) == {"auto", *OPENERS}


def test_auto_falls_back_to_the_cpu_when_cuda_does_not_start_and_ort_cuda_asked_for_does_not(
    graphs: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise DeviceError("libcudnn.so.9 is missing")

    monkeypatch.setattr(choosing, "System", lambda: MACHINES["SERVER"])
    monkeypatch.setitem(OPENERS, "ort-cuda", refuse)
    monkeypatch.setitem(OPENERS, "ort-cpu", lambda *_: "the CPU")
    assert choose(DIRECTORY, graphs) == (
        "the CPU",
        "backend ort-cpu, since ort-cuda cannot be used here: libcudnn.so.9 is missing",
    )
    with pytest.raises(DeviceError, match="libcudnn"):
        choose(DIRECTORY, graphs, "ort-cuda")


def test_the_command_says_which_backend_ran_and_why(
    tiny_artifacts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choosing, "System", lambda: MACHINES["LAPTOP"])
    from videomar.runtime.media import write_picture

    write_picture(tmp_path / "one.png", np.full((16, 24, 3), 100, np.uint8))
    command = ["generate", str(tiny_artifacts), "--image", str(tmp_path / "one.png"), "--prompt", "a red circle moves"]
    command += ["--frames", "9", "-o", str(tmp_path / "out.mp4"), "--threads", "1"]
    assert cli.main(command) == 0
    assert capsys.readouterr().err.startswith(
        f"backend ort-cpu: {tiny_artifacts} holds fp32 ONNX graphs (portable) and"
    )
    assert cli.main([*command, "--backend", "trt"]) == 2
    assert "run `videomar build" in capsys.readouterr().err
    with Pipeline.open(tiny_artifacts, threads=1, backend="ort-cpu") as pipe:
        assert (pipe.backend.name, pipe.why) == ("ort-cpu", "backend ort-cpu, as asked")
