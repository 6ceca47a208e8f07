"""The least and most that each number of a configuration can be: what lies beyond is a damaged file.

Refused before it takes memory or time. Far from all that was built: the released model's sizes are a tenth of these
or less.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from videomar.errors import ConfigError

if TYPE_CHECKING:
    from videomar.config import ModelConfig

Bounds = dict[str, tuple[float, float]]
WIDTH, DEPTH = (1, 65_536), (1, 1024)
BOUNDS: dict[str, Bounds] = {  # part of the configuration -> field, or each number of a field that is a list
    "tokenizer": {
        "encoder_channels": WIDTH,
        "decoder_channels": WIDTH,
        "layers_per_block": (0, 64),
        "attention_resolutions": (1, 65_536),
        "resolution": (1, 65_536),
        "patch_size": (1, 64),
        "latent_channels": (1, 1024),
        "spatial_stride": (1, 256),
        "temporal_stride": (1, 256),
        "latent_scale": (1e-6, 1e6),
    },
    "text": {
        "vocab_size": (1, 10_000_000),
        "width": WIDTH,
        "depth": DEPTH,
        "heads": (1, 1024),
        "kv_heads": (1, 1024),
        "mlp_width": (1, 1_048_576),
        "rope_theta": (1, 1e12),
        "max_positions": (1, 16_777_216),
        "max_tokens": (1, 65_536),
        "system_tokens": (0, 65_536),
    },
    "transformer": {
        "width": WIDTH,
        "depth": DEPTH,
        "heads": (1, 1024),
        "head_dim": (2, 4096),
        "token_channels": (1, 1024),
        "mlp_ratio": (1, 64),
        "rope_split": (2, 4096),
        "rope_theta": (1, 1e12),
    },
    "head": {
        "width": WIDTH,
        "depth": DEPTH,
        "time_features": (2, 65_536),
        "train_steps": (1, 100_000),
    },
}
LENGTHS = {
    "encoder_channels": (2, 8),
    "decoder_channels": (2, 8),
    "attention_resolutions": (0, 8),
    "rope_split": (3, 3),
}
PATCHES = ("haar", "rearrange")
MOST_CHARACTERS = 100_000  # of a name or a system prompt


def check_bounds(part: str, values: Any) -> None:
    """Raise ConfigError naming the first field of a part (a dataclass) that is out of its bounds or of another type."""
    for field in dataclasses.fields(values):
        value, where = getattr(values, field.name), f"{part}.{field.name}"
        if isinstance(value, str):
            check_words(where, value)
            continue
        several = isinstance(value, (tuple, list))
        if several:
            few, many = LENGTHS[field.name]
            if not few <= len(value) <= many:
                count = f"{few}" if few == many else f"{few} to {many}"
                raise ConfigError(f"{where} has {len(value)} numbers, expected {count}")
        least, most = BOUNDS[part][field.name]
        kinds = (int, float) if str(field.type) == "float" else (int,)
        for number in value if several else (value,):
            if type(number) not in kinds or not least <= number <= most:
                raise ConfigError(f"{where} is {number!r:.60}, expected {_plain(least)} to {_plain(most)}")


def check_parts(config: ModelConfig) -> None:
    """Raise ConfigError for numbers, each in its bounds, that do not go together."""
    v, x, t, head = config.tokenizer, config.text, config.transformer, config.head
    if v.patch_type not in PATCHES:
        raise ConfigError(f"tokenizer.patch_type is {v.patch_type!r:.60}, expected {' or '.join(PATCHES)}")
    for name in ("patch_size", "spatial_stride", "temporal_stride"):
        value = getattr(v, name)
        if value & (value - 1) or value < v.patch_size:
            raise ConfigError(f"tokenizer.{name} is {value}, expected a power of two, a patch or more")
    if x.width % x.heads or x.heads % x.kv_heads or x.width // x.heads % 2:
        raise ConfigError(
            f"text.width, heads and kv_heads are {x.width}, {x.heads} and {x.kv_heads}, expected each to be a multiple "
            "of the next, and heads of an even width"
        )
    if t.width != t.heads * t.head_dim:
        raise ConfigError(f"transformer width is {t.width}, expected heads * head_dim = {t.heads * t.head_dim}")
    if sum(t.rope_split) != t.head_dim or any(part % 2 for part in t.rope_split):
        raise ConfigError(
            f"rope_split is {t.rope_split}, expected three positive even numbers that add up to {t.head_dim}"
        )
    if t.token_channels != v.latent_channels:
        raise ConfigError(f"token_channels is {t.token_channels}, expected the tokenizer's {v.latent_channels}")
    if head.time_features % 2:
        raise ConfigError(f"head.time_features is {head.time_features}, expected an even number")


def _plain(number: float) -> str:
    return f"{number:g}" if isinstance(number, float) else str(number)


def check_words(where: str, text: str) -> None:
    """Raise ConfigError for text that is too long, or cannot be printed."""
    if len(text) > MOST_CHARACTERS:
        raise ConfigError(f"{where} has {len(text)} characters, expected at most {MOST_CHARACTERS}")
    if any("\ud800" <= c <= "\udfff" for c in text):
        raise ConfigError(f"{where} is no Unicode text, expected text")
