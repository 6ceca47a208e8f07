"""`videomar compare` with the PyTorch reference in FP32 on the device itself: FP32, FP16 and INT8 graphs against it.

The reference is the checkpoint's own code. It takes and gives NumPy arrays; here those doors open on the device.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.parts.notes import Job, start

CHECKPOINT = Path(__file__).resolve().parents[3] / "models" / "demo"
SIDES = ("demo-fp32", "demo-fp16", "demo-int8")


def open_doors(device: str) -> None:
    """From now on arrays become tensors on `device`, and tensors arrays wherever they lie. FP32 means FP32."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    if device == "cpu":
        return
    into, out = torch.from_numpy, Tensor.numpy
    torch.from_numpy = lambda array: into(array).to(device)  # type: ignore[assignment]
    Tensor.numpy = lambda self, *a, **k: out(self.detach().cpu(), *a, **k)  # type: ignore[method-assign, assignment]
    torch.set_default_device(device)

    from videomar.model import videomar

    load = videomar.load_checkpoint
    videomar.load_checkpoint = lambda directory: load(directory).to(device)


def main(job: Job) -> None:
    open_doors(job.device)
    from videomar.cli import main as videomar

    notes, file = job.notes, job.scratch / "ladder.json"
    sides = [str(job.artifacts / name) for name in SIDES if (job.artifacts / name).is_dir()]
    words = ["compare", str(CHECKPOINT), *sides, "--backend", job.backend, "--json", str(file), "--cases"]
    words += ["2"] if job.cuda else ["1", "--frames", "9", "--mask-steps", "2"]
    try:
        code = videomar(words)
    except SystemExit as ended:
        code = ended.code
    notes.value("exit code", code)
    data = json.loads(file.read_text())
    notes.value("passed", data["passed"])
    gates(job, data)


def gates(job: Job, data: Mapping[str, Any]) -> None:
    """Every finding of `videomar compare`'s or `replay`'s report, and its sentence on each candidate."""
    for candidate in data["candidates"]:
        job.notes.value(candidate["label"], candidate["sentence"])
        for finding in candidate["findings"]:
            job.notes.row("gates", candidate=candidate["label"], rung=finding["rung"], measure=finding["measure"],
                          got=finding["got"], bound=f"{'>=' if finding['at_least'] else '<='} {finding['limit']:g}",
                          passed=finding["passed"], note=finding["note"])  # fmt: skip


if __name__ == "__main__":
    start(main)
