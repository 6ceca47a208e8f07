"""What a calibration may be asked for, and the names and limits that several stages share."""

from __future__ import annotations

from dataclasses import dataclass, field

from videomar.config import SamplingOptions

RANGES, REPORT = "ranges.npz", "calibration.json"
LEAST_COSINE = 0.997  # of z: worse is no INT8 artifact (docs/calibrate.md)


@dataclass(frozen=True)
class Options:
    """What may be asked for; all of it decides the result but `threads`, `backend`, `memory` and `only_if_faster`."""

    method: str = "auto"
    alpha: str = "auto"
    target: float = 0.999
    keep: tuple[str, ...] = ()
    sensitivity: bool = True
    sampling: SamplingOptions = field(default_factory=SamplingOptions)  # of the clips: frames, mask_steps...
    only_if_faster: bool = False
    threads: int | None = None
    backend: str = "auto"
    memory: int = 2 << 30  # bytes of activations that one call may hand out


DEFAULTS = Options()
