"""The VideoMAR transformer, written like the paper; parameter names and packing are the official checkpoint's.

Knows nothing of sampling, diffusion or how text is encoded. All shapes: batch B, sequence S, heads H, head width D.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from videomar.config import TextConfig, TransformerConfig

KeyValue = tuple[Tensor, Tensor]  # each [B, H, length, D]


def rotate(x: Tensor, cos: Tensor, sin: Tensor, split: tuple[int, int, int]) -> Tensor:
    """Apply 3D RoPE to [..., S, D] with tables [S, D]: rotate-half inside each of the three slices."""
    turned = []
    for part in x.split(split, dim=-1):
        first, second = part.chunk(2, dim=-1)
        turned += [-second, first]
    return x * cos + torch.cat(turned, dim=-1) * sin


class SelfAttention(nn.Module):
    """Attention of one frame's tokens to themselves and to finished frames."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        width, dim = config.width, config.head_dim
        self.wqkv = nn.Linear(width, 3 * width, bias=False)  # rows packed per head: [q, k, v] x heads
        self.wo = nn.Linear(width, width, bias=False)
        self.q_norm = nn.RMSNorm(dim, eps=1e-6)
        self.k_norm = nn.RMSNorm(dim, eps=1e-6)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, past: KeyValue | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, KeyValue]:
        """x [B, S, W] -> (same, K/V of past + these tokens); `mask` [S, S] bool, True = may be seen."""
        b, s, _ = x.shape
        c = self.config
        q, k, v = self.wqkv(x).view(b, s, c.heads, 3, c.head_dim).permute(3, 0, 2, 1, 4)
        q = rotate(self.q_norm(q), cos, sin, c.rope_split)
        k = rotate(self.k_norm(k), cos, sin, c.rope_split)
        if past is not None:
            k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.wo(y.transpose(1, 2).flatten(2)), (k, v)


class CrossAttention(nn.Module):
    """Attention of the tokens to the text."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        width, dim = config.width, config.head_dim
        self.wq = nn.Linear(width, width, bias=False)
        self.wkv = nn.Linear(width, 2 * width, bias=False)  # rows packed per head: [k, v] x heads
        self.wo = nn.Linear(width, width, bias=False)
        self.q_norm = nn.RMSNorm(dim, eps=1e-6)
        self.k_norm = nn.RMSNorm(dim, eps=1e-6)

    def key_value(self, context: Tensor) -> KeyValue:
        """Embedded text [B, L, W] -> its K/V, computed once a video."""
        b, length, _ = context.shape
        c = self.config
        k, v = self.wkv(context).view(b, length, c.heads, 2, c.head_dim).permute(3, 0, 2, 1, 4)
        return self.k_norm(k), v

    def forward(self, x: Tensor, text: KeyValue, text_mask: Tensor | None = None) -> Tensor:
        """x [B, S, W], text K/V [B, H, L, D], text_mask [B, L] bool (True = a real token) -> [B, S, W]."""
        b, s, _ = x.shape
        c = self.config
        q = self.q_norm(self.wq(x).view(b, s, c.heads, c.head_dim).transpose(1, 2))
        mask = None if text_mask is None else text_mask[:, None, None, :]
        y = F.scaled_dot_product_attention(q, *text, attn_mask=mask)
        return self.wo(y.transpose(1, 2).flatten(2))


class _Project(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.proj(x), approximate="tanh")


class FeedForward(nn.Module):
    """MLP with tanh-GELU, no bias; `net.1` is empty because the official layout counts a dropout there."""

    def __init__(self, width: int, ratio: int) -> None:
        super().__init__()
        self.net = nn.ModuleList(
            [_Project(width, ratio * width), nn.Identity(), nn.Linear(ratio * width, width, bias=False)]
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.net:
            x = layer(x)
        return x


class Block(nn.Module):
    """Self-attention, cross-attention (no norm in front), MLP; residual around each."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=1e-5)
        self.attn1 = SelfAttention(config)
        self.norm2 = nn.LayerNorm(config.width, eps=1e-5)
        self.attn2 = CrossAttention(config)
        self.ff = FeedForward(config.width, config.mlp_ratio)

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        text: KeyValue,
        text_mask: Tensor | None = None,
        past: KeyValue | None = None,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, KeyValue]:
        y, key_value = self.attn1(self.norm1(x), cos, sin, past, mask)
        x = x + y
        x = x + self.attn2(x, text, text_mask)
        return x + self.ff(self.norm2(x)), key_value


class Transformer(nn.Module):
    """Tokens of one or more frames, some masked, in; a condition vector for the diffusion head a token, out."""

    def __init__(self, config: TransformerConfig, text: TextConfig) -> None:
        super().__init__()
        self.config, self.text = config, text
        self.z_proj = nn.Linear(config.token_channels, config.width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.context_embed = nn.Linear(text.width, config.width)
        self.fake_latent = nn.Parameter(torch.zeros(1, text.max_tokens, config.width))
        self.decoder_blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.decoder_norm = nn.LayerNorm(config.width, eps=1e-6)

    def text_context(self, states: Tensor, drop: Tensor | None = None) -> Tensor:
        """Text states [B, L, text width] -> context [B, L, W]; rows with `drop` [B] bool get `fake_latent`."""
        context = self.context_embed(states)
        if drop is None:
            return context
        return torch.where(drop[:, None, None], self.no_text(states.shape[1]), context)

    def no_text(self, tokens: int) -> Tensor:
        """The context [1, tokens, W] that stands for "no text" beside a prompt of so many tokens."""
        first = self.text.first_row(tokens)
        return self.fake_latent[:, first : first + tokens]

    def text_key_values(self, context: Tensor) -> list[KeyValue]:
        """Cross-attention K/V of every block for a context [B, L, W]."""
        return [block.attn2.key_value(context) for block in self.decoder_blocks]

    def forward(
        self,
        tokens: Tensor,
        masked: Tensor,
        cos: Tensor,
        sin: Tensor,
        text: list[KeyValue],
        text_mask: Tensor | None = None,
        past: list[KeyValue] | None = None,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, list[KeyValue]]:
        """tokens [B, S, C], masked [B, S] bool, RoPE tables [S, D] -> (z [B, S, W], K/V of past + these)."""
        x = torch.where(masked[..., None], self.mask_token, self.z_proj(tokens))
        key_values = []
        for i, block in enumerate(self.decoder_blocks):
            x, kv = block(x, cos, sin, text[i], text_mask, past[i] if past else None, mask)
            key_values.append(kv)
        return self.decoder_norm(x), key_values
