"""The text encoder: a Qwen2-family model from transformers, built from our config. Knows nothing of video."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import Qwen2Config, Qwen2Model

from videomar.config import TextConfig

# Our field of TextConfig -> transformers' name, in every config.json of this family.
NAMES = {
    "vocab_size": "vocab_size",
    "width": "hidden_size",
    "depth": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "mlp_width": "intermediate_size",
    "max_positions": "max_position_embeddings",
}


class TextEncoder(nn.Module):
    """Token ids -> last hidden states; causal and masked, so that padding is never computed, only its positions count.

    Qwen2-VL's language model is this one: for text its three rotary sections turn by the same position.
    """

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        self.llm = Qwen2Model(
            Qwen2Config(
                **{theirs: getattr(config, ours) for ours, theirs in NAMES.items()},
                rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
                use_cache=False,
                attn_implementation="sdpa",
            )
        )

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """ids [B, L] int64, mask [B, L] (1 = a real token) -> [B, L, width], system prompt included."""
        return self.llm(input_ids=ids, attention_mask=mask).last_hidden_state

    def prompt_states(self, ids: Tensor, prefix: int) -> Tensor:
        """ids [1, P] of system prompt (`prefix` of them) and prompt -> the prompt's states [1, L, width].

        Positions are those of a prompt padded to `max_tokens` as the model was trained (config.TextConfig).
        """
        if self.config.gap(0) == 0:
            return self(ids)[:, prefix:]
        tokens = ids.shape[1] - prefix
        positions = torch.arange(ids.shape[1])
        positions = torch.where(positions < prefix, positions, positions + self.config.gap(tokens))
        # A mask that is made already, and none: transformers would take the gap for the seam of two packed texts.
        causal = {"full_attention": None}
        states = self.llm(input_ids=ids, attention_mask=causal, position_ids=positions[None]).last_hidden_state
        return states[:, prefix:]
