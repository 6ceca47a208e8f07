"""A stand-in for NVIDIA's Cosmos video tokenizer: its names (of modules and tensors) and its arithmetic, for the tests.

Written from what the public code computes, so that archives in its layout can be made here at any size. Shares nothing
with diffusers or the package.
"""

from __future__ import annotations

import math
from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Conv(nn.Module):
    """Causal in time: the first frame is repeated in front."""

    def __init__(self, inp: int, out: int, time: int = 1, space: int = 1, stride: tuple[int, int] = (1, 1)) -> None:
        super().__init__()
        self.conv3d = nn.Conv3d(inp, out, (time, space, space), stride=(stride[0], stride[1], stride[1]))
        self.front, self.around = time - 1 + 1 - stride[0], space // 2 if stride[1] == 1 else 0

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([x[:, :, :1]] * self.front + [x], 2)
        return self.conv3d(F.pad(x, [self.around] * 4))


def split_conv(inp: int, out: int) -> nn.Sequential:
    return nn.Sequential(Conv(inp, out, space=3), Conv(out, out, time=3))


class Norm(nn.Module):
    """Over channels and space, each frame alone."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.norm(frame) for frame in x.unbind(2)], 2)


class Resnet(nn.Module):
    def __init__(self, inp: int, out: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = Norm(inp), split_conv(inp, out)
        self.norm2, self.conv2 = Norm(out), split_conv(out, out)
        self.nin_shortcut = Conv(inp, out) if inp != out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x)))
        return self.nin_shortcut(x) + self.conv2(F.silu(self.norm2(y)))


class Attention(nn.Module):
    """Over the places of a frame, or over the frames of a place (never a later one)."""

    def __init__(self, channels: int, temporal: bool) -> None:
        super().__init__()
        self.norm, self.temporal = Norm(channels), temporal
        self.q, self.k, self.v, self.proj_out = (Conv(channels, channels) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        order = (0, 3, 4, 2, 1) if self.temporal else (0, 2, 3, 4, 1)
        q, k, v = (f(h).permute(order) for f in (self.q, self.k, self.v))  # [..., places or frames, channels]
        if not self.temporal:
            q, k, v = (t.flatten(2, 3) for t in (q, k, v))
        score = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        if self.temporal:
            score = score + torch.full(score.shape[-2:], -torch.inf).triu(1)
        y = score.softmax(-1) @ v
        if not self.temporal:
            y = y.unflatten(2, x.shape[3:])
        back = (0, 4, 3, 1, 2) if self.temporal else (0, 4, 1, 2, 3)
        return x + self.proj_out(y.permute(back))


def attentions(channels: int) -> nn.Sequential:
    return nn.Sequential(Attention(channels, False), Attention(channels, True))


class Down(nn.Module):
    def __init__(self, channels: int, space: bool, time: bool) -> None:
        super().__init__()
        self.conv1 = Conv(channels, channels, space=3, stride=(1, 2))
        self.conv2 = Conv(channels, channels, time=3, stride=(2, 1))
        self.conv3 = Conv(channels, channels)
        self.spatial_down, self.temporal_down = space, time

    def forward(self, x: Tensor) -> Tensor:
        if not (self.spatial_down or self.temporal_down):
            return x
        if self.spatial_down:
            x = F.pad(x, (0, 1, 0, 1))
            x = self.conv1(x) + F.avg_pool3d(x, (1, 2, 2), (1, 2, 2))
        if self.temporal_down:
            x = torch.cat([x[:, :, :1], x], 2)
            x = self.conv2(x) + F.avg_pool3d(x, (2, 1, 1), (2, 1, 1))
        return self.conv3(x)


class Up(nn.Module):
    def __init__(self, channels: int, space: bool, time: bool) -> None:
        super().__init__()
        self.conv1, self.conv2 = Conv(channels, channels, time=3), Conv(channels, channels, space=3)
        self.conv3 = Conv(channels, channels)
        self.spatial_up, self.temporal_up = space, time

    def forward(self, x: Tensor) -> Tensor:
        if not (self.spatial_up or self.temporal_up):
            return x
        if self.temporal_up:
            x = torch.cat([x[:, :, :1], x[:, :, 1:].repeat_interleave(2, 2)], 2)
            x = x + self.conv1(x)
        if self.spatial_up:
            x = x.repeat_interleave(2, 3).repeat_interleave(2, 4)
            x = x + self.conv2(x)
        return self.conv3(x)


class Haar(nn.Module):
    """Patches of p x p x p by log2(p) Haar transforms; the first frame stands for p."""

    def __init__(self, patch: int, back: bool) -> None:
        super().__init__()
        self.patch, self.back = patch, back
        self.register_buffer("wavelets", torch.full((2,), 0.5**0.5), persistent=False)
        self.register_buffer("_arange", torch.arange(2), persistent=False)
        if not back:
            self.register_buffer("patch_size_buffer", patch * torch.ones(1, dtype=torch.int32), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        rounds = int(math.log2(self.patch))
        if not self.back:
            x = torch.cat([x[:, :, :1]] * self.patch + [x[:, :, 1:]], 2)
            for _ in range(rounds):
                bands = [x]
                for dim in (2, 3, 4):  # low bands, high bands: halves of the sum and of the difference of neighbours
                    pairs = [b.unflatten(dim, (-1, 2)).unbind(dim + 1) for b in bands]
                    bands = [half for a, b in pairs for half in ((a + b) / 2, (a - b) / 2)]
                x = torch.cat(bands, 1)
            return x
        for _ in range(rounds):
            bands = list(x.chunk(8, 1))
            for dim in (4, 3, 2):
                pairs = zip(bands[::2], bands[1::2], strict=True)
                bands = [torch.stack([low + high, low - high], dim + 1).flatten(dim, dim + 1) for low, high in pairs]
            x = bands[0]
        return x[:, :, self.patch - 1 :]


class Coder(nn.Module):
    """Encoder (`down`) or decoder (`up`), with the names of both."""

    def __init__(
        self, way: str, channels: int, mult: tuple[int, ...], blocks: int, patch: int, latent: int,
        strides: tuple[int, int], attended: tuple[int, ...] = (),
    ) -> None:  # fmt: skip
        super().__init__()
        self.way, levels = way, len(mult)
        space, time = (int(math.log2(stride // patch)) for stride in strides)
        wide, pixels = channels * mult[-1], 3 * patch**3
        if way == "down":
            self.patcher3d, self.conv_in = Haar(patch, False), split_conv(pixels, channels)
        else:
            self.conv_in, self.unpatcher3d = split_conv(latent, wide), Haar(patch, True)
        self.mid = nn.Module()
        self.mid.block_1, self.mid.attn_1, self.mid.block_2 = Resnet(wide, wide), attentions(wide), Resnet(wide, wide)
        stages, at = [], channels if way == "down" else wide
        for step in range(levels):
            level = step if way == "down" else levels - 1 - step
            stage, out = nn.Module(), channels * mult[level]
            count = blocks + (way == "up")
            stage.block = nn.ModuleList(Resnet(at if j == 0 else out, out) for j in range(count))
            stage.attn = nn.ModuleList(attentions(out) for _ in range(count if level in attended else 0))
            if step < levels - 1 and way == "down":
                stage.downsample = Down(out, step < space, step < time)
            elif step < levels - 1:
                in_time = 0 < step < time + 1
                stage.upsample = Up(out, in_time or (step < space and space > time), in_time)
            stages.append(stage)
            at = out
        setattr(self, way, nn.ModuleList(stages if way == "down" else stages[::-1]))
        self.norm_out, self.conv_out = Norm(at), split_conv(at, latent if way == "down" else pixels)

    def middle(self, x: Tensor) -> Tensor:
        return self.mid.block_2(self.mid.attn_1(self.mid.block_1(x)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(self.patcher3d(x)) if self.way == "down" else self.middle(self.conv_in(x))
        for stage in self.down if self.way == "down" else reversed(self.up):
            for j, block in enumerate(stage.block):
                x = block(x)
                x = stage.attn[j](x) if len(stage.attn) else x
            for name in ("downsample", "upsample"):
                x = getattr(stage, name)(x) if hasattr(stage, name) else x
        x = self.conv_out(F.silu(self.norm_out(self.middle(x) if self.way == "down" else x)))
        return x if self.way == "down" else self.unpatcher3d(x)


class Answer(nn.Module):
    """What an encoder archive returns: the latents and something empty."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, torch.zeros(1)


def halves(
    channels: int = 4, mult: tuple[int, ...] = (2, 4, 4), blocks: int = 1, patch: int = 4, latent: int = 4,
    strides: tuple[int, int] = (16, 8), attended: tuple[int, ...] = (), seed: int = 0,
) -> tuple[nn.Sequential, nn.Sequential]:  # fmt: skip
    """Encoder and decoder with random weights, as `encoder.jit` and `decoder.jit` hold them."""
    torch.manual_seed(seed)
    made = [Coder(way, channels, mult, blocks, patch, latent, strides, attended) for way in ("down", "up")]
    encoder = OrderedDict(encoder=made[0], quant_conv=Conv(latent, latent), distribution=Answer())
    decoder = OrderedDict(post_quant_conv=Conv(latent, latent), decoder=made[1])
    both = nn.Sequential(encoder).eval(), nn.Sequential(decoder).eval()
    for half in both:
        for p in half.parameters():
            p.requires_grad_(False).add_(0.05 * torch.randn_like(p))  # gains start at 1 and biases at 0
    return both


class Whole(nn.Module):
    """`autoencoder.jit`."""

    def __init__(self, encoder: nn.Sequential, decoder: nn.Sequential) -> None:
        super().__init__()
        self.encoder, self.quant_conv = encoder.encoder, encoder.quant_conv
        self.post_quant_conv, self.decoder = decoder.post_quant_conv, decoder.decoder

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(self.quant_conv(self.encoder(x))))
