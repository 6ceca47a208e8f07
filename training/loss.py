"""The loss of one step: a frame's masked tokens from the clean frames before it (model.md, "Training")."""

from __future__ import annotations

from collections import defaultdict
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn

from videomar.config import TransformerConfig
from videomar.model.videomar import VideoMAR
from videomar.schedule import rope_tables
from videomar.training.diffusion import DiffusionLoss
from videomar.training.precision import autocast
from videomar.training.source import Clips

NOISE_LEVELS = 2  # diffusion steps trained a token and pass; each costs a quarter of what the transformer does
DROP_TEXT = 0.1


class TrainingLoss(nn.Module):
    """A model whose forward pass is its loss: what PyTorch's wrappers for several devices want."""

    def __init__(self, model: VideoMAR) -> None:
        super().__init__()
        self.model = model
        self._diffusion = DiffusionLoss(model.config.head.train_steps)

    def forward(self, clips: Clips, frame: int) -> Tensor:
        """Scalar loss of predicting latent frame `frame` of every clip; draws from PyTorch's own generator."""
        config, (rows, columns) = self.model.config, clips.grid
        device, tokens = clips.latents.device, rows * columns
        x = clips.latents[:, : frame + 1].flatten(1, 2) * config.tokenizer.latent_scale
        masked = torch.zeros(x.shape[:2], dtype=torch.bool, device=device)
        masked[:, -tokens:] = mask_tokens(len(x), tokens, device)
        cos, sin = (t.to(device) for t in _tables(frame + 1, rows, columns, config.transformer))
        of = torch.arange(frame + 1, device=device).repeat_interleave(tokens)
        with autocast(device.type):
            text, text_mask = self._text(clips.prompts, device)
            z, _ = self.model.transformer(x, masked, cos, sin, text, text_mask, mask=of[:, None] >= of)
            wanted, condition = (t[masked].repeat(NOISE_LEVELS, 1) for t in (x, z))
            return self._diffusion(self.model.diffusion_head, wanted, condition)

    def _text(
        self, prompts: tuple[tuple[int, ...], ...], device: torch.device
    ) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
        """Text K/V of every block, a share of the rows without text, and the mask of the real tokens.

        Sentences of one length go through the encoder together, unpadded: whose padding lies where is the encoder's.
        """
        model, prefix = self.model, self.model.config.text.system_tokens
        drop = torch.rand(len(prompts), device=device) < DROP_TEXT
        alike = defaultdict(list)
        for row, prompt in enumerate(prompts):
            alike[len(prompt)].append(row)
        longest = max(alike) - prefix
        context = torch.zeros(len(prompts), longest, model.config.transformer.width, device=device)
        mask = torch.zeros(len(prompts), longest, dtype=torch.bool, device=device)
        for length, rows in alike.items():
            ids = torch.tensor([prompts[row] for row in rows], device=device)
            frozen = not model.text_encoder.llm.embed_tokens.weight.requires_grad
            with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
                states = model.text_encoder.prompt_states(ids, prefix)
            at = torch.tensor(rows, device=device)
            found = model.transformer.text_context(states, drop[at]).float()
            context = context.index_put((at[:, None], torch.arange(length - prefix, device=device)), found)
            mask[at, : length - prefix] = True
        return model.transformer.text_key_values(context), mask


def mask_tokens(rows: int, tokens: int, device: torch.device | str = "cpu") -> Tensor:
    """Which tokens are masked: a share from N(1, 0.25) truncated to [0.7, 1] a row: [rows, tokens] bool."""
    share = torch.nn.init.trunc_normal_(torch.empty(rows, device=device), mean=1.0, std=0.25, a=0.7, b=1.0)
    count = (share * tokens).ceil().clamp(max=tokens)
    rank = torch.rand(rows, tokens, device=device).argsort(1).argsort(1)
    return rank < count[:, None]


@lru_cache(maxsize=64)
def _tables(frames: int, rows: int, columns: int, t: TransformerConfig) -> tuple[Tensor, Tensor]:
    tables = [rope_tables(f, rows, columns, t.rope_split, t.rope_theta) for f in range(frames)]
    cos, sin = (torch.from_numpy(np.concatenate(part)) for part in zip(*tables, strict=True))
    return cos, sin


@torch.no_grad()
def held_out_losses(loss: TrainingLoss, clips: Clips, frames: range, at_once: int = 16) -> dict[int, float]:
    """Mean loss by latent frame, under the same masks, noise and dropped sentences at every call."""
    device = next(loss.model.transformer.parameters()).device
    found = {}
    with torch.random.fork_rng():
        for frame in frames:
            torch.manual_seed(frame)
            parts = [clips.part(slice(i, i + at_once)) for i in range(0, len(clips), at_once)]
            total = sum(float(loss(part.to(device), frame)) * len(part) for part in parts)
            found[frame] = total / len(clips)
    return found
