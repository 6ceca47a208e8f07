"""What a language model's directory says of words: `tokenizer.json`, and on which side prompts are padded.

Knows nothing of weights.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers.models.auto.tokenization_auto import tokenizer_class_from_name

from videomar.config import TextConfig
from videomar.errors import ArtifactError
from videomar.export.importing.reading import check_file, one_line, read_json

SIDES = ("left", "right")
DEFAULT_CLASS = "Qwen2Tokenizer"  # what AutoTokenizer takes for these models where no file names a class


def read_words(directory: Path, config: TextConfig) -> tuple[bytes, int]:
    """The tokenizer's file, and how many tokens the config's system prompt has.

    Raises ArtifactError for a missing or foreign file, another model's, or where the tokens are too many for the model.
    """
    source = directory / "tokenizer.json"
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
    tokenizer.no_padding()
    tokenizer.no_truncation()
    system = len(tokenizer.encode(config.system_prompt, add_special_tokens=False).ids)
    if (used := system + config.max_tokens) > config.max_positions:
        raise ArtifactError(
            f"{directory}: system prompt and {config.max_tokens} tokens make {used}, expected at most "
            f"{config.max_positions}; shorten the system prompt"
        )
    return data, system


def padding_side(directory: Path) -> tuple[str, str]:
    """ "left" or "right", as `transformers.AutoTokenizer` of this directory pads, and what says so.

    `tokenizer_config.json` decides, then the padding that `tokenizer.json` was saved with, then the class's default.
    Raises ArtifactError for a side or a class that there is none of.
    """
    file = directory / "tokenizer_config.json"
    said: dict[str, Any] = read_json(file) if file.exists() else {}
    side = said.get("padding_side")
    if side is not None:
        return _checked(side, file), f"{file.name} says so"
    saved = json.loads((directory / "tokenizer.json").read_bytes()).get("padding")
    if saved is not None:
        return _checked(str(saved.get("direction")).lower(), directory / "tokenizer.json"), "tokenizer.json says so"
    name = said.get("tokenizer_class") or DEFAULT_CLASS
    kind = tokenizer_class_from_name(name) if isinstance(name, str) else None
    if kind is None:
        raise ArtifactError(
            f"{file}: tokenizer_class is {name!r:.60}, which transformers does not have, and no padding_side is given; "
            'write "padding_side": "left" or "right" there'
        )
    return _checked(kind.padding_side, file), f"the default of {name}"


def _checked(side: Any, file: Path) -> str:
    if side not in SIDES:
        raise ArtifactError(f"{file}: padding_side is {side!r:.60}, expected left or right; get it again")
    return str(side)
