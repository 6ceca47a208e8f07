"""What this machine is: card, driver, memory, versions, and whether ONNX Runtime's CUDA provider starts."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version

from benchmarks.gpu.parts.notes import Job, start
from benchmarks.gpu.process import tool

PACKAGES = (
    *("torch", "triton", "numpy", "onnx", "onnxscript", "onnxruntime-gpu", "onnxruntime", "cuda-bindings"),
    *("diffusers", "transformers", "safetensors", "tokenizers", "opencv-python-headless", "av", "tqdm"),
    *("onnxruntime-ep-nv-tensorrt-rtx-cu13", "tensorrt-rtx-cu13-bindings"),
)
QUERY = "name,driver_version,memory.total,memory.free,clocks.sm,clocks.mem,clocks.max.sm,power.limit,temperature.gpu"


def main(job: Job) -> None:
    notes = job.notes
    for package in PACKAGES:
        try:
            notes.row("versions", package=package, version=version(package))
        except PackageNotFoundError:
            notes.row("versions", package=package, version="not installed")
    for name, line in (("nvcc", -1), ("cmake", 0), ("compute-sanitizer", 0)):
        with notes.trying(name):
            found = tool(name)
            said = _said([found, "--version"]) if found else "not found"
            notes.row("versions", package=name, version=said.splitlines()[line])
    notes.value("python", platform.python_version())
    notes.value("processor", f"{_processor()}, {os.cpu_count()} threads")
    notes.value("card", "none (--cpu)")
    if job.cuda:
        with notes.trying("nvidia-smi"):
            answers = _said(["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader"]).splitlines()[0].split(", ")
            for name, answer in zip(QUERY.split(","), answers, strict=True):
                notes.row("card", what=name, value=answer)
            notes.value("card", answers[0])
        with notes.trying("PyTorch's view of the card"):
            import torch

            seen = torch.cuda.get_device_properties(0)
            notes.value("card", seen.name)
            notes.value("multiprocessors", seen.multi_processor_count)
            notes.value("compute capability", f"{seen.major}.{seen.minor}")
            notes.value("L2 bytes", getattr(seen, "L2_cache_size", None))
    with notes.trying("ONNX Runtime's provider"):
        notes.value("provider", _provider(job))


def _provider(job: Job) -> str:
    """The first provider of a session that was given this device's; what the project's runtime would use."""
    import numpy as np

    from videomar.runtime.backends import ort_providers
    from videomar.runtime.backends.ort_memory import concat_graph
    from videomar.runtime.backends.ort_session import open_session

    providers = ort_providers.cuda() if job.cuda else ort_providers.CPU
    chain = list(providers.copying) or [ort_providers.CPU_PROVIDER]
    session = open_session(concat_graph(np.dtype(np.float32)), providers=chain)
    providers.check(session.get_providers())
    ones = np.ones((1, 1, 2, 3), np.float32)
    (made,) = session.run(None, {"head": ones, "tail": 2 * ones})
    assert made.sum() == 18, made
    return str(session.get_providers()[0])


def _said(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()


def _processor() -> str:
    for line in open("/proc/cpuinfo", errors="replace"):
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


if __name__ == "__main__":
    start(main)
