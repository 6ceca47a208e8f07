"""Clips of the sentence alone: the first latent frame is generated too, like the PyTorch reference's; and refusals."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from videomar.errors import InputError
from videomar.graphs import TOKENIZER_ENCODER
from videomar.model.generate import generate
from videomar.model.videomar import VideoMAR, load_checkpoint
from videomar.quality import LEVELS, at_quality
from videomar.runtime.deadline import measure, start
from videomar.runtime.pipeline import NO_FRAMES, Pipeline
from videomar.schedule import SeededNoise
from videomar.steps import Step

PROMPT = "a red circle moves right"
TOLERANCE, HALF_TOLERANCE = 1e-3, 0.1
Trained = Callable[[Path], Path]

CLIPS: dict[str, dict[str, Any]] = {
    "three latent frames": {},
    "no guidance": {"guidance_scale": 1.0},
    "a picture": {"frames": 1},
    "one token, a token a step": {"height": 8, "width": 8, "frames": 9, "mask_steps": 1},
    "a window of one frame": {"frames": 33, "kv_window": 1, "temperature": 0.7},
    "parts of a frame": {"height": 32, "width": 32, "mask_steps": 8, "refresh_every": 3},
    "parts, guidance at the end, one branch after the other": {
        "height": 32, "width": 32, "mask_steps": 8, "refresh_every": 9, "guidance_start": 0.3, "guidance_passes": 2,
        "order": "structure", "head_solver": "ddim", "head_steps_end": 2,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path, from_text: Trained) -> VideoMAR:
    return load_checkpoint(from_text(tiny_checkpoint))


@pytest.fixture(scope="module", params=["tiny_artifacts", "tiny_native", "tiny_fixed"])
def pipe(request: pytest.FixtureRequest, from_text: Trained) -> Iterator[Pipeline]:
    with Pipeline.open(from_text(request.getfixturevalue(request.param)), threads=1, backend="ort-cpu") as pipe:
        yield pipe


@pytest.fixture(scope="module")
def portable(tiny_artifacts: Path, from_text: Trained) -> Iterator[Pipeline]:
    with Pipeline.open(from_text(tiny_artifacts), threads=1, backend="ort-cpu") as pipe:
        yield pipe


def picture() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (16, 24, 3), np.uint8)


def reference(model: VideoMAR, pipe: Pipeline, cache: bool = True, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    """(latents [channels, t, h, w], frames [t, height, width, 3] uint8) of PyTorch, which decodes all at once."""
    sampling = model.config.sampling.but(**{k: v for k, v in options.items() if k != "guidance_passes"})
    nothing = torch.zeros(1, 3, 0, sampling.height, sampling.width)
    ids, prefix = torch.from_numpy(pipe.tokenizer(PROMPT)), model.config.text.system_tokens
    latents, pixels = generate(model, nothing, ids, prefix, sampling, SeededNoise(5), cache=cache)
    frames = np.clip((pixels[0].numpy() + 1) * 127.5 + 0.5, 0, 255).astype(np.uint8)
    return latents[0].numpy(), np.moveaxis(frames, 0, -1)


@pytest.mark.parametrize("options", CLIPS.values(), ids=CLIPS.keys())
def test_a_clip_without_a_picture_is_the_reference(model: VideoMAR, pipe: Pipeline, options: dict[str, Any]) -> None:
    video = pipe(None, PROMPT, seed=5, **options)
    for cache in (True, False) if "refresh_every" not in options else (True,):
        latents, frames = reference(model, pipe, cache, **options)
        assert video.latents.shape == latents.shape and video.frames.shape == frames.shape
        assert np.abs(video.latents - latents).max() <= TOLERANCE
        assert np.abs(video.frames.astype(int) - frames).max() <= 1
    assert np.ptp(video.frames[0].astype(int)) > 10  # a picture, and not one colour


def test_in_fp16_it_stays_near_the_reference(model: VideoMAR, tiny_half: Path, from_text: Trained) -> None:
    with Pipeline.open(from_text(tiny_half), threads=1, backend="ort-cpu") as pipe:
        latents = pipe(None, PROMPT, seed=5).latents
        assert np.abs(latents - reference(model, pipe)[0]).max() <= HALF_TOLERANCE


def test_the_first_frame_follows_from_sentence_seed_and_options(portable: Pipeline) -> None:
    base = portable(None, PROMPT, seed=5).latents[:, 0]
    for prompt, seed, scale in ((PROMPT, 6, 3.0), ("a blue square grows", 5, 3.0), (PROMPT, 5, 1.0)):
        other = portable(None, prompt, seed=seed, guidance_scale=scale).latents[:, 0]
        assert np.abs(other - base).max() > 20 * TOLERANCE
    np.testing.assert_array_equal(portable(NO_FRAMES, PROMPT, seed=5).latents[:, 0], base)


def test_clips_that_continue_a_picture_keep_their_bytes(portable: Pipeline, tiny_artifacts: Path) -> None:
    with Pipeline.open(tiny_artifacts, threads=1, backend="ort-cpu") as usual:
        for image in (picture(), np.stack([picture()] * 9)):
            before, after = usual(image, PROMPT, seed=3), portable(image, PROMPT, seed=3)
            assert before.frames.tobytes() == after.frames.tobytes()
            assert before.latents.tobytes() == after.latents.tobytes()


def test_frames_come_as_soon_as_their_latent_frame_is_finished_the_first_one_too(portable: Pipeline) -> None:
    told: list[Step] = []
    arrived = [len(told) for _ in portable.stream(None, PROMPT, frames=17, progress=told.append)]
    # Three mask steps a frame, and a pass for K/V after each but the last.
    assert arrived == [3, *[7] * 8, *[11] * 8]
    with portable.start(None, PROMPT) as run:
        assert run.given == 0
        next(iter(run))
        assert run.timing.first_frame is not None and run.done == 3


def test_clips_with_and_without_a_picture_take_turns(pipe: Pipeline) -> None:
    images = (None, picture())
    alone = [pipe(image, PROMPT, seed=i).frames for i, image in enumerate(images)]
    runs = [pipe.start(image, PROMPT, seed=i) for i, image in enumerate(images)]
    made: list[list[np.ndarray]] = [[], []]
    while any(not run.finished for run in runs):
        for run, frames in zip(runs, made, strict=True):
            if not run.finished and (new := run.advance()) is not None:
                frames.append(new)
    for run, frames, expected in zip(runs, made, alone, strict=True):
        run.close()
        np.testing.assert_array_equal(np.concatenate(frames), expected)


def test_the_encoder_is_never_loaded(tiny_native: Path, from_text: Trained) -> None:
    with Pipeline.open(from_text(tiny_native), threads=1, backend="ort-cpu", lean=True) as pipe:
        video = pipe(None, PROMPT)
        assert TOKENIZER_ENCODER not in pipe.backend.sessions  # type: ignore[attr-defined]
        assert "encoder" not in video.timing.calls


def test_a_deadline_knows_what_decoding_costs_before_a_frame_is_finished(portable: Pipeline) -> None:
    options = portable.config.sampling.but(height=32, width=32, mask_steps=8)
    assert measure([portable.start(None, PROMPT, sampling=options)]).frame > 0
    levels = {level: at_quality(options, level) for level in LEVELS}
    clip, deadline = start(portable, None, PROMPT, 1e4, levels, seed=5)
    with clip:
        frames = np.concatenate(list(clip))
    assert deadline.history == [(0, "exact")]
    np.testing.assert_array_equal(frames, portable(None, PROMPT, seed=5, sampling=options).frames)


def test_a_model_that_was_not_trained_for_it_refuses_before_anything_runs(tiny_artifacts: Path) -> None:
    with Pipeline.open(tiny_artifacts, threads=1, backend="ort-cpu", lean=True) as pipe:
        for image in (None, NO_FRAMES):
            with pytest.raises(InputError) as caught:
                pipe.start(image, PROMPT)
            assert str(caught.value) == (
                "there is no picture, and tiny was not trained to make a clip's first frame from the sentence alone, "
                "expected a picture or clip to continue; give one, or a checkpoint whose config.json has from_text"
            )
        assert not pipe.backend.sessions  # type: ignore[attr-defined]
