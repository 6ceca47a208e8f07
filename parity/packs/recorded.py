"""A recorded clip as a reference: a backend that runs nothing and answers as the recorded one did.

Knows what was recorded under which name. Knows nothing of files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from videomar.config import ANCESTRAL
from videomar.runtime.backends.base import ClipPlan

Arrays = Mapping[str, np.ndarray]


class RecordedNoise:
    """`schedule.Noise` from arrays: numpy does not promise the same normal numbers for ever."""

    def __init__(self, arrays: Arrays) -> None:
        self._arrays = arrays

    def order(self, frame: int, tokens: int) -> np.ndarray:
        return self._arrays[f"order/{frame}"]

    def initial(self, frame: int, step: int, shape: tuple[int, int]) -> np.ndarray:
        return self._arrays[f"initial/{frame}/{step}"]

    def steps(self, frame: int, step: int, shape: tuple[int, int, int]) -> np.ndarray:
        return self._arrays[f"steps/{frame}/{step}"]


class RecordedWords:
    """The tokenizer's ids of the one recorded prompt."""

    prefix = 0

    def __init__(self, ids: np.ndarray) -> None:
        self._ids = ids

    def __call__(self, prompt: str) -> np.ndarray:
        return self._ids


class RecordedBackend:
    """Answers in the order of the recording, whatever it is given."""

    name = "recorded"

    def __init__(self, arrays: Arrays) -> None:
        self._arrays = arrays

    def encode_text(self, ids: np.ndarray) -> np.ndarray:
        return self._arrays["states"]

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        return self._arrays["encoded"]

    def decoder(self, frames: int, h: int, w: int) -> RecordedDecoder:
        return RecordedDecoder(self._arrays["decoded"], frames)

    def begin(self, states: np.ndarray, plan: ClipPlan) -> RecordedClip:
        return RecordedClip(self._arrays)

    def close(self) -> None:
        """Nothing to free."""


class RecordedDecoder:
    """The decoded frames, latent frame by latent frame."""

    def __init__(self, pixels: np.ndarray, frames: int) -> None:
        self._pixels = iter(np.split(pixels, np.linspace(1, pixels.shape[2], frames, dtype=int)[:-1], axis=2))

    def next(self, latent: np.ndarray) -> np.ndarray:
        return next(self._pixels)

    def close(self) -> None:
        """Nothing to free."""


class RecordedClip:
    """z of every pass and the tokens of every mask step, one after the other."""

    def __init__(self, arrays: Arrays) -> None:
        self._z, self._sampled = _numbered(arrays, "z"), _numbered(arrays, "sampled")
        self._now = np.zeros(0, np.float32)

    def step(
        self,
        tokens: np.ndarray,
        masked: np.ndarray,
        predict: np.ndarray,
        cos: np.ndarray,
        sin: np.ndarray,
        first: int = 0,
        branches: int | None = None,
    ) -> None:
        self._now = next(self._z)

    def z(self) -> np.ndarray:
        return self._now

    def force(self, z: np.ndarray) -> None:
        """Nothing follows from z here."""

    def sample(self, guidance: float, initial: np.ndarray, draws: np.ndarray, solver: str = ANCESTRAL) -> np.ndarray:
        return next(self._sampled)

    def keep(self) -> None:
        """Nothing is kept."""

    def close(self) -> None:
        """Nothing to free."""


def _numbered(arrays: Arrays, name: str) -> Iterator[np.ndarray]:
    index = 0
    while f"{name}/{index}" in arrays:
        yield arrays[f"{name}/{index}"]
        index += 1
