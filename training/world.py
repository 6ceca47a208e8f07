"""Clips of the demo world, drawn and encoded while training goes on, so that none is seen too often."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor

from videomar.demo.chance import CHANCES
from videomar.demo.world import MOTIONS, SIZE, Scene, render, sample_scene
from videomar.errors import ConfigError, InputError
from videomar.model.tokenizer import VideoTokenizer
from videomar.progress import Progress
from videomar.runtime.prompt import PromptTokenizer
from videomar.training.recipe import Stage
from videomar.training.source import Clips, to_pixels

POOL = 2_000  # clips kept encoded
FRESH = 2  # of them replaced at every step, so that the world stays endless
HELD_OUT, HELD_OUT_SEED = 32, 10**6
AT_ONCE = 20  # clips encoded at a time
LEFT_TO_CHANCE = 0.65  # share of clips whose future is drawn: what takes longest to learn
EVERY_FUTURE = tuple(sentence for sentence, futures in CHANCES.items() for _ in futures)  # more futures: more clips


class WorldClips:
    """A pool of encoded clips of random scenes; a `Source`."""

    def __init__(
        self,
        tokenizer: VideoTokenizer,
        words: PromptTokenizer,
        clips: int | None = None,
        chance: float = LEFT_TO_CHANCE,
    ) -> None:
        """clips: kept encoded, POOL if None; chance: share of clips whose future is drawn."""
        self._tokenizer, self._words, self._clips, self._chance = tokenizer, words, clips or POOL, chance
        self._stage: Stage | None = None

    def enter(self, stage: Stage, rng: np.random.Generator) -> None:
        if stage == self._stage:
            return
        check_square(stage)
        self._set(stage)
        with Progress(self._clips) as progress:
            while len(self._prompts) < self._clips:
                latents, prompts = self._draw(min(AT_ONCE, self._clips - len(self._prompts)), rng)
                self._latents = torch.cat([self._latents, latents]) if self._prompts else latents
                self._prompts += prompts
                progress.step("encoding clips", len(prompts))

    def _set(self, stage: Stage) -> None:
        stride = self._tokenizer.config.spatial_stride
        self._stage, self._grid = stage, (stage.height // stride, stage.width // stride)
        self._latents, self._prompts, self._next = torch.empty(0), list[tuple[int, ...]](), 0
        latents, prompts = self._draw(HELD_OUT, np.random.default_rng(HELD_OUT_SEED))
        self._kept = Clips(latents, self._grid, tuple(prompts))

    def batch(self, count: int, rng: np.random.Generator) -> Clips:
        latents, prompts = self._draw(FRESH, rng)
        for clip, prompt in zip(latents, prompts, strict=True):  # the oldest ones go
            self._latents[self._next], self._prompts[self._next] = clip, prompt
            self._next = (self._next + 1) % self._clips
        rows = rng.integers(self._clips, size=count)
        return Clips(self._latents[rows], self._grid, tuple(self._prompts[row] for row in rows))

    def held_out(self) -> Clips:
        return self._kept

    def state(self) -> dict[str, Tensor]:
        longest = max(map(len, self._prompts))
        ids = torch.tensor([[*prompt, *[-1] * (longest - len(prompt))] for prompt in self._prompts])
        return {"latents": self._latents, "ids": ids, "next": torch.tensor(self._next)}

    def restore(self, stage: Stage, state: dict[str, Tensor]) -> None:
        self._set(stage)
        self._latents, self._next = state["latents"], int(state["next"])
        self._prompts = [tuple(i for i in row if i >= 0) for row in state["ids"].tolist()]

    @torch.no_grad()
    def _draw(self, count: int, rng: np.random.Generator) -> tuple[Tensor, list[tuple[int, ...]]]:
        assert self._stage is not None
        scenes = [_scene(rng, self._chance, self._stage) for _ in range(count)]
        pixels = to_pixels(np.stack([shown(scene, self._stage) for scene in scenes]))
        latents = self._tokenizer.vae.encode(pixels).latent_dist.mode().flatten(3).permute(0, 2, 3, 1)
        return latents.contiguous(), [tuple(self._words(scene.prompt)[0].tolist()) for scene in scenes]


def check_square(stage: Stage) -> None:
    """Raise ConfigError for a picture that the demo world does not have."""
    if stage.height != stage.width:
        raise ConfigError(
            f"a stage of the demo world is {stage.height}x{stage.width}, expected a square; change size or give --clips"
        )


def shown(scene: Scene, stage: Stage) -> np.ndarray:
    """A scene at a stage's size: [frames, size, size, 3] uint8. A small picture is the world's own, shrunk."""
    size = max(SIZE, stage.width)
    frames = render(scene, stage.frames, size)
    if size == stage.width:
        return frames
    return np.stack([cv2.resize(f, (stage.width, stage.height), interpolation=cv2.INTER_AREA) for f in frames])


def _scene(rng: np.random.Generator, chance: float, stage: Stage) -> Scene:
    """Of a random sentence, among those that fit the stage's length and size."""
    for _ in range(100):
        kind = EVERY_FUTURE if rng.random() < chance else MOTIONS
        try:
            return sample_scene(rng, str(rng.choice(kind)), stage.frames, max(SIZE, stage.width))
        except InputError:  # too long for the picture: another sentence
            continue
    raise ConfigError(f"no motion of the demo world fits {stage}; give fewer frames or a larger size")
