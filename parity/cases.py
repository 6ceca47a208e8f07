"""What a comparison generates: held-out scenes of the demo world, the user's pictures, or synthetic ones.

Knows nothing of models beyond their config, or of what is measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from videomar.config import ModelConfig
from videomar.demo.world import MOTIONS, Scene, render, sample_scene, vocabulary
from videomar.errors import InputError
from videomar.runtime.media import load_picture
from videomar.runtime.pipeline import NO_FRAMES
from videomar.schedule import Noise, SeededNoise

HELD_OUT = 10**9  # training draws from small seeds
LARGEST_VOCABULARY = 100  # of a model that knows the demo world's words and no others


@dataclass(frozen=True)
class Case:
    """One clip to generate."""

    name: str
    given: np.ndarray  # [height, width, 3] or [frames, height, width, 3] uint8; no frames: of the sentence alone
    prompt: str
    noise: Noise
    scene: Scene | None = None  # of the demo world, where the true future is known


def make_cases(
    config: ModelConfig,
    images: Sequence[Path],
    prompts: Sequence[str],
    count: int,
    seed: int,
    frames: int,
    height: int,
    width: int,
    from_text: bool = False,
) -> list[Case]:
    """The user's pictures with their prompts; else `count` demo scenes or synthetic pictures under the prompts.

    from_text: no pictures, the sentences alone. Case i draws its noise from seed + i. Raises InputError when pictures
    and prompts do not pair up, or when there is nothing to say to a model that is not of the demo world.
    """
    if from_text:
        if images:
            raise InputError("--from-text is for clips without a picture, got --image; leave one of them away")
        cases = make_cases(config, [], prompts, count, seed, frames, height, width)
        return [replace(case, name=f"sentence {i}", given=NO_FRAMES, scene=None) for i, case in enumerate(cases)]
    if images:
        if len(prompts) not in (1, len(images)):
            raise InputError(
                f"there are {len(images)} pictures and {len(prompts)} prompts, expected one prompt for all or one "
                "each; give --prompt as often as --image"
            )
        words = list(prompts) * (len(images) // len(prompts))
        pairs = enumerate(zip(images, words, strict=True))
        return [Case(image.name, load_picture(image), text, SeededNoise(seed + i)) for i, (image, text) in pairs]
    if prompts:
        pictures = ((i, synthetic_picture(seed + i, height, width)) for i in range(count))
        return [
            Case(f"synthetic {i}", picture, prompts[i % len(prompts)], SeededNoise(seed + i)) for i, picture in pictures
        ]
    if not of_demo_world(config, height, width):
        raise InputError(
            f"{config.name} at {width}x{height} is not of the demo world, where pictures and sentences can be made up; "
            "give --prompt, and --image for a picture of your own"
        )
    cases = []
    for i in range(count):
        scene = sample_scene(np.random.default_rng([HELD_OUT + seed, i]), MOTIONS[i % len(MOTIONS)], frames, height)
        first = render(scene, 1, height)[0]
        cases.append(Case(f"scene {i}", first, scene.prompt, SeededNoise(seed + i), scene))
    return cases


def of_demo_world(config: ModelConfig, height: int, width: int) -> bool:
    """Whether the demo world's scenes and sentences mean anything to a model at that size."""
    return height == width and 1 + len(vocabulary()) <= config.text.vocab_size <= LARGEST_VOCABULARY


def synthetic_picture(seed: int, height: int, width: int) -> np.ndarray:
    """A smooth, seeded picture of many colours: [height, width, 3] uint8."""
    coarse = np.random.default_rng([seed, height, width]).uniform(0, 255, (4, 5, 3)).astype(np.float32)
    return np.clip(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC), 0, 255).astype(np.uint8)
