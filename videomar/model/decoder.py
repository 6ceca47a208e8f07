"""The tokenizer's decoder for one latent frame: what it carries from frame to frame comes in and goes out.

A copy of diffusers' decoder that shares its weights, with the parts exchanged that look beyond a frame. All latent
frames go one way: diffusers makes one patch of frames of the first and several of every other; here the first makes as
many, of which the last is diffusers'. For every part repeats what comes before a clip (that is what their padding
does), so that a first frame made twice stays twice the same through the whole decoder.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

import torch
from diffusers.models.autoencoders import autoencoder_kl_cosmos as cosmos
from torch import Tensor, nn
from torch.nn import functional as F

from videomar.carried import CONTEXT
from videomar.model.tokenizer import VideoTokenizer


class DecodeFrame(nn.Module):
    """One latent frame -> its pixels [1, 3, temporal_stride, height, width] FP32, computed in the weights' dtype."""

    def __init__(self, source: VideoTokenizer) -> None:
        super().__init__()
        self.carry, self.scale = Carry(), source.config.latent_scale
        self.vae = copy.deepcopy(source.vae, {id(p): p for p in source.vae.parameters()})
        decoder = self.vae.decoder
        last = decoder.conv_out
        decoder.unpatch_embed, last.conv_t = Unpatch(last.conv_t, decoder.unpatch_embed, self.carry), nn.Identity()
        for name, part in list(decoder.named_modules()):
            if isinstance(part, cosmos.CosmosUpsample3d):
                decoder.set_submodule(name, Upsample(part))
            elif isinstance(part, cosmos.CosmosCausalAttention) and ".temp_attentions." in name:
                part.processor = Attention(self.carry)
        for name, part in list(decoder.named_modules()):
            if isinstance(part, cosmos.CosmosCausalConv3d) and part.temporal_pad:
                decoder.set_submodule(name, Convolution(part, self.carry))

    def forward(
        self, latents: Tensor, done: Tensor, frames: Sequence[Tensor], key_values: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """latents: [1, channels, 1, h, w] FP32, scaled; done: [1] int64, latent frames decoded before this one.

        frames, key_values: what the last call returned behind the pixels, in that order (videomar/carried.py); at the
        first frame anything of the right shapes. Keys and values have room for every latent frame of the clip.
        """
        carry = self.carry
        carry.start(done, frames, key_values)
        latents = (latents / self.scale).to(self.vae.post_quant_conv.weight.dtype)
        pixels = self.vae.decoder(self.vae.post_quant_conv(latents))
        return (torch.clamp(pixels.float(), -1, 1), *carry.present_frames, *carry.present_key_values)


class Carry:
    """What the parts take from the frames before and leave for those behind, during one call."""

    def start(self, done: Tensor, frames: Sequence[Tensor], key_values: Sequence[Tensor]) -> None:
        self._done, self._first = done, done == 0
        self._frames: Iterator[Tensor] = iter(frames)
        self._key_values: Iterator[Tensor] = iter(key_values)
        self.present_frames: list[Tensor] = []
        self.present_key_values: list[Tensor] = []

    def context(self, x: Tensor) -> Tensor:
        """x [1, C, frames, H, W] with the CONTEXT frames before it in front; at the first frame, x itself repeated."""
        whole = torch.cat([torch.where(self._first, x[:, :, :1], next(self._frames)), x], dim=2)
        self.present_frames.append(x if x.shape[2] == CONTEXT else whole[:, :, -CONTEXT:])
        return whole

    def remember(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """All frames' keys or values, with x [1, C, frames, H, W] in its place and behind; and who sees whom.

        The second is bool [frames of x, all frames]. Of a first latent frame's frames, all the same, only the last
        is seen: in diffusers it is one.
        """
        past, frames = next(self._key_values), x.shape[2]
        index, begin = torch.arange(past.shape[2]), self._done * frames
        new = x if frames == 1 else x.repeat(1, 1, past.shape[2] // frames, 1, 1)
        whole = torch.where((index < begin)[:, None, None], past, new)
        self.present_key_values.append(whole)
        own = begin + torch.arange(frames)[:, None]
        if frames == 1:
            return whole, index <= own
        return whole, (index >= frames - 1) & (index <= own.clamp(min=frames - 1))


class Convolution(nn.Module):
    """A causal convolution of 3 over time and 1 over space."""

    def __init__(self, source: cosmos.CosmosCausalConv3d, carry: Carry) -> None:
        super().__init__()
        if source.kernel_size != (CONTEXT + 1, 1, 1) or source.stride != (1, 1, 1) or any(source.spatial_pad):
            raise ValueError(f"the decoder has a convolution over time that is not 3x1x1: {source}")
        self.weight, self.bias, self._carry = source.weight, source.bias, carry

    def forward(self, x: Tensor) -> Tensor:
        return F.conv3d(self._carry.context(x), self.weight, self.bias)


class Upsample(nn.Module):
    """CosmosUpsample3d that doubles the first frame as every other."""

    def __init__(self, source: cosmos.CosmosUpsample3d) -> None:
        super().__init__()
        self.temporal, self.spatial = source.temporal_upsample, source.spatial_upsample
        self.conv1, self.conv2, self.conv3 = source.conv1, source.conv2, source.conv3

    def forward(self, x: Tensor) -> Tensor:
        if self.temporal:
            x = x.repeat_interleave(2, dim=2)
            x = self.conv1(x) + x
        if self.spatial:
            x = x.repeat_interleave(2, dim=4).repeat_interleave(2, dim=3)  # short copies where there are fewer
            x = self.conv2(x) + x
        return self.conv3(x)


class Attention:
    """Attention over time of every frame to itself and all before: a processor of CosmosCausalAttention."""

    def __init__(self, carry: Carry) -> None:
        self._carry = carry

    def __call__(
        self, attn: cosmos.CosmosCausalAttention, hidden_states: Tensor, attention_mask: Tensor | None = None
    ) -> Tensor:
        x = attn.norm(hidden_states)
        q, (k, seen), (v, _) = attn.to_q(x), self._carry.remember(attn.to_k(x)), self._carry.remember(attn.to_v(x))
        # [1, C, frames, H, W] -> [H * W, frames, C]: one head, as in all of diffusers' decoders
        q, k, v = (t.permute(0, 3, 4, 2, 1).flatten(0, 2) for t in (q * q.shape[1] ** -0.5, k, v))
        scores = (q @ k.transpose(-1, -2)).masked_fill(~seen, torch.finfo(k.dtype).min)
        x = torch.softmax(scores, dim=-1) @ v
        x = x.unflatten(0, (1, *hidden_states.shape[3:])).permute(0, 4, 3, 1, 2)
        return attn.to_out[0](x) + hidden_states


class Unpatch(Convolution):
    """The decoder's last convolution and CosmosUnpatcher3d in one, keeping all frames of the first patch.

    Unpatching is linear and the same for every patch, so it goes into the convolution's weights: of 28 small
    convolutions (Haar, patch 4) a shuffle of pixels is left.
    """

    def __init__(self, source: cosmos.CosmosCausalConv3d, unpatch: cosmos.CosmosUnpatcher3d, carry: Carry) -> None:
        super().__init__(source, carry)
        self.patch, channels = unpatch.patch_size, source.out_channels
        with torch.no_grad():
            units = torch.zeros(channels, channels, 2, 1, 1, dtype=torch.float64)
            units[:, :, 1, 0, 0] = torch.eye(channels)  # behind a first patch, most of which is dropped
            pixels = unpatch(units)[:, :, 1:].flatten(1)  # [channels, 3 * patch**3]
            weight = torch.einsum("kp,kitxy->pitxy", pixels, source.weight.double())
            bias = pixels.T @ source.bias.double()
        self.weight = nn.Parameter(weight.to(source.weight.dtype), requires_grad=False)
        self.bias = nn.Parameter(bias.to(source.bias.dtype), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        p, x = self.patch, super().forward(x)[0]
        x = x.unflatten(0, (3, p, p, p)).permute(0, 4, 1, 5, 2, 6, 3)
        return x.flatten(5, 6).flatten(3, 4).flatten(1, 2)[None]
