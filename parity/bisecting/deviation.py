"""The first call of the real loop that leaves its gate, and all that has to be known to make that call again.

Knows nothing of layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from videomar.config import ANCESTRAL, SamplingConfig
from videomar.parity.cases import Case
from videomar.parity.lockstep import DECODED, ENCODED, HEAD, SAMPLED, TEXT, Call, Lockstep, Z
from videomar.parity.measures import compare_arrays
from videomar.parity.subject import Subject
from videomar.runtime.backends.base import Backend, Clip, ClipPlan, Decoder
from videomar.runtime.pipeline import Pipeline
from videomar.runtime.sampler import Progress
from videomar.steps import Step
from videomar.tolerances import GATES, coarser

KINDS = (TEXT, ENCODED, Z, HEAD, SAMPLED, DECODED)


@dataclass(frozen=True)
class Deviation:
    """A call over its gate. `got` is None for what is not a finite number."""

    kind: str
    frame: int
    step: int
    measure: str
    got: float | None
    gate: str

    def __str__(self) -> str:
        spots = (("latent frame", self.frame), ("mask step", self.step))
        where = " of " * (self.frame >= 0) + ", ".join(f"{what} {n}" for what, n in spots if n >= 0)
        got = "not finite" if self.got is None else f"{self.got:.6g}"
        return f"{self.kind}{where}: {self.measure} is {got}, expected {self.gate}"


@dataclass
class Pass:
    """Inputs of one transformer pass, copied: the loop changes its arrays."""

    frame: int
    step: int
    tokens: np.ndarray
    masked: np.ndarray
    predict: np.ndarray
    cos: np.ndarray
    sin: np.ndarray


@dataclass
class Recorded:
    """The latest inputs of every kind of call, the reference's z, and the pass that finished each frame."""

    ids: np.ndarray | None = None
    pixels: np.ndarray | None = None
    states: np.ndarray | None = None
    latents: list[np.ndarray] = field(default_factory=list)  # decoded so far
    decoding: tuple[int, int, int] = (0, 0, 0)  # latent frames, their height and width
    plan: ClipPlan | None = None
    finished: list[Pass] = field(default_factory=list)
    latest: Pass | None = None
    z: np.ndarray | None = None
    head: tuple[float, np.ndarray, np.ndarray, str] | None = None  # guidance, initial, draws, solver
    head_at: tuple[int, int] = (-1, -1)  # frame and step


class _Found(Exception):
    def __init__(self, deviation: Deviation) -> None:
        self.deviation = deviation


class Recorder:
    """A backend that notes what goes through it."""

    def __init__(self, inner: Backend, notes: Recorded) -> None:
        self.name, self._inner, self._notes = inner.name, inner, notes

    def encode_text(self, ids: np.ndarray) -> np.ndarray:
        self._notes.ids = ids
        return self._inner.encode_text(ids)

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        self._notes.pixels = pixels
        return self._inner.encode(pixels)

    def decoder(self, frames: int, h: int, w: int) -> _RecordedDecoder:
        self._notes.latents, self._notes.decoding = [], (frames, h, w)
        return _RecordedDecoder(self._inner.decoder(frames, h, w), self._notes)

    def begin(self, states: np.ndarray, plan: ClipPlan) -> _RecordedClip:
        self._notes.states, self._notes.plan = np.array(states), plan
        return _RecordedClip(self._inner.begin(states, plan), self._notes, plan.steps)

    def close(self) -> None:
        """The backends belong to whoever opened them."""


class _RecordedDecoder:
    def __init__(self, inner: Decoder, notes: Recorded) -> None:
        self._inner, self._notes = inner, notes

    def next(self, latent: np.ndarray) -> np.ndarray:
        self._notes.latents.append(np.array(latent))
        return self._inner.next(latent)

    def close(self) -> None:
        self._inner.close()


class _RecordedClip:
    def __init__(self, inner: Clip, notes: Recorded, steps: Sequence[Step]) -> None:
        self._inner, self._notes, self._steps = inner, notes, iter(steps)

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
        arrays = (np.array(x) for x in (tokens, masked, predict, cos, sin))
        self._notes.latest = Pass(self._at.frame, self._at.index, *arrays)
        self._inner.step(tokens, masked, predict, cos, sin, first, branches)

    def sample(self, guidance: float, initial: np.ndarray, draws: np.ndarray, solver: str = ANCESTRAL) -> np.ndarray:
        self._notes.head = float(guidance), np.array(initial), np.array(draws), solver
        self._notes.head_at = self._at.frame, self._at.index
        return self._inner.sample(guidance, initial, draws, solver)

    def keep(self) -> None:
        assert self._notes.latest is not None
        self._notes.finished.append(self._notes.latest)
        self._inner.keep()

    def z(self) -> np.ndarray:
        return self._inner.z()

    def force(self, z: np.ndarray) -> None:
        self._inner.force(z)

    def close(self) -> None:
        self._inner.close()


def first_deviation(
    a: Subject,
    b: Subject,
    case: Case,
    sampling: SamplingConfig,
    progress: Progress = lambda step: None,
) -> tuple[Deviation | None, Recorded]:
    """Run one clip with B in lockstep with A until a call leaves its gate; None when none does.

    Sampled tokens are held against the head when it errs on A's z, and against the transformer when it does not.
    """
    notes = Recorded()
    gates = GATES[coarser(a.precision, b.precision)]
    missed: list[Deviation] = []

    def listen(call: Call) -> None:
        if call.kind == Z:
            notes.z = np.array(call.reference)
        found = _judge(call, gates)
        if call.kind == SAMPLED and found is not None:
            missed.append(found)  # the next call says whose it is
        elif found is not None:
            raise _Found(found)
        elif call.kind == HEAD and missed:
            raise _Found(missed[0])

    lockstep = Recorder(Lockstep(a.backend, {"b": b.backend}, listen), notes)
    try:
        pipe = Pipeline(a.config, lockstep, a.tokenizer)
        pipe(case.given, case.prompt, sampling=sampling, noise=case.noise, progress=progress)
    except _Found as found:
        return found.deviation, notes
    return None, notes


def _judge(call: Call, gates: tuple) -> Deviation | None:
    got = compare_arrays(call.others["b"], call.reference)
    for gate in (g for g in gates if g.rung == call.kind):
        if not gate.passes(got[gate.measure]):
            return Deviation(call.kind, call.frame, call.step, gate.measure, got[gate.measure], str(gate))
    if got["max_abs"] is None:
        return Deviation(call.kind, call.frame, call.step, "max_abs", None, "a finite number")
    return None
