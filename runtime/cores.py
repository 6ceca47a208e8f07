"""How many cores this process may use, and so how many threads it takes."""

from __future__ import annotations

from dataclasses import dataclass

from videomar.runtime.cgroups import cpu_quota
from videomar.runtime.system import System


@dataclass(frozen=True)
class Cores:
    """Processors that are there, that this process may run on, and how much of their time it is given."""

    present: int
    allowed: int
    quota: float | None = None

    @property
    def usable(self) -> int:
        """Threads that can run at once. A quota is rounded down: threads that wait for a throttled one spin away what
        is left of it."""
        return self.allowed if self.quota is None else max(1, min(self.allowed, int(self.quota)))


def cores(system: System) -> Cores:
    return Cores(*system.cores(), cpu_quota(system))


def allowed_cores() -> int:
    """Cores this process may use: ONNX Runtime's own default counts those that a container keeps from it, too."""
    return cores(System()).usable
