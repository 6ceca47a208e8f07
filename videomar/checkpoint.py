"""What a checkpoint directory says of its model: config.json. Knows nothing of weights."""

from __future__ import annotations

from pathlib import Path

from videomar.config import ModelConfig
from videomar.errors import ArtifactError, ConfigError

CONFIG = "config.json"


def read_config(directory: Path) -> ModelConfig:
    """The configuration of a checkpoint directory; raises ArtifactError for a file that is missing or damaged."""
    file = directory / CONFIG
    try:
        return ModelConfig.from_json(file.read_bytes())
    except OSError as error:
        raise ArtifactError(f"{file} cannot be read ({error.strerror}), expected a config; copy it again") from None
    except ConfigError as error:
        raise ArtifactError(f"{file}: {error}; copy it again") from None
