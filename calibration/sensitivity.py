"""Which linears cannot be quantized: each alone, each family alone, and the list to keep in floating point.

Everything is measured teacher-forced on held-out steps. Knows nothing of how a linear is quantized.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from videomar.calibration.linears import Linear
from videomar.calibration.plain import Graphs
from videomar.calibration.probe import Probe
from videomar.calibration.trials import Errors, Trial, measure

Tick = Callable[[str], None]


@dataclass
class Tester:
    """Measures any set of quantized linears of one plan."""

    probe: Probe
    trials: Sequence[Trial]
    thresholds: Mapping[str, float]
    divisors: Mapping[str, np.ndarray]
    head: Graphs | None = None  # the source's, to measure sampled tokens too

    def __call__(self, names: Sequence[str], tokens: bool = False) -> Errors:
        """Errors with exactly these linears quantized."""
        self.probe.configure({name: self.thresholds[name] for name in names}, self.divisors)
        return measure(self.trials, self.probe, self.head if tokens else None)


def one_at_a_time(linears: Sequence[Linear], test: Tester, tick: Tick) -> dict[str, dict[str, Errors]]:
    """ "linears" and "families": name -> errors with only it quantized."""
    found: dict[str, dict[str, Errors]] = {"linears": {}, "families": {}}
    families: dict[str, list[str]] = {}
    for linear in linears:
        families.setdefault(linear.family, []).append(linear.name)
        found["linears"][linear.name] = test([linear.name], tokens=True)
        tick(linear.name)
    for family, names in families.items():
        found["families"][family] = test(names, tokens=True)
        tick(family)
    return found


def keep_list(alone: Mapping[str, Errors], forced: Sequence[str], target: float, test: Tester, tick: Tick) -> list[str]:
    """Linears to keep in floating point so that z's cosine reaches `target`: the worst first, then as few as do.

    alone: every linear's errors with only it quantized; forced: kept in any case. All are kept if nothing less does.
    """
    kept = list(forced)
    ranked = sorted((n for n in alone if n not in kept), key=lambda n: alone[n].relative, reverse=True)
    added: list[str] = []

    def reaches(names: Sequence[str]) -> bool:
        tick("keep list")
        return test([n for n in alone if n not in (*kept, *names)]).cosine >= target

    while not reaches(added) and ranked:
        added.append(ranked.pop(0))
    for name in list(reversed(added[:-1])):  # the last one was needed; an earlier one may no longer be
        if reaches([n for n in added if n != name]):
            added.remove(name)
    return [n for n in alone if n in (*kept, *added)]
