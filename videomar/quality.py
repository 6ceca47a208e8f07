"""Levels of quality: sets of dials, each chosen from measurements on the demo (docs/quality.md, benchmarks/dials.py).

A level is relative to the model's own schedule, which `exact` leaves as it is.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable

from videomar.config import DDIM, SamplingConfig, SamplingOptions
from videomar.errors import InputError

EXACT = "exact"
LEVELS = (EXACT, "high", "fast", "draft")
# Diffusion steps that no level goes below: with the deterministic solver 6 leave 92 % of the demo's clips whole and 5
# leave 87 %, where the exact schedule leaves 97 %.
FEWEST_HEAD_STEPS = 6


def _exact(own: SamplingConfig) -> SamplingOptions:
    return {}


def _high(own: SamplingConfig) -> SamplingOptions:
    """A third of the diffusion steps, and three passes of four compute a part."""
    return {**_few_head_steps(own, 1 / 3), "refresh_every": 4}


def _fast(own: SamplingConfig) -> SamplingOptions:
    """Half the mask steps, a quarter of the diffusion steps, and three passes of four compute a part."""
    steps = max(min(FEWEST_HEAD_STEPS, own.head_steps), _share(own.head_steps, 1 / 4))
    mask_steps = _share(own.mask_steps, 1 / 2)
    return {"head_steps": steps, "head_steps_end": None, "refresh_every": 4, "mask_steps": mask_steps}


def _draft(own: SamplingConfig) -> SamplingOptions:
    """A third of the mask steps, few whole passes, and guidance in a frame's second half alone."""
    mask_steps = _share(own.mask_steps, 1 / 3)
    return {
        **_few_head_steps(own, 1 / 4),
        "refresh_every": 8,
        "mask_steps": mask_steps,
        "guidance_start": 0.5 if mask_steps > 1 else 0.0,
        "guidance_end": 1.0,
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


def _few_head_steps(own: SamplingConfig, of: float) -> SamplingOptions:
    steps = max(min(FEWEST_HEAD_STEPS, own.head_steps), _share(own.head_steps, of))
    return {"head_solver": DDIM, "head_steps": steps, "head_steps_end": None}
