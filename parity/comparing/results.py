"""Everything of a comparison as one JSON-ready dict: what the table, the page and the picture are drawn from.

Knows nothing of how it is shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from videomar.config import SamplingConfig
from videomar.demo.measure import summary
from videomar.parity.cases import Case
from videomar.parity.comparing.ladder import Climb, Ladder
from videomar.parity.comparing.verdict import Verdict, bisect_names
from videomar.parity.environment import hashes
from videomar.parity.subject import Subject
from videomar.tolerances import BRANCHED

FORMAT = 1
Data = dict[str, Any]


def as_data(
    reference: Subject,
    others: Mapping[str, Subject],
    cases: Sequence[Case],
    sampling: SamplingConfig,
    ladder: Ladder,
    verdicts: Sequence[Verdict],
    environment: Mapping[str, str],
    bisect: bool = True,
) -> Data:
    """One dict; None stands for what is not a finite number. bisect: whether both sides are there to look into."""
    candidates = []
    for verdict in verdicts:
        other, climb = others[verdict.label], ladder.climbs[verdict.label]
        names = bisect_names(str(reference.directory), str(other.directory))
        candidates.append(
            {
                "label": verdict.label,
                **_of(other),
                "tolerances": verdict.tolerances,
                "passed": verdict.first_miss is None,
                "sentence": verdict.sentence(names if bisect else ""),
                "findings": [finding.as_data() for finding in verdict.findings],
                "rungs": {rung: series.as_data() for rung, series in climb.rungs.items()},
                "free": _free(climb),
                "task": summary(climb.scores) if climb.scores else None,
            }
        )
    return {
        "format": FORMAT,
        "passed": all(candidate["passed"] for candidate in candidates),
        "reference": {"label": reference.label, **_of(reference)},
        "candidates": candidates,
        "task": summary(ladder.scores) if ladder.scores else None,
        "branched_above": BRANCHED,
        "settings": {
            key: getattr(sampling, key)
            for key in ("frames", "height", "width", "mask_steps", "head_steps", "guidance_scale", "temperature")
        }
        | sampling.dials,
        "cases": [{"name": case.name, "prompt": case.prompt} for case in cases],
        "environment": dict(environment),
    }


def _of(subject: Subject) -> Data:
    return {
        "directory": str(subject.directory),
        "model": subject.config.name,
        "precision": subject.precision,
        "backend": subject.backend.name,
        "why": subject.why,
        "hashes": hashes(subject),
    }


def _free(climb: Climb) -> Data:
    free = climb.free
    return {
        "drift": free.drift.as_data(),
        "frames": [{"frame": index} | series.as_data()["measures"] for index, series in sorted(free.frames.items())],
        "clips": free.clips.as_data()["measures"],
        "branched": [{"case": spot.case, "frame": spot.frame, "step": spot.step} for spot in free.branched.values()],
        "failed": dict(free.failed),
    }
