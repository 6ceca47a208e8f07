"""What every dial saves and costs on the demo, one by one and together, and the levels made of them.

    python benchmarks/dials.py ARTIFACTS [--cases 100] [--decided 26] [--threads 1] [--only NAME ...] [--json FILE]

One run, one machine. Each row continues the same scenes with the same seeds. `time` is the processor's for a clip,
in units of the exact schedule's; coherence is of clips whose future is drawn, with its 95 % interval; `p` that of the
shares of the futures; distances are in units of the one between two true sets; followed and centroid error are of
clips whose future is decided. Rows are written to --json as they are done; a run goes on from there.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from videomar.config import SamplingConfig
from videomar.demo.evaluate import continuations, drawn_futures
from videomar.demo.measure import summary
from videomar.quality import LEVELS, at_quality
from videomar.runtime.pipeline import Pipeline

Row = tuple[str, SamplingConfig]


def rows(own: SamplingConfig) -> list[Row]:
    """Name and options of every row; the first is what the others are held against."""
    m, h = own.mask_steps, own.head_steps
    dials: dict[str, dict[str, Any]] = {
        "exact": {},
        "half the mask steps": {"mask_steps": m // 2},
        "a quarter of the mask steps": {"mask_steps": m // 4},
        "one mask step": {"mask_steps": 1},
        "structure first": {"order": "structure"},
        "structure first, a quarter of the steps for details": {"order": "structure", "detail_steps": m // 4},
        "spread": {"order": "spread"},
        "spread, half the mask steps": {"order": "spread", "mask_steps": m // 2},
        "half the diffusion steps": {"head_steps": h // 2},
        "a quarter of the diffusion steps": {"head_steps": h // 4},
        "diffusion steps down to a quarter": {"head_steps_end": h // 4},
        "down to a quarter in two stages": {"head_steps_end": h // 4, "head_anneal": "two-stage"},
        "down to a quarter along a cosine": {"head_steps_end": h // 4, "head_anneal": "cosine"},
        "no guidance": {"guidance_scale": 1.0},
        "guidance in the first half": {"guidance_end": 0.5},
        "guidance in the second half": {"guidance_start": 0.5},
        "whole frames every 2 mask steps": {"refresh_every": 2},
        "whole frames every 4": {"refresh_every": 4},
        "whole frames every 8": {"refresh_every": 8},
        "every 4, half of the known ones too": {"refresh_every": 4, "known_share": 0.5},
    }
    return [(name, own.but(**options)) for name, options in dials.items()] + [
        (f"level {level}", at_quality(own, level)) for level in LEVELS[1:]
    ]


def measure(pipe: Pipeline, sampling: SamplingConfig, cases: int, decided: int) -> dict[str, Any]:
    """Every figure of a row."""
    began = time.process_time()
    drawn = drawn_futures(pipe, cases=cases, sampling=sampling)
    scored = summary(continuations(pipe, cases=decided, sampling=sampling))
    spent = time.process_time() - began
    return {"seconds": spent / (cases + decided), **drawn, "decided": scored}


def line(name: str, row: dict[str, Any], exact: dict[str, Any]) -> str:
    """A row of the table."""
    low, high = row["coherence_interval"]
    apart, floor, decided = row["distance"]["generated"], row["distance"]["floor"], row["decided"]
    return (
        f"| {name} | {exact['seconds'] / row['seconds']:.2f}x | {row['coherence']:.1%} ({low:.0%} to {high:.0%}) "
        f"| {row['p_value']:.3f} | {apart['frames'] / floor['frames']:.2f} | {apart['motion'] / floor['motion']:.2f} "
        f"| {decided['followed']:.0%} | {decided['centroid_error_mean']:.2%} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifacts")
    parser.add_argument("--cases", type=int, default=100)
    parser.add_argument("--decided", type=int, default=26)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="*", help="rows to measure, besides the first")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    done: dict[str, Any] = json.loads(args.json.read_text()) if args.json and args.json.exists() else {}
    print("| setting | faster | coherent (95 %) | shares, p | frames | motion | followed | centroid |")
    print("|---|---|---|---|---|---|---|---|")
    with Pipeline.open(args.artifacts, threads=args.threads) as pipe:
        for name, sampling in rows(pipe.config.sampling):
            if args.only is not None and name != "exact" and name not in args.only:
                continue
            if name not in done:
                done[name] = measure(pipe, sampling, args.cases, args.decided)
                if args.json:
                    args.json.write_text(json.dumps(done, indent=1) + "\n")
            print(line(name, done[name], done["exact"]), flush=True)


if __name__ == "__main__":
    main()
