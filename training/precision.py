"""The type that training multiplies in: bfloat16 where the processor has it, float32 where it would be emulated."""

from __future__ import annotations

import torch


def has_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 itself: emulated, a product takes 14 times as long as in float32."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


PRODUCTS = torch.bfloat16 if has_bfloat16() else torch.float32


def autocast() -> torch.autocast:
    """The context in which a training step computes."""
    return torch.autocast("cpu", torch.bfloat16, enabled=PRODUCTS is torch.bfloat16)
