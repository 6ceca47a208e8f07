"""What every dial saves and costs on the demo, one by one and together, and the levels made of them.

    python benchmarks/dials.py ARTIFACTS [--student NAME=ARTIFACTS ...] [--cases 60] [--decided 13] [--threads 1]
                               [--only NAME ...] [--json FILE]

One run, one machine. Each row continues the same scenes with the same seeds. `faster` is of the pipeline alone, in time
of the processor: beside every few clips of a row, the exact schedule makes the same clip, and the median of the pairs
counts. `ms` is a row's median. Coherence is of clips whose future is drawn, with its 95 % interval; `p` that of the
shares of the futures; distances are in units of the one between two true sets; followed and centroid error are of
clips whose future is decided. A student's artifacts are of what `videomar train head` wrote. Rows are written to
--json as they are done; a run goes on from there.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from videomar.config import SamplingConfig, SamplingOptions
from videomar.demo.evaluate import continuations, drawn_futures
from videomar.demo.measure import summary
from videomar.quality import LEVELS, at_quality
from videomar.runtime.pipeline import Pipeline, Video

BESIDE = 10  # of so many clips one is made by the exact schedule, too


class Paired:
    """A pipeline whose clips are timed, every few of them beside the exact schedule's."""

    def __init__(self, pipe: Pipeline, exact: Pipeline) -> None:
        self._pipe, self._exact = pipe, exact
        self.backend, self.tokenizer, self.config = pipe.backend, pipe.tokenizer, pipe.config
        self.seconds: list[float] = []
        self.faster: list[float] = []

    def __call__(self, image: Any, prompt: str, **options: Any) -> Video:
        video, seconds = self._timed(self._pipe, image, prompt, options)
        if len(self.seconds) % BESIDE == 0:
            own = {**options, "sampling": self._exact.config.sampling}
            self.faster.append(self._timed(self._exact, image, prompt, own)[1] / seconds)
        self.seconds.append(seconds)
        return video

    @staticmethod
    def _timed(pipe: Pipeline, image: Any, prompt: str, options: dict[str, Any]) -> tuple[Video, float]:
        began = time.process_time()
        video = pipe(image, prompt, **options)
        return video, time.process_time() - began


def rows(own: SamplingConfig) -> dict[str, SamplingConfig]:
    """Options of every row by its name; the first is what the others are held against."""
    m, h = own.mask_steps, own.head_steps
    few: SamplingOptions = {"head_solver": "ddim", "head_steps": 5}
    dials: dict[str, SamplingOptions] = {
        "exact": {},
        "half the mask steps": {"mask_steps": m // 2},
        "a quarter of the mask steps": {"mask_steps": m // 4},
        "one mask step": {"mask_steps": 1},
        "one mask step, one diffusion step": {"mask_steps": 1, "head_steps": 1},
        "the same without guidance: the floor": {"mask_steps": 1, "head_steps": 1, "guidance_scale": 1.0},
        "structure first, half the mask steps": {"order": "structure", "mask_steps": m // 2},
        "spread, half the mask steps": {"order": "spread", "mask_steps": m // 2},
        "a quarter of the diffusion steps": {"head_steps": h // 4},
        "diffusion steps down to a quarter": {"head_steps_end": h // 4},
        "no guidance": {"guidance_scale": 1.0},
        "guidance in the first half": {"guidance_end": 0.5},
        "guidance in the second half": {"guidance_start": 0.5},
        "whole frames every 4 mask steps": {"refresh_every": 4},
        "ddim, half the diffusion steps": {"head_solver": "ddim", "head_steps": h // 2},
        **{f"ddim, {n} diffusion steps": {"head_solver": "ddim", "head_steps": n} for n in (8, 6, 5, 4, 3)},
    } | together("ddim, 5 diffusion steps", own, few)
    found = {name: own.but(**options) for name, options in dials.items()}
    return found | {f"level {level}": at_quality(own, level) for level in LEVELS[1:]}


def student_rows(name: str, own: SamplingConfig) -> dict[str, SamplingConfig]:
    """The same of a student: by itself, and with what is left to save once the diffusion is cheap."""
    dials = {name: SamplingOptions()} | together(name, own, {})
    return {each: own.but(**options) for each, options in dials.items()}


def together(name: str, own: SamplingConfig, few: SamplingOptions) -> dict[str, SamplingOptions]:
    """Fewer passes and parts of frames."""
    return {
        f"{name}, {mask} mask steps, whole frames every {every}": {**few, "mask_steps": mask, "refresh_every": every}
        for mask, every in ((own.mask_steps, 4), (round(own.mask_steps * 2 / 3), 4), (own.mask_steps // 2, 4))
    }


def measure(pipe: Paired, sampling: SamplingConfig, cases: int, decided: int) -> dict[str, Any]:
    """Every figure of a row."""
    drawn = drawn_futures(pipe, cases=cases, sampling=sampling)  # type: ignore[arg-type]
    scored = summary(continuations(pipe, cases=decided, sampling=sampling))  # type: ignore[arg-type]
    time_taken = {"seconds": statistics.median(pipe.seconds), "faster": statistics.median(pipe.faster)}
    return {**time_taken, **drawn, "decided": scored}


def line(name: str, row: dict[str, Any]) -> str:
    """A row of the table."""
    low, high = row["coherence_interval"]
    apart, floor, decided = row["distance"]["generated"], row["distance"]["floor"], row["decided"]
    return (
        f"| {name} | {row['seconds'] * 1000:.0f} | {row['faster']:.2f}x | {row['coherence']:.1%} ({low:.0%} to "
        f"{high:.0%}) | {row['p_value']:.3f} | {apart['frames'] / floor['frames']:.2f} "
        f"| {apart['motion'] / floor['motion']:.2f} | {decided['followed']:.0%} "
        f"| {decided['centroid_error_mean']:.2%} |"
    )


def student(text: str) -> tuple[str, Path]:
    """NAME=ARTIFACTS."""
    name, _, directory = text.partition("=")
    return f"student of {name}", Path(directory)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifacts", type=Path)
    parser.add_argument("--student", type=student, nargs="*", default=[], metavar="NAME=ARTIFACTS")
    parser.add_argument("--cases", type=int, default=60)
    parser.add_argument("--decided", type=int, default=13)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="*", help="rows to measure, besides the first")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    done: dict[str, Any] = json.loads(args.json.read_text()) if args.json and args.json.exists() else {}
    print("| setting | ms | faster | whole (95 %) | shares, p | frames | motion | followed | centroid |")
    print("|---|---|---|---|---|---|---|---|---|")
    with ExitStack() as stack:
        pipes = [
            (name, stack.enter_context(Pipeline.open(directory, threads=args.threads)))
            for name, directory in [("", args.artifacts), *args.student]
        ]
        exact = pipes[0][1]
        for of, pipe in pipes:
            own = pipe.config.sampling
            for name, sampling in (student_rows(of, own) if of else rows(own)).items():
                if args.only is not None and name != "exact" and name not in args.only:
                    continue
                if name not in done:
                    done[name] = measure(Paired(pipe, exact), sampling, args.cases, args.decided)
                    if args.json:
                        args.json.write_text(json.dumps(done, indent=1) + "\n")
                print(line(name, done[name]), flush=True)


if __name__ == "__main__":
    main()
