"""Small clips in one process, one after the other: does anything grow?

    python benchmarks/soak.py out/demo-fp32 [--clips 1000] [--json FILE]

Every clip is opened, advanced step by step, decoded and closed as a server does it; every tenth is given up halfway,
every seventh continues a clip of several frames, and sizes take turns. After the first fifth, memory (resident), open
files and threads are taken as the base. Exit code 1 when memory has grown by 1 % or more since, or files or threads at
all. Memory is compared as medians of the first and the last tenth of what follows, which single clips do not decide.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from videomar.artifacts import read_manifest
from videomar.runtime.pipeline import Pipeline

WORDS = "a red circle moves right"
MOST_GROWTH = 0.01


@dataclass(frozen=True)
class Sample:
    """What the process holds."""

    resident: int  # bytes
    files: int
    threads: int


def sample() -> Sample:
    """Of this process, as Linux counts."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    threads = len(os.listdir("/proc/self/task"))
    return Sample(pages * os.sysconf("SC_PAGE_SIZE"), len(os.listdir("/proc/self/fd")), threads)


def growth(samples: list[Sample]) -> tuple[float, int, int]:
    """Of the last four fifths: memory as a share, the most files and threads more than at their beginning."""
    kept = samples[len(samples) // 5 :]
    tenth = max(1, len(kept) // 10)
    before, after = (statistics.median(s.resident for s in part) for part in (kept[:tenth], kept[-tenth:]))
    files, threads = (max(getattr(s, n) for s in kept) - getattr(kept[0], n) for n in ("files", "threads"))
    return after / before - 1, files, threads


def soak(artifacts: Path, clips: int, tell: int = 50) -> list[Sample]:
    """Make the clips; what was held after each."""
    t = read_manifest(artifacts).config.tokenizer
    samples: list[Sample] = []
    with Pipeline.open(artifacts, threads=1) as pipe:
        for i in range(clips):
            height, width = (t.spatial_stride * n for n in ((2, 3), (3, 2), (2, 2))[i % 3])
            given = 1 + t.temporal_stride * (i % 7 == 6)
            picture = np.random.default_rng(i).integers(0, 255, (given, height, width, 3), np.uint8)
            options = {"frames": given + t.temporal_stride * (1 + i % 2), "height": height, "width": width}
            with pipe.start(picture, WORDS, seed=i, **options, mask_steps=2, head_steps=3) as run:  # type: ignore[arg-type]
                for _ in range(len(run.steps) // (2 if i % 10 == 9 else 1)):
                    run.advance()
            samples.append(sample())
            if tell and (i + 1) % tell == 0:
                now = samples[-1]
                print(f"{i + 1:6} clips {now.resident / 2**20:8.1f} MiB {now.files:4} files {now.threads:4} threads")
    return samples


def main() -> int:
    """Print what grew; 1 if anything did."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("artifacts", type=Path)
    options.add_argument("--clips", type=int, default=1000)
    options.add_argument("--json", type=Path)
    args = options.parse_args()
    began = time.perf_counter()
    samples = soak(args.artifacts, args.clips)
    memory, files, threads = growth(samples)
    last = len(samples) - len(samples) // 5
    print(
        f"{len(samples)} clips in {time.perf_counter() - began:.0f} s; over the last {last}: "
        f"memory {memory:+.2%}, files {files:+}, threads {threads:+} (Python's: {threading.active_count()})"
    )
    if args.json:
        args.json.write_text(json.dumps([asdict(s) for s in samples]) + "\n")
    return 0 if memory < MOST_GROWTH and files <= 0 and threads <= 0 else 1


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
