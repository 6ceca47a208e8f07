"""What ONNX Runtime is told of a device: execution providers and their options, for each graph. Knows no buffers.

Precision is in the graphs: none of TensorRT's precision options is ever set, and without them the TensorRT provider
builds strongly typed networks.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime as ort

from videomar.artifacts import Manifest
from videomar.carried import decoder_axes
from videomar.config import ModelConfig
from videomar.errors import DeviceError
from videomar.graphs import GraphSpec

CPU_PROVIDER, CUDA_PROVIDER, TENSORRT_PROVIDER = (
    "CPUExecutionProvider",
    "CUDAExecutionProvider",
    "TensorrtExecutionProvider",
)
# Heuristic: the exhaustive search takes seconds a convolution and may choose otherwise next time, so that a seed
# would not give the same bits. TF32 off: FP32 artifacts are FP32. Same as requested: by default an arena grows by
# powers of two, so that weights of 2.3 GB hold up to twice that, in every graph's own session.
CUDA_OPTIONS = {
    "device_id": 0,
    "cudnn_conv_algo_search": "HEURISTIC",
    "use_tf32": 0,
    "arena_extend_strategy": "kSameAsRequested",
}
_WORKSPACE = 4 << 30  # bytes TensorRT may try tactics in
_CACHE = "VIDEOMAR_CACHE"


@dataclass(frozen=True)
class Providers:
    """How one backend's sessions are made."""

    backend: str  # as --backend calls it
    device: str  # as ONNX Runtime calls it, "cpu" or "cuda"
    wanted: str  # the provider without which the backend is not what its name says
    of: Callable[[GraphSpec], list[Any]]  # a session's `providers`
    copying: Sequence[Any] = ()  # those of the runtime's own copying graph

    def check(self, got: Sequence[str]) -> None:
        """ONNX Runtime falls back to the CPU with a mere warning; raises DeviceError instead."""
        if self.wanted not in got:
            raise DeviceError(
                f"ONNX Runtime could not start {self.wanted} (libraries missing or not fitting), expected it for "
                f"--backend {self.backend}; `videomar doctor` says what is missing, or use --backend ort-cpu"
            )


CPU = Providers("ort-cpu", "cpu", CPU_PROVIDER, lambda spec: [CPU_PROVIDER])


def cuda() -> Providers:
    """The CUDA provider; what it has no kernel for runs on the CPU."""
    _preload()
    chain = [(CUDA_PROVIDER, CUDA_OPTIONS), CPU_PROVIDER]
    return Providers("ort-cuda", "cuda", CUDA_PROVIDER, lambda spec: chain, chain)


def tensorrt(manifest: Manifest) -> Providers:
    """The TensorRT provider: engines are built when a session is made (minutes), and kept in a cache for the next."""
    _preload()
    rest = [(CUDA_PROVIDER, CUDA_OPTIONS), CPU_PROVIDER]
    cache = cache_directory(manifest, tensorrt_version())
    cache.mkdir(parents=True, exist_ok=True)

    def of(spec: GraphSpec) -> list[Any]:
        return [(TENSORRT_PROVIDER, tensorrt_options(spec, manifest.config, cache)), *rest]

    return Providers("ort-trt", "cuda", TENSORRT_PROVIDER, of, rest)


def cache_directory(manifest: Manifest, tensorrt_version: str) -> Path:
    """Where the TensorRT provider keeps engines: one place for these very graphs and versions.

    Under VIDEOMAR_CACHE, else the user's cache: the artifact directory itself is never written to. ONNX Runtime puts
    the GPU's SM into the file names.
    """
    told, home = os.environ.get(_CACHE), os.environ.get("XDG_CACHE_HOME")
    root = Path(told) if told else (Path(home) if home else Path.home() / ".cache") / "videomar"
    made_of = [ort.__version__, tensorrt_version, repr(sorted(ranges(manifest.config).items()))]
    made_of += [f"{name} {entry.sha256}" for name, entry in sorted(manifest.files.items())]
    return root / "ort-trt" / hashlib.sha256("\n".join(made_of).encode()).hexdigest()[:16]


def tensorrt_options(spec: GraphSpec, config: ModelConfig, cache: Path) -> dict[str, Any]:
    """Options of one graph's session; the profile spans the contract's axes, so no shape makes it build again."""
    options: dict[str, Any] = {
        "device_id": 0,
        "trt_engine_cache_enable": True,
        "trt_engine_cache_path": str(cache),
        "trt_engine_cache_prefix": spec.name,
        "trt_timing_cache_enable": True,
        "trt_timing_cache_path": str(cache),
        "trt_max_workspace_size": _WORKSPACE,
    }
    known = ranges(config)
    for position, bound in enumerate(("min", "opt", "max")):
        shapes = []
        for tensor in spec.inputs:
            if any(isinstance(axis, str) for axis in tensor.axes):
                sizes = [known[axis][position] if isinstance(axis, str) else axis for axis in tensor.axes]
                shapes.append(f"{tensor.name}:{'x'.join(map(str, sizes))}")
        if shapes:
            options[f"trt_profile_{bound}_shapes"] = ",".join(shapes)
    return options


def ranges(config: ModelConfig) -> dict[str, tuple[int, int, int]]:
    """Least, usual and largest size of every axis of the contract, for clips up to the model's own size and length."""
    s, space, time = config.sampling, config.tokenizer.spatial_stride, config.tokenizer.temporal_stride
    h, w, t = s.height // space, s.width // space, 1 + (s.frames - 1) // time
    tokens, text = h * w, config.text.max_tokens
    smallest, largest = (decoder_axes(config.tokenizer, *of) for of in ((1, 1, 1), (t, h, w)))
    return {
        "branches": (1, 2, 2),
        "prompt": (1, config.text.max_positions // 2, config.text.max_positions),
        "text": (1, max(1, text // 4), text),
        "predicted": (1, max(1, tokens // s.mask_steps), tokens),
        "tokens": (1, tokens, tokens),
        "past": (0, t // 2 * tokens, t * tokens),
        "total": (1, (t // 2 + 1) * tokens, t * tokens),
        "steps": (1, s.head_steps, max(s.head_steps, 100)),
        "frames": (1, s.frames, s.frames),
        **{axis: (smallest[axis], size, size) for axis, size in largest.items()},
    }


def tensorrt_version() -> str:
    """Version of the TensorRT library that ONNX Runtime would load, or "none"; nothing is run on a GPU for it."""
    for major in (10, 11):
        try:
            return str(ctypes.CDLL(f"libnvinfer.so.{major}").getInferLibVersion())
        except (OSError, AttributeError):
            continue
    return "none"


def _preload() -> None:
    """Load CUDA and cuDNN from NVIDIA's wheels wherever Python finds them; otherwise the system's are found."""
    if not hasattr(ort, "preload_dlls"):  # since 1.21
        return
    for place in nvidia_places():
        # By itself ONNX Runtime looks beside its own package alone: not where a virtual environment sees the wheels
        # of the Python below it.
        for cuda, folder in ((True, _newest(place.glob("cu[0-9]*/lib"))), (False, place / "cudnn" / "lib")):
            if folder is not None and folder.is_dir():
                ort.preload_dlls(cuda=cuda, cudnn=not cuda, directory=str(folder))
    ort.preload_dlls()


def nvidia_places() -> list[Path]:
    """Folders of the namespace package `nvidia` that are not beside ONNX Runtime."""
    spec = importlib.util.find_spec("nvidia")
    found = [Path(place) for place in (spec.submodule_search_locations or ())] if spec else []
    beside = Path(ort.__file__).resolve().parents[1] / "nvidia"
    return [place for place in found if place.resolve() != beside]


def _newest(folders: Iterable[Path]) -> Path | None:
    return max(folders, default=None)
