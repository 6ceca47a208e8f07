"""Whether quantized graphs are faster where they are to run: time of a transformer step, side by side in one run."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from videomar.config import ModelConfig
from videomar.fields import Fields
from videomar.runtime.arithmetic import integer_arithmetic
from videomar.runtime.backends.base import Backend, Clip, ClipPlan
from videomar.runtime.prompt import PromptTokenizer
from videomar.runtime.system import System
from videomar.schedule import half_tables
from videomar.steps import ClipSteps

ROUNDS = 15


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one transformer step, the medians of interleaved rounds."""

    source: float
    quantized: float

    @property
    def speed(self) -> float:
        """How many times faster the quantized graphs are."""
        return self.source / self.quantized


def multiplied_by(backend: str, system: System) -> dict[str, Any] | None:
    """JSON-ready: which instructions multiply int8 where times are taken; None on a GPU and where nobody knows."""
    found = integer_arithmetic(system) if backend == "ort-cpu" else None
    return dataclasses.asdict(found) if found else None


def advice(timing: Mapping[str, Any], precision: str) -> str:
    """What follows from a report's `timing`, "" where INT8 pays; precision: the source's."""
    if timing["speed"] > 1:
        return ""
    cpu = timing.get("arithmetic")
    why = f" ({cpu['name']}: int8 is widened to 16 bits to be exact)" if cpu and not cpu["dot_product"] else ""
    return (
        f"INT8 does not pay here: {timing['int8_ms']:.2f} ms a step against {timing['source_ms']:.2f} ms on "
        f"{timing['backend']}{why}; use the {precision} artifacts"
    )


def elsewhere(timing: Mapping[str, Any], system: System) -> str:
    """What to add to times that were taken on a CPU with other integer arithmetic than this one; "" if none.

    Raises FieldError where they do not say how they were taken.
    """
    said = Fields(timing, "extra.calibration.timing")
    there = "arithmetic" in said and said.plain("arithmetic") is not None
    then = said.fields("arithmetic") if there else None
    now = multiplied_by(said.text("backend"), system)
    if not then or not now or then.text("name") == now["name"]:
        return ""
    return (
        f"its times were taken with {then.text('name')}, this CPU has {now['name']}: calibrate with --force to learn "
        "whether INT8 pays here"
    )


def time_steps(
    source: Backend,
    quantized: Backend,
    config: ModelConfig,
    tokenizer: PromptTokenizer,
    prompt: str,
    rounds: int = ROUNDS,
) -> Timing:
    """Time a mask step of a default clip's last frame, all earlier frames kept; the two take turns."""
    asked = ClipSteps.of(config, config.sampling, given=1)
    plan, shape, split = ClipPlan.of(asked), asked.shape, config.transformer.rope_split
    tokens, counts = shape.tokens, asked.counts
    rng = np.random.default_rng(0)
    values = rng.standard_normal((tokens, config.transformer.token_channels), np.float32)
    predict = np.arange(counts[len(counts) // 2])
    masked = np.arange(tokens) < tokens // 2
    clips: dict[str, Clip] = {}
    spent: dict[str, list[float]] = {"source": [], "quantized": []}
    try:
        for name, backend in (("source", source), ("quantized", quantized)):
            clip = clips[name] = backend.begin(backend.encode_text(tokenizer(prompt)), plan)
            for frame in range(shape.frames - 1):
                tables = half_tables(frame, shape.rows, shape.columns, split, config.transformer.rope_theta)
                clip.step(values, np.zeros(tokens, bool), np.zeros(1, np.int64), *tables)
                clip.keep()
        tables = half_tables(shape.frames - 1, shape.rows, shape.columns, split, config.transformer.rope_theta)
        for round_ in range(rounds + 2):  # two warm up
            for name, clip in clips.items():
                began = time.perf_counter()
                clip.step(values, masked, predict, *tables)
                if round_ > 1:
                    spent[name].append(1e3 * (time.perf_counter() - began))
    finally:
        for clip in clips.values():
            clip.close()
    return Timing(*(statistics.median(spent[name]) for name in ("source", "quantized")))
