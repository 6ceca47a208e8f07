"""What a run leaves behind: worst and mean of every measure, over all and by (frame, step). Numbers only, no arrays.

Knows nothing of backends, gates or output.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from videomar.parity.measures import Measures, worse


@dataclass(frozen=True)
class Spot:
    """Where a number was taken; -1 stands for what has no frame or step."""

    case: str
    frame: int = -1
    step: int = -1

    def __str__(self) -> str:
        parts = [self.case] if self.case else []
        parts += [f"latent frame {self.frame}"] if self.frame >= 0 else []
        parts += [f"mask step {self.step}"] if self.step >= 0 else []
        return ", ".join(parts)


@dataclass
class Stat:
    """Worst and mean of one measure; None is what is not finite, and the mean of anything with it."""

    name: str
    count: int = 0
    worst: float | None = None
    where: Spot | None = None
    _sum: float | None = 0.0

    def add(self, value: float | None, where: Spot) -> None:
        """Take in one value."""
        if self.count == 0 or worse(self.name, value, self.worst):
            self.worst, self.where = value, where
        self._sum = None if self._sum is None or value is None else self._sum + value
        self.count += 1

    @property
    def mean(self) -> float | None:
        """Of all values; None without any."""
        return None if self._sum is None or not self.count else self._sum / self.count

    def as_data(self) -> dict[str, Any]:
        """Ready for JSON."""
        where = self.where or Spot("")
        return {"worst": self.worst, "mean": self.mean, "case": where.case, "frame": where.frame, "step": where.step}


@dataclass
class Series:
    """The measures of one rung and one candidate."""

    stats: dict[str, Stat] = field(default_factory=dict)
    by_step: dict[tuple[int, int], dict[str, Stat]] = field(default_factory=dict)  # (frame, step) -> measure

    def add(self, values: Measures, where: Spot) -> None:
        """Take in the measures of one call."""
        at = self.by_step.setdefault((where.frame, where.step), {})
        for name, value in values.items():
            for stats in (self.stats, at):
                stats.setdefault(name, Stat(name)).add(value, where)

    def as_data(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "calls": max((stat.count for stat in self.stats.values()), default=0),
            "measures": {name: stat.as_data() for name, stat in self.stats.items()},
            "by_step": [
                {"frame": frame, "step": step}
                | {name: {"worst": stat.worst, "mean": stat.mean} for name, stat in stats.items()}
                for (frame, step), stats in sorted(self.by_step.items())
            ],
        }
