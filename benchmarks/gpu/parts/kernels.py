"""The native kernels: built by CMake for this card, compared with numpy, and once more under each of
compute-sanitizer's tools. On a CPU the CPU library goes the same way and the sanitizer is left out.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from benchmarks.gpu.parts.notes import Job, start
from benchmarks.gpu.process import run, tool

CHECKOUT = Path(__file__).resolve().parents[3]
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")


def main(job: Job) -> None:
    library = build(job)
    check = [sys.executable, "-m", "benchmarks.gpu.parts.kernels_check", str(library), job.device]
    done = run(check, job.inner(), job.scratch / "check", dict(os.environ))
    if done.status != "ok":
        raise SystemExit(f"the check {done.status} (code {done.code}): {done.stderr[-2000:]}")
    for row in json.loads(done.stdout.splitlines()[-1]):
        job.notes.row("against numpy", **row)
    wrong = [row["kernel"] for row in job.notes.tables["against numpy"] if not row["equal"]]
    job.notes.value("kernels that agree with numpy", not wrong)
    sanitizer = tool("compute-sanitizer")
    for kind in TOOLS:
        if not job.cuda or sanitizer is None:
            why = "there is nothing for it on a CPU" if not job.cuda else "compute-sanitizer is not installed"
            job.notes.row("compute-sanitizer", tool=kind, found=f"left out: {why}")
            continue
        options = ["--tool", kind, "--error-exitcode", "9", "--print-limit", "5"]
        command = [sanitizer, *options, *check, "--brief"]
        seen = run(command, job.inner(), job.scratch / kind, dict(os.environ))
        told = [line.strip("= ") for line in seen.stdout.splitlines() if line.startswith("========")]
        summary = next((line for line in reversed(told) if "SUMMARY" in line), "no summary")
        job.notes.row("compute-sanitizer", tool=kind, found=summary, code=seen.code, seconds=seen.seconds)
        if seen.status != "ok":
            job.notes.problems.append(f"{kind} {seen.status}: {' | '.join(told[:12]) or seen.stderr[-800:]}")
            job.notes.write()


def build(job: Job) -> Path:
    """The library for this device; raises SystemExit with CMake's words."""
    place = job.scratch / "build"
    options = ["-DVIDEOMAR_CUDA=OFF"]
    if job.cuda:
        options = ["-DVIDEOMAR_CUDA=ON", f"-DVIDEOMAR_CUDA_ARCHITECTURES={architecture()}"]
    for name, command in (
        ("configure", ["cmake", "-S", str(CHECKOUT), "-B", str(place), *options]),
        ("build", ["cmake", "--build", str(place), "--parallel"]),
    ):
        done = run(command, job.inner(), job.scratch / name, dict(os.environ))
        job.notes.row("build", step=name, status=done.status, seconds=done.seconds)
        if done.status != "ok":
            raise SystemExit(f"{' '.join(command)} {done.status}: {done.stdout[-1500:]} {done.stderr[-1500:]}")
    return place / ("libvideomar_kernels_cuda.so" if job.cuda else "libvideomar_kernels.so")


def architecture() -> str:
    """The card's, as CMake says it: "90"."""
    from videomar.fingerprint import this_machine

    return this_machine("", rtx=False).sm


if __name__ == "__main__":
    start(main)
