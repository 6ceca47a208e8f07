"""Whether quantized graphs are faster where they are to run: time of a transformer step, side by side in one run."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import numpy as np

from videomar.config import ModelConfig
from videomar.runtime.backends.base import Backend, Clip, ClipPlan
from videomar.runtime.prompt import PromptTokenizer
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
