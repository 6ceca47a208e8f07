"""The settings that are tried: every level, every dial by itself, and dials together. Knows nothing of running."""

from __future__ import annotations

from itertools import product
from typing import Any

from videomar.config import SamplingConfig
from videomar.errors import UserError
from videomar.quality import EXACT, LEVELS, at_quality
from videomar.steps import ClipSteps

Settings = dict[str, SamplingConfig]


def settings(clip: ClipSteps) -> Settings:
    """Name -> options, the exact schedule first, then what is most likely to be of use; all can be sampled."""
    own = clip.sampling
    wanted: dict[str, SamplingConfig] = {level: at_quality(own, level) for level in LEVELS}
    for options in (*_single(own), *_together(own)):
        wanted[_name(options)] = own.but(**options)
    found: Settings = {}
    for name, sampling in wanted.items():
        try:
            ClipSteps(clip.config, sampling, clip.shape)
        except UserError:
            continue  # more steps than the frame has tokens
        if sampling not in found.values():
            found[name] = sampling
    return {EXACT: found.pop(EXACT), **found}


def _single(own: SamplingConfig) -> list[dict[str, Any]]:
    m, h = own.mask_steps, own.head_steps
    return [
        *({"mask_steps": max(1, m // n)} for n in (2, 4)),
        *({"head_steps": max(1, h // n)} for n in (2, 4)),
        *({"head_solver": "ddim", "head_steps": max(1, h // n)} for n in (2, 4)),
        *({"head_steps_end": max(1, h // n)} for n in (4, 10)),
        {"order": "structure"},
        {"order": "spread"},
        *([{"guidance_end": 0.5}, {"guidance_start": 0.5}] if own.branches == 2 and m > 1 else []),
        *({"refresh_every": n} for n in (2, 4, 8)),
    ]


def _together(own: SamplingConfig) -> list[dict[str, Any]]:
    m, h = own.mask_steps, own.head_steps
    few = {"head_solver": "ddim", "head_steps": max(1, h // 4)}
    return [
        {"mask_steps": max(1, m * 2 // n), **head, "refresh_every": every}
        for n, head, every in product((2, 3, 4), ({"head_steps_end": max(1, h // 4)}, few), (2, 4))
    ]


def _name(options: dict[str, Any]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in options.items())
