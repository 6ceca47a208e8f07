"""The diffusion head in two parts: what does not depend on x, for many diffusion steps at once, and one step.

Same weights as `videomar.model.head`. Two thirds of its arithmetic are the modulations of the adaptive norms, which
depend on step and condition alone: they are taken out of the loop, where their weights would be read again in every
step. The loop's state, schedule, variance and guidance are FP32 whatever the weights are. Knows nothing of files or
ONNX.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from videomar.model.head import DiffusionHead, ancestral_step


class HeadCondition(nn.Module):
    """Step numbers [T] and conditions [branches, N, Wz] -> modulations, each [T, branches, N, W].

    In order: shift, scale and gate of every block, then shift and scale of the last norm. A scale comes as 1 + scale.
    """

    def __init__(self, source: DiffusionHead) -> None:
        super().__init__()
        self.time_embed, self.cond_embed = source.time_embed, source.cond_embed
        width, layers = source.config.width, []
        for each in (*source.res_blocks, source.final_layer):
            whole = each.adaLN_modulation[1]
            parts = zip(whole.weight.detach().split(width), whole.bias.detach().split(width), strict=True)
            layers += [_linear(weight, bias + (i == 1)) for i, (weight, bias) in enumerate(parts)]
        self.modulations = nn.ModuleList(layers)

    def forward(self, timesteps: Tensor, z: Tensor) -> list[Tensor]:
        y = self.time_embed(timesteps)[:, None, None] + self.cond_embed(z)
        rows = torch.nn.functional.silu(y).flatten(0, 2)  # in two dimensions a bias is part of its product
        return [layer(rows).unflatten(0, y.shape[:3]) for layer in self.modulations]


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    layer = nn.Linear(1, 1, device="meta")
    layer.weight, layer.bias = (nn.Parameter(t.clone(), requires_grad=False) for t in (weight, bias))
    return layer


class HeadStep(nn.Module):
    """One reverse diffusion step with guidance: x [N, C] FP32 -> x [N, C] FP32."""

    def __init__(self, source: DiffusionHead) -> None:
        super().__init__()
        self.input_proj, self.final_layer = source.input_proj, _LastNorm(source)
        self.res_blocks = nn.ModuleList(_Block(block) for block in source.res_blocks)

    def forward(
        self, x: Tensor, coefficients: Tensor, draw: Tensor, guidance: Tensor, modulations: list[Tensor]
    ) -> Tensor:
        """coefficients [6], draw [N, C], guidance [1]; modulations: of this step, each [branches, N, W]."""
        h = self.input_proj(x.to(modulations[0].dtype))
        for i, block in enumerate(self.res_blocks):
            h = block(h, *modulations[3 * i : 3 * i + 3])
        out = self.final_layer(h, *modulations[-2:]).float()
        noise, variance = out.chunk(2, dim=-1)
        guided = noise[-1] + guidance * (noise[0] - noise[-1])
        return ancestral_step(x, guided, variance[0], coefficients, draw)


class _Block(nn.Module):
    def __init__(self, source: nn.Module) -> None:
        super().__init__()
        self.in_ln, self.mlp = source.in_ln, source.mlp

    def forward(self, h: Tensor, shift: Tensor, scale: Tensor, gate: Tensor) -> Tensor:
        y = self.in_ln(h) * scale + shift
        return h + gate * self.mlp(y.flatten(0, 1)).unflatten(0, y.shape[:2])


class _LastNorm(nn.Module):
    def __init__(self, source: DiffusionHead) -> None:
        super().__init__()
        self.norm_final, self.linear = source.final_layer.norm_final, source.final_layer.linear

    def forward(self, h: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        y = self.norm_final(h) * scale + shift
        return self.linear(y.flatten(0, 1)).unflatten(0, y.shape[:2])
