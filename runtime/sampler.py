"""The loop over frames and mask steps (model.md, "The sampling loop"): decides what is predicted, for every backend.

Knows nothing of devices, files, pixels or words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from videomar.config import ModelConfig, SamplingConfig
from videomar.runtime.backends.base import Backend, ClipPlan
from videomar.runtime.timing import Timing
from videomar.schedule import (
    DiffusionSchedule,
    Noise,
    guidance_at,
    half_tables,
    masked_after_steps,
    temperature_at,
)

Progress = Callable[[int, int], None]  # (latent frame, mask step) just finished


def sample_frames(
    backend: Backend,
    config: ModelConfig,
    states: np.ndarray,
    given: np.ndarray,
    frames: int,
    sampling: SamplingConfig,
    noise: Noise,
    timing: Timing,
    progress: Progress = lambda frame, step: None,
    kv_window: int | None = None,
    guidance_passes: int = 1,
    guidance_ramp: bool = True,
) -> Iterator[np.ndarray]:
    """Yield the latent frames after the given ones, each [channels, h, w] float32, as soon as it is finished.

    states: text states of `Backend.encode_text`; given: [channels, t, h, w] float32, scaled latents of the
    conditioning frames; frames: latent frames in all. kv_window: finished frames that each frame sees besides the
    first, all if None. guidance_passes: 2 sends the branches through the transformer one after the other.
    guidance_ramp: the scale grows from 1 as tokens become known, as in the paper; otherwise it is the same throughout.
    """
    channels, known, h, w = given.shape
    tokens, t = h * w, config.transformer
    left = masked_after_steps(tokens, sampling.mask_steps)
    before = [tokens, *left[:-1]]
    schedule = DiffusionSchedule.respaced(config.head.train_steps, sampling.head_steps, sampling.max_beta)
    plan = ClipPlan(
        tokens=tokens,
        frames=frames,
        branches=1 if sampling.guidance_scale == 1 else 2,
        counts=tuple(a - b for a, b in zip(before, left, strict=True)),
        timesteps=schedule.timesteps,
        coefficients=schedule.coefficients,
        window=kv_window,
        passes=guidance_passes if sampling.guidance_scale != 1 else 1,
    )
    with timing.stage("text"):
        clip = backend.begin(states, plan)
    nothing_masked, any_row = np.zeros(tokens, bool), np.zeros(1, np.int64)
    try:
        for frame in range(known):
            tables = half_tables(frame, h, w, t.rope_split, t.rope_theta)
            with timing.stage("transformer"):
                clip.step(given[:, frame].reshape(channels, tokens).T, nothing_masked, any_row, *tables)
                clip.keep()
        for frame in range(known, frames):
            tables = half_tables(frame, h, w, t.rope_split, t.rope_theta)
            order = noise.order(frame, tokens)
            x, masked = np.zeros((tokens, channels), np.float32), np.ones(tokens, bool)
            temperature = np.float32(temperature_at(frame - known, sampling.temperature))
            for step, (was, still) in enumerate(zip(before, left, strict=True)):
                predict = order[tokens - was : tokens - still]
                with timing.stage("transformer"):
                    clip.step(x, masked, predict, *tables)
                initial = noise.initial(frame, step, (len(predict), channels))
                draws = noise.steps(frame, step, (sampling.head_steps, len(predict), channels)) * temperature
                draws[-1] = 0  # nothing is added after the last diffusion step
                with timing.stage("head"):
                    guidance = guidance_at(sampling.guidance_scale, still, tokens, guidance_ramp)
                    sampled = clip.sample(guidance, initial, draws)
                if frame > known and sampling.clip is not None:
                    sampled = np.clip(sampled, -sampling.clip, sampling.clip)
                x[predict], masked[predict] = sampled, False
                progress(frame, step)
            if frame + 1 < frames:
                with timing.stage("transformer"):
                    clip.step(x, masked, any_row, *tables)
                    clip.keep()
            yield np.ascontiguousarray(x.T).reshape(channels, h, w)
    finally:
        clip.close()
