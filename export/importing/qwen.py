"""A Qwen2-family language model (a transformers directory) -> our config, weights and tokenizer.json.

Accepts what `videomar.model.text` can compute and nothing else. Knows nothing of the other parts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import Qwen2Config

from videomar.config import TextConfig
from videomar.errors import ArtifactError
from videomar.export.importing.reading import Tensors, check_file, one_line, read_json, read_shards

MODEL_TYPE = "qwen2"
DROPPED = ("lm_head.weight",)  # predicts words; the encoder stops before it


def read_qwen(directory: Path, max_tokens: int, system_prompt: str = "") -> tuple[TextConfig, Tensors, bytes]:
    """Config, weights under the names of `transformers.Qwen2Model`, and the tokenizer's file.

    Raises ArtifactError for another architecture, a feature that our encoder lacks, quantised or missing files.
    """
    if not directory.is_dir():
        raise ArtifactError(f"{directory} is no directory, expected a transformers one; check the path")
    config = _config(directory / "config.json", max_tokens, system_prompt)
    tokenizer = _tokenizer(directory / "tokenizer.json", config)
    tensors = {name.removeprefix("model."): tensor for name, tensor in read_shards(directory, "model").items()}
    return config, {name: tensor for name, tensor in tensors.items() if name not in DROPPED}, tokenizer


def _config(source: Path, max_tokens: int, system_prompt: str) -> TextConfig:
    data = read_json(source)
    if data.get("model_type") != MODEL_TYPE:
        raise ArtifactError(
            f"{source}: model_type is {data.get('model_type')!r:.60}, expected {MODEL_TYPE!r}; "
            "give a Qwen2 or Qwen2.5 text model"
        )
    if data.get("quantization_config"):
        raise ArtifactError(f"{source} is of quantised weights, expected float ones; get the original model")
    try:
        config = Qwen2Config.from_dict(data)  # fills in what the file leaves to transformers' defaults
        rope: dict[str, Any] = dict(config.rope_parameters or {})
        text = TextConfig(
            vocab_size=config.vocab_size,
            width=config.hidden_size,
            depth=config.num_hidden_layers,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads or config.num_attention_heads,
            mlp_width=config.intermediate_size,
            rope_theta=float(rope["rope_theta"]),
            max_positions=config.max_position_embeddings,
            max_tokens=max_tokens,
            system_prompt=system_prompt,
        )
        size = text.width // text.heads
        only = {
            "hidden_act": (config.hidden_act, "silu"),
            "rms_norm_eps": (config.rms_norm_eps, 1e-6),
            "rope_type": (rope.get("rope_type", "default"), "default"),
            "use_sliding_window": (bool(config.use_sliding_window), False),
            "head_dim": (getattr(config, "head_dim", None) or size, size),
            "width left over by the heads": (text.width % text.heads, 0),
            "heads left over by the key heads": (text.heads % text.kv_heads, 0),
        }
    except Exception as error:  # each version of transformers has its own
        raise ArtifactError(f"{source} is no whole {MODEL_TYPE} config ({one_line(error)}); get it again") from None
    for name, (got, expected) in only.items():
        if got != expected:
            raise ArtifactError(f"{source}: {name} is {got!r}, expected {expected!r}; give a plain Qwen2 text model")
    return text


def _tokenizer(source: Path, config: TextConfig) -> bytes:
    if not source.exists():
        raise ArtifactError(
            f"{source} is missing, expected the tokenizer in one file; write it with "
            "transformers.AutoTokenizer.from_pretrained(DIRECTORY).save_pretrained(DIRECTORY)"
        )
    check_file(source)
    data = source.read_bytes()
    try:
        tokenizer = Tokenizer.from_str(data.decode())
    except Exception as error:  # the library raises plain Exception
        raise ArtifactError(f"{source} is no tokenizer ({one_line(error)}); get it again") from None
    if (largest := max(tokenizer.get_vocab().values(), default=0)) >= config.vocab_size:
        raise ArtifactError(
            f"{source} has token {largest}, expected less than the model's {config.vocab_size}; it is another model's"
        )
    used = len(tokenizer.encode(config.system_prompt, add_special_tokens=False).ids) + config.max_tokens
    if used > config.max_positions:
        raise ArtifactError(
            f"{source.parent}: system prompt and {config.max_tokens} tokens make {used}, expected at most "
            f"{config.max_positions}; shorten --system-prompt"
        )
    return data
