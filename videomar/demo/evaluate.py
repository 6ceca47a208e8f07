"""The quality figures of an artifact directory on the demo world: scenes and seeds that training never saw."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from videomar.demo.measure import Score, psnr, score, summary
from videomar.demo.world import FRAMES, MOTIONS, SIZE, render, sample_scene
from videomar.runtime.media import to_frames, to_pixels
from videomar.runtime.pipeline import Pipeline

SEED = 10**9  # training draws from small seeds


def reconstruction_psnr(pipe: Pipeline, clips: int = 50, seed: int = SEED) -> float:
    """Mean PSNR in dB of encode + decode over clips of the world."""
    rng = np.random.default_rng(seed)
    values = []
    for i in range(clips):
        clip = render(sample_scene(rng, MOTIONS[i % len(MOTIONS)]))
        values.append(psnr(to_frames(pipe.backend.decode(pipe.backend.encode(to_pixels(clip)))), clip))
    return float(np.mean(values))


def continuations(
    pipe: Pipeline,
    cases: int = 200,
    seed: int = SEED,
    frames: int = FRAMES,
    size: int = SIZE,
    given: int = 1,
    progress: Callable[[int], None] = lambda done: None,
    **knobs: Any,
) -> list[Score]:
    """Continue the first `given` frames of `cases` scenes, every motion in turn, and score each against its future."""
    scores = []
    for i in range(cases):
        rng = np.random.default_rng([seed, i])
        scene = sample_scene(rng, MOTIONS[i % len(MOTIONS)], frames, size)
        truth = render(scene, frames, size)
        video = pipe(truth[:given], scene.prompt, frames=frames, height=size, width=size, seed=seed + i, **knobs)
        scores.append(score(video.frames, scene, given))
        progress(i + 1)
    return scores


def evaluate(pipe: Pipeline, progress: Callable[[int], None] = lambda done: None, **options: Any) -> dict[str, Any]:
    """Both figures as one JSON-ready dict; options as in `continuations`."""
    return {
        "tokenizer_psnr_db": reconstruction_psnr(pipe),
        **summary(continuations(pipe, progress=progress, **options)),
    }
