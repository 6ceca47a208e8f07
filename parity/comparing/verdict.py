"""Gates applied to figures: what passed, what is the first rung that did not, and what to run next.

Knows nothing of how figures were taken.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from videomar.demo.measure import Score, summary
from videomar.graphs import HEAD_CONDITION, HEAD_STEP
from videomar.parity.comparing.figures import Spot
from videomar.parity.comparing.ladder import Climb, Ladder
from videomar.tolerances import CLIP, FORCED, GATES, HEAD, RUNGS, TASK, Gate, coarser


@dataclass(frozen=True)
class Finding:
    """One gate of one candidate. `passed` is None where nothing was measured that it could judge, and `note` why."""

    gate: Gate
    got: float | None
    passed: bool | None
    where: Spot | None = None
    note: str = ""

    def as_data(self) -> dict[str, Any]:
        """Ready for JSON."""
        where = self.where or Spot("")
        data = {"rung": self.gate.rung, "measure": self.gate.measure, "got": self.got, "limit": self.gate.limit}
        data |= {"at_least": self.gate.at_least, "passed": self.passed, "note": self.note}
        return data | {"case": where.case, "frame": where.frame, "step": where.step}


@dataclass(frozen=True)
class Verdict:
    """What is concluded of one candidate."""

    label: str
    tolerances: str  # precision whose gates were applied
    findings: tuple[Finding, ...]

    @property
    def first_miss(self) -> Finding | None:
        """The missed gate of the lowest rung."""
        return next((finding for finding in self.findings if finding.passed is False), None)

    def sentence(self, names: str = "") -> str:
        """The conclusion in one line; `names`: what to give `videomar bisect`."""
        miss = self.first_miss
        if miss is None:
            judged = sum(finding.passed is not None for finding in self.findings)
            return f"{self.label} is still the model: {judged} gates of {self.tolerances} passed"
        got = "not finite" if miss.got is None else f"{miss.got:.6g}"
        where = f" at {miss.where}" if miss.where and str(miss.where) else ""
        bound = f"{'>=' if miss.gate.at_least else '<='} {miss.gate.limit:g}"
        text = f"{self.label} misses rung {miss.gate.rung}: {miss.gate.measure} is {got}, expected {bound}{where}"
        text += f" ({miss.note})" if miss.note else ""
        # What bisect looks into is the head as it is run here.
        return f"{text}; videomar bisect {names} finds the layer" if names and miss.gate.rung in RUNGS else text


def judge(ladder: Ladder, label: str, precisions: Sequence[str], first: Sequence[Finding] = ()) -> Verdict:
    """Apply the gates of the coarsest of `precisions` (the reference's and the candidate's) to one candidate.

    first: what was found before the ladder, and comes before its rungs.
    """
    name, climb = coarser(*precisions), ladder.climbs[label]
    findings = [_finding(gate, climb, ladder.scores) for gate in GATES[name]]
    # A gate that a precision does not have must not hide numbers that are no numbers.
    for rung in FORCED:
        if not any(f.gate.rung == rung for f in findings):
            stat = climb.rungs[rung].stats.get("relative_l2")
            if stat is not None and stat.worst is None:
                findings.append(Finding(Gate(rung, "relative_l2", 1.0), None, False, stat.where))
    findings.sort(key=lambda finding: RUNGS.index(finding.gate.rung))
    return Verdict(label, name, (*first, *_parts(name, climb), *findings))


def _parts(precision: str, climb: Climb) -> list[Finding]:
    """What only engines run of a directory is held to the gate of the whole head."""
    if climb.parts is None:
        return []
    gate = Gate(HEAD_STEP, "relative_l2", next(g.limit for g in GATES[precision] if g.rung == HEAD))
    stat = climb.parts.stats.get("relative_l2")
    if stat is None:
        return [Finding(gate, None, None, None, f"{HEAD_CONDITION} and {HEAD_STEP} are not in this directory")]
    return [
        Finding(gate, stat.worst, gate.passes(stat.worst), stat.where, f"after {HEAD_CONDITION}, as engines run it")
    ]


def _finding(gate: Gate, climb: Climb, reference: Sequence[Score]) -> Finding:
    if gate.rung == TASK:
        return _task(gate, climb, reference)
    if gate.rung == CLIP:
        if climb.free.failed:
            case, why = next(iter(climb.free.failed.items()))
            return Finding(gate, None, False, Spot(case), why)
        series, missing = climb.free.clips, "every trajectory branched in its first frame"
    else:
        series, missing = climb.rungs[gate.rung], "not run"
    stat = series.stats.get(gate.measure)
    if stat is None:
        return Finding(gate, None, None, None, missing)
    return Finding(gate, stat.worst, gate.passes(stat.worst), stat.where)


def _task(gate: Gate, climb: Climb, reference: Sequence[Score]) -> Finding:
    if not reference:
        return Finding(gate, None, None, None, "no scenes of the demo world")
    if len(climb.scores) < len(reference):
        return Finding(gate, None, False, None, f"{len(reference) - len(climb.scores)} clips failed")
    lost = task_lost(reference, climb.scores)[gate.measure]
    return Finding(gate, lost, gate.passes(lost))


def task_lost(reference: Sequence[Score], candidate: Sequence[Score]) -> dict[str, float]:
    """How much worse the candidate does the demo world's task, in points of 100; negative where it does better."""
    a, b = summary(reference), summary(candidate)
    return {
        "followed_lost": 100 * (a["followed"] - b["followed"]),
        "centroid_lost": 100 * (b["centroid_error_mean"] - a["centroid_error_mean"]),
    }


def bisect_names(reference: str, candidate: str) -> str:
    """The two directories, quoted for a shell."""
    return f"{shlex.quote(reference)} {shlex.quote(candidate)}"
