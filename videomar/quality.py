"""Levels of quality: sets of dials, each chosen from measurements on the demo (docs/quality.md, benchmarks/dials.py).

A level is relative to the model's own schedule, which `exact` leaves as it is.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable

from videomar.config import SamplingConfig, SamplingOptions
from videomar.errors import InputError

EXACT = "exact"
LEVELS = (EXACT, "high", "fast", "draft")


def _exact(own: SamplingConfig) -> SamplingOptions:
    return {}


def _high(own: SamplingConfig) -> SamplingOptions:
    """Fewer diffusion steps the more is known."""
    return {"head_steps_end": _share(own.head_steps, 1 / 4)}


def _fast(own: SamplingConfig) -> SamplingOptions:
    """Besides, half the diffusion steps, parts of a frame, and two thirds of the mask steps."""
    head = _share(own.head_steps, 1 / 2)
    return {
        "mask_steps": _share(own.mask_steps, 2 / 3),
        "head_steps": head,
        "head_steps_end": _share(head, 1 / 4),
        "refresh_every": 4,
    }


def _draft(own: SamplingConfig) -> SamplingOptions:
    """Half the mask steps and a third of the diffusion steps."""
    head = _share(own.head_steps, 1 / 3)
    return {
        "mask_steps": _share(own.mask_steps, 1 / 3),
        "head_steps": head,
        "head_steps_end": _share(head, 1 / 4),
        "refresh_every": 4,
    }


_DIALS: dict[str, Callable[[SamplingConfig], SamplingOptions]] = dict(
    zip(LEVELS, (_exact, _high, _fast, _draft), strict=True)
)


def at_quality(own: SamplingConfig, level: str) -> SamplingConfig:
    """The model's own options with the dials of a level; raises InputError for an unknown one."""
    if level not in _DIALS:
        near = difflib.get_close_matches(level, LEVELS, 1) if isinstance(level, str) else []
        meant = f"did you mean {near[0]}? " if near else ""
        raise InputError(f"quality is {level!r:.60}, {meant}expected one of {', '.join(LEVELS)}; change --quality")
    return own.but(**_DIALS[level](own))


def _share(count: int, of: float) -> int:
    return max(1, round(count * of))
