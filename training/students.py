"""Teach a copy of the diffusion head to take a few steps where its teacher takes 24; all else of the model stays.

Teacher and student are the same network on the same deterministic path (`--head-solver ddim`), with guidance as in
sampling. The student goes through all of its steps by itself and is corrected by how far its points lie from the
teacher's (Luhman and Luhman 2021, with the points between as in Salimans and Ho 2022). It may take guidance in, so
that none is computed any more: one branch of the transformer and of the head (Meng et al. 2023).
"""

from __future__ import annotations

import copy
import math
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from videomar.checkpoint import CONFIG
from videomar.config import DDIM, ModelConfig, SamplingConfig
from videomar.console import log
from videomar.demo.look import of_the_demo
from videomar.errors import InputError
from videomar.model.head import DiffusionHead
from videomar.model.new_checkpoint import FILES, check_free, new_directory
from videomar.model.videomar import load_checkpoint, save_part
from videomar.progress import Progress
from videomar.runtime.prompt import PromptTokenizer
from videomar.schedule import DiffusionSchedule
from videomar.training.paths import Paths, collect, follow

MOST_STEPS = 12  # half of the teacher's: with more there is little to save
PATHS, HELD_OUT = 6_000, 500
BATCH = 128
STEPS = 400  # of training
WARM_UP = 50
LEARNING_RATE = 5e-4
HEAD, WORDS = "diffusion_head.safetensors", "tokenizer.json"


def distance(head: DiffusionHead, paths: Paths, schedule: DiffusionSchedule) -> Tensor:
    """Mean squared distance of the head's points from the teacher's, after each step: [steps]."""
    own = follow(head, paths.z, paths.scale, paths.points[:, 0], schedule)
    return (own - paths.points)[:, 1:].square().mean(dim=(0, 2))


def train_head(
    out: Path,
    start: Path,
    head_steps: int,
    steps: int = STEPS,
    minutes: float = math.inf,
    seed: int = 0,
    force: bool = False,
    absorb_guidance: bool = False,
    learning_rate: float = LEARNING_RATE,
    paths: int = PATHS,
) -> tuple[float, float]:
    """Teach the head of the checkpoint `start` to take `head_steps` and write the checkpoint with it to `out`.

    Every other file is copied as it is, but for the sampling options: the deterministic solver, so many steps, and no
    guidance where the student absorbs it. The learning rate falls along a cosine over whichever ends first, `steps` or
    `minutes`, once the `paths` are there.

    Returns how far tokens of held-out paths are from the teacher's, RMS, before and after.
    Raises InputError or ArtifactError before anything is computed; nothing half-written is left.
    """
    if out.resolve() == start.resolve():
        raise InputError(f"{out} holds the teacher, expected another place for the student; change -o")
    check_free(out, force)
    model = load_checkpoint(start)
    config = student_config(model.config, head_steps, absorb_guidance, start)
    words = PromptTokenizer(start / WORDS, config.text)
    torch.manual_seed(seed)
    schedule = DiffusionSchedule.ddim(config.head.train_steps, head_steps, config.sampling.max_beta)
    shown = collect(model, words, head_steps, paths + HELD_OUT, np.random.default_rng(seed))
    if absorb_guidance:
        shown = shown.without_guidance()
    held_out, shown = shown[:HELD_OUT], shown[HELD_OUT:]
    student = copy.deepcopy(model.diffusion_head).requires_grad_(True)
    before = error(student, held_out, schedule)
    log.info(f"the teacher in {head_steps} steps: tokens {before:.4f} from where it goes in more")
    fit(student, shown, held_out, schedule, steps, minutes, learning_rate)
    with new_directory(out, force) as directory:
        for name in FILES - {HEAD, CONFIG}:
            (directory / name).write_bytes((start / name).read_bytes())
        save_part(student, directory / HEAD)
        (directory / CONFIG).write_text(config.to_json())
    return before, error(student, held_out, schedule)


def student_config(teacher: ModelConfig, head_steps: int, absorb_guidance: bool, where: Path) -> ModelConfig:
    """The student's; raises InputError for a teacher that is none and for steps that cannot be."""
    own = teacher.sampling
    if not of_the_demo(teacher):
        raise InputError(
            f"{where} holds {teacher.name}, expected a model of the demo world, on whose clips the student learns"
        )
    if own.head_solver == DDIM and own.head_steps <= MOST_STEPS:
        raise InputError(
            f"{where} takes {own.head_steps} diffusion steps, so it is a student itself; give its teacher with --from"
        )
    most = min(MOST_STEPS, teacher.head.train_steps // 2)
    if not 1 <= head_steps <= most:
        raise InputError(f"head steps is {head_steps}, expected 1 to {most} for a student; change --head-steps")
    off = SamplingConfig()
    few = own.but(
        head_solver=DDIM, head_steps=head_steps, head_steps_end=off.head_steps_end, head_anneal=off.head_anneal
    )
    if absorb_guidance:
        few = few.but(guidance_scale=1.0, guidance_start=off.guidance_start, guidance_end=off.guidance_end)
    return replace(teacher, sampling=few)


def fit(
    student: DiffusionHead,
    paths: Paths,
    held_out: Paths,
    schedule: DiffusionSchedule,
    steps: int,
    minutes: float,
    learning_rate: float,
) -> None:
    """Train the student, in place."""
    optimizer = torch.optim.Adam(student.parameters())
    began, step, done, far = time.monotonic(), 0, 0.0, error(student, held_out, schedule)
    with Progress(1) as progress:
        while done < 1:
            passed = (time.monotonic() - began) / 60
            done = min(1.0, max((step + 1) / steps, passed / max(minutes, 1e-9)))
            rate = learning_rate * min(1, (step + 1) / WARM_UP) * 0.5 * (1 + math.cos(math.pi * done))
            for group in optimizer.param_groups:
                group["lr"] = rate
            value = distance(student, paths[torch.randint(len(paths), (BATCH,))], schedule).mean()
            optimizer.zero_grad()
            value.backward()
            torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            optimizer.step()
            step += 1
            if step % 50 == 0 or done == 1:
                far = error(student, held_out, schedule)
                log.debug(f"step {step} batch {value.item():.5f} held-out {far:.4f} {passed:.1f} min")
            progress.at(f"the student learns, held-out {far:.4f}", done, 1)


@torch.no_grad()
def error(student: DiffusionHead, paths: Paths, schedule: DiffusionSchedule) -> float:
    """How far the student's tokens are from the teacher's: root of the mean square."""
    return float(distance(student, paths, schedule)[-1]) ** 0.5
