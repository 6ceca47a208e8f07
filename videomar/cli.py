"""The `videomar` command: one sub-command, one function; what it needs is imported when it runs."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from videomar.console import log, noting, say_peak_memory, saying, show_paths
from videomar.errors import InputError, UserError
from videomar.options import Run, parser, sampling_of
from videomar.progress import Progress
from videomar.stopping import Stopped, stoppable

if TYPE_CHECKING:
    from videomar.config import SamplingConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Run one sub-command; 0 when it did what was asked, 2 for an error the user can mend, 130 or 143 for a signal."""
    show_paths()
    args = parser(RUNS).parse_args(argv)
    run: Run = args.run
    with saying(args.quiet, args.verbose):
        return _run(args, run)


def _run(args: argparse.Namespace, run: Run) -> int:
    try:
        with stoppable():
            code = run(args)
            sys.stdout.flush()  # at exit it would be too late for one clear line
            return code
    except UserError as error:
        return _refuse(args, str(error))
    except ModuleNotFoundError as error:
        # The commands that need PyTorch are an extra; anything else missing is a broken installation of ours.
        missing = (error.name or "").split(".")[0]
        extra = next((e for e, names in _EXTRA.items() if missing in names), None)
        if args.command == "calibrate" and missing == "onnx":
            extra = "calibrate"  # all that it needs; `export` would bring PyTorch, too
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
    log.debug("where it was raised:", exc_info=True)
    print(f"videomar {args.command}: {why}", file=sys.stderr)
    return 2


def _drop_output() -> None:
    """Send what cannot be printed nowhere: Python would try once more at exit, and show a traceback."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def export(args: argparse.Namespace) -> int:
    """Write and check every graph of a checkpoint."""
    if args.random_weights is None:
        _check_checkpoint(args.checkpoint, args.output)
    from videomar.export.export import export_checkpoint, export_random
    from videomar.export.islands import named_islands, read_islands

    with Progress() as progress:
        options = (args.output, args.precision, args.emitter, args.cache_tokens, args.force, progress.at)
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
    say_peak_memory()
    return 0


def import_(args: argparse.Namespace) -> int:
    """Turn the official weights into a checkpoint directory."""
    from videomar.export.importing import import_checkpoint
    from videomar.export.importing.system_prompt import read_system_prompt

    with Progress() as progress:
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
            progress=progress.at,
        )
    print(f"wrote {args.output}")
    for note in imported.notes:
        print(f"  {note}")
    say_peak_memory()
    return 0


def export_official(args: argparse.Namespace) -> int:
    """Write a checkpoint back in the authors' layout."""
    _check_checkpoint(args.checkpoint, args.output)
    from videomar.export.official import COSMOS, QWEN, VIDEOMAR, export_official

    with Progress() as progress:
        export_official(args.checkpoint, args.output, args.force, progress.at)
    print(f"wrote {args.output}: read back, it is {args.checkpoint} bit for bit")
    paths = {"transformer": VIDEOMAR, "tokenizer": COSMOS, "text": QWEN}
    options = " ".join(f"--{option} {args.output / path}" for option, path in paths.items())
    print(f"  back again: videomar import {options} -o CHECKPOINT")
    say_peak_memory()
    return 0


def generate(args: argparse.Namespace) -> int:
    """Continue a picture or clip and write a video."""
    from videomar.runtime.generate_command import run

    return run(args)


def embed(args: argparse.Namespace) -> int:
    """Write a prompt's text states, so that whoever generates needs no text encoder."""
    from videomar.runtime.pipeline import Pipeline

    options = {"threads": args.threads, "backend": args.backend, "whole_prompt": args.whole_prompt}
    with noting(args.command), Pipeline.open(args.directory, lean=True, **options) as pipe:
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
    from videomar.artifacts import atomic_write
    from videomar.demo.evaluate import evaluate as measure
    from videomar.demo.look import of_the_demo
    from videomar.demo.report import as_text
    from videomar.runtime.pipeline import Pipeline

    with Pipeline.open(args.directory, threads=args.threads, backend=args.backend) as pipe:
        log.info("%s", pipe.why)
        if not of_the_demo(pipe.config):
            raise InputError(
                f"{args.directory} holds {pipe.config.name}, expected a model of the demo world: only there is the "
                "true future known"
            )
        with Progress() as progress:
            figures = measure(
                pipe,
                progress=progress.at,
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
    from videomar.artifacts import atomic_write
    from videomar.demo.evaluate import drawn_futures, knows_chance
    from videomar.parity.tuning import measure, page
    from videomar.parity.tuning.grid import settings
    from videomar.parity.tuning.starts import key, starts
    from videomar.runtime.pipeline import Pipeline

    with Pipeline.open(args.directory, threads=args.threads, backend=args.backend) as pipe:
        log.info("%s", pipe.why)
        sampling = sampling_of(pipe.config.sampling, args)
        cases = starts(pipe.config, sampling, args.cases, args.given, args.count, args.seed)
        wanted = settings(pipe.start(cases[0].given, cases[0].prompt, sampling=sampling).clip)
        judged = args.drawn if args.cases is None and knows_chance(pipe) else 0
        tuning = measure.load(args.output, key(args.directory, pipe, sampling, cases, judged))

        def judge(setting: SamplingConfig) -> dict[str, Any]:
            shown = drawn_futures(pipe, cases=judged, frames=setting.frames, size=setting.height, sampling=setting)
            return {**shown, "loss": 1 - shown["coherence"]}

        with Progress() as progress:
            for name in measure.tune(pipe, cases, wanted, tuning, judge if judged else None, args.minutes):
                measure.save(args.output, tuning)
                progress.at(name, len(tuning.rows), len(wanted))
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
    """Train a model; PyTorch, one part after the other."""
    import torch

    if args.threads:
        torch.set_num_threads(args.threads)
    if args.part == "head":
        from videomar.training.head_command import run as teach

        return teach(args)
    if args.head_steps is not None or args.absorb_guidance:
        raise InputError(
            f"--head-steps and --absorb-guidance are for `train head`, got one with {args.part}; leave it out"
        )
    from videomar.parity.reporting.training import picture
    from videomar.training.command import run

    return run(args, picture)


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
    "export-official": export_official,
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
