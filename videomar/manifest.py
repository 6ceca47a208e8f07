"""What an artifact directory says of itself: the manifest, checked as it is made or read. Knows nothing of files."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import PureWindowsPath
from typing import Any

import numpy as np

from videomar.config import ModelConfig
from videomar.errors import ArtifactError, ConfigError
from videomar.fields import Fields, parse

FORMAT = 3  # 2: the decoder takes a latent frame at a time; 3: the head's modulations are computed ahead of its loop
MOST_TOKENS = 16_777_216  # of a K/V cache
CHOICES = {
    "kind": ("onnx", "engine", "pack"),
    "precision": ("fp32", "fp16", "int8"),
    "emitter": ("portable", "native"),
}
_TYPES = dict(format=int, opset=int, kind=str, precision=str, emitter=str)
_TYPES |= dict.fromkeys(("config", "inputs", "made_by", "checks", "extra", "files"), dict)
_WORDS = {dict: "an object with keys", int: "a whole number", str: "a string"}


@dataclass(frozen=True)
class FileEntry:
    """Bytes and hexadecimal SHA-256 of one file."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """All that an artifact directory says of itself; raises ArtifactError naming the key that cannot be."""

    format: int = field(default=FORMAT, init=False)
    kind: str
    precision: str
    emitter: str
    opset: int
    config: ModelConfig
    inputs: dict[str, str] = field(default_factory=dict)  # what it was made from: hashes and options
    made_by: dict[str, str] = field(default_factory=dict)  # versions, host, date; never compared
    checks: dict[str, Any] = field(default_factory=dict)  # numbers the maker measured
    extra: dict[str, Any] = field(default_factory=dict)  # of later stages
    files: dict[str, FileEntry] = field(default_factory=dict)  # by path inside the directory, with "/"

    def __post_init__(self) -> None:
        for key, choices in CHOICES.items():
            if getattr(self, key) not in choices:
                raise ArtifactError(f"key {key!r} is {getattr(self, key)!r:.60}, expected one of {', '.join(choices)}")
        for name in self.files:
            path = PureWindowsPath(name)  # splits at both slashes, so it refuses what any system could follow outside
            if not path.parts or path.anchor or ".." in path.parts or not name.isprintable():
                raise ArtifactError(f"key 'files' lists {name!r:.60}, expected a path inside the directory")
        _check_extra(Fields(self.extra, "extra"))

    @property
    def cache_tokens(self) -> int | None:
        """Of graphs with a K/V cache of fixed length: its tokens."""
        tokens = self.extra.get("cache_tokens")
        return None if tokens is None else int(tokens)

    @property
    def activations(self) -> str:
        """The dtype between graphs as `contract` wants it, "fp32" or "fp16": INT8 weights leave it as it was."""
        return str(self.extra.get("activations", "fp32")) if self.precision == "int8" else self.precision

    def to_json(self) -> str:
        """The manifest as JSON text, NumPy scalars as plain numbers; `from_json` reads it back to an equal object."""
        return json.dumps(dataclasses.asdict(self), indent=2, default=_plain) + "\n"

    @staticmethod
    def from_json(text: str | bytes) -> Manifest:
        """Read a manifest; raises ArtifactError naming the first unknown, missing or ill-typed key."""
        data = parse(text)
        if isinstance(data, dict) and data.get("format", FORMAT) != FORMAT:
            made_by = data.get("made_by")
            version = made_by.get("videomar") if isinstance(made_by, dict) else None
            raise ArtifactError(
                f"written in format {data['format']!r:.20} by videomar {version or '(version unknown)'}, "
                f"expected format {FORMAT}; export again with this version"
            )
        _check_keys(data, _TYPES, "")
        for key in ("inputs", "made_by"):
            _check_keys(data[key], dict.fromkeys(data[key], str), f"{key}.")
        for name, entry in data["files"].items():
            _check_keys(entry, {"size": int, "sha256": str}, f"files.{name}.")
            Fields(entry, f"files.{name}").whole("size")
        Fields(data).whole("opset", 1, 1000)
        _check_printable(data)
        try:
            config = ModelConfig.from_json(json.dumps(data["config"]))
        except (ConfigError, TypeError) as error:
            raise ArtifactError(f"key 'config': {error}") from None
        files = {name: FileEntry(**entry) for name, entry in data["files"].items()}
        del data["format"]
        return Manifest(**{**data, "config": config, "files": files})


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"a manifest cannot hold {type(value).__name__}")


def _check_printable(data: Any) -> None:
    try:
        json.dumps(data, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ArtifactError("holds what is no Unicode text, so it was altered") from None


def _check_keys(data: Any, types: dict[str, Any], where: str) -> None:
    if not isinstance(data, dict):
        raise ArtifactError(f"{where.rstrip('.') or 'manifest'} is {data!r:.60}, expected {_WORDS[dict]}")
    if missing := [key for key in types if key not in data]:
        raise ArtifactError(f"lacks the key '{where:.60}{missing[0]:.60}'")
    if unknown := [key for key in data if key not in types]:
        raise ArtifactError(f"has an unknown key '{where}{unknown[0]:.60}'; known: {', '.join(types)}")
    for key, kind in types.items():
        if type(data[key]) is not kind:
            raise ArtifactError(f"key '{where:.60}{key:.60}' is {data[key]!r:.60}, expected {_WORDS[kind]}")


def _check_extra(extra: Fields) -> None:
    """Of what later stages say, all that any stage reads; what each finds in its own part it checks itself."""
    if "cache_tokens" in extra and extra.plain("cache_tokens") is not None:
        extra.whole("cache_tokens", 1, MOST_TOKENS)
    if "activations" in extra:
        extra.text("activations", ("fp32", "fp16"))
    if "lint" in extra:
        lint = extra.fields("lint")
        for graph in lint:
            lint.texts(graph)
    if "fingerprint" in extra:
        made_for = extra.fields("fingerprint")
        if "command" in made_for:
            made_for.text("command")
        if "targets" in made_for:
            made_for.texts("targets")
        if "machine" in made_for:
            machine = made_for.fields("machine")
            for key in machine:
                machine.text(key)
