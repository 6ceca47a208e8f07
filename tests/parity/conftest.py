"""A model made of a few numpy formulas, with every stage open to planted faults: the ladder's test in milliseconds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from videomar.config import ANCESTRAL, ModelConfig
from videomar.parity.packs.recorded import RecordedWords
from videomar.parity.subject import Subject
from videomar.runtime.backends.base import ClipPlan

Spoil = Callable[[np.ndarray], np.ndarray]
IDS = np.arange(5, dtype=np.int64)[None]


class FakeBackend:
    """`Backend`. spoil: stage ("text", "encoded", "z", "head", "decoded", "past") -> what is done to its result.

    `clip_spoil(number of clip, tokens)` spoils sampled tokens by the clip they belong to: 0 is the first one begun.
    """

    name = "fake"

    def __init__(self, config: ModelConfig, **spoil: Any) -> None:
        self.config, self.spoil, self.begun = config, spoil, 0

    def _out(self, stage: str, value: np.ndarray) -> np.ndarray:
        value = value.astype(np.float32)
        return self.spoil[stage](value) if stage in self.spoil else value

    def encode_text(self, ids: np.ndarray) -> np.ndarray:
        return self._out("text", np.sin(ids[..., None] + np.arange(self.config.text.width)))

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        _, _, frames, height, width = pixels.shape
        t, h, w = 1 + (frames - 1) // 8, height // 8, width // 8
        pooled = pixels[:, :, ::8].reshape(3, t, h, 8, w, 8).mean(axis=(0, 3, 5))
        phases = np.linspace(0.5, 1.5, self.config.tokenizer.latent_channels)[:, None, None, None]
        return self._out("encoded", np.sin(phases * (1 + pooled))[None])

    def decoder(self, frames: int, h: int, w: int) -> FakeDecoder:
        return FakeDecoder(self)

    def begin(self, states: np.ndarray, plan: ClipPlan) -> FakeClip:
        self.begun += 1
        return FakeClip(self, float(states.mean()), plan, self.begun - 1)

    def close(self) -> None: ...


class FakeDecoder:
    """One pixel frame of the first latent frame, eight of every other."""

    def __init__(self, backend: FakeBackend) -> None:
        self.backend, self.done = backend, 0

    def next(self, latent: np.ndarray) -> np.ndarray:
        self.done += 1
        frames = np.repeat(np.tanh(latent[None, :3, None]), 8 if self.done > 1 else 1, axis=2)
        return self.backend._out("decoded", frames.repeat(8, axis=3).repeat(8, axis=4))

    def close(self) -> None: ...


class FakeClip:
    """z depends on the tokens, on the text and on all kept frames; tokens on z and on all noise."""

    def __init__(self, backend: FakeBackend, text: float, plan: ClipPlan, number: int) -> None:
        self.backend, self.text, self.plan, self.number = backend, text, plan, number
        self.past = np.zeros(1)

    def step(self, tokens: Any, masked: Any, predict: Any, cos: Any, sin: Any, *whole: Any) -> None:
        width = self.backend.config.transformer.width
        self.frame = np.array([tokens.mean() + 0.1 * masked.mean()])
        seen = tokens.mean() + self.past.sum() + self.text
        rows = np.sin(seen + 0.3 * predict[:, None] + np.arange(width) / 3 + cos.sum() / cos.size)
        self._z = self.backend._out("z", np.stack([rows, 0.5 * rows + 0.1][: self.plan.branches]))

    def z(self) -> np.ndarray:
        return self._z

    def force(self, z: np.ndarray) -> None:
        self._z = z.astype(np.float32)

    def sample(self, guidance: float, initial: np.ndarray, draws: np.ndarray, solver: str = ANCESTRAL) -> np.ndarray:
        count = initial.shape[1]
        mixed = self._z[-1] + guidance * (self._z[0] - self._z[-1])
        tokens = 0.5 * mixed[:, :count] + 0.2 * initial + 0.05 * draws.sum(axis=0)
        tokens = self.backend._out("head", tokens)
        spoil = self.backend.spoil.get("clip_spoil")
        return spoil(self.number, tokens) if spoil else tokens

    def keep(self) -> None:
        self.past = self.backend._out("past", np.append(self.past, self.frame))

    def close(self) -> None: ...


@pytest.fixture
def fake_side(tiny_config: ModelConfig) -> Callable[..., Subject]:
    """(name, precision, **spoil) -> a Subject over FakeBackend."""

    def make(name: str = "reference", precision: str = "fp32", **spoil: Any) -> Subject:
        backend: Any = FakeBackend(tiny_config, **spoil)
        words: Any = RecordedWords(IDS)
        return Subject(Path(name), tiny_config, precision, backend, words, None, "a fake")

    return make
