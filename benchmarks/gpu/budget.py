"""What is measured, in which order and how long each part may take: the most precious first.

Knows nothing of how a part works. A later part has what the earlier ones left of the whole time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

TOTAL = 540.0  # seconds of everything, installation included
CLOSING = 5.0  # kept for writing


@dataclass(frozen=True)
class Part:
    """One process: module of `benchmarks.gpu.parts`, its words, its seconds, and what it cannot do without."""

    name: str
    module: str
    words: tuple[str, ...]
    seconds: float
    least: float  # with less time left it is not worth starting
    about: str
    needs: tuple[str, ...] = ()  # artifacts (by name)


PARTS = (
    Part("machine", "machine", (), 25, 3, "what this machine is"),
    Part("rates", "rates", (), 25, 8, "matrix products, copies and launches, against the plan's device table"),
    Part("full: runtime", "runtime", ("full",), 90, 30, "ONNX Runtime, full size", ("full-fp16",)),
    Part("full: eager", "pytorch", ("full", "eager"), 60, 25, "PyTorch as the authors write it, full size"),
    Part("head", "head", (), 50, 15, "the diffusion loop, kernel by kernel and captured"),
    Part("copies", "copies", ("full",), 45, 20, "bytes that a step copies, full size", ("full-fp16",)),
    Part("full: compiled", "pytorch", ("full", "compiled"), 110, 50, "PyTorch under torch.compile, full size"),
    Part("kernels", "kernels", (), 75, 25, "the CUDA kernels against numpy, under compute-sanitizer"),
    Part("demo: runtime", "runtime", ("demo",), 30, 10, "ONNX Runtime, the demo", ("demo-fp16",)),
    Part("demo: eager", "pytorch", ("demo", "eager"), 30, 10, "PyTorch as the authors write it, the demo"),
    Part("ladder", "ladder", (), 60, 20, "is it still the model? against PyTorch FP32 here", ("demo-fp32",)),
    Part("pack", "pack", (), 40, 10, "a golden pack, replayed", ("demo-fp32", "pack")),
    Part("two clips", "two_clips", ("demo",), 30, 10, "two clips at once", ("demo-fp16",)),
    Part("demo: compiled", "pytorch", ("demo", "compiled"), 60, 25, "PyTorch under torch.compile, the demo"),
    Part("tensorrt-rtx", "rtx", (), 45, 15, "a TensorRT-RTX engine of the demo; may fail", ("demo-fp16-portable",)),
)


def allowance(part: Part, left: float) -> float:
    """Seconds that a part gets when `left` remain of the whole; 0 if that is too little to start."""
    most = min(part.seconds, left - CLOSING)
    return most if most >= part.least else 0.0


def lacking(part: Part, artifacts: Mapping[str, object]) -> list[str]:
    """What the part needs and is not there."""
    return [name for name in part.needs if name not in artifacts]
