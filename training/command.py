"""`videomar train`: options to a recipe, and who runs it."""

from __future__ import annotations

import argparse
import dataclasses
import warnings
from collections.abc import Callable
from pathlib import Path

from videomar.config import PRESETS
from videomar.console import log
from videomar.errors import InputError
from videomar.training import unfinished_run
from videomar.training.journal import Row
from videomar.training.ranks import first, joined
from videomar.training.recipe import Recipe, Stage, check_stages, read_stages, scaled
from videomar.unfinished import made

HALF = 0.5  # of the learning rate, where training goes on from a checkpoint
MINUTES = 60.0
# Options that a run keeps from its beginning.
FIXED = ("start", "clips", "captions", "stages", "minutes", "steps", "layers", "lora", "learning_rate")
TOKENIZER_RATE = 2e-3


def run(args: argparse.Namespace, picture: Callable[[list[Row]], str]) -> int:
    """Train; `picture` draws the journal as SVG."""
    # Norms keep their weights in float32, as is meant: PyTorch tells every user that no fused kernel takes both types.
    warnings.filterwarnings("ignore", message="Mismatch dtype between input and weight")
    if args.preset not in PRESETS:
        raise InputError(f"--preset is {args.preset!r}, expected one of {', '.join(PRESETS)}")
    if args.part == "tokenizer":
        return _tokenizer(args)
    if args.clips is not None and args.start is not None and args.start.resolve() == args.output.resolve():
        raise InputError(f"-o and --from are both {args.output}, expected another output: the start is kept whole")
    from videomar.training.transformer import resume_transformer, train_transformer

    if args.resume:
        for name in FIXED:
            if getattr(args, name):
                option = {"start": "from"}.get(name, name).replace("_", "-")
                raise InputError(f"--resume goes on with what the run was begun with, got --{option}; leave it out")
        resume_transformer(args.output, args.device, args.recompute, picture)
    else:
        if first() and unfinished_run.exists(args.output) and not args.force:
            step = unfinished_run.load(args.output)[1].step
            raise InputError(
                f"{args.output} holds an unfinished run, {step} steps long; --resume goes on with it, --force begins "
                "anew"
            )
        _check_free(args.output / "transformer.safetensors", args.force)
        train_transformer(args.output, recipe_of(args), args.device, args.recompute, picture)
    if first():
        print(args.output)
    return 0


def recipe_of(args: argparse.Namespace) -> Recipe:
    """The recipe that the options describe."""
    if args.stages is None:
        size = PRESETS[args.preset].sampling
        rate = Stage.learning_rate * (HALF if args.start is not None else 1)
        stages: tuple[Stage, ...] = (Stage(size.frames, size.height, size.width, minutes=MINUTES, learning_rate=rate),)
    else:
        stages = read_stages(args.stages)
    stages = scaled(stages, args.minutes, args.steps)
    if args.learning_rate is not None:
        stages = tuple(dataclasses.replace(stage, learning_rate=args.learning_rate) for stage in stages)
    return Recipe(
        stages,
        seed=args.seed,
        preset=args.preset,
        start=_text(args.start),
        clips=_text(args.clips),
        captions=_text(args.captions),
        cache=_text(args.cache),
        layers=tuple(args.layers),
        lora=args.lora,
        save_every=args.save_every,
    )


def _tokenizer(args: argparse.Namespace) -> int:
    from videomar.training.tokenizer import FolderPixels, train_tokenizer

    for name in ("resume", "captions", "layers", "lora"):
        if getattr(args, name):
            raise InputError(f"--{name} is for the transformer, got it for the tokenizer; leave it out")
    _check_free(args.output / "video_tokenizer.safetensors", args.force)
    config = PRESETS[args.preset]
    pixels = None
    if args.clips is not None:
        if args.stages is not None:
            stage = read_stages(args.stages)[-1]
        else:
            stage = Stage(config.sampling.frames, config.sampling.height, config.sampling.width, minutes=MINUTES)
        check_stages([stage], config)
        if not args.clips.is_dir():
            raise InputError(f"--clips {args.clips} is no folder, expected one of videos; check the path")
        pixels = FolderPixels(args.clips, args.cache or args.output / "latents", stage, config)
    rate = args.learning_rate or TOKENIZER_RATE * (1 if args.start is None else HALF)
    steps, minutes = args.steps or 10**9, args.minutes or (10**9 if args.steps else MINUTES)
    with joined(args.device) as ranks, made(args.output):
        if ranks.count > 1:
            raise InputError("the tokenizer is trained by one process, got several; start it without torchrun")
        device, start = ranks.device, args.start
        db = train_tokenizer(args.output, steps, minutes, args.seed, rate, config, pixels, start, device)
    print(f"held-out PSNR {db:.2f} dB")
    log.info(f"next: videomar train transformer -o {args.output}")
    return 0


def _check_free(file: Path, force: bool) -> None:
    """Hours of an earlier run are not lost to a slip."""
    if first() and file.exists() and not force:
        raise InputError(f"{file} is there, expected no trained one; name another -o, or --force replaces it")


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path.resolve())  # a run may be gone on with from elsewhere
