"""Text encoder and the video tokenizer's encoder as flat graphs. Knows nothing of files or ONNX."""

from __future__ import annotations

from torch import Tensor, nn

from videomar.model.text import TextEncoder
from videomar.model.tokenizer import VideoTokenizer


class TextStates(nn.Module):
    """Ids of system prompt and prompt [1, P] -> the prompt's hidden states [1, L, width]."""

    def __init__(self, source: TextEncoder, prefix: int) -> None:
        super().__init__()
        self.encoder, self.prefix = source, prefix

    def forward(self, ids: Tensor) -> Tensor:
        return self.encoder.prompt_states(ids, self.prefix)


class Encode(nn.Module):
    """Pixels [1, 3, frames, height, width] FP32 -> scaled latents FP32, computed in the weights' dtype."""

    def __init__(self, source: VideoTokenizer) -> None:
        super().__init__()
        self.vae, self.scale = source.vae, source.config.latent_scale

    def forward(self, pixels: Tensor) -> Tensor:
        latents = self.vae.quant_conv(self.vae.encoder(pixels.to(self.vae.quant_conv.weight.dtype)))
        return latents.float() * self.scale
