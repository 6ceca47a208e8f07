"""One loop, several backends: a reference that decides, and others that are fed exactly what it is fed.

It is a backend itself, so the real loop drives it, with the real schedule and noise. Knows nothing of measures, files
or what is concluded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from videomar.config import ANCESTRAL
from videomar.runtime.backends.base import Backend, Clip, ClipPlan, Decoder
from videomar.runtime.backends.plain import Run, sample_in_parts

# What is compared at a call. HEAD is the head given the reference's z, SAMPLED the head given its own.
TEXT, ENCODED, Z, HEAD, SAMPLED, DECODED = "text", "encoded", "z", "head", "sampled", "decoded"
PARTS = "parts"  # the head in parts, given the reference's z, on those that run it whole


@dataclass(frozen=True)
class Call:
    """What the reference and the others made of the same inputs. Arrays are valid until the listener returns."""

    kind: str
    frame: int  # latent frame, -1 outside of frames
    step: int  # mask step; for a pass that only stores K/V, the number after the last
    reference: np.ndarray
    others: Mapping[str, np.ndarray]


Listener = Callable[[Call], None]
Opened = TypeVar("Opened", Clip, Decoder)


class Lockstep(Backend):
    """A backend that returns the reference's results and tells `listen` about everybody's."""

    def __init__(
        self,
        reference: Backend,
        others: Mapping[str, Backend],
        listen: Listener,
        parts: Mapping[str, Run] | None = None,
    ) -> None:
        """parts: how to run the graphs of those others that hold the head in parts too, which they do not run."""
        self.name = f"lockstep of {reference.name}"
        self._reference, self._others, self._listen, self._parts = reference, dict(others), listen, dict(parts or {})

    def encode_text(self, ids: np.ndarray) -> np.ndarray:
        return self._once(TEXT, lambda backend: backend.encode_text(ids))

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        return self._once(ENCODED, lambda backend: backend.encode(pixels))

    def decoder(self, frames: int, h: int, w: int) -> LockstepDecoder:
        opened = self._on_all(lambda backend: backend.decoder(frames, h, w))
        return LockstepDecoder(opened[0], dict(zip(self._others, opened[1:], strict=True)), self._listen)

    def _once(self, kind: str, call: Callable[[Backend], np.ndarray]) -> np.ndarray:
        result = call(self._reference)
        self._listen(Call(kind, -1, -1, result, {name: call(other) for name, other in self._others.items()}))
        return result

    def begin(self, states: np.ndarray, plan: ClipPlan) -> LockstepClip:
        opened = self._on_all(lambda backend: backend.begin(states, plan))
        return LockstepClip(
            opened[0], dict(zip(self._others, opened[1:], strict=True)), self._listen, plan, self._parts
        )

    def _on_all(self, open_on: Callable[[Backend], Opened]) -> list[Opened]:
        """The reference's first; whatever one of them raises, none stays open."""
        opened: list[Opened] = []
        try:
            for backend in (self._reference, *self._others.values()):
                opened.append(open_on(backend))
        except BaseException:
            for each in opened:
                each.close()
            raise
        return opened

    def close(self) -> None:
        """The backends belong to whoever opened them."""


class LockstepDecoder:
    """One clip's decoding on every backend, of the same latents."""

    def __init__(self, reference: Decoder, others: Mapping[str, Decoder], listen: Listener) -> None:
        self._reference, self._others, self._listen, self._frame = reference, others, listen, 0

    def next(self, latent: np.ndarray) -> np.ndarray:
        result = self._reference.next(latent)
        self._listen(Call(DECODED, self._frame, -1, result, {n: d.next(latent) for n, d in self._others.items()}))
        self._frame += 1
        return result

    def close(self) -> None:
        for decoder in (self._reference, *self._others.values()):
            decoder.close()


class LockstepClip:
    """One clip on every backend."""

    def __init__(
        self, reference: Clip, others: Mapping[str, Clip], listen: Listener, plan: ClipPlan, parts: Mapping[str, Run]
    ) -> None:
        self._reference, self._others, self._listen, self._steps = reference, others, listen, iter(plan.steps)
        self._plan, self._parts = plan, parts
        new = next((step.frame for step in plan.steps if step.predicted), 0)
        self._in_parts = {(new, 0), (new, len(plan.counts) - 1)}  # many calls: the mask steps they are made at

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
        self._at = next(self._steps)
        for clip in (self._reference, *self._others.values()):
            clip.step(tokens, masked, predict, cos, sin, first, branches)
        self._tell(Z, self._reference.z(), {name: clip.z() for name, clip in self._others.items()})

    def sample(self, guidance: float, initial: np.ndarray, draws: np.ndarray, solver: str = ANCESTRAL) -> np.ndarray:
        z = self._reference.z()
        sampled = np.array(self._reference.sample(guidance, initial, draws, solver))
        own = {name: np.array(clip.sample(guidance, initial, draws, solver)) for name, clip in self._others.items()}
        self._tell(SAMPLED, sampled, own)
        forced = {}
        for name, clip in self._others.items():
            clip.force(z)
            forced[name] = np.array(clip.sample(guidance, initial, draws, solver))
        self._tell(HEAD, sampled, forced)
        if self._parts and (self._at.frame, self._at.index) in self._in_parts:
            made = {
                n: sample_in_parts(r, self._plan, z, guidance, initial, draws, solver) for n, r in self._parts.items()
            }
            self._tell(PARTS, sampled, made)
        return sampled

    def _tell(self, kind: str, reference: np.ndarray, others: Mapping[str, np.ndarray]) -> None:
        self._listen(Call(kind, self._at.frame, self._at.index, reference, others))

    def keep(self) -> None:
        for clip in (self._reference, *self._others.values()):
            clip.keep()

    def close(self) -> None:
        for clip in (self._reference, *self._others.values()):
            clip.close()
