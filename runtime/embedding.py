"""A prompt's text states in a file, so that a board needs no language model. Knows nothing of how they are made."""

from __future__ import annotations

import dataclasses
import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from videomar.arrays import read_arrays
from videomar.artifacts import atomic_write
from videomar.config import TextConfig
from videomar.errors import InputError
from videomar.fields import FieldError, Fields, parse

FORMAT = 1
MOST_BYTES = 1 << 30  # of a file, unpacked
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
            found = read_arrays(path, MOST_BYTES)
        except FileNotFoundError:
            raise InputError(f"{path} does not exist, expected text embeddings; {_MAKE}") from None
        except (OSError, ValueError) as error:
            raise InputError(f"{path} is not a NumPy archive ({error}), expected text embeddings; {_MAKE}") from None
        if missing := [name for name in ("format", "prompt", "states", "text") if name not in found]:
            raise InputError(f"{path} has no {missing[0]!r}, so it holds no text embeddings; {_MAKE}")
        if found["format"].shape or found["format"] != FORMAT:
            raise InputError(
                f"{path} is of format {found['format']!s:.20}, expected {FORMAT}; {_MAKE} with this version"
            )
        try:
            theirs = Fields(parse(str(found["text"])))
        except FieldError:
            raise InputError(f"{path} does not say which text encoder made it; {_MAKE}") from None
        ours = json.loads(json.dumps(dataclasses.asdict(text)))
        for key in ours:
            said = theirs.plain(key) if key in theirs else None
            if said != ours[key]:
                raise InputError(
                    f"{path} was made by another text encoder: {key} is {said!r:.60}, this model has "
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
