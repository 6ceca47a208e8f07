"""How coherent the best model of the demo's drawn futures could be, by mask steps: what the schedule alone costs.

    python benchmarks/agreement.py models/demo [--scenes 15] [--trials 80]

A model that knows the true futures and has no other fault draws the tokens of one mask step independently, each from
the futures that the known tokens leave. Tokens of two futures are the same when their latents are less than 1.5 apart
(noise of the tokenizer; a token's deviation is 1 in each of 16 channels). A frame is coherent when one future has all
its tokens. Outcomes are drawn alike, whatever their shares.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from videomar.demo.chance import CHANCES
from videomar.demo.world import futures, render, sample_scene
from videomar.model.videomar import load_checkpoint
from videomar.runtime.media import to_pixels
from videomar.schedule import masked_after_steps

STEPS = (1, 4, 8, 12, 16, 20, 24, 32)
SAME = 1.5


def coherent(same: np.ndarray, steps: int, rng: np.random.Generator) -> bool:
    """Draw one frame; same [futures, futures, tokens] bool says which tokens two futures share."""
    tokens = same.shape[2]
    order, possible, known = rng.permutation(tokens), np.ones(len(same), bool), 0
    for still in masked_after_steps(tokens, steps):
        left = possible.copy()
        for token in order[known : tokens - still]:
            left &= same[rng.choice(np.flatnonzero(possible)), :, token]
        possible, known = left, tokens - still
        if not possible.any():
            return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--scenes", type=int, default=15, help="scenes a sentence")
    parser.add_argument("--trials", type=int, default=80, help="frames drawn a scene")
    args = parser.parse_args()
    tokenizer, rng = load_checkpoint(args.checkpoint).video_tokenizer, np.random.default_rng(0)
    print("| sentence | tokens that differ |", " | ".join(f"{n}" for n in STEPS), "|")
    print("|" + "---|" * (2 + len(STEPS)))
    for sentence in CHANCES:
        differ, rates = [], []
        for _ in range(args.scenes):
            scene = sample_scene(rng, sentence)
            pixels = torch.from_numpy(np.concatenate([to_pixels(render(future)) for future in futures(scene)]))
            with torch.inference_mode():
                z = tokenizer.encode(pixels)[:, :, 1].flatten(2).numpy()  # the first generated frame
            same = np.linalg.norm(z[:, None] - z[None], axis=2) < SAME
            differ.append(1 - same.all(axis=(0, 1)).mean())
            rates.append([np.mean([coherent(same, n, rng) for _ in range(args.trials)]) for n in STEPS])
        print(f"| `{sentence}` | {np.mean(differ):.0%} |", " | ".join(f"{r:.1%}" for r in np.mean(rates, axis=0)), "|")


if __name__ == "__main__":
    main()
