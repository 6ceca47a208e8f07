"""How attention, RoPE, RMSNorm and the K/V cache are written into a graph: `portable` or `native`.

portable: primitive operators of opset 18 and a Concat of finished and new K/V; runs wherever ONNX runs.
native: opset 24's RotaryEmbedding, RMSNormalization, Attention and TensorScatter; new K/V is written in place into the
cache, which the caller binds as input and output.

Both take q, k, v as [B, S, H, D] with RoPE channels already reordered to [first halves, second halves] (see
`halves_first`), and fold the 1/sqrt(D) of attention into the query's norm weight.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from videomar.errors import InputError


class Emitter(Protocol):
    """One way to write the operators that ONNX and TensorRT versions disagree on."""

    name: str
    opset: int
    in_place: bool  # whether the K/V cache is written in place

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Normalize the last axis."""

    def rotary(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Rotate [B, H, S, D] by angles with tables [S, D/2]."""

    def append(self, cache: Tensor, new: Tensor, start: Tensor | None) -> Tensor:
        """Finished K or V [B, H, P, D] (in place: a cache [B, H, P + S, D]) with the new [B, H, S, D] behind it."""

    def valid(self, cache: Tensor, reach: Tensor | None) -> Tensor:
        """The part of a cache that counts: as many tokens as `reach` is long, or all."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention with already scaled queries, all [B, H, length, D] -> [B, H, S, D]."""


class Portable:
    name, opset, in_place = "portable", 18, False

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        y = x.float()  # squares of FP16 numbers overflow at 256
        return (y / torch.sqrt(y.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype) * weight

    def rotary(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=-1)
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)

    def append(self, cache: Tensor, new: Tensor, start: Tensor | None) -> Tensor:
        return torch.cat([cache, new], dim=2)

    def valid(self, cache: Tensor, reach: Tensor | None) -> Tensor:
        return cache

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.softmax(q @ k.transpose(-1, -2), dim=-1) @ v


class Native:
    name, opset, in_place = "native", 24, True

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return torch.onnx.ops.symbolic(
            "RMSNormalization", [x, weight], {"axis": -1, "epsilon": eps}, dtype=x.dtype, shape=x.shape, version=23
        )

    def rotary(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch = x.shape[0]
        tables = [t[None].expand(batch, -1, -1) for t in (cos, sin)]
        return torch.onnx.ops.symbolic("RotaryEmbedding", [x, *tables], dtype=x.dtype, shape=x.shape, version=23)

    def append(self, cache: Tensor, new: Tensor, start: Tensor | None) -> Tensor:
        return torch.onnx.ops.symbolic(
            "TensorScatter", [cache, new, start], {"axis": 2}, dtype=cache.dtype, shape=cache.shape, version=24
        )

    def valid(self, cache: Tensor, reach: Tensor | None) -> Tensor:
        return cache if reach is None else cache[:, :, : reach.shape[0]]

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.onnx.ops.symbolic("Attention", [q, k, v], {"scale": 1.0}, dtype=q.dtype, shape=q.shape, version=24)


EMITTERS: dict[str, Emitter] = {e.name: e for e in (Portable(), Native())}


def emitter(name: str) -> Emitter:
    """The emitter of that name; raises InputError for an unknown one."""
    if name not in EMITTERS:
        raise InputError(f"emitter is {name!r}, expected one of {', '.join(EMITTERS)}; change --emitter")
    return EMITTERS[name]


def halves_first(split: tuple[int, int, int]) -> Tensor:
    """Order of head channels that turns rotate-half inside three slices into one rotate-half over the head: [D] int64.

    Queries and keys are reordered alike, so their products, and with them the model, stay the same.
    """
    starts = [sum(split[:i]) for i in range(3)]
    halves = [
        [torch.arange(s + h * n // 2, s + (h + 1) * n // 2) for s, n in zip(starts, split, strict=True)] for h in (0, 1)
    ]
    return torch.cat([*halves[0], *halves[1]])
