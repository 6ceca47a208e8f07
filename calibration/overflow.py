"""Every tensor's largest value against FP16's range: what needs FP32, before a device finds it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

FP16_MOST = 65504.0
NEAR = 0.25  # of the range: less than two doublings are left for what calibration did not see


@dataclass(frozen=True)
class Closeness:
    """One tensor's largest absolute value in the real loop."""

    graph: str
    tensor: str
    largest: float

    @property
    def share(self) -> float:
        """Of FP16's range."""
        return self.largest / FP16_MOST

    @property
    def verdict(self) -> str:
        """ok; island: to be computed in FP32; overflow: FP16 cannot hold it."""
        if not math.isfinite(self.largest) or self.largest > FP16_MOST:
            return "overflow"
        return "island" if self.share > NEAR else "ok"


def closest(largest: Mapping[str, Mapping[str, float]], count: int | None = None) -> list[Closeness]:
    """The tensors nearest to FP16's end, nearest first; of those of one graph and value (reshapes) one, a module's."""
    rows = [Closeness(g, t, v) for g, tensors in largest.items() for t, v in tensors.items()]
    rows.sort(key=lambda row: (math.isfinite(row.largest), -row.largest, row.graph, "/" in row.tensor, row.tensor))
    first = {(row.graph, row.largest): row for row in reversed(rows)}
    return [row for row in rows if first[row.graph, row.largest] is row][:count]
