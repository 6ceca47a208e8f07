"""Engines load on the machine they were built for, and are refused elsewhere with the command that mends it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from videomar.artifacts import Manifest
from videomar.config import DEMO
from videomar.errors import ArtifactError
from videomar.fingerprint import NO_GPU, Machine, as_data, check_fingerprint, jetpack, this_machine

ORIN = Machine("TensorRT", "10.3.0.26", "12.6", "Orin", "87", "L4T 36.4.3")
FINGERPRINT = {"machine": as_data(ORIN), "targets": [], "command": "videomar build onnx -o engines --static"}
BUILT = Manifest("engine", "fp16", "portable", 18, DEMO, extra={"fingerprint": FINGERPRINT})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tensorrt": "10.16.0"}, "built with TensorRT 10.3.0.26, here is TensorRT 10.16.0"),
        ({"flavour": "TensorRT-RTX"}, "here is TensorRT-RTX"),
        ({"gpu": "Thor", "sm": "110"}, r"built on Orin \(SM 87\), here is Thor \(SM 110\)"),
        ({"cuda": "13.0"}, "built with CUDA 12.6, here is CUDA 13.0"),
        ({"jetpack": ""}, "built with L4T 36.4.3, here is no Jetson"),
    ],
)
def test_engines_are_refused_on_any_other_machine(change: dict, message: str) -> None:
    with pytest.raises(ArtifactError, match=message + r".*; run `videomar build \S+ -o \S+ .*--static` here"):
        check_fingerprint(BUILT, dataclasses.replace(ORIN, **change))


def test_engines_load_on_their_machine_and_nowhere_without_a_gpu() -> None:
    check_fingerprint(BUILT, ORIN)
    with pytest.raises(ArtifactError, match="no GPU was found"):
        check_fingerprint(BUILT, dataclasses.replace(ORIN, gpu=NO_GPU, sm=""))


def test_engines_built_ahead_of_time_load_on_the_gpus_they_were_compiled_for() -> None:
    aot = Machine("TensorRT-RTX", "1.7.1", "13.4", NO_GPU, "")
    extra = dict(BUILT.extra["fingerprint"], machine=dataclasses.asdict(aot), targets=["89"])
    manifest = dataclasses.replace(BUILT, extra={"fingerprint": extra})
    check_fingerprint(manifest, dataclasses.replace(aot, gpu="RTX 4090", sm="89"))
    with pytest.raises(ArtifactError, match="compiled for SM 89, here is"):
        check_fingerprint(manifest, dataclasses.replace(aot, gpu="H200", sm="90"))


@pytest.mark.parametrize("extra", [{}, {"fingerprint": {}}, {"fingerprint": {"machine": {"gpu": "Orin"}}}])
def test_engines_without_a_whole_fingerprint_are_refused(extra: dict) -> None:
    with pytest.raises(ArtifactError, match=r"fingerprint.*run `videomar build"):
        check_fingerprint(dataclasses.replace(BUILT, extra=extra), ORIN)


def test_a_jetson_is_told_by_its_files(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "var/lib/dpkg").mkdir(parents=True)
    (tmp_path / "etc/nv_tegra_release").write_text("# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic\n")
    assert jetpack(tmp_path) == "L4T 36.4.3"
    (tmp_path / "var/lib/dpkg/status").write_text(
        "Package: x\nVersion: 1\n\nPackage: nvidia-jetpack\nVersion: 6.2+b7\n"
    )
    assert jetpack(tmp_path) == "L4T 36.4.3, JetPack 6.2"
    assert jetpack(tmp_path / "etc") == ""


def test_this_machine_can_always_be_asked() -> None:
    here = this_machine("10.3.0", rtx=False)
    assert here.flavour == "TensorRT" and here.has_gpu == bool(here.sm)
    assert Machine(**as_data(here)) == here
