"""Engines that the fake TensorRT can run, and a rig that opens the real backend on them."""

from __future__ import annotations

import dataclasses
import gc
import importlib.util
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from videomar.artifacts import Manifest, read_manifest
from videomar.graphs import DIFFUSION_HEAD, GRAPHS
from videomar.runtime.backends.trt import TrtBackend

# What the fake engines take, per axis of the contract: one size of frame, clips of up to 4 latent frames.
RANGES = {
    "branches": (1, 2),
    "prompt": (1, 32),
    "text": (1, 8),
    "frames": (1, 25),
    "height": (16, 16),
    "width": (24, 24),
    "clip": (1, 4),
    **{f"{scale}h": (2 * int(scale or 1), 2 * int(scale or 1)) for scale in ("", "2")},
    **{f"{scale}w": (3 * int(scale or 1), 3 * int(scale or 1)) for scale in ("", "2")},
    "tokens": (1, 6),
    "past": (0, 23),
    "total": (6, 24),
    "predicted": (1, 5),
    "steps": (1, 10),
}


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


fake_gpu, fake_tensorrt, plain_loop = (_load(name) for name in ("fake_gpu", "fake_tensorrt", "plain_loop"))


class Rig:
    """A fake GPU with the engines of an artifact directory. `open` gives the real backend."""

    def __init__(self, artifacts: Path, engines: Path) -> None:
        self.artifacts, self.engines = artifacts, engines
        self.onnx = read_manifest(artifacts)
        self.manifest: Manifest = dataclasses.replace(
            self.onnx, kind="engine", extra=self.onnx.extra | {"fingerprint": {"command": "videomar build A -o B"}}
        )
        self.gpu = fake_gpu.FakeGpu()
        self.build()

    def build(self, graph: str | None = None, **changes: Any) -> None:
        """Write every engine or one; changes: ranges or profiles (several ranges), version, gpu."""
        profiles = [RANGES | ranges for ranges in changes.pop("profiles", [changes.pop("ranges", {})])]
        for name in [graph] if graph else [n for n in GRAPHS if n != DIFFUSION_HEAD]:
            onnx = self.artifacts / f"{name}.onnx"
            fake_tensorrt.write_engine(self.engines / f"{name}.engine", onnx, *profiles, **changes)

    def install(self, monkeypatch: pytest.MonkeyPatch, kind: str = "new") -> None:
        """Put the fakes where the backend imports from."""
        trt = fake_tensorrt.tensorrt_module(self.gpu, kind)
        monkeypatch.setitem(sys.modules, trt.__name__, trt)
        self.name = "trt-rtx" if kind == "rtx" else "trt"
        module = fake_gpu.cuda_module(self.gpu)
        for name in ("cuda", "cuda.bindings"):
            monkeypatch.setitem(sys.modules, name, ModuleType(name))
        monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", module)

    def open(self, **options: Any) -> TrtBackend:
        return TrtBackend(
            self.engines, self.manifest, self.name, **{"check": lambda manifest, machine: None, **options}
        )

    def plain(self) -> Any:
        """The same graphs in ONNX Runtime, run one after another."""
        return plain_loop.PlainBackend(self.artifacts, self.onnx, fake_tensorrt.session)


@pytest.fixture
def make_rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Rig]]:
    """(artifacts) -> a Rig; at the end no rule was broken and nothing is left on the GPU."""
    rigs = []

    def make(artifacts: Path, kind: str = "new") -> Rig:
        rigs.append(rig := Rig(artifacts, tmp_path))
        rig.install(monkeypatch, kind)
        return rig

    yield make
    for rig in rigs:
        assert rig.gpu.leaked() == {}
        assert rig.gpu.faults == []


@pytest.fixture(scope="session")
def portable(tiny_artifacts: Path) -> Path:
    """Graphs of the portable emitter."""
    return tiny_artifacts


@pytest.fixture(scope="session")
def native(tiny_fixed: Path) -> Path:
    """Graphs of the native emitter, with a K/V cache of fixed length."""
    return tiny_fixed


@pytest.fixture(scope="session")
def half(tiny_half: Path) -> Path:
    """Graphs of the portable emitter in FP16."""
    return tiny_half


@pytest.fixture
def held() -> Iterator[Callable[[], int]]:
    """Bytes that Python and numpy hold of what they took since the test began."""
    gc.freeze()  # what was there before is not looked through again at every call: half a second behind PyTorch
    tracemalloc.start()

    def count() -> int:
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    yield count
    tracemalloc.stop()
