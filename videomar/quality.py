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
# Diffusion steps that no level goes below: with 2 or 3 of them at a frame's end the demo's tokens leave the data (five
# times as far from the exact schedule's as another seed's are), with 6 they do not.
FEWEST_HEAD_STEPS = 6


def _exact(own: SamplingConfig) -> SamplingOptions:
    return {}


def _high(own: SamplingConfig) -> SamplingOptions:
    """Every second pass computes a part, and diffusion steps go down to a quarter."""
    return {"refresh_every": 2, "head_steps_end": _head_steps(own, 1 / 4)}


def _fast(own: SamplingConfig) -> SamplingOptions:
    """Three passes of four compute a part, and a third of the mask steps is left out."""
    return {
        "mask_steps": _share(own.mask_steps, 2 / 3),
        "head_steps_end": _head_steps(own, 1 / 4),
        "refresh_every": 4,
    }


def _draft(own: SamplingConfig) -> SamplingOptions:
    """A third of the mask steps, half of the diffusion steps and less; few whole passes."""
    return {
        "mask_steps": _share(own.mask_steps, 1 / 3),
        "head_steps": _head_steps(own, 1 / 2),
        "head_steps_end": _head_steps(own, 1 / 4),
        "refresh_every": 8,
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


def _head_steps(own: SamplingConfig, of: float) -> int:
    return max(min(FEWEST_HEAD_STEPS, own.head_steps), _share(own.head_steps, of))
