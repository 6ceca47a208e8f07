"""The video tokenizer: diffusers' Cosmos autoencoder, built from our config. Knows nothing of tokens or text."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKLCosmos
from torch import Tensor, nn

from videomar.config import TokenizerConfig

# Our field of TokenizerConfig -> diffusers' argument, which its directories' config.json has too.
NAMES = {
    "encoder_channels": "encoder_block_out_channels",
    "decoder_channels": "decode_block_out_channels",
    "layers_per_block": "num_layers",
    "attention_resolutions": "attention_resolutions",
    "resolution": "resolution",
    "patch_size": "patch_size",
    "patch_type": "patch_type",
    "latent_channels": "latent_channels",
    "spatial_stride": "spatial_compression_ratio",
    "temporal_stride": "temporal_compression_ratio",
}


class VideoTokenizer(nn.Module):
    """Pixels <-> scaled latents; causal in time, so 1 + 8k frames <-> 1 + k latent frames."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        arguments = {theirs: getattr(config, ours) for ours, theirs in NAMES.items()}
        self.vae = AutoencoderKLCosmos(**arguments, latents_mean=None, latents_std=None)

    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels [batch, 3, frames, height, width] float in [-1, 1] -> latents [batch, channels, t, h, w], scaled."""
        return self.vae.encode(pixels).latent_dist.mode() * self.config.latent_scale

    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents [batch, channels, t, h, w] -> pixels [batch, 3, frames, height, width], about [-1, 1]."""
        return self.vae.decode(latents / self.config.latent_scale).sample

    @torch.no_grad()
    def scale_to(self, pixels: Tensor, std: float) -> float:
        """The latent scale at which latents of these pixels have the given standard deviation."""
        return float(std / self.vae.encode(pixels).latent_dist.mode().std())
