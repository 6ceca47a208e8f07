"""Heat map, lines and a strip of frames as drawings, axes labelled with units. Knows nothing of models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from videomar.parity.reporting.drawing import ACCENT, BAD, INK, MUTED, PAPER, RULE, Drawing, mix

SMALL, GAP = 11, 8


@dataclass(frozen=True)
class Decades:
    """A logarithmic scale over whole decades that holds all positive values given."""

    low: int
    high: int

    @staticmethod
    def over(values: Sequence[float | None], least: int = 2) -> Decades:
        """The smallest such scale of at least `least` decades."""
        found = [np.log10(v) for v in values if v is not None and v > 0] or [-1.0]
        low, high = int(np.floor(min(found))), int(np.ceil(max(found)))
        return Decades(min(low, high - least), high)

    def share(self, value: float) -> float:
        """0 at the low end, 1 at the high end; what is not positive lies at the low end."""
        return float((np.log10(value) - self.low) / (self.high - self.low)) if value > 0 else 0.0


def heat_map(
    title: str,
    cells: Mapping[tuple[int, int], float | None],
    row_name: str,
    column_name: str,
    unit: str,
    width: float = 540,
    last_column: str = "",
) -> Drawing:
    """cells: (row, column) -> value, None for what is no number; dark is large, on a scale of decades."""
    rows, columns = sorted({r for r, _ in cells}), sorted({c for _, c in cells})
    scale = Decades.over(list(cells.values()))
    left, top = 88, 52
    cell = min(56.0, (width - left) / max(1, len(columns)))
    tall = min(32.0, max(18.0, cell))
    drawing = Drawing(width, top + tall * len(rows) + 76, f"{title}: {unit} by {row_name} and {column_name}")
    drawing.text(0, 16, title, 13, INK, 600)
    drawing.text(left, top - 12, column_name, SMALL, MUTED)
    for i, row in enumerate(rows):
        drawing.text(left - GAP, top + tall * (i + 0.5) + 4, f"{row_name} {row}", SMALL, MUTED, anchor="end")
    every = max(1, round(28 / cell))
    for j, column in enumerate(columns):
        name = last_column if last_column and column == columns[-1] else str(column)
        if j % every == 0 or name == last_column:
            drawing.text(left + cell * (j + 0.5), top + tall * len(rows) + 16, name, SMALL, MUTED, anchor="middle")
    for (row, column), value in cells.items():
        x, y = left + cell * columns.index(column), top + tall * rows.index(row)
        share = 1.0 if value is None else scale.share(value)
        said = "not finite" if value is None else f"{value:.1e}"
        fill = BAD if value is None else mix(0.06 + 0.94 * share)
        where = f"{row_name} {row}, {column_name} {column}: {said}"
        drawing.rect(x, y, cell - 2, tall - 2, fill, 2, where)
        if cell >= 44:
            drawing.text(x + cell / 2 - 1, y + tall / 2 + 3, said, 10, PAPER if share > 0.5 else INK, anchor="middle")
    _key(drawing, left, top + tall * len(rows) + 36, scale, unit)
    return drawing


def _key(drawing: Drawing, x: float, y: float, scale: Decades, unit: str) -> None:
    """The colours of a heat map."""
    parts = 24
    for i in range(parts):
        drawing.rect(x + 6 * i, y, 6, 8, mix(0.06 + 0.94 * i / (parts - 1)))
    for share, value in ((0, scale.low), (1, scale.high)):
        anchor = "start" if share == 0 else "end"
        drawing.text(x + 6 * parts * share, y + 22, f"1e{value}", SMALL, MUTED, anchor=anchor)
    drawing.text(x + 6 * parts + GAP, y + 8, unit, SMALL, MUTED)


@dataclass(frozen=True)
class Curve:
    """One line of a chart: y over 0, 1, 2..., None where there is none."""

    name: str
    values: tuple[float | None, ...]
    color: str = ACCENT


def lines(
    title: str,
    curves: Sequence[Curve],
    x_name: str,
    y_name: str,
    ticks: Mapping[int, str],
    log: bool = True,
    bound: tuple[float, str] | None = None,
    width: float = 540,
    height: float = 240,
) -> Drawing:
    """Curves over a shared x; `ticks`: which x are named how; `bound`: a dashed line and what it is."""
    left, top, right, low = 56, 40, 96, height - 44
    drawing = Drawing(width, height, f"{title}: {y_name} over {x_name}")
    drawing.text(0, 16, title, 13, INK, 600)
    drawing.text(0, 32, y_name, SMALL, MUTED)
    found = [v for curve in curves for v in curve.values if v is not None]
    bounds = [bound[0]] if bound else []
    count = max(2, *(len(curve.values) for curve in curves))
    if log:
        scale = Decades.over([*found, *bounds])
        marks = [(10.0**e, f"1e{e}") for e in range(scale.low, scale.high + 1)]
        share = scale.share
    else:
        ticks_y = _ticks(min([*found, *bounds], default=0), max([*found, *bounds], default=1))
        marks = [(v, f"{v:g}") for v in ticks_y]

        def share(value: float) -> float:
            return (value - ticks_y[0]) / (ticks_y[-1] - ticks_y[0])

    def at(index: float, value: float) -> tuple[float, float]:
        return left + (width - left - right) * index / (count - 1), low - (low - top) * share(value)

    for value, name in marks:
        y = at(0, value)[1]
        drawing.line([(left, y), (width - right, y)], RULE)
        drawing.text(left - GAP, y + 4, name, SMALL, MUTED, anchor="end")
    for index, name in ticks.items():
        drawing.text(at(index, marks[0][0])[0], low + 18, name, SMALL, MUTED, anchor="middle")
    drawing.text((left + width - right) / 2, height - 6, x_name, SMALL, MUTED, anchor="middle")
    if bound:
        y = at(0, bound[0])[1]
        drawing.line([(left, y), (width - right, y)], BAD, 1.2, "4 4")
        drawing.text(width - right + GAP, y + 4, bound[1], SMALL, BAD)
    ends: list[float] = [] if not bound else [at(0, bound[0])[1]]
    for curve in curves:
        points: list[tuple[float, float]] = []
        for index, y_value in enumerate(curve.values):
            if y_value is None:
                drawing.line(points, curve.color, 1.8)
                points = []
            else:
                points.append(at(index, y_value))
        drawing.line(points, curve.color, 1.8)
        known = [(i, v) for i, v in enumerate(curve.values) if v is not None]
        if known and curve.name:
            y = at(*known[-1])[1]
            while any(abs(y - other) < 13 for other in ends):  # names keep apart
                y += 3
            ends.append(y)
            drawing.text(width - right + GAP, y + 4, curve.name, SMALL, curve.color, 600)
    return drawing


def _ticks(least: float, most: float) -> list[float]:
    """Round numbers, at most six, that hold both ends."""
    span = max(most - least, 1e-6)
    for step in (m * 10.0**e for e in range(int(np.floor(np.log10(span))) - 1, 99) for m in (1, 2, 5)):
        low, high = np.floor(least / step), np.ceil(most / step)
        if low < high <= low + 5:
            return [float(step * n) for n in np.arange(low, high + 1)]
    raise AssertionError("unreachable")


def frames_strip(
    title: str, reference: np.ndarray, candidate: np.ndarray, names: tuple[str, str], most: int = 4, width: float = 1104
) -> Drawing:
    """Frames of both clips above each other and their amplified difference, frames evenly spread, the last included."""
    left, top = 96, 44
    chosen = np.unique(np.linspace(0, len(reference) - 1, min(most, len(reference))).round().astype(int))
    factor = amplification(reference, candidate)
    h, w = reference.shape[1:3]
    wide = min((width - left) / len(chosen) - 4, 3.0 * w)
    tall = wide * h / w
    drawing = Drawing(width, top + 3 * (tall + 4) + 24, f"{title}: frames of both and their difference times {factor}")
    drawing.text(0, 16, title, 13, INK, 600, most=width)
    difference = np.abs(candidate.astype(np.int16) - reference).max(axis=-1, keepdims=True)
    amplified = np.clip(255 - difference * factor, 0, 255).astype(np.uint8).repeat(3, axis=-1)
    for row, (name, frames) in enumerate(
        ((names[0], reference), (names[1], candidate), (f"difference x{factor}", amplified))
    ):
        y = top + row * (tall + 4)
        drawing.text(0, y + tall / 2 + 4, name, SMALL, MUTED, most=left - 8)
        for i, index in enumerate(chosen):
            drawing.rect(left + i * (wide + 4) - 1, y - 1, wide + 2, tall + 2, RULE)
            drawing.picture(left + i * (wide + 4), y, wide, tall, frames[index], f"{name}, frame {index}")
    for i, index in enumerate(chosen):
        drawing.text(left + i * (wide + 4) + wide / 2, top - 8, f"frame {index}", SMALL, MUTED, anchor="middle")
    drawing.text(left, drawing.height - 6, "difference: the largest of the three colours; white is none", SMALL, MUTED)
    return drawing


def amplification(reference: np.ndarray, candidate: np.ndarray) -> int:
    """The largest of a few round factors that keeps nearly every difference below white's end."""
    most = float(np.percentile(np.abs(candidate.astype(np.int16) - reference), 99.9))
    return next((factor for factor in (100, 50, 20, 10, 5, 2) if most * factor <= 255), 1)
