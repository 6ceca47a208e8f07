"""What is hoped for on a card of the H100's class, beside what was reached. Data, and how each is read off."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Found = Callable[[str, str], float]  # (part, value) -> number; raises KeyError


@dataclass(frozen=True)
class Goal:
    """reach: the number to be judged; least: it should be at least `wanted`, else at most."""

    what: str
    wanted: float
    least: bool
    reach: Callable[[Found], float]
    form: str = "{:.2f}"


RUNTIME, EAGER, COMPILED = "full: runtime", "full: eager", "full: compiled"
FLOOR, PLANNED = "us to read the loop's weights once", "memory planned without the base, bytes"
GOALS = (
    Goal("whole clip, times as fast as the authors' eager loop", 10, True, lambda f: f(EAGER, "clip seconds")
         / f(RUNTIME, "clip seconds")),
    Goal("whole clip, times as fast as torch.compile", 2, True, lambda f: f(COMPILED, "clip seconds")
         / f(RUNTIME, "clip seconds")),
    Goal("transformer step, share of the measured matrix-product rate", 0.7, True, lambda f:
         f(RUNTIME, "transformer TFLOP/s") / f("rates", "FP16 TFLOP/s")),
    Goal("head loop captured, modulations ahead: times the reading of its weights", 2, False, lambda f:
         f("head", "us a diffusion step, captured, modulations ahead") / f("head", FLOOR)),
    Goal("the runtime's head loop: times the reading of its weights", 2, False, lambda f:
         f(RUNTIME, "head us a diffusion step") / f("head", FLOOR)),
    Goal("bytes copied on the device a step, of the finished K/V", 0, False, lambda f:
         f("copies", "bytes copied on the device a step, most") / f("copies", "finished K/V, bytes"), "{:.4f}"),
    Goal("memory, measured over planned, off by", 0.05, False, lambda f:
         abs(f(RUNTIME, "memory measured, bytes") / f(RUNTIME, PLANNED) - 1), "{:.3f}"),
)  # fmt: skip


def judged(results: Mapping[str, Any]) -> list[dict[str, str]]:
    """A row a goal: wanted, reached, and whether it was met or by how much it was missed."""

    def found(part: str, value: str) -> float:
        number = results["parts"].get(part, {}).get("found", {}).get("values", {}).get(value)
        if not isinstance(number, (int, float)) or isinstance(number, bool):
            raise KeyError(f"{part} has no {value!r}")
        return float(number)

    rows = []
    for goal in GOALS:
        wanted = f"{'>=' if goal.least else '<='} {goal.wanted:g}"
        try:
            got = goal.reach(found)
        except (KeyError, ZeroDivisionError) as error:
            rows.append(
                {"goal": goal.what, "wanted": wanted, "reached": "-", "": f"not known: {error}".replace('"', "")}
            )
            continue
        met = got >= goal.wanted if goal.least else got <= goal.wanted
        missed = "missed" if not goal.wanted else f"missed, at {got / goal.wanted:.2f} of it"
        rows.append(
            {"goal": goal.what, "wanted": wanted, "reached": goal.form.format(got), "": "met" if met else missed}
        )
    return rows
