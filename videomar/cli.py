"""The `videomar` command: one sub-command, one function; what it needs is imported when it runs."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from videomar.errors import InputError, UserError
from videomar.options import Run, levels_of, parser, sampling_of
from videomar.stopping import Stopped, stoppable

if TYPE_CHECKING:
    import numpy as np
    from tqdm import tqdm

    from videomar.config import SamplingConfig
    from videomar.runtime.clip import ClipRun
    from videomar.runtime.deadline import Deadline


def main(argv: Sequence[str] | None = None) -> int:
    """Run one sub-command; 0 when it did what was asked, 2 for an error the user can mend, 130 or 143 for a signal."""
    args = parser(RUNS).parse_args(argv)
    run: Run = args.run
    try:
        with stoppable():
            code = run(args)
            sys.stdout.flush()  # at exit it would be too late for one clear line
            return code
    except UserError as error:
        return _refuse(args, str(error))
    except ModuleNotFoundError as error:
        # The commands that need PyTorch are an extra; anything else missing is a broken installation of ours.
        extra = next((e for e, names in _EXTRA.items() if (error.name or "").split(".")[0] in names), None)
        if extra is None:
            raise
        return _refuse(args, f"needs {error.name}, which is not installed; pip install 'videomar[{extra}]'")
    except BrokenPipeError:  # the reader of our output (`| head`) has seen enough
        _drop_output()
        return 0
    except OSError as error:  # what no layer foresaw and the system refuses, such as too long a name
        _drop_output()
        return _refuse(args, f"{error.filename or 'output'}: {error.strerror or error}; give another path or make room")
    except KeyboardInterrupt as stop:
        left = stop.args[0] if stop.args else "nothing half-written is left"
        print(f"videomar {args.command}: stopped; {left}", file=sys.stderr)
        return 128 + (stop.number if isinstance(stop, Stopped) else signal.SIGINT)
    except Exception as error:
        # OpenCV and ONNX Runtime say it in words only.
        if not isinstance(error, MemoryError) and "Failed to allocate" not in str(error):
            raise
        return _refuse(args, "the memory does not suffice; ask for fewer --frames or a smaller --height and --width")


_EXTRA = {
    "export": ("torch", "diffusers", "transformers", "safetensors", "onnx", "onnxscript"),
    "serve": ("fastapi", "starlette", "uvicorn", "multipart", "python_multipart", "prometheus_client", "sqlalchemy"),
    "postgres": ("psycopg",),
    "clips": ("fsspec",),
    "fleet": ("ray",),
}


def _refuse(args: argparse.Namespace, why: str) -> int:
    print(f"videomar {args.command}: {why}", file=sys.stderr)
    return 2


@contextmanager
def _noting(args: argparse.Namespace) -> Iterator[None]:
    """Show what the runtime warns of as one line of the command."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: print(f"videomar {args.command}: note: {message}", file=sys.stderr)
        yield


def _drop_output() -> None:
    """Send what cannot be printed nowhere: Python would try once more at exit, and show a traceback."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def export(args: argparse.Namespace) -> int:
    """Write and check every graph of a checkpoint."""
    from tqdm import tqdm

    if args.random_weights is None:
        _check_checkpoint(args.checkpoint, args.output)
    from videomar.export.export import export_checkpoint, export_random
    from videomar.export.islands import named_islands, read_islands

    with tqdm(total=1, unit="stage", leave=False, disable=None, bar_format=_BAR) as bar:

        def progress(stage: str, done: int, total: int) -> None:
            bar.total, bar.n = total, done
            bar.set_description(stage)

        options = (args.output, args.precision, args.emitter, args.cache_tokens, args.force, progress)
        if args.random_weights is None:
            islands = named_islands(args.fp32, read_islands(args.islands) if args.islands else {})
            wrote = export_checkpoint(args.checkpoint, *options, islands)
        elif args.islands or args.fp32:
            raise InputError(
                "--islands and --fp32 are for a checkpoint's weights, got --random-weights; leave one away"
            )
        else:
            wrote = export_random(str(args.checkpoint), args.random_weights, *options)
    if not wrote:
        print(f"{args.output} is up to date (the same checkpoint, options and versions)")
        return 0
    print(f"wrote {args.output}; every graph agrees with PyTorch:")
    _print_checks(args.output)
    _print_peak_memory()
    return 0


def import_(args: argparse.Namespace) -> int:
    """Turn the official weights into a checkpoint directory."""
    from videomar.export.importing import import_checkpoint
    from videomar.export.importing.system_prompt import read_system_prompt

    imported = import_checkpoint(
        args.transformer,
        args.tokenizer,
        args.text,
        args.output,
        weights=args.weights,
        system_prompt=read_system_prompt(args.system_prompt_file) if args.system_prompt_file else None,
        no_system_prompt=args.no_system_prompt,
        plain_qwen2=args.plain_qwen2,
        text_positions=args.text_positions,
        rope_split=tuple(args.rope_split) if args.rope_split else None,
        tokenizer_strides=tuple(args.tokenizer_strides) if args.tokenizer_strides else None,
        frames=args.frames,
        size=args.size,
        force=args.force,
    )
    print(f"wrote {args.output}")
    for note in imported.notes:
        print(f"  {note}")
    _print_peak_memory()
    return 0


def generate(args: argparse.Namespace) -> int:
    """Continue a picture or clip and write a video."""
    from tqdm import tqdm

    from videomar.runtime.deadline import start as in_time
    from videomar.runtime.embedding import PromptEmbedding
    from videomar.runtime.media import write_pictures, write_video
    from videomar.runtime.pipeline import Pipeline

    if (args.image is None) == (args.video is None):
        raise InputError("give either --image (a picture) or --video (a clip whose last --given frames are continued)")
    if args.image and (args.join or args.start is not None or args.no_resample):
        raise InputError("--join, --start and --no-resample are for --video, got --image; leave them away")
    if (args.prompt is None) == (args.text_embeddings is None):
        raise InputError("give either --prompt (a sentence) or --text-embeddings (a file of `videomar embed`)")
    as_video = args.output.suffix != ""
    options = {"threads": args.threads, "backend": args.backend, "memory_check": not args.no_memory_check}
    options["whole_prompt"] = args.whole_prompt
    with ExitStack() as stack:
        stack.enter_context(_noting(args))
        pipe = stack.enter_context(Pipeline.open(args.directory, lean=args.deadline is None, **options))
        print(pipe.why)
        prompt = args.prompt
        if args.text_embeddings is not None:
            prompt = PromptEmbedding.load(args.text_embeddings, pipe.config.text)
        sampling = sampling_of(pipe.config.sampling, args)
        given, earlier = _given(args, pipe.config.sampling.fps, sampling)
        if args.deadline is None:
            deadline, run = None, pipe.start(given, prompt, seed=args.seed, sampling=sampling)
        else:
            run, deadline = in_time(
                pipe, given, prompt, args.deadline, levels_of(pipe.config.sampling, args), args.seed
            )
        stack.enter_context(run)
        bar = tqdm(total=len(run.steps), unit="step", leave=False, delay=2, disable=None, bar_format=_BAR)
        joined = count()
        before = (frame for frame, _ in zip(earlier, joined, strict=False))
        frames = chain(before, _shown(run, stack.enter_context(bar), deadline))
        if as_video:
            write_video(args.output, frames, run.clip.sampling.fps)
        else:
            write_pictures(args.output, frames)
    timing, sampling, made = run.timing, run.clip.sampling, run.shown - run.given
    total = timing.total
    print(
        f"{args.output}: {next(joined) + run.shown} frames of {sampling.width}x{sampling.height}; first generated "
        f"frame after {timing.first_frame:.2f} s, all after {total:.2f} s, {made / total:.1f} generated frames/s"
    )
    spent = ", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in timing.seconds.items())
    print(f"time in {spent}, rest {total - sum(timing.seconds.values()):.2f} s")
    if deadline is not None:
        print(deadline.told())
    _print_peak_memory()
    return 0


def _given(
    args: argparse.Namespace, rate: float, sampling: SamplingConfig
) -> tuple[Path | np.ndarray, Iterator[np.ndarray]]:
    """The picture or frames to continue, and with --join what comes before them, in the clip's size."""
    from videomar.runtime.media import decode_picture
    from videomar.runtime.recording import Recording
    from videomar.runtime.resize import fit

    if args.video is None:
        piped = str(args.image) == "-"
        return decode_picture(sys.stdin.buffer.read(), "standard input") if piped else args.image, iter(())
    recording = Recording(args.video, rate, not args.no_resample)
    excerpt = recording.excerpt(args.given, args.start)
    for note in recording.notes:
        print(note, file=sys.stderr)
    size = sampling.height, sampling.width, sampling.fit
    before = (fit(frame, *size) for frame in recording.before(excerpt.first)) if args.join else iter(())
    return excerpt.frames, before


def _shown(run: ClipRun, bar: tqdm[NoReturn], deadline: Deadline | None) -> Iterator[np.ndarray]:
    """The pixel frames of a clip as they are ready, under a progress bar."""
    while not run.finished:
        step = run.left[0]
        bar.set_description(f"latent frame {step.frame + 1} of {run.clip.shape.frames}", refresh=False)
        frames = run.advance()
        bar.update()
        if deadline is not None:
            deadline.done(step, run)
            bar.total = len(run.steps)
        if frames is not None:
            yield from frames
    run.timing.finish()


def embed(args: argparse.Namespace) -> int:
    """Write a prompt's text states, so that whoever generates needs no text encoder."""
    from videomar.runtime.pipeline import Pipeline

    options = {"threads": args.threads, "backend": args.backend, "whole_prompt": args.whole_prompt}
    with _noting(args), Pipeline.open(args.directory, lean=True, **options) as pipe:
        embedding = pipe.embed(args.prompt)
    embedding.save(args.output)
    print(f"{args.output}: {embedding.states.shape[1]} tokens of {embedding.states.shape[2]} numbers")
    return 0


def inspect(args: argparse.Namespace) -> int:
    """Show what a checkpoint or artifact directory holds."""
    from videomar.inspect import describe

    description = describe(args.directory)
    print(json.dumps(description, indent=2) if args.json else _as_text(description, args.tensors))
    return 0


def evaluate(args: argparse.Namespace) -> int:
    """Measure an artifact directory on the demo world."""
    from tqdm import tqdm

    from videomar.artifacts import atomic_write
    from videomar.demo.evaluate import evaluate as measure
    from videomar.demo.report import as_text
    from videomar.runtime.pipeline import Pipeline

    with Pipeline.open(args.directory, threads=args.threads, backend=args.backend) as pipe:
        print(pipe.why)
        if pipe.config.text.vocab_size > 100:
            raise InputError(
                f"{args.directory} holds {pipe.config.name}, expected a model of the demo world: only there is the "
                "true future known"
            )
        worlds = 2 if args.given == 1 else 1
        with tqdm(total=worlds * args.cases, unit="clip", leave=False, delay=2, disable=None) as bar:
            figures = measure(
                pipe,
                progress=lambda done: bar.update(),
                cases=args.cases,
                seed=args.seed,
                frames=args.frames,
                size=args.size,
                given=args.given,
                sampling=sampling_of(pipe.config.sampling, args),
            )
    print("\n".join(as_text(figures)))
    if args.json:  # last, so that a disk that refuses does not take the figures with it
        atomic_write(args.json, json.dumps(figures, indent=2) + "\n")
    return 0


def tune(args: argparse.Namespace) -> int:
    """Measure which dials pay."""
    from tqdm import tqdm

    from videomar.artifacts import atomic_write
    from videomar.demo.evaluate import drawn_futures, knows_chance
    from videomar.parity.tuning import measure, page
    from videomar.parity.tuning.grid import settings
    from videomar.parity.tuning.starts import key, starts
    from videomar.runtime.pipeline import Pipeline

    with Pipeline.open(args.directory, threads=args.threads, backend=args.backend) as pipe:
        print(pipe.why)
        sampling = sampling_of(pipe.config.sampling, args)
        cases = starts(pipe.config, sampling, args.cases, args.given, args.count, args.seed)
        wanted = settings(pipe.start(cases[0].given, cases[0].prompt, sampling=sampling).clip)
        judged = args.drawn if args.cases is None and knows_chance(pipe) else 0
        tuning = measure.load(args.output, key(args.directory, pipe, sampling, cases, judged))

        def judge(setting: SamplingConfig) -> dict[str, Any]:
            shown = drawn_futures(pipe, cases=judged, frames=setting.frames, size=setting.height, sampling=setting)
            return {**shown, "loss": 1 - shown["coherence"]}

        with tqdm(total=len(wanted), initial=len(tuning.rows), unit="setting", disable=None) as bar:
            for name in measure.tune(pipe, cases, wanted, tuning, judge if judged else None, args.minutes):
                measure.save(args.output, tuning)
                bar.update()
                bar.set_description(name, refresh=False)
        best = {name: tuning.rows[name] for name in tuning.front}
        if args.html:
            first = cases[:2]
            clips = {n: [measure.clip(pipe, s, wanted[n], s.seed)[2] for s in first] for n in best if n in wanted}
            atomic_write(args.html, page.write(tuning, clips, [s.prompt for s in first], sampling.fps))
    print(f"{args.output}: {len(tuning.rows)} of {len(wanted)} settings; no other beats these in both time and loss:")
    for name, row in best.items():
        whole = f", {row['coherence']:.0%} whole" if "coherence" in row else ""
        print(f"  {row['seconds']:8.2f} s {row['faster']:6.2f}x  apart {row['apart']:.3f}{whole}  {name}")
    return 0


def train(args: argparse.Namespace) -> int:
    """Train the demo model; PyTorch, one part after the other."""
    import torch

    if args.threads:
        torch.set_num_threads(args.threads)
    if args.part == "tokenizer":
        from videomar.training.tokenizer import train_tokenizer

        print(f"held-out PSNR {train_tokenizer(args.output, args.steps, args.minutes, args.seed):.2f} dB")
    else:
        from videomar.training.transformer import train_transformer

        train_transformer(args.output, args.steps, args.minutes, args.seed, start=args.start)
    return 0


def calibrate(args: argparse.Namespace) -> int:
    """Quantize an artifact directory to INT8."""
    from videomar.calibration.command import run

    return run(args)


def plan(args: argparse.Namespace) -> int:
    """Say what a generation needs and how long it takes; 1 when it does not fit."""
    from videomar.plan.command import run
    from videomar.plan.devices import local
    from videomar.plan.measure import speed
    from videomar.runtime.cores import allowed_cores
    from videomar.runtime.probes import free_memory, memory
    from videomar.runtime.system import System

    system = System()
    return run(args, lambda: local(int(memory(system)[1] * 2**30), free_memory(system), *speed(allowed_cores())))


def build(args: argparse.Namespace) -> int:
    """Build, verify and describe engines; or only try whether they can be built."""
    from videomar.export.build_command import run

    return run(args)


def compare(args: argparse.Namespace) -> int:
    """Climb the ladder from one directory to others."""
    from videomar.parity.comparing.compare import run

    return run(args)


def bisect(args: argparse.Namespace) -> int:
    """Find the first layer and loop step where one directory leaves another, and what mends it."""
    from videomar.parity.bisecting.bisect_command import run

    return run(args)


def record(args: argparse.Namespace) -> int:
    """Write a golden pack."""
    from videomar.parity.packs.record import run

    return run(args)


def replay(args: argparse.Namespace) -> int:
    """Verify engines against a golden pack."""
    from videomar.parity.packs.replay import run

    return run(args)


def serve(args: argparse.Namespace) -> int:
    """Serve clips over HTTP until told to stop."""
    from videomar.serving.command import run

    return run(args)


def doctor(args: argparse.Namespace) -> int:
    """Say what is installed here and what follows."""
    from videomar.runtime.doctor import as_data, as_text, examine

    report = examine()
    print(json.dumps(as_data(report), indent=2) if args.json else as_text(report))
    return 1 if args.strict and report.broken else 0


_BAR = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} {unit} [{elapsed} passed, {remaining} left]"


def _check_checkpoint(checkpoint: Path, output: Path) -> None:
    """Tell a mistaken directory from a damaged checkpoint, before PyTorch is loaded and before anything is replaced."""
    from videomar.artifacts import MANIFEST

    expected = "expected a checkpoint directory (config.json, tokenizer.json and weights), such as models/demo"
    if not checkpoint.is_dir():
        raise InputError(f"{checkpoint} {'is a file' if checkpoint.exists() else 'does not exist'}, {expected}")
    if (checkpoint / MANIFEST).is_file():
        raise InputError(f"{checkpoint} is an artifact directory, {expected}; give the one it was made from")
    if not (checkpoint / "config.json").is_file():
        raise InputError(f"{checkpoint} has no config.json, {expected}; give one, or copy the whole directory again")
    if checkpoint.resolve().is_relative_to(output.resolve()):
        raise InputError(f"{output} holds the checkpoint itself, which is never replaced; give another place with -o")


def _print_checks(directory: Path) -> None:
    from videomar.artifacts import read_manifest

    for graph, errors in read_manifest(directory).checks.items():
        print(f"  {graph:18} " + ", ".join(f"{name} {error:.1e}" for name, error in errors.items()))


def _print_peak_memory() -> None:
    try:
        import resource
    except ImportError:  # not on Windows
        return
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


def _as_text(description: dict[str, Any], tensors: bool) -> str:
    lines = [f"{description['directory']}: {description['kind']}, {description['model']}"]
    lines += [f"{key:10} {value}" for key, value in description["facts"].items()]
    lines += [f"{size / 2**20:10.2f} MiB  {name}" for name, size in description["files"].items()]
    if tensors:
        for group, rows in description["tensors"].items():
            lines += ["", group, *(f"  {row}" for row in rows)]
    return "\n".join(lines)


RUNS: dict[str, Run] = {
    "import": import_,
    "export": export,
    "embed": embed,
    "generate": generate,
    "calibrate": calibrate,
    "plan": plan,
    "build": build,
    "inspect": inspect,
    "evaluate": evaluate,
    "tune": tune,
    "compare": compare,
    "record": record,
    "replay": replay,
    "bisect": bisect,
    "serve": serve,
    "doctor": doctor,
    "train": train,
}


if __name__ == "__main__":
    sys.exit(main())
