"""A training run as a picture: the loss of training and of held-out clips over the run's steps. Knows no model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from videomar.parity.reporting.charts import Curve, lines
from videomar.parity.reporting.drawing import MUTED, to_svg

WIDE = 20  # a range of losses that only decades show


class Row(Protocol):
    """What is read of a row of the journal."""

    stage: int
    step: int
    loss: float
    held_out: float


def picture(rows: Sequence[Row]) -> str:
    """An SVG document; where a stage begins, its number stands below."""
    starts = {i: f"stage {row.stage}" for i, row in enumerate(rows) if i == 0 or rows[i - 1].stage != row.stage}
    ends = {len(rows) - 1: f"step {rows[-1].step}"} if len(rows) - 1 not in starts else {}
    curves = [
        Curve("training", tuple(row.loss for row in rows), MUTED),
        Curve("held out", tuple(row.held_out for row in rows)),
    ]
    losses = [value for row in rows for value in (row.loss, row.held_out)]
    wide = min(losses) > 0 and max(losses) > WIDE * min(losses)
    return to_svg(lines("Training", curves, "reports", "loss", starts | ends, log=wide), alone=True)
