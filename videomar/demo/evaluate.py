"""The quality figures of an artifact directory on the demo world: scenes and seeds that training never saw."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from videomar.demo.chance import CHANCES, draw
from videomar.demo.coherence import Future, judge
from videomar.demo.distance import distances
from videomar.demo.measure import Score, psnr, score, summary
from videomar.demo.shares import interval, p_value
from videomar.demo.world import FRAMES, MOTIONS, SIZE, render, sample_scene
from videomar.errors import InputError
from videomar.runtime.media import to_frames, to_pixels
from videomar.runtime.pipeline import Pipeline

Progress = Callable[[str, float, float], None]  # doing, done, of how much

SEED = 10**9  # training draws from small seeds
CHANCE_SEED = 1  # keeps the scenes with chance apart from the others of the same seed


def reconstruction_psnr(
    pipe: Pipeline, clips: int = 50, seed: int = SEED, progress: Callable[[], None] = lambda: None
) -> float:
    """Mean PSNR in dB of encode + decode over clips of the world, both kinds of sentences in turn."""
    rng, motions = np.random.default_rng(seed), (*MOTIONS, *CHANCES)
    values = []
    for i in range(clips):
        clip = render(sample_scene(rng, motions[i % len(motions)]))
        values.append(psnr(to_frames(pipe.backend.decode(pipe.backend.encode(to_pixels(clip)))), clip))
        progress()
    return float(np.mean(values))


def continuations(
    pipe: Pipeline,
    cases: int = 200,
    seed: int = SEED,
    frames: int = FRAMES,
    size: int = SIZE,
    given: int = 1,
    progress: Callable[[], None] = lambda: None,
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
        progress()
    return scores


def drawn_futures(
    pipe: Pipeline,
    cases: int = 200,
    seed: int = SEED,
    frames: int = FRAMES,
    size: int = SIZE,
    progress: Callable[[], None] = lambda: None,
    **knobs: Any,
) -> dict[str, Any]:
    """Continue the first frame of `cases` scenes whose future is drawn, every such sentence in turn; `chance_summary`.

    The true set that the distances are taken from has the same scenes with futures of its own, and so has the second
    true set, whose distance from the first is the floor.
    """
    shown, clips, truth, again = [], [], [], []
    for i in range(cases):
        rng = np.random.default_rng([seed, i, CHANCE_SEED])
        scene = sample_scene(rng, tuple(CHANCES)[i % len(CHANCES)], frames, size)
        truth.append(render(scene, frames, size))
        again.append(render(replace(scene, outcome=draw(rng, scene.motion)), frames, size))
        video = pipe(truth[-1][:1], scene.prompt, frames=frames, height=size, width=size, seed=seed + i, **knobs)
        clips.append(video.frames)
        shown.append(judge(video.frames, scene))
        progress()
    figures = chance_summary(shown)
    if cases > 1:
        figures["distance"] = {"generated": distances(clips, truth), "floor": distances(again, truth)}
    return figures


def chance_summary(shown: list[Future]) -> dict[str, Any]:
    """Totals and a table by sentence, ready for JSON: coherence, and outcomes of the coherent clips against the truth.

    Intervals are of 95 %. Raises InputError when there are no clips.
    """
    if not shown:
        raise InputError("there are no clips to sum up, expected at least one")
    sentences, tables = {}, []
    for sentence, shares in CHANCES.items():
        mine = [s for s in shown if s.motion == sentence]
        whole = [s for s in mine if s.coherent]
        if not mine:
            continue
        counts = [sum(s.outcome == outcome for s in whole) for outcome in shares]
        tables.append((counts, list(shares.values())))
        sentences[sentence] = {
            "cases": len(mine),
            "coherence": len(whole) / len(mine),
            "p_value": p_value(tables[-1:]),
            "outcomes": {
                outcome: {
                    "count": count,
                    "share": count / len(whole) if whole else None,
                    "interval": interval(count, len(whole)),
                    "truth": shares[outcome],
                }
                for outcome, count in zip(shares, counts, strict=True)
            },
        }
    coherent = sum(s.coherent for s in shown)
    return {
        "cases": len(shown),
        "coherence": coherent / len(shown),
        "coherence_interval": interval(coherent, len(shown)),
        "p_value": p_value(tables),
        "sentences": sentences,
    }


def evaluate(pipe: Pipeline, progress: Progress = lambda doing, done, of: None, **options: Any) -> dict[str, Any]:
    """All figures as one JSON-ready dict; options as in `continuations`.

    "chance" is None when more than one frame is given, which would show the future that is to be drawn, and for a model
    that was trained before there was chance and lacks the words.
    """
    chance = options.get("given", 1) == 1 and knows_chance(pipe)
    cases = options.get("cases", 200) * (1 + chance)
    done = 0

    def tick(doing: str) -> Callable[[], None]:
        def one() -> None:
            nonlocal done
            done += 1
            progress(doing, done, cases)

        return one

    figures = {
        "tokenizer_psnr_db": reconstruction_psnr(pipe, progress=lambda: progress("reconstructing clips", 0, cases)),
        **summary(continuations(pipe, progress=tick("continuing scenes"), **options)),
        "chance": None,
    }
    if chance:
        options.pop("given", None)
        figures["chance"] = drawn_futures(pipe, progress=tick("scenes left to chance"), **options)
    return figures


def knows_chance(pipe: Pipeline) -> bool:
    """Whether the model knows the sentences whose future is drawn."""
    try:
        for sentence in CHANCES:
            pipe.tokenizer(sentence)
    except InputError:
        return False
    return True
