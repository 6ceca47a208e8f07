"""The transformer as flat graphs: `TextKeyValues` (once a video) and `TransformerStep` (once a mask step).

Same weights as `videomar.model.transformer`, rearranged so that no step repeats work. Knows nothing of files or ONNX.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from videomar.export.emitters import Emitter, halves_first
from videomar.model.transformer import Block, CrossAttention, SelfAttention, Transformer


def _fused(rows: list[Tensor]) -> nn.Linear:
    weight = torch.cat([r.flatten(0, -2) for r in rows])
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    return linear


class _Norm(nn.Module):
    """RMSNorm over a head's channels, with weight times a constant."""

    def __init__(self, weight: Tensor, factor: float, emit: Emitter) -> None:
        super().__init__()
        self.weight = nn.Parameter((weight.float() * factor).to(weight.dtype), requires_grad=False)
        self.emit = emit

    def forward(self, x: Tensor) -> Tensor:
        return self.emit.rms_norm(x, self.weight, 1e-6)


class SelfAttentionStep(nn.Module):
    """Self-attention against finished K/V; the last block's has queries for the predicted `rows` only."""

    def __init__(self, source: SelfAttention, emit: Emitter, last: bool) -> None:
        super().__init__()
        c = source.config
        self.heads, self.dim, self.emit = c.heads, c.head_dim, emit
        order = halves_first(c.rope_split)
        q, k, v = source.wqkv.weight.detach().view(c.heads, 3, c.head_dim, c.width).unbind(1)
        if last:  # queries of the predicted rows only
            self.wq, self.wkv = _fused([q[:, order]]), _fused([k[:, order], v])
        else:
            self.wqkv = _fused([q[:, order], k[:, order], v])
        self.q_norm = _Norm(source.q_norm.weight.detach()[order], c.head_dim**-0.5, emit)
        self.k_norm = _Norm(source.k_norm.weight.detach()[order], 1.0, emit)
        self.wo = source.wo

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        past_key: Tensor,
        past_value: Tensor,
        start: Tensor | None,
        reach: Tensor | None,
        rows: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        width = self.heads * self.dim
        if rows is None:
            q, k, v = self._heads(self.wqkv(x).split(width, dim=-1))
            q_cos, q_sin = cos, sin
        else:
            k, v = self._heads(self.wkv(x).split(width, dim=-1))
            (q,) = self._heads((self.wq(x.index_select(1, rows)),))
            q_cos, q_sin = cos.index_select(0, rows), sin.index_select(0, rows)
        q = self.emit.rotary(self.q_norm(q).transpose(1, 2), q_cos, q_sin)
        k = self.emit.rotary(self.k_norm(k).transpose(1, 2), cos, sin)
        key = self.emit.append(past_key, k, start)
        value = self.emit.append(past_value, v.transpose(1, 2), start)
        y = self.emit.attend(q, self.emit.valid(key, reach), self.emit.valid(value, reach))
        return self.wo(y.transpose(1, 2).flatten(2)), key, value

    def _heads(self, parts: tuple[Tensor, ...]) -> list[Tensor]:
        return [p.unflatten(-1, (self.heads, self.dim)) for p in parts]


class CrossAttentionStep(nn.Module):
    """Cross-attention against the text's K/V, given."""

    def __init__(self, source: CrossAttention, emit: Emitter) -> None:
        super().__init__()
        c = source.config
        self.heads, self.dim, self.emit = c.heads, c.head_dim, emit
        self.wq, self.wo = source.wq, source.wo
        self.q_norm = _Norm(source.q_norm.weight.detach(), c.head_dim**-0.5, emit)

    def forward(self, x: Tensor, key: Tensor, value: Tensor) -> Tensor:
        q = self.q_norm(self.wq(x).unflatten(-1, (self.heads, self.dim))).transpose(1, 2)
        return self.wo(self.emit.attend(q, key, value).transpose(1, 2).flatten(2))


class BlockStep(nn.Module):
    def __init__(self, source: Block, emit: Emitter, last: bool) -> None:
        super().__init__()
        self.norm1, self.norm2, self.ff, self.last = source.norm1, source.norm2, source.ff, last
        self.attn1 = SelfAttentionStep(source.attn1, emit, last)
        self.attn2 = CrossAttentionStep(source.attn2, emit)

    def forward(
        self,
        x: Tensor,
        rows: Tensor,
        cos: Tensor,
        sin: Tensor,
        past: tuple[Tensor, Tensor],
        text: tuple[Tensor, Tensor],
        start: Tensor | None,
        reach: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        y, key, value = self.attn1(self.norm1(x), cos, sin, *past, start, reach, rows if self.last else None)
        x = (x.index_select(1, rows) if self.last else x) + y
        x = x + self.attn2(x, *text)
        return x + self.ff(self.norm2(x)), key, value


class TransformerStep(nn.Module):
    """One pass over one frame's tokens; contract: `videomar.graphs`, graph `transformer_step`."""

    def __init__(self, source: Transformer, emit: Emitter) -> None:
        super().__init__()
        self.emit = emit
        self.z_proj, self.mask_token, self.decoder_norm = source.z_proj, source.mask_token, source.decoder_norm
        last = len(source.decoder_blocks) - 1
        self.decoder_blocks = nn.ModuleList(BlockStep(b, emit, i == last) for i, b in enumerate(source.decoder_blocks))

    def forward(
        self,
        tokens: Tensor,
        masked: Tensor,
        predict: Tensor,
        rope_cos: Tensor,
        rope_sin: Tensor,
        text: list[Tensor],
        past: list[Tensor],
        start: Tensor | None = None,
        reach: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        dtype = self.mask_token.dtype
        x = torch.where(masked[:, None], self.mask_token[0], self.z_proj(tokens.to(dtype)))
        x = x[None].expand(text[0].shape[0], -1, -1)
        present = []
        for i, block in enumerate(self.decoder_blocks):
            pair = slice(2 * i, 2 * i + 2)
            x, key, value = block(x, predict, rope_cos, rope_sin, past[pair], text[pair], start, reach)
            present += [key, value]
        return (self.decoder_norm(x), *present)


class TextKeyValues(nn.Module):
    """Text states [1, L, text width] -> every block's cross-attention K/V, branches (text, `fake_latent`)."""

    def __init__(self, source: Transformer) -> None:
        super().__init__()
        self.context_embed, self.fake_latent, self.text = source.context_embed, source.fake_latent, source.text
        self.attentions = nn.ModuleList(b.attn2 for b in source.decoder_blocks)

    def forward(self, states: Tensor) -> tuple[Tensor, ...]:
        context = torch.cat([self.context_embed(states), self._no_text(states.shape[1])])
        return tuple(t for a in self.attentions for t in a.key_value(context))

    def _no_text(self, tokens: int) -> Tensor:
        if self.text.first_row(0) == 0:
            return self.fake_latent[:, :tokens]
        # A slice that starts where the length says is more than the tracer follows.
        rows = torch.arange(tokens) + self.text.first_row(tokens)
        return self.fake_latent.index_select(1, rows)
