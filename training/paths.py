"""Paths from noise to tokens, as a teacher's diffusion head shows them on clips of the demo world.

The deterministic solver draws only where a path starts: one start under one condition has one end, which can be
learned. Knows nothing of how it is learned.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from videomar.config import DDIM
from videomar.demo.chance import CHANCES
from videomar.demo.world import FRAMES, MOTIONS, SIZE, render, sample_scene
from videomar.model.head import DiffusionHead, ancestral_step
from videomar.model.videomar import VideoMAR
from videomar.progress import Progress
from videomar.runtime.prompt import PromptTokenizer
from videomar.schedule import DiffusionSchedule, rope_tables
from videomar.steps import ClipSteps, Step

TEACHER_STEPS = 24  # at least; the next multiple of the student's, so that the student's points are among them
TOKENS = 32  # of one latent frame, at most: neighbours have much in common
CLIPS = 10  # of either kind of sentence, encoded at a time
AT_ONCE = 512  # paths


@dataclass(frozen=True)
class Paths:
    """What a student learns from."""

    z: Tensor  # [N, 2, W]: conditions, with the sentence and without; [N, 1, W]: with it alone
    scale: Tensor  # [N]: of guidance
    points: Tensor  # [N, steps + 1, C]: where a path starts, and where the teacher is after each of the student's steps

    def __len__(self) -> int:
        return len(self.z)

    def __getitem__(self, rows: Tensor | slice) -> Paths:
        return Paths(self.z[rows], self.scale[rows], self.points[rows])

    def without_guidance(self) -> Paths:
        """The same ends to be reached from the condition with the sentence alone."""
        return replace(self, z=self.z[:, :1])

    @staticmethod
    def joined(parts: list[Paths]) -> Paths:
        """All of them in one."""
        return Paths(*(torch.cat(each) for each in zip(*((p.z, p.scale, p.points) for p in parts), strict=True)))


def follow(head: DiffusionHead, z: Tensor, scale: Tensor, start: Tensor, schedule: DiffusionSchedule) -> Tensor:
    """Where the deterministic solver is at its start and after each of its steps: [N, steps + 1, C] float32.

    z [N, 2, W], or [N, 1, W] without guidance; scale [N]; start [N, C]. The branches share x, as in the sampling loop.
    """
    points, branches, count = [start], z.transpose(0, 1).flatten(0, 1), z.shape[1]
    for at, coefficients in zip(schedule.timesteps, torch.from_numpy(schedule.coefficients), strict=True):
        x = points[-1]
        noise, _ = head(x.repeat(count, 1), torch.full((1,), float(at)), branches)
        text, no_text = noise[: len(x)], noise[-len(x) :]
        guided = no_text + scale[:, None] * (text - no_text)
        nothing = torch.zeros_like(x)  # is drawn, so its variance does not matter
        points.append(ancestral_step(x, guided, nothing, coefficients, nothing))
    return torch.stack(points, dim=1)


@torch.no_grad()
def collect(model: VideoMAR, words: PromptTokenizer, steps: int, count: int, rng: np.random.Generator) -> Paths:
    """Paths for a student of `steps`, under the conditions, scales and temperatures of the model's own sampling.

    The teacher takes TEACHER_STEPS or a few more. Draws starts from PyTorch's own generator.
    """
    between = min(math.ceil(TEACHER_STEPS / steps), model.config.head.train_steps // steps)
    schedule = DiffusionSchedule.ddim(model.config.head.train_steps, steps * between, model.config.sampling.max_beta)
    found, left = list[Paths](), count
    with Progress(count) as progress:
        while left > 0:
            z, scale, start = (each[:left] for each in _starts(model, words, rng))
            for rows in torch.arange(len(z)).split(AT_ONCE):
                points = follow(model.diffusion_head, z[rows], scale[rows], start[rows], schedule)
                found.append(Paths(z[rows], scale[rows], points[:, ::between]))
                progress.step("the teacher shows paths", len(rows))
            left -= len(z)
    return Paths.joined(found)


def _starts(model: VideoMAR, words: PromptTokenizer, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Where paths begin in a few clips, every new frame at one mask step: z [N, 2, W], scale [N], start [N, C]."""
    own = model.config.sampling.but(frames=FRAMES, height=SIZE, width=SIZE, head_solver=DDIM)
    clip = ClipSteps.of(model.config, own, 1)
    z, scales, starts = list[Tensor](), list[Tensor](), list[Tensor]()
    for latents, ids in _clips(model, words, rng):
        for frame in range(clip.shape.given, clip.shape.frames):
            asked = [step for step in clip.steps if step.frame == frame and step.predicted]
            step = asked[rng.integers(len(asked))]
            of = conditions(model, latents, ids, step, rng.permutation(clip.shape.tokens)).transpose(0, 1)
            z.append(of[rng.permutation(len(of))[:TOKENS]])
            scales.append(torch.full((len(z[-1]),), step.guidance))
            starts.append(torch.randn(len(z[-1]), latents.shape[0]) * step.drawn[0])
    return torch.cat(z), torch.cat(scales), torch.cat(starts)


def _clips(model: VideoMAR, words: PromptTokenizer, rng: np.random.Generator) -> list[tuple[Tensor, Tensor]]:
    """True clips, every second one left to chance: scaled latents [C, t, h, w] and the prompt's ids [1, P]."""
    kinds = (tuple(MOTIONS), tuple(CHANCES)) * CLIPS
    scenes = [sample_scene(rng, str(rng.choice(kind))) for kind in kinds]
    ids = [torch.from_numpy(words(scene.prompt)) for scene in scenes]
    frames = np.stack([render(scene) for scene in scenes])
    latents = model.video_tokenizer.encode(torch.from_numpy(frames).permute(0, 4, 1, 2, 3).float() / 127.5 - 1)
    return list(zip(latents, ids, strict=True))


def conditions(model: VideoMAR, latents: Tensor, ids: Tensor, step: Step, order: np.ndarray) -> Tensor:
    """The transformer's z where a mask step finds the frame masked, if all that is known is true: [2, masked, W].

    latents: [C, t, h, w], scaled; ids [1, P]; order: a permutation of the frame's positions.
    """
    t, (rows, columns) = model.config.transformer, latents.shape[2:]
    context = model.transformer.text_context(model.text_encoder.prompt_states(ids, model.config.text.system_tokens))
    text = model.transformer.text_key_values(torch.cat([context, model.transformer.no_text(context.shape[1])]))
    tables = [rope_tables(f, rows, columns, t.rope_split, t.rope_theta) for f in range(step.frame + 1)]
    cos, sin = (torch.from_numpy(np.concatenate(part)) for part in zip(*tables, strict=True))
    of = torch.arange(step.frame + 1).repeat_interleave(rows * columns)
    x = latents[:, : step.frame + 1].flatten(1).T
    masked = torch.zeros(len(x), dtype=torch.bool)
    masked[step.frame * rows * columns + torch.from_numpy(order[step.known :].copy())] = True
    both = (x.expand(2, -1, -1), masked.expand(2, -1))
    z, _ = model.transformer(*both, cos, sin, text, mask=of[:, None] >= of)
    return z[:, masked]
