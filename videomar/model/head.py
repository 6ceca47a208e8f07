"""The diffusion head: an MLP with adaptive LayerNorm that denoises one token vector under its condition.

Parameter names are the official checkpoint's (`diffloss.net.*`). Knows nothing of the sampler around it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from videomar.config import HeadConfig


class TimeEmbedding(nn.Module):
    """Step number [N] -> [N, W]: sinusoidal features [cos, sin], max period 10000, then an MLP."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.features = features
        self.mlp = nn.Sequential(nn.Linear(features, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        half = self.features // 2
        frequency = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
        angle = t.float()[:, None] * frequency
        features = torch.cat([angle.cos(), angle.sin()], dim=-1)
        return self.mlp(features.to(self.mlp[0].weight.dtype))


class ResidualBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_ln = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 3 * width))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        shift, scale, gate = self.adaLN_modulation(y).chunk(3, dim=-1)
        return x + gate * self.mlp(self.in_ln(x) * (1 + scale) + shift)


class FinalLayer(nn.Module):
    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.linear = nn.Linear(width, out)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(y).chunk(2, dim=-1)
        return self.linear(self.norm_final(x) * (1 + scale) + shift)


class DiffusionHead(nn.Module):
    """x [N, C], step number [N], condition [N, Wz] -> (noise [N, C], variance fraction in about [-1, 1] [N, C])."""

    def __init__(self, config: HeadConfig, channels: int, condition_width: int) -> None:
        super().__init__()
        self.config = config
        self.time_embed = TimeEmbedding(config.time_features, config.width)
        self.cond_embed = nn.Linear(condition_width, config.width)
        self.input_proj = nn.Linear(channels, config.width)
        self.res_blocks = nn.ModuleList(ResidualBlock(config.width) for _ in range(config.depth))
        self.final_layer = FinalLayer(config.width, 2 * channels)

    def forward(self, x: Tensor, t: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        y = self.time_embed(t) + self.cond_embed(condition)
        h = self.input_proj(x)
        for block in self.res_blocks:
            h = block(h, y)
        noise, variance = self.final_layer(h, y).chunk(2, dim=-1)
        return noise, variance


def ancestral_step(x: Tensor, noise: Tensor, variance: Tensor, coefficients: Tensor, draw: Tensor) -> Tensor:
    """One reverse step with learned-range variance, in FP32 (Nichol and Dhariwal 2021, eq. 15).

    x, noise, variance, draw: [N, C]; coefficients: [6] as in DiffusionSchedule.COLUMNS.
    """
    a, b, p, q, low, high = coefficients.float().split(1)
    start = a * x - b * noise
    share = (variance + 1) / 2
    return p * start + q * x + torch.exp(0.5 * (share * high + (1 - share) * low)) * draw
