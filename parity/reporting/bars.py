"""Horizontal bars and spans on a scale of decades, one a name, as drawings. Knows nothing of what is measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from videomar.parity.reporting.charts import GAP, SMALL, Decades
from videomar.parity.reporting.drawing import ACCENT, BAD, INK, MUTED, RULE, Drawing, mix

LEFT, TOP, TALL, RIGHT = 320, 60, 18, 72
Bound = tuple[float, str]


def _axes(
    title: str, names: Sequence[str], values: Sequence[float], unit: str, bounds: Sequence[Bound], width: float
) -> tuple[Drawing, Callable[[float], float]]:
    """Title, names, decades and bounds; and where on x a value lies."""
    scale = Decades.over([*values, *(value for value, _ in bounds)])
    bottom = TOP + TALL * len(names)
    drawing = Drawing(width, bottom + 40, f"{title}: {unit} by name")
    drawing.text(0, 16, title, 13, INK, 600)

    def at(value: float) -> float:
        return LEFT + (width - LEFT - RIGHT) * min(1.0, max(0.0, scale.share(value)))

    for e in range(scale.low, scale.high + 1):
        drawing.line([(at(10.0**e), TOP - 4), (at(10.0**e), bottom)], RULE)
        drawing.text(at(10.0**e), bottom + 16, f"1e{e}", SMALL, MUTED, anchor="middle")
    drawing.text(LEFT, bottom + 34, unit, SMALL, MUTED)
    for value, name in bounds:
        drawing.line([(at(value), TOP - 4), (at(value), bottom)], BAD, 1.2, "4 4")
        drawing.text(at(value), TOP - 10, name, SMALL, BAD, anchor="middle")
    for i, name in enumerate(names):
        short = name if len(name) <= 48 else name[:22] + "..." + name[-23:]
        drawing.text(LEFT - GAP, TOP + TALL * i + 12, short, SMALL, INK, anchor="end")
    return drawing, at


def bars(
    title: str,
    values: Sequence[tuple[str, float | None]],
    unit: str,
    bounds: Sequence[Bound] = (),
    marked: Sequence[str] = (),
    width: float = 1104,
) -> Drawing:
    """One bar a name, a whole one where a value is None: not finite.

    bounds: dashed lines with what they are; `marked` names are painted as missed.
    """
    names = [name for name, _ in values]
    drawing, at = _axes(title, names, [v for _, v in values if v is not None], unit, bounds, width)
    for i, (name, value) in enumerate(values):
        y, color = TOP + TALL * i, BAD if name in marked or value is None else ACCENT
        end, said = (width - RIGHT, "not finite") if value is None else (at(value), f"{value:.2g}")
        drawing.rect(LEFT, y + 3, max(1.0, end - LEFT), TALL - 7, color, 2, f"{name}: {said}")
        drawing.text(end + 6, y + 12, said, 10, MUTED)
    return drawing


def spans(
    title: str,
    values: Sequence[tuple[str, float, float, float]],
    unit: str,
    bounds: Sequence[Bound] = (),
    width: float = 1104,
) -> Drawing:
    """One span (name, from, to, largest seen) a name, and a stroke at the largest value seen."""
    names = [name for name, *_ in values]
    drawing, at = _axes(title, names, [v for _, *three in values for v in three], unit, bounds, width)
    for i, (name, low, high, largest) in enumerate(values):
        y, said = TOP + TALL * i, f"{name}: {low:.3g} to {high:.3g}, largest seen {largest:.3g}"
        drawing.rect(at(low), y + 4, max(1.0, at(high) - at(low)), TALL - 9, mix(0.35), 2, said)
        drawing.rect(at(largest) - 1.5, y + 2, 3, TALL - 5, ACCENT, 0, said)
    return drawing
