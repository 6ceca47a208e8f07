"""All linears' thresholds and the norms' divisors together, and which of several such plans errs least at z."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from videomar.calibration.choose import ALPHAS, METHODS, Choice, choose
from videomar.calibration.linears import Linear
from videomar.calibration.probe import Probe
from videomar.calibration.ranges import Ranges
from videomar.calibration.trials import Errors, Trial, measure


@dataclass(frozen=True)
class Plan:
    """How every linear would be quantized."""

    name: str
    choices: Mapping[str, Choice]  # by linear
    divisors: Mapping[str, np.ndarray]  # by norm; powers of two

    @property
    def thresholds(self) -> dict[str, float]:
        """Linear -> largest value of its smoothed input that int8 holds."""
        return {name: choice.threshold for name, choice in self.choices.items()}


def make_plan(
    name: str,
    ranges: Ranges,
    linears: Sequence[Linear],
    weights: Mapping[str, np.ndarray],
    methods: Sequence[str] = METHODS,
    alphas: Sequence[float] = ALPHAS,
) -> Plan:
    """Choose linear by linear (by norm, where several share one) what errs least."""
    groups: dict[str, list[Linear]] = {}
    for linear in linears:
        groups.setdefault(linear.norm or linear.name, []).append(linear)
    choices: dict[str, Choice] = {}
    divisors: dict[str, np.ndarray] = {}
    for group in groups.values():
        seen = [ranges.inputs[linear.name] for linear in group]
        matrices = [weights[linear.name].astype(np.float32) for linear in group]
        divisor, chosen = choose(seen, matrices, alphas if group[0].norm else (), methods)
        choices.update(zip((linear.name for linear in group), chosen, strict=True))
        if divisor is not None and group[0].norm:
            divisors[group[0].norm] = divisor
    return Plan(name, {linear.name: choices[linear.name] for linear in linears}, divisors)


def plans(
    ranges: Ranges, linears: Sequence[Linear], weights: Mapping[str, np.ndarray], method: str, alpha: str
) -> Iterator[Plan]:
    """What is to be tried for options `method` ("auto" or one) and `alpha` ("auto", "off" or a number)."""
    ways = {"mixed": METHODS, **{m: (m,) for m in METHODS}} if method == "auto" else {method: (method,)}
    smooth: dict[str, Sequence[float]] = {"not smoothed": (), "smoothed": ALPHAS}
    if alpha != "auto":
        smooth = {"not smoothed": ()} if alpha == "off" else {f"alpha {alpha}": (float(alpha),)}
    for way, methods in ways.items():
        for how, alphas in smooth.items():
            yield make_plan(f"{way}, {how}", ranges, linears, weights, methods, alphas)


def best_plan(tried: Sequence[Plan], probe: Probe, trials: Sequence[Trial]) -> tuple[Plan, dict[str, Errors]]:
    """The plan with the least error of z when every linear is quantized, and all their errors."""
    errors: dict[str, Errors] = {}
    for plan in tried:
        probe.configure(plan.thresholds, plan.divisors)
        errors[plan.name] = measure(trials, probe)
    return min(tried, key=lambda plan: errors[plan.name].relative), errors
