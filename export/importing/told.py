"""`videomar.json`, beside a checkpoint in the authors' layout: what their files do not hold, such as how it is sampled.

The import reads it where it is there; without it the released model's values and the options stand. Knows no weights.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from videomar.artifacts import atomic_write
from videomar.config import (
    HeadConfig,
    ModelConfig,
    SamplingConfig,
    TextConfig,
    TokenizerConfig,
    TransformerConfig,
    from_dict,
)
from videomar.errors import ArtifactError, ConfigError
from videomar.export.importing.layout import TOLD
from videomar.export.importing.reading import read_json
from videomar.model import text, tokenizer

FORMAT = 1
CLASSES: dict[str, type[Any]] = {
    "tokenizer": TokenizerConfig,
    "text": TextConfig,
    "transformer": TransformerConfig,
    "head": HeadConfig,
    "sampling": SamplingConfig,
}
WHOLE = {field.name for field in dataclasses.fields(ModelConfig)} - set(CLASSES)
# What their files do hold, in shapes or in config files. All else is told, so that a field of tomorrow is not lost.
HELD = {
    "tokenizer": set(tokenizer.NAMES),
    "text": {*text.NAMES, "rope_theta", "max_tokens", "system_tokens", "padding_side"},
    "transformer": {"width", "depth", "heads", "head_dim", "token_channels", "mlp_ratio"},
    "head": {"width", "depth", "time_features"},
    "sampling": set[str](),
}


@dataclasses.dataclass(frozen=True)
class Told:
    """What the file gives of a config: fields of the whole, such as its name, and of each part; or nothing."""

    whole: Mapping[str, Any]
    fields: Mapping[str, Mapping[str, Any]]

    def of(self, part: str) -> dict[str, Any]:
        """The fields of one part."""
        return dict(self.fields.get(part, {}))


def write_told(config: ModelConfig, directory: Path) -> None:
    """Write what the layout does not hold of this config."""
    whole = dataclasses.asdict(config)
    data = {"format": FORMAT, **{name: value for name, value in whole.items() if name not in CLASSES}}
    data |= {part: {k: v for k, v in whole[part].items() if k not in held} for part, held in HELD.items()}
    atomic_write(directory / TOLD, json.dumps(data, indent=2) + "\n")


def read_told(directory: Path) -> Told:
    """What the file in this directory tells; raises ArtifactError naming what is wrong with it."""
    file = directory / TOLD
    if not file.exists():
        return Told({}, {})
    mend = "correct it, or remove it to import without"
    data = read_json(file)
    if (version := data.pop("format", None)) != FORMAT:
        raise ArtifactError(f"{file}: format is {version!r:.60}, expected {FORMAT}; {mend}")
    of_whole = {name: data.pop(name) for name in WHOLE if name in data}
    whole = _read(ModelConfig, of_whole, "model", file, mend)
    fields = {}
    for part, given in data.items():
        if part not in CLASSES or not isinstance(given, dict) or (held := HELD[part] & set(given)):
            what = f"{part}.{min(held)}" if part in CLASSES and isinstance(given, dict) else f"{part!r:.60}"
            raise ArtifactError(
                f"{file}: {what} is not told here, expected objects of what the other files do not hold; {mend}"
            )
        fields[part] = _read(CLASSES[part], given, part, file, mend)
    return Told(whole, fields)


def _read(cls: type[Any], given: dict[str, Any], where: str, file: Path, mend: str) -> dict[str, Any]:
    """These fields of a class, each of its type."""
    others = json.loads(json.dumps(dataclasses.asdict(cls())))
    try:
        read = from_dict(cls, others | given, where)
    except ConfigError as error:
        raise ArtifactError(f"{file}: {error}; {mend}") from None
    return {name: getattr(read, name) for name in given}
