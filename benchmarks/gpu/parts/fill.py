"""Gives the full-size graphs their weights: see `benchmarks.gpu.skeleton`."""

from __future__ import annotations

from benchmarks.gpu.parts.notes import Job, start
from benchmarks.gpu.skeleton import WEIGHTS, fill


def main(job: Job) -> None:
    for skeleton in sorted(path.parent for path in job.artifacts.glob(f"*/{WEIGHTS}")):
        name = skeleton.name.removesuffix("-skeleton")
        job.notes.value(name, fill(skeleton, job.artifacts / name))


if __name__ == "__main__":
    start(main)
