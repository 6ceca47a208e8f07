"""What one more clip in flight takes on one backend, measured and planned.

    python benchmarks/clips_in_flight.py ARTIFACTS [--frames 33 97] [--clips 4]

ARTIFACTS are FP32 ones of the demo model. Clips are taken to their last step and left open, one after another; the
first has warmed up and is closed. Memory is what the process holds.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from videomar.artifacts import read_manifest
from videomar.plan.memory import plan_memory
from videomar.plan.request import Request
from videomar.runtime.clip import ClipRun
from videomar.runtime.pipeline import Pipeline
from videomar.runtime.probes import resident
from videomar.runtime.system import System

PROMPT = "a red circle falls"
MIB = 2**20


def measure(directory: Path, frames: int, clips: int) -> float:
    """Bytes that each further clip added, in the mean."""
    held: list[ClipRun] = []
    sizes: list[int] = []
    with Pipeline.open(directory, threads=1, backend="ort-cpu", memory_check=False) as pipe:
        s = pipe.config.sampling
        picture = np.zeros((s.height, s.width, 3), np.uint8)
        pipe(picture, PROMPT, frames=frames)
        for seed in range(clips):
            run = pipe.start(picture, PROMPT, frames=frames, seed=seed)
            while not run.finished:
                run.advance()
            held.append(run)
            sizes.append(resident(System()))
        for run in held:
            run.close()
    return (sizes[-1] - sizes[0]) / (clips - 1)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("artifacts", type=Path)
    parser.add_argument("--frames", type=int, nargs="+", default=[33, 97])
    parser.add_argument("--clips", type=int, default=4)
    args = parser.parse_args()
    m = read_manifest(args.artifacts)
    print("| frames | measured, MiB | planned, MiB |\n|---|---|---|")
    for frames in args.frames:
        sampling = m.config.sampling.but(frames=frames)
        request = Request(m.config, sampling, m.precision, m.emitter, text=len(PROMPT.split()), lean=False)
        planned = plan_memory(request, "ort-cpu").another
        print(f"| {frames} | {measure(args.artifacts, frames, args.clips) / MIB:.1f} | {planned / MIB:.1f} |")


if __name__ == "__main__":
    main()
