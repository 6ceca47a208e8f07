"""Train the demo's transformer, diffusion head and text encoder on latents of the demo world (model.md, "Training")."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from videomar.config import DEMO, ModelConfig
from videomar.console import log
from videomar.demo.chance import CHANCES
from videomar.demo.words import write_tokenizer
from videomar.demo.world import MOTIONS, render, sample_scene
from videomar.model.tokenizer import VideoTokenizer
from videomar.model.videomar import VideoMAR, load_checkpoint, save_checkpoint
from videomar.progress import Progress
from videomar.runtime.prompt import PromptTokenizer
from videomar.schedule import rope_tables
from videomar.training.diffusion import DiffusionLoss
from videomar.training.optimizers import Optimizers
from videomar.training.precision import autocast

BATCH = 16
POOL = 8_000  # clips kept encoded; a quarter when training goes on from a checkpoint, which has seen the world
FRESH = 2  # clips of the pool replaced at every step, so that the world stays endless
NOISE_LEVELS = 2  # diffusion steps trained a token and pass; each costs a quarter of what the transformer does
DROP_TEXT = 0.1
EMA = 0.999
LEFT_TO_CHANCE = 0.65  # share of clips whose future is drawn: what takes longest to learn
EVERY_FUTURE = tuple(sentence for sentence, futures in CHANCES.items() for _ in futures)  # more futures: more clips
DECIDED_FIRST = 2  # how much more often the first generated frame is trained than each later one: the draw falls there


class Pool:
    """Encoded clips of random scenes: unscaled latents [clips, frames, tokens, channels], prompt ids, mask."""

    def __init__(self, tokenizer: VideoTokenizer, words: PromptTokenizer, clips: int, seed: int) -> None:
        self._tokenizer, self._words, self._rng = tokenizer, words, np.random.default_rng(seed)
        length = max(len(words(f"a red circle {motion}")[0]) for motion in (*MOTIONS, *CHANCES))
        self.ids = torch.zeros(clips, length, dtype=torch.int64)
        self.mask = torch.zeros(clips, length, dtype=torch.bool)
        self.latents = torch.empty(0)
        self._next = 0
        with Progress(clips // 20) as progress:
            for _ in range(clips // 20):
                self.refresh(20)
                progress.step("encoding clips")

    @torch.no_grad()
    def refresh(self, count: int) -> None:
        """Replace the oldest `count` clips by new ones."""
        kinds = [EVERY_FUTURE if self._rng.random() < LEFT_TO_CHANCE else MOTIONS for _ in range(count)]
        scenes = [sample_scene(self._rng, str(self._rng.choice(kind))) for kind in kinds]
        pixels = torch.from_numpy(np.stack([render(s) for s in scenes])).permute(0, 4, 1, 2, 3).float() / 127.5 - 1
        z = self._tokenizer.vae.encode(pixels).latent_dist.mode().flatten(3).permute(0, 2, 3, 1)
        if not len(self.latents):
            self.latents = torch.zeros(len(self.ids), *z.shape[1:])
        for scene, latents in zip(scenes, z, strict=True):
            i, ids = self._next, torch.from_numpy(self._words(scene.prompt)[0])
            self.latents[i] = latents
            self.ids[i], self.mask[i] = 0, False
            self.ids[i, : len(ids)], self.mask[i, : len(ids)] = ids, True
            self._next = (i + 1) % len(self.ids)


def initialize(model: VideoMAR) -> None:
    """Learned vectors small; the head starts as the identity: its gates and last layer are zero."""
    nn.init.normal_(model.transformer.mask_token, std=0.02)
    nn.init.normal_(model.transformer.fake_latent, std=0.02)
    for module in [*model.diffusion_head.res_blocks, model.diffusion_head.final_layer]:
        nn.init.zeros_(module.adaLN_modulation[1].weight)
        nn.init.zeros_(module.adaLN_modulation[1].bias)
    nn.init.zeros_(model.diffusion_head.final_layer.linear.weight)
    nn.init.zeros_(model.diffusion_head.final_layer.linear.bias)


def resume(start: Path, words: Path) -> VideoMAR:
    """The checkpoint in `start`, to be trained on with the words of another tokenizer.json.

    Words that both know keep their embeddings, whatever their ids; new words start as small as any does.
    """
    model = load_checkpoint(start).train().requires_grad_(True)
    before, now = (json.loads(file.read_text())["model"]["vocab"] for file in (start / "tokenizer.json", words))
    with torch.no_grad():
        rows = model.text_encoder.llm.embed_tokens.weight
        old = rows.clone()
        nn.init.normal_(rows, std=0.02)
        for word in now.keys() & before.keys():
            rows[now[word]] = old[before[word]]
    return model


def mask_tokens(rows: int, tokens: int) -> Tensor:
    """Which tokens are masked: a share from N(1, 0.25) truncated to [0.7, 1] a row: [rows, tokens] bool."""
    share = torch.nn.init.trunc_normal_(torch.empty(rows), mean=1.0, std=0.25, a=0.7, b=1.0)
    count = (share * tokens).ceil().clamp(max=tokens)
    rank = torch.rand(rows, tokens).argsort(1).argsort(1)
    return rank < count[:, None]


def training_loss(model: VideoMAR, loss: DiffusionLoss, pool: Pool, rows: Tensor, frame: int) -> Tensor:
    """Loss of predicting latent frame `frame` of the given clips from the clean frames before it."""
    t = model.config.transformer
    tokens = pool.latents.shape[2]
    side = math.isqrt(tokens)
    x = pool.latents[rows, : frame + 1].flatten(1, 2) * model.config.tokenizer.latent_scale
    masked = torch.zeros(x.shape[:2], dtype=torch.bool)
    masked[:, -tokens:] = mask_tokens(len(rows), tokens)
    tables = [rope_tables(f, side, side, t.rope_split, t.rope_theta) for f in range(frame + 1)]
    cos, sin = (torch.from_numpy(np.concatenate(part)) for part in zip(*tables, strict=True))
    of = torch.arange(frame + 1).repeat_interleave(tokens)
    with autocast():
        states = model.text_encoder(pool.ids[rows], pool.mask[rows])
        context = model.transformer.text_context(states, torch.rand(len(rows)) < DROP_TEXT)
        text = model.transformer.text_key_values(context)
        z, _ = model.transformer(x, masked, cos, sin, text, pool.mask[rows], mask=of[:, None] >= of)
        return loss(model.diffusion_head, x[masked].repeat(NOISE_LEVELS, 1), z[masked].repeat(NOISE_LEVELS, 1))


def train_transformer(
    out: Path, steps: int, minutes: float, seed: int, learning_rate: float = 1.5e-3, start: Path | None = None
) -> None:
    """Train on the tokenizer found in `out` and write the whole checkpoint there, EMA weights.

    The learning rate falls along a cosine over whichever ends first, `steps` or `minutes`. With `start`, training goes
    on from that checkpoint, video tokenizer and all, at half the rate.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    out.mkdir(parents=True, exist_ok=True)
    write_tokenizer(out / "tokenizer.json")
    words = PromptTokenizer(out / "tokenizer.json", DEMO.text)
    if start is not None:
        model, learning_rate = resume(start, out / "tokenizer.json"), learning_rate / 2
        pool = Pool(model.video_tokenizer.eval(), words, POOL // 4, seed + 1)
    else:
        tokenizer = VideoTokenizer(DEMO.tokenizer)
        tokenizer.load_state_dict(load_file(out / "video_tokenizer.safetensors"))
        pool = Pool(tokenizer.eval(), words, POOL, seed + 1)
        model = VideoMAR(with_scale(DEMO, pool.latents))
        model.video_tokenizer.load_state_dict(tokenizer.state_dict())
        initialize(model)
    model.video_tokenizer.requires_grad_(False)
    log.info(f"latent scale {model.config.tokenizer.latent_scale}, std {pool.latents.std():.3f} unscaled")
    average = copy.deepcopy(model).requires_grad_(False)
    optimizers, loss = Optimizers(model), DiffusionLoss(DEMO.head.train_steps)
    began, step, progress, warm_up = time.monotonic(), 0, 0.0, 300 if start is None else 100
    smooth: dict[int, float] = {}
    while progress < 1:
        progress = max(step / steps, (time.monotonic() - began) / 60 / minutes)
        rate = learning_rate * min(1, step / warm_up) * max(0.01, 0.5 * (1 + math.cos(math.pi * min(1, progress))))
        pool.refresh(FRESH)
        later = pool.latents.shape[1] - 2
        frame = 1 + max(0, int(rng.integers(DECIDED_FIRST + later)) - DECIDED_FIRST + 1)
        value = training_loss(model, loss, pool, torch.randint(len(pool.ids), (BATCH,)), frame)
        value.backward()
        optimizers.step(rate)
        with torch.no_grad():
            decay = min(EMA, (1 + step) / (10 + step))
            torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
        smooth[frame] = value.item() if frame not in smooth else 0.99 * smooth[frame] + 0.01 * value.item()
        step += 1
        if step % 100 == 0 or progress >= 1:
            losses = " ".join(f"frame {f}: {v:.4f}" for f, v in sorted(smooth.items()))
            log.info(f"step {step} {progress:4.0%} {losses} {(time.monotonic() - began) / 60:.1f} min")
            save_checkpoint(average, out)


def with_scale(config: ModelConfig, latents: Tensor) -> ModelConfig:
    """The config with the latent scale that gives tokens unit variance, as the head's noise has."""
    scale = round(1 / float(latents.std()), 3)
    return dataclasses.replace(config, tokenizer=dataclasses.replace(config.tokenizer, latent_scale=scale))
