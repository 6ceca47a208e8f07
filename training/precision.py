"""The type that training multiplies in: bfloat16 where the device has it, float32 where it would be emulated."""

from __future__ import annotations

import torch


def has_bfloat16(device: str = "cpu") -> bool:
    """Whether this device multiplies bfloat16 itself: emulated by a processor, a product takes 14 times as long."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def products(device: str = "cpu") -> torch.dtype:
    """What a product's operands become; sums and weights stay in float32."""
    return torch.bfloat16 if has_bfloat16(device) else torch.float32


def autocast(device: str = "cpu") -> torch.autocast:
    """The context in which a training step computes."""
    return torch.autocast(device, torch.bfloat16, enabled=has_bfloat16(device))
