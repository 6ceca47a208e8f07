"""The fields of a request for a clip, checked one by one: strings of a form or values of JSON -> what is asked for.

Knows nothing of HTTP, of pictures or of a model's weights.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from videomar.config import ModelConfig, SamplingConfig
from videomar.errors import UserError
from videomar.quality import EXACT, at_quality
from videomar.serving.api.errors import ApiError
from videomar.serving.settings import Limits

LARGEST_SEED = 2**63 - 1


@dataclass(frozen=True)
class Asked:
    """A clip without its picture."""

    prompt: str
    sampling: SamplingConfig
    seed: int
    given: int | None  # frames of an uploaded clip that are continued; None: as usual
    extend: str | None  # a finished clip that is continued


def read(
    fields: Mapping[str, Any], config: ModelConfig, limits: Limits, default: SamplingConfig | None = None
) -> Asked:
    """Check every field; raises ApiError naming the first that cannot be. default: instead of the model's sampling."""
    if unknown := sorted(set(fields) - KNOWN):
        near = difflib.get_close_matches(unknown[0], KNOWN, 1)
        meant = f"did you mean {near[0]}?" if near else f"there are: {', '.join(sorted(KNOWN))}"
        raise ApiError(400, f"there is no field {unknown[0]!r:.60}; {meant}", unknown[0][:60], "unknown_parameter")
    model = _text(fields, "model", 200)
    if model not in (None, config.name):
        raise ApiError(404, f"there is no model {model!r}, this server has {config.name}", "model", "model_not_found")
    prompt = _text(fields, "prompt", limits.prompt)
    if prompt is None or not prompt.strip():
        raise ApiError(400, "prompt is missing, expected a sentence that says what happens", "prompt", "missing")
    seed = whole_number(fields, "seed", 0, LARGEST_SEED)
    options = _options(fields, limits)
    if size := _text(fields, "size", 20):
        options |= _size(size, limits)
    seconds = _number(fields, "seconds", 0, 1e6)
    if seconds is not None:
        if "frames" in options:
            raise ApiError(400, "seconds and num_frames are both given, expected one of them", "seconds", "conflict")
        options["frames"] = _frames(seconds, options.get("fps", (default or config.sampling).fps), config, limits)
    try:
        level = _text(fields, "quality", 20) or EXACT
        sampling = at_quality(default or config.sampling, level).but(**options)
    except UserError as error:
        raise ApiError(400, str(error), code="invalid_value") from None
    return Asked(
        prompt=prompt,
        sampling=sampling,
        seed=secrets.randbelow(2**31) if seed is None else seed,
        given=whole_number(fields, "given", 1, limits.frames),
        extend=_text(fields, "extend", 80),
    )


def _options(fields: Mapping[str, Any], limits: Limits) -> dict[str, Any]:
    """The sampling options that are given, under SamplingConfig's names."""
    read: dict[str, tuple[str, Callable[[Mapping[str, Any], str], Any]]] = {
        "num_frames": ("frames", lambda f, n: whole_number(f, n, 1, limits.frames)),
        "frames": ("frames", lambda f, n: whole_number(f, n, 1, limits.frames)),
        "height": ("height", lambda f, n: whole_number(f, n, 1, limits.size)),
        "width": ("width", lambda f, n: whole_number(f, n, 1, limits.size)),
        "mask_steps": ("mask_steps", lambda f, n: whole_number(f, n, 1, limits.steps)),
        "head_steps": ("head_steps", lambda f, n: whole_number(f, n, 1, limits.head_steps)),
        "guidance_scale": ("guidance_scale", lambda f, n: _number(f, n, 0, 1000)),
        "guidance_passes": ("guidance_passes", lambda f, n: whole_number(f, n, 1, 2)),
        "guidance_ramp": ("guidance_ramp", _flag),
        "temperature": ("temperature", lambda f, n: _number(f, n, 0, 1000)),
        "token_clip": ("token_clip", lambda f, n: _number(f, n, 1e-3, 1e6)),
        "kv_window": ("kv_window", lambda f, n: whole_number(f, n, 1, limits.frames)),
        "fps": ("fps", lambda f, n: _number(f, n, 0.1, 1000)),
        "fit": ("fit", lambda f, n: _text(f, n, 20) or None),
        "order": ("order", lambda f, n: _text(f, n, 20) or None),
        "detail_steps": ("detail_steps", lambda f, n: whole_number(f, n, 1, limits.steps)),
        "head_solver": ("head_solver", lambda f, n: _text(f, n, 20) or None),
        "head_steps_end": ("head_steps_end", lambda f, n: whole_number(f, n, 1, limits.head_steps)),
        "head_anneal": ("head_anneal", lambda f, n: _text(f, n, 20) or None),
        "guidance_start": ("guidance_start", lambda f, n: _number(f, n, 0, 1)),
        "guidance_end": ("guidance_end", lambda f, n: _number(f, n, 0, 1)),
        "refresh_every": ("refresh_every", lambda f, n: whole_number(f, n, 1, limits.steps)),
        "known_share": ("known_share", lambda f, n: _number(f, n, 0, 1)),
        "max_beta": ("max_beta", lambda f, n: _number(f, n, 1e-6, 1)),
    }
    options: dict[str, Any] = {}
    for field, (option, convert) in read.items():
        value = convert(fields, field)
        if value is not None:
            options[option] = value
    return options


OPTIONS = {f.name for f in dataclasses.fields(SamplingConfig)}
KNOWN = OPTIONS | {"num_frames", "model", "prompt", "seed", "size", "seconds", "given", "extend", "quality"}


def _wrong(name: str, value: Any, expected: str) -> ApiError:
    shown = f"{value!r:.60}" if isinstance(value, (str, int, float, bool)) else f"a {type(value).__name__}"
    return ApiError(400, f"{name} is {shown}, expected {expected}", name, "invalid_value")


def _text(fields: Mapping[str, Any], name: str, longest: int) -> str | None:
    value = fields.get(name)
    if value is None:
        return None
    if not isinstance(value, str):
        raise _wrong(name, value, "text")
    if len(value) > longest:
        raise ApiError(400, f"{name} has {len(value)} characters, expected at most {longest}", name, "too_long")
    if any("\ud800" <= c <= "\udfff" or c == "\0" for c in value):
        raise ApiError(400, f"{name} holds characters that are no text, expected Unicode", name, "invalid_value")
    return value


def whole_number(fields: Mapping[str, Any], name: str, least: int, most: int) -> int | None:
    value = fields.get(name)
    if value is None or value == "":
        return None
    if isinstance(value, str) and len(value) <= 20:
        try:
            value = int(value)
        except ValueError:
            pass
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise _wrong(name, value, f"a whole number, {least} to {most}")
    return value


def _number(fields: Mapping[str, Any], name: str, least: float, most: float) -> float | None:
    value = fields.get(name)
    if value is None or value == "":
        return None
    if isinstance(value, str) and len(value) <= 40:
        try:
            value = float(value)
        except ValueError:
            pass
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
        raise _wrong(name, value, f"a number, {least:g} to {most:g}")
    return float(value)


def _flag(fields: Mapping[str, Any], name: str) -> bool | None:
    value = fields.get(name)
    if value is None or value == "":
        return None
    named = {"true": True, "1": True, "on": True, "false": False, "0": False, "off": False}
    if isinstance(value, str) and value.lower() in named:
        return named[value.lower()]
    if not isinstance(value, bool):
        raise _wrong(name, value, "true or false")
    return value


def _size(text: str, limits: Limits) -> dict[str, int]:
    width, _, height = text.partition("x")
    both = whole_number({"size": width}, "size", 1, limits.size), whole_number({"size": height}, "size", 1, limits.size)
    if None in both:
        raise _wrong("size", text, "WIDTHxHEIGHT, such as 768x480")
    return {"width": both[0] or 0, "height": both[1] or 0}


def _frames(seconds: float, fps: float, config: ModelConfig, limits: Limits) -> int:
    """The clip's length that is nearest to so many seconds: 1 + stride * k frames, at least one latent frame anew."""
    stride = config.tokenizer.temporal_stride
    frames = 1 + max(1, math.floor((seconds * fps - 1) / stride + 0.5)) * stride
    if frames > limits.frames:
        most = limits.frames / fps
        raise ApiError(
            400, f"seconds is {seconds:g}, expected at most {most:.1f} at {fps:g} fps", "seconds", "too_long"
        )
    return frames
