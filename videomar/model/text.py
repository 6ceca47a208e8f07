"""The text encoder: a Qwen2-family model from transformers, built from our config. Knows nothing of video."""

from __future__ import annotations

from torch import Tensor, nn
from transformers import Qwen2Config, Qwen2Model

from videomar.config import TextConfig


class TextEncoder(nn.Module):
    """Token ids -> last hidden states; causal, so padding on the right changes nothing and is left out."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        self.llm = Qwen2Model(
            Qwen2Config(
                vocab_size=config.vocab_size,
                hidden_size=config.width,
                intermediate_size=config.mlp_width,
                num_hidden_layers=config.depth,
                num_attention_heads=config.heads,
                num_key_value_heads=config.kv_heads,
                max_position_embeddings=config.max_positions,
                rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
                use_cache=False,
                attn_implementation="sdpa",
            )
        )

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """ids [B, L] int64, mask [B, L] (1 = a real token) -> [B, L, width], system prompt included."""
        return self.llm(input_ids=ids, attention_mask=mask).last_hidden_state
