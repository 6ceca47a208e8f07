"""How far a candidate may be from its reference, rung by rung: data of the contract.

Knows nothing of how anything is measured.
"""

from __future__ import annotations

from dataclasses import dataclass

from videomar.errors import InputError
from videomar.graphs import TOLERANCE

# The ladder, in order. HEAD is the head given the reference's z, SAMPLED the head given the candidate's own.
TEXT, ENCODED, Z, HEAD, SAMPLED, DECODED, CLIP, TASK = RUNGS = (
    "text",
    "encoded",
    "z",
    "head",
    "sampled",
    "decoded",
    "clip",
    "task",
)
FORCED = RUNGS[:6]  # both are fed the same

# Tokens of a mask step that differ by more than this (relative L2) are other samples, not roundings of the same: the
# trajectories have branched, and what follows is compared by the task alone.
BRANCHED = 0.1


@dataclass(frozen=True)
class Gate:
    """A bound on one measure of a rung; `at_least` says on which side."""

    rung: str
    measure: str
    limit: float
    at_least: bool = False

    def passes(self, value: float | None) -> bool:
        """None stands for what is not a finite number, which nothing lets pass."""
        if value is None:
            return False
        return value >= self.limit if self.at_least else value <= self.limit

    def __str__(self) -> str:
        return f"{self.measure} {'>=' if self.at_least else '<='} {self.limit:g}"


def _gates(forced: dict[str, float], cosine: float | None, clip: float | None, points: float) -> tuple[Gate, ...]:
    """forced: rung -> relative L2; cosine: of z; clip: dB where not branched; points: of 100, of either task figure."""
    gates = [Gate(rung, "relative_l2", limit) for rung, limit in forced.items()]
    if cosine is not None:
        gates.append(Gate(Z, "cosine", cosine, at_least=True))
    if clip is not None:
        gates.append(Gate(CLIP, "psnr", clip, at_least=True))
    gates += [Gate(TASK, "followed_lost", points), Gate(TASK, "centroid_lost", points)]
    return tuple(sorted(gates, key=lambda gate: RUNGS.index(gate.rung)))


# Teacher-forced gates hold for the worst call of a run. FP32 is what is measured on the demo model with room of ten;
# the head has room for random weights, whose loop magnifies rounding more than a trained one (6.7e-6 was seen).
GATES: dict[str, tuple[Gate, ...]] = {
    "fp32": _gates({TEXT: 2e-6, ENCODED: 5e-6, Z: 1e-5, HEAD: 1e-5, SAMPLED: 3e-5, DECODED: 5e-6}, None, 73.0, 0.1),
    "fp16": _gates({TEXT: 5e-3, ENCODED: 5e-3, HEAD: 1e-2, SAMPLED: 1e-2, DECODED: 5e-3}, 0.9999, 45.0, 0.5),
    "int8": _gates({TEXT: 5e-3, ENCODED: 5e-3, HEAD: 1e-2, DECODED: 5e-3}, 0.997, None, 1.0),
}
_COARSER = ("fp32", "fp16", "int8")


def coarser(*precisions: str) -> str:
    """The one of these precisions whose tolerances count when they are compared with each other."""
    for precision in precisions:
        if precision not in _COARSER:
            raise InputError(f"precision is {precision!r}, expected one of {', '.join(_COARSER)}")
    return max(precisions, key=_COARSER.index)


def graph_tolerances(precision: str) -> dict[str, float]:
    """Graph -> largest relative L2 error of any of its outputs."""
    return dict(TOLERANCE[precision])
