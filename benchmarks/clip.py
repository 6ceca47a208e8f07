"""Whole clip, side by side in one run: the runtime against the PyTorch reference loop with a K/V cache.

    python benchmarks/clip.py [--checkpoint models/demo] [--threads 2] [--clips 7]

Both get the same picture, prompt, noise and threads; PyTorch runs in inference mode. The two take turns, clip by clip,
so that a machine whose speed drifts is fair to both; the table shows medians. Loading and export are not timed.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time
from pathlib import Path

import numpy as np
import torch

from videomar.demo.world import render, sample_scene
from videomar.export.export import export_checkpoint
from videomar.model.generate import generate
from videomar.model.videomar import load_checkpoint
from videomar.runtime.media import to_pixels
from videomar.runtime.pipeline import Pipeline
from videomar.schedule import SeededNoise

SEED = 10**9


class Stages:
    """Time of the reference's parts, by wrapping the modules' calls."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.seconds: dict[str, float] = {}
        tokenizer = model.video_tokenizer
        for name, owner, method in (
            ("text", model.text_encoder, "forward"),
            ("encoder", tokenizer, "encode"),
            ("decoder", tokenizer, "decode"),
            ("transformer", model.transformer, "forward"),
            ("head", model.diffusion_head, "forward"),
        ):
            setattr(owner, method, self._timed(name, getattr(owner, method)))

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
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = load_checkpoint(args.checkpoint)
    scene = sample_scene(np.random.default_rng(SEED))
    picture = render(scene)[0]
    stages = Stages(model)
    options = {k: v for k in ("mask_steps", "head_steps") if (v := getattr(args, k)) is not None}

    with contextlib.ExitStack() as stack:
        runtimes = {}
        for emitter in ("portable", "native"):
            directory = args.artifacts / f"bench-{emitter}"
            export_checkpoint(args.checkpoint, directory, "fp32", emitter)  # nothing to do the second time
            runtimes[emitter] = stack.enter_context(Pipeline.open(directory, threads=args.threads))
        first = runtimes["portable"]
        sampling = first.config.sampling.but(**options)
        ids = torch.from_numpy(first.tokenizer(scene.prompt))
        pixels = torch.from_numpy(to_pixels(picture))

        rows: dict[str, list[dict[str, float]]] = {name: [] for name in ("pytorch", *runtimes)}
        for clip in range(args.clips + 1):  # the first one warms up
            for name in rows:
                began = time.perf_counter()
                if name == "pytorch":
                    stages.seconds.clear()
                    generate(model, pixels, ids, first.tokenizer.prefix, sampling, SeededNoise(clip), cache=True)
                    spent = dict(stages.seconds)
                else:
                    spent = dict(runtimes[name](picture, scene.prompt, seed=clip, sampling=sampling).timing.seconds)
                total = time.perf_counter() - began
                if clip:
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
        label = "PyTorch, K/V cache" if name == "pytorch" else f"ONNX Runtime, {name}"
        rate = (sampling.frames - 1) / medians["total"] * 1e3
        print(f"| {label} | {cells} | {reference / medians['total']:.2f}x | {rate:.1f} |")


if __name__ == "__main__":
    main()
