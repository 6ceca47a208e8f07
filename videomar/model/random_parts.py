"""A model of a config with seeded random weights, one part at a time: for measuring sizes before there are weights."""

from __future__ import annotations

import torch
from torch import nn

from videomar.config import ModelConfig
from videomar.model.head import DiffusionHead
from videomar.model.videomar import PARTS, PartsOfCheckpoint


class RandomParts(PartsOfCheckpoint):
    """Behaves as a checkpoint; the same seed gives the same weights, rounded to the dtype."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype = torch.float32, seed: int = 0) -> None:
        self.config, self._dtype, self._seed = config, dtype, seed

    def check(self) -> None:
        """Nothing can be missing."""

    def _read(self, part: str) -> nn.Module:
        module = self._empty(part)
        generator = torch.Generator().manual_seed(self._seed * len(PARTS) + PARTS.index(part))
        for name, p in module.named_parameters():
            # Uniform, which is drawn four times faster than normal numbers. Sums stay near one in size.
            noise = torch.empty(p.shape).uniform_(-1, 1, generator=generator)
            if p.ndim < 2:
                noise = 0.1 * noise + float(name.endswith("weight"))
            elif not name.endswith(("mask_token", "fake_latent")):
                noise *= (3 / p[0].numel()) ** 0.5
            p.data = noise.to(self._dtype)
        if isinstance(module, DiffusionHead):
            calm(module)
        return module.eval().requires_grad_(False)


def calm(head: DiffusionHead) -> None:
    """Let the head predict "the noise is what I see", nearly: sampling then stays near one, as with trained weights.

    Its first steps divide by the signal's power, so that any other random head returns numbers of thousands.
    """
    large, channels, width = 30.0, head.final_layer.linear.out_features // 2, head.config.width
    linear, modulation = head.final_layer.linear, head.final_layer.adaLN_modulation[1]
    scaled = [(head.input_proj, 0.02), (linear, 0.01), (modulation, 1e-4)]
    for block in head.res_blocks:
        scaled += [(block.mlp[2], 0.3), (block.adaLN_modulation[1], 0.3)]
    # x and -x keep the mean at zero; a large constant beside them makes the last LayerNorm a division by a constant.
    rest = width - 2 * channels
    with torch.no_grad():
        for layer, factor in scaled:
            layer.weight.mul_(factor)
            layer.bias.mul_(factor)
        eye, dtype = torch.eye(channels), linear.weight.dtype
        head.input_proj.weight[: 2 * channels] = torch.cat([eye, -eye]).to(dtype)
        head.input_proj.bias[2 * channels :] += large * (-1.0) ** torch.arange(rest)
        linear.weight[:channels, :channels] += eye.to(dtype) * large * (rest / width) ** 0.5
        linear.weight[channels:, :channels] *= 30 * large  # the variance may vary
