"""Do short clips and small pictures first help? Four curricula of the same arithmetic, several seeds each.

    python benchmarks/curricula.py models/demo --seeds 0 1 2 --steps 600 --json FILE > TABLE.md

A small transformer on the demo's latents; --steps are those of the curriculum that is long and large from the start,
the others get as many as the same number of floating-point operations allows (counted by PyTorch's FlopCounterMode, a
step forward and back). All runs draw from the same clips of each length and size, encoded once. Standard output is a
table for docs/training.md. Runs that FILE holds already are not made again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from videomar.artifacts import atomic_write
from videomar.config import DEMO, HeadConfig, ModelConfig, TextConfig, TransformerConfig
from videomar.demo.measure import classify, track
from videomar.demo.words import write_tokenizer
from videomar.demo.world import MOTIONS, render, sample_scene, trajectory
from videomar.errors import InputError
from videomar.model.generate import generate
from videomar.model.videomar import VideoMAR, load_checkpoint
from videomar.runtime.media import to_frames, to_pixels
from videomar.runtime.prompt import PromptTokenizer
from videomar.schedule import SeededNoise
from videomar.training import transformer as verb
from videomar.training.journal import Journal
from videomar.training.loop import DECIDED_FIRST, Trainer, frames_of
from videomar.training.loss import TrainingLoss, held_out_losses
from videomar.training.ranks import Ranks
from videomar.training.recipe import Recipe, Stage, sampling_of
from videomar.training.source import Clips
from videomar.training.world import WorldClips

SMALL, LARGE, SHORT, LONG = 32, 64, 9, 17
CURRICULA = {
    "(a) long and large from the start": ((LONG, LARGE, 1.0),),
    "(b) short to long": ((SHORT, LARGE, 0.5), (LONG, LARGE, 0.5)),
    "(c) small to large": ((LONG, SMALL, 0.5), (LONG, LARGE, 0.5)),
    "(d) both": ((SHORT, SMALL, 0.25), (SHORT, LARGE, 0.25), (LONG, LARGE, 0.5)),
}  # (frames, size, share of the arithmetic)
BATCH, RATE, POOL = 8, 2e-3, 1_500
SEED = 10**9  # of the scenes that are generated: training draws from small seeds
TWICE = 2 * LONG - 1  # frames


class Shared:
    """A `Source` of clips that are encoded once for all runs: nothing of it depends on a run's seed."""

    def __init__(self, made: WorldClips) -> None:
        self._made, self._kept = made, dict[tuple[int, int], tuple[Clips, Clips]]()

    def enter(self, stage: Stage, rng: np.random.Generator) -> None:
        size = stage.frames, stage.height
        if size not in self._kept:
            self._made.enter(stage, np.random.default_rng(0))
            pool = self._made.batch(POOL, np.random.default_rng(0))
            self._kept[size] = pool, self._made.held_out()
        self._pool, self._held_out = self._kept[size]

    def batch(self, count: int, rng: np.random.Generator) -> Clips:
        return self._pool.part(rng.integers(len(self._pool), size=count))

    def held_out(self) -> Clips:
        return self._held_out

    def state(self) -> dict[str, Tensor]:
        return {}

    def restore(self, stage: Stage, state: dict[str, Tensor]) -> None:
        self.enter(stage, np.random.default_rng(0))


def small(demo: ModelConfig) -> ModelConfig:
    """The demo's tokenizer, and a transformer that learns in minutes."""
    return dataclasses.replace(
        demo,
        name="curricula",
        text=TextConfig(32, 64, 1, 2, 1, 128, 1e4, 64, 16),
        transformer=TransformerConfig(width=128, depth=3, heads=2, head_dim=64),
        head=HeadConfig(width=128, depth=2),
        sampling=DEMO.sampling.but(mask_steps=6, head_steps=10),
    )


def stages(
    shares: tuple[tuple[int, int, float], ...], budget: float, costs: dict[tuple[int, int], float]
) -> list[Stage]:
    """Stages that take their shares of a budget of operations; rates lie on one cosine over the whole."""
    found, before = [], 0.0
    for frames, size, share in shares:
        steps = max(1, round(share * budget / costs[frames, size]))
        rate = RATE * max(0.01, (1 + np.cos(np.pi * before)) / 2)
        found.append(Stage(frames, size, size, steps=steps, learning_rate=float(rate), batch=BATCH))
        before += share
    return found


def fresh(checkpoint: Path, seed: int, recipe: Recipe) -> VideoMAR:
    """The small model before its first step, on the given checkpoint's video tokenizer."""
    torch.manual_seed(seed)
    given = load_checkpoint(checkpoint)
    model = VideoMAR(small(given.config))
    model.video_tokenizer.load_state_dict(given.video_tokenizer.state_dict())
    verb.initialize(model)
    model.config = dataclasses.replace(model.config, sampling=sampling_of(recipe.stages, model.config.sampling))
    verb.choose_layers(model, recipe)
    return model


def operations(checkpoint: Path, source: Shared) -> dict[tuple[int, int], float]:
    """Floating-point operations of a step, forward and back, by (frames, size); a mean over the frames it may pick."""
    found = {}
    for frames, size in ((SHORT, SMALL), (SHORT, LARGE), (LONG, SMALL), (LONG, LARGE)):
        stage = Stage(frames, size, size, steps=1, batch=BATCH)
        source.enter(stage, np.random.default_rng(0))
        loss, counts, weights = TrainingLoss(fresh(checkpoint, 0, Recipe((stage,)))), [], []
        for frame in frames_of(stage, 1 + frames // 8):
            with FlopCounterMode(display=False) as counter:
                loss(source.batch(BATCH, np.random.default_rng(0)), frame).backward()
            counts.append(counter.get_total_flops())
            weights.append(DECIDED_FIRST if frame == 1 else 1)
        found[frames, size] = float(np.average(counts, weights=weights))
    return found


def measured(model: VideoMAR, words: PromptTokenizer, source: Shared) -> dict[str, Any]:
    """Held-out loss of long and large clips; motion followed and error by latent frame up to twice their length."""
    whole = Stage(LONG, LARGE, LARGE, steps=1)
    source.enter(whole, np.random.default_rng(0))
    losses = held_out_losses(TrainingLoss(model), source.held_out(), frames_of(whole, 3))
    sampling = model.config.sampling.but(frames=LONG, height=LARGE, width=LARGE)
    followed, errors = [], []
    for i in range(len(MOTIONS)):
        rng = np.random.default_rng([SEED, i])
        motion = MOTIONS[i]
        try:
            scene, frames = sample_scene(rng, motion, TWICE, LARGE), TWICE
        except InputError:  # leaves the picture before
            scene, frames = sample_scene(rng, motion, LONG, LARGE), LONG
        truth = render(scene, frames, LARGE)
        ids = torch.from_numpy(words(scene.prompt))
        pixels = torch.from_numpy(to_pixels(truth[:1]))
        found = generate(model, pixels, ids, 0, sampling.but(frames=frames), SeededNoise(i))[1]
        shown = to_frames(found.numpy())
        followed.append(classify(shown[:LONG], scene) == motion)
        if frames == TWICE:
            path = track(shown, scene)[:, :2] - trajectory(scene, frames, LARGE)[:, :2]
            off = np.minimum(np.nan_to_num(np.hypot(*path.T) / LARGE, nan=1.0), 1.0)
            errors.append([float(off[1 + 8 * f : 9 + 8 * f].mean()) for f in range(TWICE // 8)])
    return {
        "held_out": sum(losses.values()) / len(losses),
        "followed": float(np.mean(followed)),
        "errors": np.mean(errors, axis=0).tolist(),
    }


def run(checkpoint: Path, plan: list[Stage], seed: int, words: PromptTokenizer, source: Shared) -> dict[str, Any]:
    """Train once and measure."""
    with tempfile.TemporaryDirectory() as place:
        out, recipe = Path(place), Recipe(tuple(plan), seed=seed, save_every=10**6)
        model, alone = fresh(checkpoint, seed, recipe), Ranks(torch.device("cpu"))
        trainer = Trainer(recipe, TrainingLoss(model), source, out, alone, Journal(out), lambda place: None)
        trainer.run()
        with trainer._average.shown():
            minutes = trainer.mark.minutes
            return {**measured(model, words, source), "steps": [s.steps for s in plan], "minutes": minutes}


def table(found: dict[str, list[dict[str, Any]]]) -> str:
    """Mean and spread over the seeds, least to most."""

    def of(values: list[float], form: str) -> str:
        return f"{statistics.mean(values):{form}} ({min(values):{form}} to {max(values):{form}})"

    rows = [
        "| curriculum | steps | held-out loss | followed | error, frames 1 to 8 | 9 to 16 | 17 to 24 | 25 to 32 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, runs in found.items():
        errors = [of([r["errors"][f] for r in runs], ".1%") for f in range(TWICE // 8)]
        steps = " + ".join(map(str, runs[0]["steps"]))
        cells = [
            name,
            steps,
            of([r["held_out"] for r in runs], ".4f"),
            of([r["followed"] for r in runs], ".0%"),
            *errors,
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    given = load_checkpoint(args.checkpoint)
    with tempfile.TemporaryDirectory() as place:
        write_tokenizer(Path(place) / "tokenizer.json")
        words = PromptTokenizer(Path(place) / "tokenizer.json", small(given.config).text)
    source = Shared(WorldClips(given.video_tokenizer.eval(), words, POOL, chance=0.0))
    costs = operations(args.checkpoint, source)
    budget = args.steps * costs[LONG, LARGE]
    kept = json.loads(args.json.read_text()) if args.json.is_file() else {}
    for seed in args.seeds:
        for name, shares in CURRICULA.items():
            if f"{name} {seed}" not in kept:
                plan = stages(shares, budget, costs)
                kept[f"{name} {seed}"] = run(args.checkpoint, plan, seed, words, source)
                atomic_write(args.json, json.dumps(kept, indent=1))
    print("G operations of a step: " + ", ".join(f"{c / 1e9:.1f} ({f} frames of {s})" for (f, s), c in costs.items()))
    print()
    print(table({name: [kept[f"{name} {seed}"] for seed in args.seeds] for name in CURRICULA}))


if __name__ == "__main__":
    main()
