"""Train the demo's video tokenizer on endless clips of the demo world. Knows nothing of the transformer."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from videomar.config import DEMO
from videomar.console import log
from videomar.demo.world import FRAMES, render, sample_scene
from videomar.model.tokenizer import VideoTokenizer
from videomar.model.videomar import save_part
from videomar.training.optimizers import Optimizers
from videomar.training.precision import autocast

BATCH = 4
LATENT_NOISE = 0.05  # what the decoder must bear: generated latents are never exact
HELD_OUT_SEED = 10**6
# The Haar transform keeps squared error up to this factor: diffusers divides by sqrt(8) at each of two levels, and
# 64 coefficients stand for 64 pixels.
PATCH_GAIN = 64.0


@contextmanager
def without_haar(tokenizer: VideoTokenizer) -> Iterator[None]:
    """Work on Haar coefficients: the transform is orthogonal, so the loss is the same, and a third faster."""
    encoder, decoder = tokenizer.vae.encoder, tokenizer.vae.decoder
    patch, unpatch = encoder.patch_embed, decoder.unpatch_embed
    encoder.patch_embed, decoder.unpatch_embed = nn.Identity(), nn.Identity()
    try:
        yield
    finally:
        encoder.patch_embed, decoder.unpatch_embed = patch, unpatch


def clips(rng: np.random.Generator, count: int, frames: int) -> torch.Tensor:
    """Random windows of random clips: [count, 3, frames, 64, 64] float32 in [-1, 1]."""
    batch = []
    for _ in range(count):
        start = int(rng.integers(FRAMES - frames + 1))
        batch.append(render(sample_scene(rng), start + frames, start=start))
    return torch.from_numpy(np.stack(batch)).permute(0, 4, 1, 2, 3).float() / 127.5 - 1


@torch.no_grad()
def psnr(tokenizer: VideoTokenizer, pixels: torch.Tensor) -> float:
    """Mean reconstruction PSNR in dB over clips, pixel range 2."""
    out = tokenizer.decode(tokenizer.encode(pixels)).clamp(-1, 1)
    mse = ((out - pixels) ** 2).flatten(1).mean(1)
    return float((10 * torch.log10(4 / mse)).mean())


def train_tokenizer(out: Path, steps: int, minutes: float, seed: int, learning_rate: float = 2e-3) -> float:
    """Train, save `video_tokenizer.safetensors` into `out`, return the held-out PSNR in dB.

    The learning rate falls along a cosine over whichever ends first, `steps` or `minutes`; the last quarter trains on
    whole clips of 17 frames, the rest on windows of 9.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model = VideoTokenizer(DEMO.tokenizer)
    haar = model.vae.encoder.patch_embed
    optimizers = Optimizers(model)
    held_out = clips(np.random.default_rng(HELD_OUT_SEED), 16, FRAMES)
    began, step, progress, smooth = time.monotonic(), 0, 0.0, None
    out.mkdir(parents=True, exist_ok=True)
    while progress < 1:
        progress = max(step / steps, (time.monotonic() - began) / 60 / minutes)
        rate = learning_rate * min(1, step / 200) * max(0.01, 0.5 * (1 + math.cos(math.pi * min(1, progress))))
        whole = progress > 0.75
        x = clips(rng, BATCH, FRAMES if whole else 9)
        with torch.no_grad():
            x = haar(x)
        with without_haar(model), autocast():
            z = model.vae.encode(x).latent_dist.mode().float()
            y = model.vae.decode(z + LATENT_NOISE * torch.randn_like(z)).sample.float()
        mse = F.mse_loss(y, x) * PATCH_GAIN
        loss = mse + 1e-5 * z.square().mean()
        loss.backward()
        optimizers.step(rate)
        smooth = mse.item() if smooth is None else 0.98 * smooth + 0.02 * mse.item()
        step += 1
        if step % 250 == 0 or progress >= 1:
            log.info(
                f"step {step} {progress:4.0%} train {10 * math.log10(4 / smooth):.2f} dB "
                f"held-out {psnr(model, held_out):.2f} dB latent std {z.std():.2f} "
                f"{(time.monotonic() - began) / 60:.1f} min"
            )
            save_part(model, out / "video_tokenizer.safetensors")
    return psnr(model, held_out)
