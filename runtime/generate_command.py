"""`videomar generate` as the command line has it: what is asked for, in files and options, and what is said of it.

Knows the order of things. Knows nothing of how a clip is made or encoded.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import chain, count
from pathlib import Path

import numpy as np

from videomar.config import ModelConfig, SamplingConfig
from videomar.console import log, noting, peak_memory, say_peak_memory
from videomar.demo.look import of_the_demo, outside
from videomar.errors import InputError
from videomar.options import levels_of, sampling_of
from videomar.progress import Progress
from videomar.runtime.clip import ClipRun
from videomar.runtime.deadline import Deadline
from videomar.runtime.deadline import start as in_time
from videomar.runtime.embedding import PromptEmbedding
from videomar.runtime.media import (
    PICTURE_SUFFIXES,
    check_clip_target,
    check_picture_target,
    decode_picture,
    load_picture,
    stream_video,
    write_picture,
    write_pictures,
    write_video,
)
from videomar.runtime.pipeline import NO_FRAMES, Pipeline
from videomar.runtime.recording import Recording, load_clip
from videomar.runtime.resize import fit
from videomar.runtime.sheet import Sheet

PIPE = Path("-")


def run(args: argparse.Namespace) -> int:
    """Continue a picture, a clip or nothing but the sentence, and write a video; 0."""
    _check(args)
    options = {"threads": args.threads, "backend": args.backend, "memory_check": not args.no_memory_check}
    options["whole_prompt"] = args.whole_prompt
    with ExitStack() as stack:
        stack.enter_context(noting(args.command))
        pipe = stack.enter_context(Pipeline.open(args.directory, lean=args.deadline is None, **options))
        log.info("%s", pipe.why)
        prompt = args.prompt
        if args.text_embeddings is not None:
            prompt = PromptEmbedding.load(args.text_embeddings, pipe.config.text)
        sampling = sampling_of(pipe.config.sampling, args)
        given, earlier = _given(args, pipe.config, sampling)
        known = of_the_demo(pipe.config) and len(given) > 0
        if known and outside(fit(given, sampling.height, sampling.width, sampling.fit)):
            log.warning(
                "what is given is outside the demo model's world, which holds one coloured shape over a soft gradient; "
                "expect no sense"
            )
        if args.deadline is None:
            deadline, clip = None, pipe.start(given, prompt, seed=args.seed, sampling=sampling)
        else:
            levels = levels_of(pipe.config.sampling, args)
            clip, deadline = in_time(pipe, given, prompt, args.deadline, levels, args.seed)
        stack.enter_context(clip)
        progress = stack.enter_context(Progress())
        joined, sheet = count(), Sheet(clip.clip.sampling.frames)
        before = (frame for frame, _ in zip(earlier, joined, strict=False))
        frames = chain(before, sheet.seeing(_shown(clip, progress, deadline)))
        _write(args.output, frames, clip.clip.sampling.fps)
    if args.contact_sheet:
        write_picture(args.contact_sheet, sheet.picture())
    _tell(args, clip, next(joined), pipe.backend.name)
    if deadline is not None:
        log.info("%s", deadline.told())
    return 0


def _check(args: argparse.Namespace) -> None:
    """Refuse what contradicts itself, before anything is loaded."""
    if args.image is not None and args.video is not None:
        raise InputError("give either --image (a picture) or --video (a clip whose last --given frames are continued)")
    if args.video is None and (args.join or args.start is not None or args.no_resample):
        got = "no --video" if args.image is None else "--image"
        raise InputError(f"--join, --start and --no-resample are for --video, got {got}; leave them away")
    if (args.prompt is None) == (args.text_embeddings is None):
        raise InputError("give either --prompt (a sentence) or --text-embeddings (a file of `videomar embed`)")
    if args.output == PIPE and args.json:
        raise InputError("-o - and --json both write to standard output; give -o a file, or leave --json away")
    if args.output == PIPE and sys.stdout.isatty():
        raise InputError("-o - writes an mp4 to standard output, which is a terminal here; pipe it, or give a file")
    if args.output != PIPE:
        check_clip_target(args.output)
    if args.contact_sheet:
        check_picture_target(args.contact_sheet)


def _given(
    args: argparse.Namespace, config: ModelConfig, sampling: SamplingConfig
) -> tuple[np.ndarray, Iterator[np.ndarray]]:
    """The frames to continue, [n, h, w, 3] uint8, maybe none, and with --join those before them, in the clip's size."""
    if args.image is None and args.video is None:
        if not config.from_text:
            raise InputError(
                f"there is neither --image nor --video, and {config.name} was not trained to make a clip's first frame "
                "from the sentence alone; give either --image (a picture) or --video (a clip whose end is continued)"
            )
        return NO_FRAMES, iter(())
    if args.video is None:
        if args.image == PIPE:
            return decode_picture(sys.stdin.buffer.read(), "standard input")[None], iter(())
        return _picture(args.image)[None], iter(())
    recording = Recording(args.video, config.sampling.fps, not args.no_resample)
    try:
        excerpt = recording.excerpt(args.given, args.start)
    except InputError:
        if _is(load_picture, args.video):
            raise InputError(
                f"{args.video} is a picture, expected a video; use --image {shlex.quote(str(args.video))}"
            ) from None
        raise
    for note in recording.notes:
        (log.warning if note.startswith("WARNING") else log.info)("%s", note)
    size = sampling.height, sampling.width, sampling.fit
    before = (fit(frame, *size) for frame in recording.before(excerpt.first)) if args.join else iter(())
    return excerpt.frames, before


def _picture(file: Path) -> np.ndarray:
    try:
        return load_picture(file)
    except InputError:
        if file.suffix.lower() not in PICTURE_SUFFIXES and _is(lambda file: load_clip(file, 1), file):
            raise InputError(
                f"{file} is a video, expected a picture; use --video {shlex.quote(str(file))} to continue its end"
            ) from None
        raise


def _is(read: Callable[[Path], object], file: Path) -> bool:
    try:
        read(file)
    except InputError:
        return False
    return True


def _shown(run: ClipRun, progress: Progress, deadline: Deadline | None) -> Iterator[np.ndarray]:
    """The pixel frames of a clip as they are ready."""
    while not run.finished:
        step = run.left[0]
        frames = run.advance()
        if deadline is not None:
            deadline.done(step, run)
        progress.at(f"latent frame {step.frame + 1} of {run.clip.shape.frames}", run.done, len(run.steps))
        if frames is not None:
            yield from frames
    run.timing.finish()


def _write(output: Path, frames: Iterator[np.ndarray], fps: float) -> None:
    if output == PIPE:
        stream_video(sys.stdout.buffer, frames, fps)
    elif output.suffix:
        write_video(output, frames, fps)
    else:
        write_pictures(output, frames)


def _tell(args: argparse.Namespace, run: ClipRun, joined: int, backend: str) -> None:
    """The path, or everything as JSON, on standard output; figures on standard error."""
    timing, sampling = run.timing, run.clip.sampling
    frames, made, total = joined + run.shown, run.shown - run.given, timing.total
    log.info(
        f"{args.output}: {frames} frames of {sampling.width}x{sampling.height}; first generated "
        f"frame after {timing.first_frame:.2f} s, all after {total:.2f} s, {made / total:.1f} generated frames/s"
    )
    spent = ", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in timing.seconds.items())
    log.info(f"time in {spent}, rest {total - sum(timing.seconds.values()):.2f} s")
    if args.json:
        seconds = {"first_frame": timing.first_frame, "total": total, "stages": dict(timing.seconds)}
        data = {"output": os.fsdecode(args.output), "frames": frames, "seed": args.seed, "backend": backend}
        data |= {"sampling": dataclasses.asdict(sampling), "seconds": seconds, "peak_memory_bytes": peak_memory()}
        print(json.dumps(data, indent=2))
    elif args.output != PIPE:
        print(args.output)
    say_peak_memory()
