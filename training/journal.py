"""What a run shows of itself: one row every so often, in training.csv beside the checkpoint."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from dataclasses import astuple, dataclass, fields
from pathlib import Path

FILE, PICTURE = "training.csv", "training.svg"


@dataclass(frozen=True)
class Row:
    """The state after a step."""

    stage: int  # from 1
    frames: int
    height: int
    width: int
    step: int  # in all
    minutes: float  # in all
    learning_rate: float
    loss: float  # of training, smoothed; before the first step the held-out one
    held_out: float  # mean over latent frames
    held_out_last: float  # of the last latent frame alone


class Journal:
    """The rows so far; `draw` makes a picture of them, as SVG."""

    def __init__(self, out: Path, draw: Callable[[list[Row]], str] | None = None) -> None:
        self._file, self._draw, self.rows = out / FILE, draw, list[Row]()

    def add(self, row: Row) -> None:
        """One more row."""
        self.rows.append(row)

    def write(self, place: Path) -> None:
        """All rows as a table and as a picture, into a folder."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(f.name for f in fields(Row))
        writer.writerows([f"{v:.6g}" if isinstance(v, float) else v for v in astuple(row)] for row in self.rows)
        (place / FILE).write_text(text.getvalue())
        if self.rows and self._draw is not None:
            (place / PICTURE).write_text(self._draw(self.rows))

    def resume(self, step: int) -> None:
        """Read what was written up to a step; what came after it is made again."""
        if not self._file.is_file():
            return
        kinds = {f.name: int if f.type == "int" else float for f in fields(Row)}
        with self._file.open(newline="") as file:
            for line in csv.DictReader(file):
                row = Row(**{name: kind(line[name]) for name, kind in kinds.items()})  # type: ignore[arg-type]
                if row.step <= step:
                    self.rows.append(row)
