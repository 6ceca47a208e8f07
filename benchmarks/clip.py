"""Whole clip, side by side in one run: the runtime against the PyTorch reference loop with a K/V cache.

    python benchmarks/clip.py [--checkpoint models/demo] [--threads 2] [--clips 7] [--no-compile] [--openvino]

All get the same picture, prompt, noise and threads; PyTorch runs in inference mode, once as it is and once with every
network under torch.compile. They take turns, clip by clip, so that a machine whose speed drifts is fair to all; the
table shows medians. Loading, export and what the first clips compile are not timed. --openvino (`pip install
openvino`) adds OpenVINO on the same portable graphs, step by step.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time
from pathlib import Path

import numpy as np
import torch

from videomar.config import SamplingConfig
from videomar.demo.world import render, sample_scene
from videomar.export.export import export_checkpoint
from videomar.model.generate import generate
from videomar.model.videomar import load_checkpoint
from videomar.runtime.media import to_pixels
from videomar.runtime.pipeline import Pipeline
from videomar.schedule import SeededNoise

SEED = 10**9
WARM = 2  # clips before any is timed: torch compiles sizes that it first saw as fixed once more


class Reference:
    """The reference loop with a K/V cache; time of its parts by wrapping the modules' calls."""

    def __init__(self, checkpoint: Path, compiled: bool) -> None:
        self.seconds: dict[str, float] = {}
        self.model = model = load_checkpoint(checkpoint)
        tokenizer = model.video_tokenizer
        for name, owner, method in (
            ("text", model.text_encoder, "forward"),
            ("encoder", tokenizer, "encode"),
            ("decoder", tokenizer, "decode"),
            ("transformer", model.transformer, "forward"),
            ("head", model.diffusion_head, "forward"),
        ):
            call = getattr(owner, method)
            setattr(owner, method, self._timed(name, torch.compile(call) if compiled else call))

    def run(
        self, pixels: torch.Tensor, ids: torch.Tensor, prefix: int, sampling: SamplingConfig, seed: int
    ) -> dict[str, float]:
        """One clip; seconds of its parts."""
        self.seconds.clear()
        generate(self.model, pixels, ids, prefix, sampling, SeededNoise(seed), cache=True)
        return dict(self.seconds)

    def _timed(self, name, call):  # type: ignore[no-untyped-def]
        def run(*args, **kwargs):  # type: ignore[no-untyped-def]
            began = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began

        return run


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--checkpoint", type=Path, default=Path("models/demo"))
    parser.add_argument("--artifacts", type=Path, default=Path("out"), help="where the exports go")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clips", type=int, default=7)
    parser.add_argument("--mask-steps", type=int)
    parser.add_argument("--head-steps", type=int)
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out: it takes minutes")
    parser.add_argument("--openvino", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    references = {"PyTorch, K/V cache": Reference(args.checkpoint, compiled=False)}
    if not args.no_compile:
        references["PyTorch, torch.compile"] = Reference(args.checkpoint, compiled=True)
        torch._dynamo.config.recompile_limit = 64  # a graph a size, until torch takes the size for dynamic
    scene = sample_scene(np.random.default_rng(SEED))
    picture = render(scene)[0]
    options = {k: v for k in ("mask_steps", "head_steps") if (v := getattr(args, k)) is not None}

    with contextlib.ExitStack() as stack:
        runtimes = {}
        for emitter in ("portable", "native"):
            directory = args.artifacts / f"bench-{emitter}"
            export_checkpoint(args.checkpoint, directory, "fp32", emitter)  # nothing to do the second time
            runtimes[f"ONNX Runtime, {emitter}"] = stack.enter_context(Pipeline.open(directory, threads=args.threads))
        first = runtimes["ONNX Runtime, portable"]
        sampling = first.config.sampling.but(**options)
        ids = torch.from_numpy(first.tokenizer(scene.prompt))
        pixels = torch.from_numpy(to_pixels(picture))

        rows: dict[str, list[dict[str, float]]] = {name: [] for name in (*references, *runtimes)}
        for clip in range(-WARM, args.clips):
            for name in rows:
                began = time.perf_counter()
                if name in references:
                    spent = references[name].run(pixels, ids, first.tokenizer.prefix, sampling, WARM + clip)
                else:
                    made = runtimes[name](picture, scene.prompt, seed=WARM + clip, sampling=sampling)
                    spent = dict(made.timing.seconds)
                total = time.perf_counter() - began
                if clip >= 0:
                    rows[name].append({**spent, "loop": total - sum(spent.values()), "total": total})

    columns = ("text", "encoder", "transformer", "head", "decoder", "loop", "total")
    print(
        f"{sampling.frames} frames of {sampling.width}x{sampling.height}, {sampling.mask_steps} mask steps, "
        f"{sampling.head_steps} head steps, guidance {sampling.guidance_scale}, {args.threads} threads, "
        f"median of {args.clips} clips, ms"
    )
    print("| | " + " | ".join(columns) + " | speed | frames/s |")
    print("|---|" + "---|" * (len(columns) + 2))
    reference = 0.0
    for name, clips in rows.items():
        medians = {c: 1e3 * statistics.median(row.get(c, 0.0) for row in clips) for c in columns}
        reference = reference or medians["total"]
        cells = " | ".join(f"{medians[c]:.1f}" for c in columns)
        rate = (sampling.frames - 1) / medians["total"] * 1e3
        print(f"| {name} | {cells} | {reference / medians['total']:.2f}x | {rate:.1f} |")
    if args.openvino:
        from openvino_steps import compare

        print("\n| a step of | ONNX Runtime, ms | OpenVINO, ms | OpenVINO is faster by | difference |")
        print("|---|---|---|---|---|")
        for graph, ours, theirs, difference in compare(args.artifacts / "bench-portable", args.threads, 25):
            print(f"| {graph} | {ours:.2f} | {theirs:.2f} | {ours / theirs:.2f}x | {difference:.1e} |")


if __name__ == "__main__":
    main()
