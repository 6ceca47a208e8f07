"""A prompt's text states in a file, so that a board needs no language model. Knows nothing of how they are made."""

from __future__ import annotations

import dataclasses
import io
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from videomar.artifacts import atomic_write
from videomar.config import TextConfig
from videomar.errors import InputError

FORMAT = 1
_MAKE = "make it with `videomar embed DIR --prompt ... -o FILE.npz`"


@dataclass(frozen=True)
class PromptEmbedding:
    """Text states [1, L, width] float32 of one prompt, and the text encoder's sizes they belong to."""

    prompt: str
    states: np.ndarray
    text: TextConfig

    def save(self, path: Path) -> None:
        """Write a NumPy archive that `load` and plain numpy read."""
        buffer = io.BytesIO()
        text = json.dumps(dataclasses.asdict(self.text))
        np.savez(buffer, format=FORMAT, prompt=self.prompt, states=self.states.astype(np.float32), text=text)
        atomic_write(path, buffer.getvalue())

    @staticmethod
    def load(path: Path, text: TextConfig) -> PromptEmbedding:
        """Read a file for a model with this text encoder; raises InputError for any other file, unpickling nothing."""
        try:
            with np.load(path, allow_pickle=False) as file:
                found = {name: file[name] for name in file.files}
        except FileNotFoundError:
            raise InputError(f"{path} does not exist, expected text embeddings; {_MAKE}") from None
        except (OSError, ValueError, zipfile.BadZipFile, AttributeError, EOFError) as error:
            raise InputError(f"{path} is not a NumPy archive ({error}), expected text embeddings; {_MAKE}") from None
        if missing := [name for name in ("format", "prompt", "states", "text") if name not in found]:
            raise InputError(f"{path} has no {missing[0]!r}, so it holds no text embeddings; {_MAKE}")
        if found["format"] != FORMAT:
            raise InputError(f"{path} is of format {found['format']}, expected {FORMAT}; {_MAKE} with this version")
        try:
            theirs = json.loads(str(found["text"]))
        except ValueError:
            raise InputError(f"{path} does not say which text encoder made it; {_MAKE}") from None
        ours = json.loads(json.dumps(dataclasses.asdict(text)))
        for key in ours:
            if theirs.get(key) != ours[key]:
                raise InputError(
                    f"{path} was made by another text encoder: {key} is {theirs.get(key)!r}, this model has "
                    f"{ours[key]!r}; {_MAKE} of this model"
                )
        states = found["states"]
        if states.dtype != np.float32 or states.ndim != 3 or states.shape[0] != 1 or states.shape[2] != text.width:
            raise InputError(
                f"{path} holds {states.dtype} {list(states.shape)}, expected float32 [1, tokens, {text.width}]; {_MAKE}"
            )
        if not 1 <= states.shape[1] <= text.max_tokens or not np.isfinite(states).all():
            raise InputError(
                f"{path} holds {states.shape[1]} tokens, expected 1 to {text.max_tokens} of finite numbers; {_MAKE}"
            )
        return PromptEmbedding(str(found["prompt"]), states, text)
