"""Whole clips of exported artifacts against PyTorch with identical noise: is it still the model?

    python benchmarks/parity.py ARTIFACTS [ARTIFACTS ...] [--checkpoint models/demo] [--cases 5]

Relative L2 error of the generated latents and PSNR of the decoded pixels, worst of the clips, and whether the same seed
gives the same bytes twice. FP16 drifts freely here: each frame is conditioned on the artifacts' own earlier frames.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from videomar.demo.evaluate import SEED
from videomar.demo.measure import psnr
from videomar.demo.world import MOTIONS, render, sample_scene
from videomar.model.generate import generate
from videomar.model.videomar import load_checkpoint
from videomar.runtime.media import to_frames, to_pixels
from videomar.runtime.pipeline import Pipeline
from videomar.schedule import SeededNoise


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifacts", nargs="+", type=Path)
    parser.add_argument("--checkpoint", type=Path, default=Path("models/demo"))
    parser.add_argument("--cases", type=int, default=5)
    args = parser.parse_args()
    model = load_checkpoint(args.checkpoint)
    pipes = {str(directory): Pipeline.open(directory) for directory in args.artifacts}
    worst = {name: [0.0, np.inf, True] for name in pipes}
    for case in range(args.cases):
        scene = sample_scene(np.random.default_rng([SEED, 700 + case]), MOTIONS[(3 * case) % len(MOTIONS)])
        picture = render(scene)[0]
        truth: tuple[np.ndarray, np.ndarray] | None = None
        for name, pipe in pipes.items():
            if truth is None:
                ids = torch.from_numpy(pipe.tokenizer(scene.prompt))
                latents, pixels = generate(
                    model,
                    torch.from_numpy(to_pixels(picture)),
                    ids,
                    pipe.tokenizer.prefix,
                    pipe.config.sampling,
                    SeededNoise(case),
                )
                truth = latents[0].numpy(), to_frames(pixels.numpy())
            video, again = (pipe(picture, scene.prompt, seed=case) for _ in range(2))
            error = float(np.linalg.norm(video.latents - truth[0]) / np.linalg.norm(truth[0]))
            row = worst[name]
            row[0], row[1] = max(row[0], error), min(row[1], psnr(video.frames, truth[1]))
            row[2] = row[2] and video.frames.tobytes() == again.frames.tobytes()
    print("| artifacts | latents, relative L2 | pixels, PSNR dB (100: equal) | same bytes twice |")
    print("|---|---|---|---|")
    for name, (error, decibels, same) in worst.items():
        print(f"| {name} | {error:.1e} | {decibels:.1f} | {'yes' if same else 'NO'} |")


if __name__ == "__main__":
    main()
