"""All that was found, in one JSON file that is whole after every part. Knows nothing of how anything was measured."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any


class Results:
    """about: date, machine, command. parts: name -> status, seconds, why, and what the part noted."""

    def __init__(self, file: Path, about: dict[str, Any]) -> None:
        self.file = file
        self.data: dict[str, Any] = {"about": about, "parts": {}}

    def add(self, name: str, **fields: Any) -> None:
        """What became of a part; written at once."""
        self.data["parts"].setdefault(name, {}).update(fields)
        self.write()

    def write(self) -> None:
        write_json(self.file, self.data)


def write_json(file: Path, data: Any) -> None:
    """Whole or not at all; numbers that JSON has no word for become null."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(_plain(data), indent=1, allow_nan=False) + "\n")
    os.replace(temporary, file)


def read_notes(file: Path) -> dict[str, Any]:
    """What a part wrote; nothing, if it wrote nothing or rubbish."""
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (str, int, bool)):
        return value
    if hasattr(value, "item"):  # a NumPy or PyTorch scalar
        return _plain(value.item())
    return str(value)
