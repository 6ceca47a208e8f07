"""Train a video tokenizer, on endless clips of the demo world or on own ones. Knows nothing of the transformer."""

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

from videomar.config import DEMO, ModelConfig
from videomar.console import log
from videomar.demo.world import FRAMES, render, sample_scene
from videomar.errors import InputError
from videomar.model.tokenizer import VideoTokenizer
from videomar.model.videomar import PartsOfCheckpoint, save_part
from videomar.training.loop import Diverged
from videomar.training.optimizers import Optimizers
from videomar.training.precision import autocast
from videomar.training.recipe import Stage
from videomar.training.source import to_pixels
from videomar.training.windows import Windows

BATCH = 4
LATENT_NOISE = 0.05  # what the decoder must bear: generated latents are never exact
HELD_OUT, HELD_OUT_SEED = 16, 10**6  # clips
REPORT = 250  # steps
VIDEOS = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".gif")
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


class WorldPixels:
    """Random windows of random clips of the demo world."""

    def batch(self, rng: np.random.Generator, count: int, frames: int) -> torch.Tensor:
        """[count, 3, frames, 64, 64] float32 in [-1, 1]."""
        found = []
        for _ in range(count):
            start = int(rng.integers(FRAMES - frames + 1))
            found.append(render(sample_scene(rng), start + frames, start=start))
        return to_pixels(np.stack(found))

    def held_out(self) -> torch.Tensor:
        """Whole clips that training never sees."""
        return self.batch(np.random.default_rng(HELD_OUT_SEED), HELD_OUT, FRAMES)


class FolderPixels:
    """Windows of own clips, at one length and size."""

    def __init__(self, clips: Path, cache: Path, stage: Stage, config: ModelConfig) -> None:
        names = sorted(f.name for f in clips.iterdir() if f.suffix.lower() in VIDEOS and not f.name.startswith("."))
        if len(names) < 2:
            raise InputError(f"{clips} holds {len(names)} videos, expected at least 2 ({', '.join(VIDEOS)})")
        windows = Windows(clips, cache, config.sampling.fps, config.sampling.fit, "pixels", lambda window: window)
        windows.fill(names, stage)
        shown, kept = windows.read(names, stage)
        self._rows = [(array, i) for array in shown.values() for i in range(len(array))]
        self._kept = [array[i] for array in kept.values() for i in range(len(array))][:HELD_OUT]

    def batch(self, rng: np.random.Generator, count: int, frames: int) -> torch.Tensor:
        """[count, 3, frames, height, width] float32 in [-1, 1]."""
        found = []
        for _ in range(count):
            array, i = self._rows[int(rng.integers(len(self._rows)))]
            start = int(rng.integers(array.shape[1] - frames + 1))
            found.append(array[i, start : start + frames])
        return to_pixels(np.stack(found))

    def held_out(self) -> torch.Tensor:
        """Windows of clips that training never sees."""
        return to_pixels(np.stack(self._kept))


@torch.no_grad()
def psnr(tokenizer: VideoTokenizer, pixels: torch.Tensor) -> float:
    """Mean reconstruction PSNR in dB over clips, pixel range 2."""
    out = tokenizer.decode(tokenizer.encode(pixels)).clamp(-1, 1)
    mse = ((out - pixels) ** 2).flatten(1).mean(1)
    return float((10 * torch.log10(4 / mse)).mean())


def train_tokenizer(
    out: Path,
    steps: int,
    minutes: float,
    seed: int,
    learning_rate: float = 2e-3,
    config: ModelConfig = DEMO,
    pixels: WorldPixels | FolderPixels | None = None,
    start: Path | None = None,
    device: torch.device | None = None,
) -> float:
    """Train, save `video_tokenizer.safetensors` into `out`, return the held-out PSNR in dB.

    The learning rate falls along a cosine over whichever ends first, `steps` or `minutes`; the last quarter trains on
    whole clips, the rest on windows of two latent frames. start: a checkpoint whose tokenizer is trained further.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    if start is None:
        model = VideoTokenizer(config.tokenizer)
    else:
        model = PartsOfCheckpoint(start).video_tokenizer.train().requires_grad_(True)
    device = device or torch.device("cpu")
    model.to(device)
    haar = model.vae.encoder.patch_embed
    optimizers = Optimizers(model)
    pixels = pixels or WorldPixels()
    held_out = pixels.held_out().to(device)
    longest, short = held_out.shape[2], min(held_out.shape[2], 1 + model.config.temporal_stride)
    file = out / "video_tokenizer.safetensors"
    began, step, progress, smooth = time.monotonic(), 0, 0.0, None
    while progress < 1:
        progress = max(step / steps, (time.monotonic() - began) / 60 / minutes)
        rate = learning_rate * min(1, step / 200) * max(0.01, 0.5 * (1 + math.cos(math.pi * min(1, progress))))
        whole = progress > 0.75
        x = pixels.batch(rng, BATCH, longest if whole else short).to(device)
        with torch.no_grad():
            x = haar(x)
        with without_haar(model), autocast(device.type):
            z = model.vae.encode(x).latent_dist.mode().float()
            y = model.vae.decode(z + LATENT_NOISE * torch.randn_like(z)).sample.float()
        mse = F.mse_loss(y, x) * PATCH_GAIN
        loss = mse + 1e-5 * z.square().mean()
        loss.backward()
        if not math.isfinite(optimizers.step(rate)):
            kept = f"{file} is of the last report" if step >= REPORT else "nothing was written"
            raise Diverged(f"the loss of step {step + 1} is no number, expected one; {kept}; train with another --seed")
        smooth = mse.item() if smooth is None else 0.98 * smooth + 0.02 * mse.item()
        step += 1
        if step % REPORT == 0 or progress >= 1:
            log.info(
                f"step {step} {progress:4.0%} train {10 * math.log10(4 / smooth):.2f} dB "
                f"held-out {psnr(model, held_out):.2f} dB latent std {z.std():.2f} "
                f"{(time.monotonic() - began) / 60:.1f} min"
            )
            save_part(model, file)
    return psnr(model, held_out)
