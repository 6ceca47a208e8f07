"""What the demo model can and cannot do: quality on held-out scenes under other settings than its defaults.

    python benchmarks/quality.py ARTIFACTS [--cases 52] [--threads 2]
    python benchmarks/quality.py ARTIFACTS --chance [--cases 200]

Every row continues the first frame of the same scenes (4 a motion by default) and holds the clip against the true
future. `seconds` is the median of a whole clip. With --chance the futures are drawn: coherence with its 95 %
interval, the p-value of the shares, and the distance from true clips in units of the one between two true sets.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from typing import Any

from videomar.demo.evaluate import continuations, drawn_futures
from videomar.demo.measure import summary
from videomar.runtime.pipeline import Pipeline

ROWS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("defaults", {}),
    ("guidance 1 (off)", {"guidance_scale": 1.0}),
    ("guidance 2", {"guidance_scale": 2.0}),
    ("guidance 5", {"guidance_scale": 5.0}),
    ("1 mask step", {"mask_steps": 1}),
    ("2 mask steps", {"mask_steps": 2}),
    ("4 mask steps", {"mask_steps": 4}),
    ("16 mask steps", {"mask_steps": 16}),
    ("64 mask steps", {"mask_steps": 64}),
    ("10 head steps", {"head_steps": 10}),
    ("100 head steps", {"head_steps": 100}),
    ("temperature 0", {"temperature": 0.0}),
    ("9 frames given of 17", {"given": 9}),
    ("25 frames (trained: 17), larger picture", {"frames": 25, "size": 96}),
    ("17 frames, 96x96 (trained: 64x64)", {"size": 96}),
)


CHANCE_ROWS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("defaults", {}),
    *((f"{n} mask step{'s' * (n > 1)}", {"mask_steps": n}) for n in (1, 2, 4, 8, 16, 32)),
)


def chance(pipe: Pipeline, cases: int) -> None:
    """Print the table of drawn futures."""
    print("| setting | coherent | shares, p | frames, x floor | motion, x floor |")
    print("|---|---|---|---|---|")
    for name, options in CHANCE_ROWS:
        figures = drawn_futures(pipe, cases=cases, **options)
        low, high = figures["coherence_interval"]
        apart, floor = figures["distance"]["generated"], figures["distance"]["floor"]
        print(
            f"| {name} | {figures['coherence']:.1%} ({low:.1%} to {high:.1%}) | {figures['p_value']:.3f} "
            f"| {apart['frames'] / floor['frames']:.1f} | {apart['motion'] / floor['motion']:.1f} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifacts")
    parser.add_argument("--cases", type=int, default=52)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--chance", action="store_true", help="the sentences whose futures are drawn, instead")
    args = parser.parse_args()
    if args.chance:
        with Pipeline.open(args.artifacts, threads=args.threads) as pipe:
            chance(pipe, args.cases)
        return
    print("| setting | motion followed | centroid error, mean | PSNR, dB | seconds |")
    print("|---|---|---|---|---|")
    with Pipeline.open(args.artifacts, threads=args.threads) as pipe:
        for name, options in ROWS:
            marks = [time.perf_counter()]
            scores = continuations(
                pipe, cases=args.cases, progress=lambda done, marks=marks: marks.append(time.perf_counter()), **options
            )
            seconds = statistics.median(b - a for a, b in itertools.pairwise(marks))
            s = summary(scores)
            print(
                f"| {name} | {s['followed']:.0%} | {s['centroid_error_mean']:.2%} | {s['psnr_mean']:.1f} "
                f"| {seconds:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
