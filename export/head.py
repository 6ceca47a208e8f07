"""The diffusion head as one graph that runs the whole denoising loop of a mask step; also without the loop.

Same weights as `videomar.model.head`; all modulations of the adaptive norms are one product. The loop's state,
schedule, variance and guidance are FP32 whatever the weights are. Knows nothing of files or ONNX.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from videomar.model.head import DiffusionHead, ancestral_step


class HeadStep(nn.Module):
    """One reverse diffusion step with guidance: x [N, C] FP32 -> x [N, C] FP32."""

    def __init__(self, source: DiffusionHead) -> None:
        super().__init__()
        self.input_proj, self.res_blocks, self.final_layer = source.input_proj, source.res_blocks, source.final_layer
        layers = [b.adaLN_modulation[1] for b in source.res_blocks] + [source.final_layer.adaLN_modulation[1]]
        self.modulation = nn.Linear(1, 1, device="meta")
        self.modulation.weight = nn.Parameter(torch.cat([m.weight.detach() for m in layers]), requires_grad=False)
        self.modulation.bias = nn.Parameter(torch.cat([m.bias.detach() for m in layers]), requires_grad=False)
        self.width = source.config.width

    def forward(
        self, x: Tensor, time: Tensor, coefficients: Tensor, draw: Tensor, condition: Tensor, guidance: Tensor
    ) -> Tensor:
        """time [W], condition [branches, N, W] (embedded), coefficients [6], draw [N, C], guidance [1]."""
        y = torch.nn.functional.silu(condition + time)
        parts = self.modulation(y).split(self.width, dim=-1)
        h = self.input_proj(x.to(y.dtype))
        for i, block in enumerate(self.res_blocks):
            shift, scale, gate = parts[3 * i : 3 * i + 3]
            h = h + gate * block.mlp(block.in_ln(h) * (1 + scale) + shift)
        shift, scale = parts[-2:]
        out = self.final_layer.linear(self.final_layer.norm_final(h) * (1 + scale) + shift).float()
        noise, variance = out.chunk(2, dim=-1)
        guided = noise[-1] + guidance * (noise[0] - noise[-1])
        return ancestral_step(x, guided, variance[0], coefficients, draw)


class HeadCondition(nn.Module):
    """What the loop needs once: embedded step numbers [T, W] and conditions [branches, N, W]."""

    def __init__(self, source: DiffusionHead) -> None:
        super().__init__()
        self.time_embed, self.cond_embed = source.time_embed, source.cond_embed

    def forward(self, timesteps: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        return self.time_embed(timesteps), self.cond_embed(z)
