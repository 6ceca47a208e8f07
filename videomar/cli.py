"""The `videomar` command: one sub-command, one function; what it needs is imported when it runs."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from videomar.errors import InputError, UserError

Run = Callable[[argparse.Namespace], int]
BACKENDS = ("auto", "ort-cpu", "ort-cuda", "ort-trt", "trt", "trt-rtx")  # choose.py's, without importing numpy for -h


def main(argv: Sequence[str] | None = None) -> int:
    """Run one sub-command; 0 when it did what was asked, 2 for an error the user can mend, 130 for Ctrl-C."""
    args = _parser().parse_args(argv)
    run: Run = args.run
    try:
        code = run(args)
        sys.stdout.flush()  # at exit it would be too late for one clear line
        return code
    except UserError as error:
        return _refuse(args, str(error))
    except ModuleNotFoundError as error:
        # The commands that need PyTorch are an extra; anything else missing is a broken installation of ours.
        if (error.name or "").split(".")[0] not in _EXTRA:
            raise
        return _refuse(args, f"needs {error.name}, which is not installed; pip install 'videomar[export]'")
    except BrokenPipeError:  # the reader of our output (`| head`) has seen enough
        _drop_output()
        return 0
    except OSError as error:  # what no layer foresaw and the system refuses, such as too long a name
        _drop_output()
        return _refuse(args, f"{error.filename or 'output'}: {error.strerror or error}; give another path or make room")
    except KeyboardInterrupt:
        print(f"videomar {args.command}: stopped; nothing half-written is left", file=sys.stderr)
        return 130
    except Exception as error:
        # OpenCV and ONNX Runtime say it in words only.
        if not isinstance(error, MemoryError) and "Failed to allocate" not in str(error):
            raise
        return _refuse(args, "the memory does not suffice; ask for fewer --frames or a smaller --height and --width")


_EXTRA = ("torch", "diffusers", "transformers", "safetensors", "onnx", "onnxscript")


def _refuse(args: argparse.Namespace, why: str) -> int:
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
    from tqdm import tqdm

    _check_checkpoint(args.checkpoint, args.output)
    from videomar.export.export import export_checkpoint

    with tqdm(total=1, unit="stage", leave=False, disable=None, bar_format=_BAR) as bar:

        def progress(stage: str, done: int, total: int) -> None:
            bar.total, bar.n = total, done
            bar.set_description(stage)

        wrote = export_checkpoint(
            args.checkpoint,
            args.output,
            args.precision,
            args.emitter,
            args.cache_tokens,
            force=args.force,
            progress=progress,
        )
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

    imported = import_checkpoint(
        args.transformer,
        args.tokenizer,
        args.text,
        args.output,
        weights=args.weights,
        system_prompt=args.system_prompt,
        rope_split=tuple(args.rope_split) if args.rope_split else None,
        tokenizer_strides=tuple(args.tokenizer_strides) if args.tokenizer_strides else None,
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

    from videomar.runtime.media import load_clip, write_pictures, write_video
    from videomar.runtime.pipeline import Pipeline
    from videomar.runtime.timing import Timing

    if (args.image is None) == (args.video is None):
        raise InputError("give either --image (a picture) or --video (a clip whose first --given frames are continued)")
    as_video = args.output.suffix != ""
    with Pipeline.open(args.directory, threads=args.threads, backend=args.backend) as pipe:
        print(pipe.why)
        given = load_clip(args.video, args.given) if args.video else args.image
        size = None
        if args.height is not None or args.width is not None:
            defaults = pipe.config.sampling
            size = (args.height or defaults.height, args.width or defaults.width)
        knobs = {k: getattr(args, k) for k in ("frames", "mask_steps", "head_steps", "guidance_scale", "temperature")}
        plan = pipe.plan(given, args.prompt, size=size, **knobs)
        timing = Timing()
        with tqdm(total=plan.steps, unit="step", leave=False, delay=2, disable=None, bar_format=_BAR) as bar:

            def progress(frame: int, step: int) -> None:
                bar.set_description(f"latent frame {frame + 1} of {plan.latent_frames}", refresh=False)
                bar.update()

            frames = pipe.stream(
                given, args.prompt, size=size, seed=args.seed, timing=timing, progress=progress, **knobs
            )
            if as_video:
                write_video(args.output, frames, args.fps)
            else:
                write_pictures(args.output, frames)
    total = timing.total
    print(
        f"{args.output}: {plan.frames} frames of {plan.width}x{plan.height}; first generated frame after "
        f"{timing.first_frame:.2f} s, all after {total:.2f} s, {plan.generated / total:.1f} generated frames/s"
    )
    spent = ", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in timing.seconds.items())
    print(f"time in {spent}, rest {total - sum(timing.seconds.values()):.2f} s")
    _print_peak_memory()
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
    from videomar.runtime.pipeline import Pipeline

    with Pipeline.open(args.directory, threads=args.threads, backend=args.backend) as pipe:
        print(pipe.why)
        if pipe.config.text.vocab_size > 100:
            raise InputError(
                f"{args.directory} holds {pipe.config.name}, expected a model of the demo world: only there is the "
                "true future known"
            )
        with tqdm(total=args.cases, unit="clip", leave=False, delay=2, disable=None) as bar:
            figures = measure(
                pipe,
                progress=lambda done: bar.update(),
                cases=args.cases,
                seed=args.seed,
                frames=args.frames,
                size=args.size,
                given=args.given,
            )
    print(f"tokenizer reconstruction        {figures['tokenizer_psnr_db']:.2f} dB PSNR")
    print(f"motion of the prompt followed   {figures['followed']:.1%} of {figures['cases']} clips")
    print(f"centroid error, mean            {figures['centroid_error_mean']:.2%} of the width")
    print(
        f"centroid error, median and max  {figures['centroid_error_median']:.2%}, {figures['centroid_error_max']:.2%}"
    )
    print(f"PSNR against the true future    {figures['psnr_mean']:.2f} dB")
    for motion, row in figures["motions"].items():
        print(f"  {motion:22} {row['followed']:6.1%} followed, centroid error {row['centroid_error']:.2%}")
    if args.json:  # last, so that a disk that refuses does not take the figures with it
        atomic_write(args.json, json.dumps(figures, indent=2) + "\n")
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

        train_transformer(args.output, args.steps, args.minutes, args.seed)
    return 0


def build(args: argparse.Namespace) -> int:
    """Build, verify and describe engines; or only try whether they can be built."""
    from videomar.export.build_command import run

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


class _Parser(argparse.ArgumentParser):
    """argparse, with errors in one line like all others."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see `{self.prog} -h`\n")


def _whole(least: int, most: int | None = None) -> Callable[[str], int]:
    """A whole number of an option, in its range."""
    expected = f"at least {least}" if most is None else f"{least} to {most}"

    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"is {text!r}, expected a whole number, {expected}") from None
        if value < least or (most is not None and value > most):
            raise argparse.ArgumentTypeError(f"is {value}, expected {expected}")
        return value

    return convert


def _number(least: float, most: float) -> Callable[[str], float]:
    """A number of an option, in its range; never NaN."""

    def convert(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"is {text!r}, expected a number, {least} to {most}") from None
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"is {text}, expected {least} to {most}")
        return value

    return convert


_COUNT, _PIXELS, _THREADS, _SEED = _whole(1), _whole(1, 16384), _whole(1, 1024), _whole(0, 2**63 - 1)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="videomar", description="Run VideoMAR outside PyTorch.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Run, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run)
        return sub

    p = command("import", import_, "Turn the official weights into a checkpoint directory.")
    p.add_argument("--transformer", type=Path, required=True, help="VideoMAR's .pth or .safetensors")
    p.add_argument("--tokenizer", type=Path, required=True, help="Cosmos: a diffusers directory or NVIDIA's archives")
    p.add_argument("--text", type=Path, required=True, help="a Qwen2-family transformers directory")
    p.add_argument("-o", "--output", type=Path, required=True, help="checkpoint directory to write")
    p.add_argument("--weights", choices=("ema", "model"), default="ema")
    p.add_argument("--system-prompt", default="", help="put in front of every prompt; its positions are dropped")
    p.add_argument(
        "--rope-split", type=_COUNT, nargs=3, metavar=("FRAME", "ROW", "COLUMN"), help="head channels an axis"
    )
    p.add_argument("--tokenizer-strides", type=_COUNT, nargs=2, metavar=("SPACE", "TIME"))
    p.add_argument("--force", action="store_true")

    p = command("export", export, "Write a checkpoint's graphs as ONNX and check each against PyTorch.")
    p.add_argument("checkpoint", type=Path, help="checkpoint directory, such as models/demo")
    p.add_argument("-o", "--output", type=Path, required=True, help="artifact directory to write")
    p.add_argument("--precision", choices=("fp32", "fp16"), default="fp32")
    p.add_argument(
        "--emitter",
        choices=("portable", "native"),
        default="portable",
        help="portable: primitive operators, runs anywhere; native: opset 24, K/V written in place (ONNX Runtime 1.24)",
    )
    p.add_argument(
        "--cache-tokens",
        type=int,
        help="native only: bake in a K/V cache of this many tokens (latent frames * h * w), as TensorRT wants it",
    )
    p.add_argument("--force", action="store_true", help="replace the directory even if it is up to date or not ours")

    p = command("generate", generate, "Continue a picture or a clip as a sentence says.")
    p.add_argument("directory", type=Path, help="artifact directory of `videomar export`")
    p.add_argument("--image", type=Path, help="the first frame")
    p.add_argument("--video", type=Path, help="a video file or a directory of pictures to continue instead")
    p.add_argument("--given", type=_COUNT, default=9, help="frames taken from --video, 1 + 8k (default 9)")
    p.add_argument("--prompt", required=True, help="a sentence that says what happens")
    p.add_argument("-o", "--output", type=Path, required=True, help="an .mp4, or a directory for PNG frames")
    p.add_argument("--frames", type=_COUNT, help="pixel frames in all, 1 + 8k")
    p.add_argument("--height", type=_PIXELS, help="of the video, pixels")
    p.add_argument("--width", type=_PIXELS, help="of the video, pixels")
    p.add_argument("--mask-steps", type=_COUNT, help="transformer passes a latent frame")
    p.add_argument("--head-steps", type=_COUNT, help="diffusion steps a token")
    p.add_argument("--guidance-scale", type=_number(0, 1000), help="1 turns guidance off and halves the work")
    p.add_argument(
        "--temperature", type=_number(0, 1000), help="factor on the diffusion noise (default: the paper's progressive)"
    )
    p.add_argument("--seed", type=_SEED, default=0)
    p.add_argument("--fps", type=_number(0.1, 1000), default=24)
    p.add_argument("--threads", type=_THREADS, help="CPU threads (default: one a core)")
    p.add_argument("--backend", choices=BACKENDS, default="auto", help="what runs it (default: what is best here)")

    p = command("build", build, "Build TensorRT engines of an artifact directory, on the machine that runs them.")
    p.add_argument("directories", type=Path, nargs="*", metavar="DIR", help="artifact directory of `videomar export`")
    p.add_argument("-o", "--output", type=Path, help="engine directory to write")
    p.add_argument("--frames", type=_COUNT, help="pixel frames of the longest clip, 1 + 8k")
    p.add_argument("--height", type=_PIXELS, help="of the largest picture, pixels")
    p.add_argument("--width", type=_PIXELS, help="of the largest picture, pixels")
    p.add_argument(
        "--static", action="store_true", help="this picture size only; default: down to half of it both ways"
    )
    p.add_argument("--mask-steps", type=_COUNT, help="the fewest transformer passes a latent frame")
    p.add_argument("--branches", type=int, choices=(1, 2), default=2, help="2 with guidance (default), 1 without")
    p.add_argument("--max-text", type=_COUNT, help="tokens of the longest prompt")
    p.add_argument("--builder", choices=("auto", "tensorrt", "tensorrt-rtx"), default="auto")
    p.add_argument("--workspace", type=_COUNT, default=2048, help="MiB a kernel may use as scratch (default 2048)")
    p.add_argument(
        "--tactic-memory", type=_whole(0), default=0, help="MiB to try kernels in (default: half of the free)"
    )
    p.add_argument("--timing-cache", type=Path, help="file (default: one a TensorRT and GPU in ~/.cache/videomar)")
    p.add_argument(
        "--compute-capability", type=_COUNT, nargs="+", default=[], help="TensorRT-RTX: SM numbers, such as 89"
    )
    p.add_argument(
        "--optimization-level", type=_whole(0, 5), help="0 builds fastest, 5 runs fastest (TensorRT's default 3)"
    )
    p.add_argument("--print-trtexec", action="store_true", help="only print the equivalent trtexec commands")
    p.add_argument(
        "--gate", action="store_true", help="only try: build artifacts or a checkpoint with TensorRT-RTX, no GPU"
    )
    p.add_argument(
        "--preset", help="with --gate: this model with random weights instead, such as videomar-1.4b (torch)"
    )
    p.add_argument("--force", action="store_true", help="replace the directory even if it is up to date or not ours")

    p = command("inspect", inspect, "Show what a checkpoint or artifact directory holds.")
    p.add_argument("directory", type=Path)
    p.add_argument("--tensors", action="store_true", help="list every graph's (or file's) tensors too")
    p.add_argument("--json", action="store_true", help="everything, as JSON")

    p = command("evaluate", evaluate, "Measure an artifact directory on the demo world.")
    p.add_argument("directory", type=Path)
    p.add_argument("--cases", type=_COUNT, default=200)
    p.add_argument("--seed", type=_SEED, default=10**9)
    p.add_argument("--frames", type=_COUNT, default=17)
    p.add_argument("--size", type=_PIXELS, default=64, help="pixels, both ways")
    p.add_argument("--given", type=_COUNT, default=1, help="conditioning frames, 1 + 8k")
    p.add_argument("--json", type=Path, help="write the figures there too")
    p.add_argument("--threads", type=_THREADS)
    p.add_argument("--backend", choices=BACKENDS, default="auto")

    p = command("doctor", doctor, "Say what is installed here, what follows, and what mends what is broken.")
    p.add_argument("--json", action="store_true", help="everything, as JSON")
    p.add_argument("--strict", action="store_true", help="exit with 1 if something is broken")

    p = command("train", train, "Train the demo model: the tokenizer first, then the transformer.")
    p.add_argument("part", choices=("tokenizer", "transformer"))
    p.add_argument("-o", "--output", type=Path, required=True, help="checkpoint directory")
    p.add_argument(
        "--minutes", type=_number(0, 10**6), default=60, help="the learning rate reaches zero then, or at --steps"
    )
    p.add_argument("--steps", type=_COUNT, default=1_000_000)
    p.add_argument("--seed", type=_SEED, default=0)
    p.add_argument("--threads", type=_THREADS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
