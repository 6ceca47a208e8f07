"""The diffusion head and its sampler against the public code they come from: the same weights, conditions and noise.

    git clone https://github.com/LTH14/mar MAR
    python benchmarks/against_mar.py --mar MAR [--checkpoint CHECKPOINT] [--guidance 3] [--steps 100]

Runs MAR's code (MIT), which stays where it is. Weights: a checkpoint's head, or random ones of the released sizes.
Largest difference, everything here in float32: of the coefficient tables (each number relative to itself, theirs are
float64), of one evaluation of the head (relative to its largest output) and of a whole guided sample (relative to its
largest token). Exit code 1 beyond 1e-7, 1e-6 and 1e-5.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from videomar.config import VIDEOMAR_1_4B
from videomar.model.generate import sample_tokens
from videomar.model.head import DiffusionHead
from videomar.model.random_parts import RandomParts
from videomar.model.videomar import PartsOfCheckpoint
from videomar.schedule import DiffusionSchedule, SeededNoise

TOKENS, TEMPERATURE = 36, 0.91  # the most that are predicted at once at 480x768, and the second frame's
LIMITS = {"coefficient tables": 1e-7, "one head evaluation": 1e-6, "a guided sample": 1e-5}


@dataclass(frozen=True)
class Mar:
    """Their head with our weights, and their sampler."""

    head: Any
    diffusion: Any

    @staticmethod
    def of(directory: Path, head: DiffusionHead, steps: int) -> Mar:
        if not (directory / "models" / "diffloss.py").is_file():
            sys.exit(f"{directory} has no models/diffloss.py, expected a clone of MAR's code; clone it and give --mar")
        sys.path.insert(0, str(directory))
        from models.diffloss import DiffLoss

        loss = DiffLoss(
            target_channels=head.input_proj.in_features,
            z_channels=head.cond_embed.in_features,
            depth=head.config.depth,
            width=head.config.width,
            num_sampling_steps=str(steps),
        )
        loss.net.load_state_dict(head.state_dict())  # strict: the same names and shapes
        return Mar(loss.net.eval(), loss.gen_diffusion)

    def table(self) -> np.ndarray:
        """Their numbers in the order of DiffusionSchedule.COLUMNS, noisiest step first: [steps, 6] float64."""
        d = self.diffusion
        columns = (
            d.sqrt_recip_alphas_cumprod,
            d.sqrt_recipm1_alphas_cumprod,
            d.posterior_mean_coef1,
            d.posterior_mean_coef2,
            d.posterior_log_variance_clipped,
            np.log(d.betas),
        )
        return np.stack(columns, axis=1)[::-1]

    def sample(self, z: Tensor, guidance: float, initial: Tensor, draws: Tensor) -> Tensor:
        """Their ancestral loop under z [2N, W] (text first); the draws [steps, N, C] in place of `torch.randn_like`."""
        noise = iter(draws)

        def drawn(x: Tensor) -> Tensor:
            draw = next(noise)
            assert x.shape == (2 * len(draw), draw.shape[1])
            return torch.cat([draw, draw])

        stay = patch.object(Tensor, "cuda", lambda self: self)  # their loop puts its counters on a GPU
        with patch.object(torch, "randn_like", drawn), stay:
            both = self.diffusion.p_sample_loop(
                self.head.forward_with_cfg,
                (len(z), initial.shape[1]),
                torch.cat([initial, initial]),
                clip_denoised=False,
                model_kwargs={"c": z, "cfg_scale": guidance},
                device="cpu",
                temperature=TEMPERATURE,
            )
        assert next(noise, None) is None
        return both[: len(initial)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mar", type=Path, required=True, help="a clone of github.com/LTH14/mar")
    parser.add_argument("--checkpoint", type=Path, help="checkpoint directory (default: random, the released sizes)")
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    parts = PartsOfCheckpoint(args.checkpoint) if args.checkpoint else RandomParts(VIDEOMAR_1_4B, seed=args.seed)
    head = parts.diffusion_head
    mar = Mar.of(args.mar, head, args.steps)
    schedule = DiffusionSchedule.respaced(head.config.train_steps, args.steps)
    channels, width = head.input_proj.in_features, head.cond_embed.in_features
    z = torch.randn((2, TOKENS, width), generator=torch.Generator().manual_seed(args.seed))
    noise = SeededNoise(args.seed)
    initial, draws = noise.initial(0, 0, (TOKENS, channels)), noise.steps(0, 0, (args.steps, TOKENS, channels))
    flat, x = z.flatten(0, 1), torch.from_numpy(initial).repeat(2, 1)

    with torch.inference_mode():
        if list(schedule.timesteps[::-1]) != mar.diffusion.timestep_map:
            sys.exit("the kept steps differ")
        table = mar.table()
        tables = _apart(schedule.coefficients, table, np.where(table == 0, 1, np.abs(table)))
        time = torch.full((2 * TOKENS,), float(schedule.timesteps[args.steps // 2]))
        theirs = mar.head(x, time, flat)
        once = _apart(torch.cat(head(x, time, flat), dim=1).numpy(), theirs.numpy())
        expected = mar.sample(flat, args.guidance, torch.from_numpy(initial), torch.from_numpy(draws))
        got = sample_tokens(
            SimpleNamespace(diffusion_head=head), z, args.guidance, TEMPERATURE, schedule, initial, draws
        )
        whole = _apart(got.numpy(), expected.numpy())
    figures = dict(zip(LIMITS, (tables, once, whole), strict=True))
    print(f"head of width {head.config.width}, depth {head.config.depth}; {TOKENS} tokens, {args.steps} steps,")
    print(f"guidance {args.guidance:g}, temperature {TEMPERATURE:g}; largest token {expected.abs().max():.3g}")
    for name, figure in figures.items():
        print(f"  {name:20} {figure:.1e}   expected {LIMITS[name]:.0e}")
    return int(any(figure > LIMITS[name] for name, figure in figures.items()))


def _apart(got: np.ndarray, expected: np.ndarray, scale: np.ndarray | None = None) -> float:
    """Largest difference relative to `scale`, or to the largest expected number."""
    scale = np.abs(expected).max() if scale is None else scale
    return float((np.abs(got.astype(np.float64) - expected) / scale).max())


if __name__ == "__main__":
    raise SystemExit(main())
