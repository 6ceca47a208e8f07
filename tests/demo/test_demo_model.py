"""The committed demo checkpoint has learned its world; the whole figures come from `videomar evaluate`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from videomar.config import PRESETS, ModelConfig
from videomar.demo.evaluate import SEED
from videomar.demo.measure import psnr, score
from videomar.demo.world import MOTIONS, render, sample_scene
from videomar.model.generate import generate
from videomar.model.videomar import VideoMAR, load_checkpoint
from videomar.runtime.media import to_frames, to_pixels
from videomar.runtime.prompt import PromptTokenizer
from videomar.schedule import SeededNoise

CHECKPOINT = Path(__file__).parents[2] / "models" / "demo"


@pytest.fixture(scope="module")
def model() -> VideoMAR:
    return load_checkpoint(CHECKPOINT)


def test_the_checkpoint_is_the_demo_preset() -> None:
    assert ModelConfig.from_json((CHECKPOINT / "config.json").read_text()) == PRESETS["demo"]


def test_the_weights_take_at_most_40_megabytes() -> None:
    assert sum(f.stat().st_size for f in CHECKPOINT.iterdir()) < 40e6


def test_the_tokenizer_reconstructs_unseen_clips_at_30_db(model: VideoMAR) -> None:
    values = []
    for i, motion in enumerate(MOTIONS):
        clip = render(sample_scene(np.random.default_rng([SEED, 500 + i]), motion))
        with torch.inference_mode():
            out = model.video_tokenizer.decode(model.video_tokenizer.encode(torch.from_numpy(to_pixels(clip))))
        values.append(psnr(to_frames(out.numpy()), clip))
    assert np.mean(values) >= 30


def test_the_same_picture_follows_whatever_the_sentence_says(model: VideoMAR) -> None:
    words = PromptTokenizer(CHECKPOINT / "tokenizer.json", model.config.text)
    scene = sample_scene(np.random.default_rng([SEED, 600]), "stays still")
    # From the middle every motion has room: only the sentence can tell the clips apart.
    scene = replace(scene, x=32.0, y=30.0, radius=9.0)
    picture = torch.from_numpy(to_pixels(render(scene)[:1]))
    for i, motion in enumerate(("moves left slowly", "moves right slowly", "falls", "grows", "stays still")):
        asked = replace(scene, motion=motion)
        _, pixels = generate(
            model, picture, torch.from_numpy(words(asked.prompt)), words.prefix, model.config.sampling, SeededNoise(i)
        )
        result = score(to_frames(pixels.numpy()), asked)
        assert result.followed, f"asked for {motion}, saw {result.seen_motion}"
