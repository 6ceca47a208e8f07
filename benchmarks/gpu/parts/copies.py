"""What one transformer step moves and launches: bytes by the profiler, operators by ONNX Runtime, for every length.

Finished K/V must not move. CUDA's own activity records (CUPTI, by way of PyTorch's profiler) see ONNX Runtime's copies
and kernels as well; ONNX Runtime's profile says which operators ran on the CPU.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.gpu.parts.graphs import Bound
from benchmarks.gpu.parts.notes import Job, start
from benchmarks.gpu.parts.sizes import latent
from videomar.artifacts import read_manifest

STEPS, SHOWN = 3, 15


def main(job: Job) -> None:
    (which,) = job.words
    config = read_manifest(job.artifacts / f"{which}-fp16").config
    t, (frames, h, w) = config.transformer, latent(config)
    for finished in (frames - 1, *range(frames - 1)):
        tokens = h * w
        sizes = {"past": finished * tokens, "total": (finished + 1) * tokens}
        held = 2 * 2 * t.depth * t.heads * t.head_dim * finished * tokens * 2
        step = Bound(job, f"{which}-fp16", "transformer_step", sizes, profile=finished == frames - 1)
        step.run()
        if job.cuda:
            with job.notes.trying(f"CUDA's records, {finished} finished frames"):
                _records(job, step, finished, held)
        else:
            job.notes.row("bytes that a step copies", finished_frames=finished, kind="not known on a CPU", bytes=None,
                          of_finished_KV=None)  # fmt: skip
        if finished == frames - 1:
            with job.notes.trying("ONNX Runtime's profile"):
                _operators(job, Path(step.session.end_profiling()))


def _records(job: Job, step: Bound, finished: int, held: int) -> None:
    import torch
    from torch.profiler import ProfilerActivity, profile

    torch.ones(1, device="cuda")  # PyTorch finds the device before its profiler does
    with profile(activities=[ProfilerActivity.CUDA]):  # the first recording starts late
        step.run()
    with profile(activities=[ProfilerActivity.CUDA]) as recorded:
        for _ in range(STEPS):
            step.run()
        torch.cuda.synchronize()
    file = job.scratch / f"records-{finished}.json"
    recorded.export_chrome_trace(str(file))
    copies, kernels = read_records(json.loads(file.read_text()))
    for kind, (count, size, us) in sorted(copies.items()):
        share = size / STEPS / held if held else None
        job.notes.row("bytes that a step copies", finished_frames=finished, kind=kind, times=count / STEPS,
                      bytes=size / STEPS, us=us / STEPS, of_finished_KV=share)  # fmt: skip
    inside = sum(size for kind, (_, size, _) in copies.items() if "DtoD" in kind) / STEPS
    if held:
        job.notes.value("finished K/V, bytes", held)
        job.notes.value("bytes copied on the device a step, most", max(inside, job.notes.values.get(
            "bytes copied on the device a step, most", 0.0)))  # fmt: skip
    total = sum(us for _, us in kernels.values())
    job.notes.row("a step on the device", finished_frames=finished, kernels=sum(c for c, _ in kernels.values()) / STEPS,
                  us_in_kernels=total / STEPS, us_in_copies=sum(c[2] for c in copies.values()) / STEPS)  # fmt: skip
    if finished == step.sizes["total"] // step.sizes["tokens"] - 1 and "kernels of a step" not in job.notes.tables:
        for name, (count, us) in sorted(kernels.items(), key=lambda k: -k[1][1])[:SHOWN]:
            job.notes.row("kernels of a step", kernel=name[:90], times=count / STEPS, us=us / STEPS, share=us / total)


def read_records(trace: Mapping[str, Any]) -> tuple[dict[str, tuple[int, int, float]], dict[str, tuple[int, float]]]:
    """A chrome trace of the profiler -> copies: kind -> (times, bytes, us); kernels: name -> (times, us)."""
    copies: dict[str, list[float]] = defaultdict(lambda: [0, 0, 0.0])
    kernels: dict[str, list[float]] = defaultdict(lambda: [0, 0.0])
    for event in trace.get("traceEvents", []):
        if event.get("cat") in ("gpu_memcpy", "gpu_memset"):
            found = copies[event["name"]]
            found[0] += 1
            found[1] += int(event.get("args", {}).get("bytes", 0))
            found[2] += float(event.get("dur", 0.0))
        elif event.get("cat") == "kernel":
            kernels[event["name"]][0] += 1
            kernels[event["name"]][1] += float(event.get("dur", 0.0))
    return (
        {name: (int(times), int(size), us) for name, (times, size, us) in copies.items()},
        {name: (int(times), us) for name, (times, us) in kernels.items()},
    )


def _operators(job: Job, file: Path) -> None:
    """Where ONNX Runtime ran what; its own times are those of starting kernels, on a GPU."""
    for (provider, kind), (times, us) in sorted(read_operators(json.loads(file.read_text())).items()):
        job.notes.row("operators of a step", provider=provider, operator=kind, times=times, us_to_start=us)
    strange = [r for r in job.notes.tables["operators of a step"] if job.cuda and not r["provider"].startswith("CUDA")]
    job.notes.value("operators that are not on the device", sum(r["times"] for r in strange))


def read_operators(events: list[dict[str, Any]]) -> dict[tuple[str, str], tuple[int, float]]:
    """ONNX Runtime's profile -> (provider, operator) -> (times in the last run, us in all it)."""
    runs = [e["ts"] for e in events if e.get("name") == "model_run"]
    last, found = max(runs, default=0), defaultdict(lambda: [0, 0.0])
    for event in events:
        args = event.get("args", {})
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time") and event["ts"] >= last:
            found[args.get("provider", "?"), args.get("op_name", "?")][0] += 1
            found[args.get("provider", "?"), args.get("op_name", "?")][1] += event["dur"]
    return {key: (int(times), us) for key, (times, us) in found.items()}


if __name__ == "__main__":
    start(main)
