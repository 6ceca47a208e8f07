"""Does a first frame that is made of the sentence alone show what the sentence names?

    python benchmarks/first_frames.py CHECKPOINT [--cases 32] [--threads 1] [--png FILE]

CHECKPOINT was trained with stages that learn the first frame (docs/training.md). What stands out from the picture's
border counts as the shape: its colour is the named one that is nearest to its mean, its form the one that overlaps it
best, over sizes and a few places. Prints how often each is the sentence's; --png shows all pictures, eight a row.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np
import torch

from videomar.demo.world import COLORS, MOTIONS, SHAPES, SIZE, _signed_distance, sample_scene
from videomar.model.generate import generate
from videomar.model.videomar import load_checkpoint
from videomar.runtime.media import to_frames
from videomar.runtime.prompt import PromptTokenizer
from videomar.schedule import SeededNoise

SEED = 10**7  # of the scenes: training draws other ones
STANDS_OUT = 120  # sum of the three colours' differences from the border's median
LEAST = 20  # pixels


def standing_out(frame: np.ndarray) -> np.ndarray:
    """[size, size] bool."""
    border = np.concatenate([frame[0], frame[-1], frame[:, 0], frame[:, -1]])
    return np.abs(frame.astype(float) - np.median(border, axis=0)).sum(-1) > STANDS_OUT


def color_of(frame: np.ndarray, mask: np.ndarray) -> str:
    """The nearest name."""
    mean = frame[mask].mean(axis=0) / 255
    return min(COLORS, key=lambda name: float(np.abs(np.array(COLORS[name]) - mean).sum()))


def shape_of(mask: np.ndarray) -> str:
    """The name of what overlaps it best."""
    y, x = (axis.mean() + 0.5 for axis in np.nonzero(mask))
    rows, columns = np.mgrid[:SIZE, :SIZE] + 0.5

    def overlap(shape: str, radius: float, off: float) -> float:
        cover = _signed_distance(shape, columns - x, rows - y - off, np.asarray(radius)) < 0
        return float((cover & mask).sum() / max(1, (cover | mask).sum()))

    tries = [(r, off) for r in np.arange(3, 16, 0.5) for off in np.arange(-3, 3.1)]
    return max(SHAPES, key=lambda shape: max(overlap(shape, r, off) for r, off in tries))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--cases", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--png", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = load_checkpoint(args.checkpoint)
    words = PromptTokenizer(args.checkpoint / "tokenizer.json", model.config.text)
    rng, sampling = np.random.default_rng(SEED), model.config.sampling.but(frames=1)
    colors = shapes = 0
    frames = []
    for i in range(args.cases):
        scene = sample_scene(rng, MOTIONS[i % len(MOTIONS)])
        ids = torch.from_numpy(words(scene.prompt))
        prefix = model.config.text.system_tokens
        pixels = generate(model, torch.zeros(1, 3, 0, SIZE, SIZE), ids, prefix, sampling, SeededNoise(i))[1]
        (frame,) = to_frames(pixels.numpy())
        frames.append(frame)
        mask = standing_out(frame)
        if mask.sum() >= LEAST:
            colors += color_of(frame, mask) == scene.color
            shapes += shape_of(mask) == scene.shape
    print(f"of {args.cases} first frames {colors} have the colour and {shapes} the shape that the sentence names")
    if args.png:
        rows = [np.hstack(frames[i : i + 8]) for i in range(0, len(frames) // 8 * 8, 8)]
        cv2.imwrite(str(args.png), np.vstack(rows)[..., ::-1])


if __name__ == "__main__":
    main()
