"""The `videomar` command: one sub-command, one function; what it needs is imported when it runs."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from videomar.errors import InputError, UserError

Run = Callable[[argparse.Namespace], int]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one sub-command; 0 when it did what was asked, 2 for an error the user can mend."""
    args = _parser().parse_args(argv)
    run: Run = args.run
    try:
        return run(args)
    except UserError as error:
        print(f"videomar {args.command}: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        # The commands that need PyTorch are an extra; anything else missing is a broken installation of ours.
        if (error.name or "").split(".")[0] not in ("torch", "diffusers", "transformers", "safetensors", "onnx"):
            raise
        print(
            f"videomar {args.command}: needs {error.name}, which is not installed; pip install 'videomar[export]'",
            file=sys.stderr,
        )
        return 2
    except BrokenPipeError:  # the reader of our output (`| head`) has seen enough
        sys.stderr.close()
        return 0
    except KeyboardInterrupt:
        print(f"videomar {args.command}: stopped; nothing half-written is left", file=sys.stderr)
        return 130


def export(args: argparse.Namespace) -> int:
    """Write and check every graph of a checkpoint."""
    from tqdm import tqdm

    from videomar.export.export import export_checkpoint

    with tqdm(total=1, unit="stage", leave=False, bar_format=_BAR) as bar:

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


def generate(args: argparse.Namespace) -> int:
    """Continue a picture or clip and write a video."""
    from tqdm import tqdm

    from videomar.runtime.media import load_clip, write_pictures, write_video
    from videomar.runtime.pipeline import Pipeline
    from videomar.runtime.timing import Timing

    if (args.image is None) == (args.video is None):
        raise InputError("give either --image (a picture) or --video (a clip whose first --given frames are continued)")
    as_video = args.output.suffix != ""
    with Pipeline.open(args.directory, threads=args.threads) as pipe:
        given = load_clip(args.video, args.given) if args.video else args.image
        size = None
        if args.height or args.width:
            defaults = pipe.config.sampling
            size = (args.height or defaults.height, args.width or defaults.width)
        knobs = {k: getattr(args, k) for k in ("frames", "mask_steps", "head_steps", "guidance_scale", "temperature")}
        plan = pipe.plan(given, args.prompt, size=size, **knobs)
        timing = Timing()
        with tqdm(total=plan.steps, unit="step", leave=False, delay=2, bar_format=_BAR) as bar:

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

    with Pipeline.open(args.directory, threads=args.threads) as pipe:
        if pipe.config.text.vocab_size > 100:
            raise InputError(
                f"{args.directory} holds {pipe.config.name}, expected a model of the demo world: only there is the "
                "true future known"
            )
        with tqdm(total=args.cases, unit="clip", leave=False, delay=2) as bar:
            figures = measure(
                pipe,
                progress=lambda done: bar.update(),
                cases=args.cases,
                seed=args.seed,
                frames=args.frames,
                size=args.size,
                given=args.given,
            )
    text = json.dumps(figures, indent=2)
    if args.json:
        atomic_write(args.json, text + "\n")
    print(f"tokenizer reconstruction        {figures['tokenizer_psnr_db']:.2f} dB PSNR")
    print(f"motion of the prompt followed   {figures['followed']:.1%} of {figures['cases']} clips")
    print(f"centroid error, mean            {figures['centroid_error_mean']:.2%} of the width")
    print(
        f"centroid error, median and max  {figures['centroid_error_median']:.2%}, {figures['centroid_error_max']:.2%}"
    )
    print(f"PSNR against the true future    {figures['psnr_mean']:.2f} dB")
    for motion, row in figures["motions"].items():
        print(f"  {motion:22} {row['followed']:6.1%} followed, centroid error {row['centroid_error']:.2%}")
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


_BAR = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} {unit} [{elapsed} passed, {remaining} left]"


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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="videomar", description="Run VideoMAR outside PyTorch.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Run, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run)
        return sub

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
    p.add_argument("--given", type=int, default=9, help="frames taken from --video, 1 + 8k (default 9)")
    p.add_argument("--prompt", required=True, help="a sentence that says what happens")
    p.add_argument("-o", "--output", type=Path, required=True, help="an .mp4, or a directory for PNG frames")
    p.add_argument("--frames", type=int, help="pixel frames in all, 1 + 8k")
    p.add_argument("--height", type=int, help="of the video, pixels")
    p.add_argument("--width", type=int, help="of the video, pixels")
    p.add_argument("--mask-steps", type=int, help="transformer passes a latent frame")
    p.add_argument("--head-steps", type=int, help="diffusion steps a token")
    p.add_argument("--guidance-scale", type=float, help="1 turns guidance off and halves the work")
    p.add_argument("--temperature", type=float, help="factor on the diffusion noise (default: the paper's progressive)")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--fps", type=float, default=24)
    p.add_argument("--threads", type=int, help="CPU threads (default: one a core)")

    p = command("inspect", inspect, "Show what a checkpoint or artifact directory holds.")
    p.add_argument("directory", type=Path)
    p.add_argument("--tensors", action="store_true", help="list every graph's (or file's) tensors too")
    p.add_argument("--json", action="store_true", help="everything, as JSON")

    p = command("evaluate", evaluate, "Measure an artifact directory on the demo world.")
    p.add_argument("directory", type=Path)
    p.add_argument("--cases", type=int, default=200)
    p.add_argument("--seed", type=int, default=10**9)
    p.add_argument("--frames", type=int, default=17)
    p.add_argument("--size", type=int, default=64, help="pixels, both ways")
    p.add_argument("--given", type=int, default=1, help="conditioning frames, 1 + 8k")
    p.add_argument("--json", type=Path, help="write the figures there too")
    p.add_argument("--threads", type=int)

    p = command("train", train, "Train the demo model: the tokenizer first, then the transformer.")
    p.add_argument("part", choices=("tokenizer", "transformer"))
    p.add_argument("-o", "--output", type=Path, required=True, help="checkpoint directory")
    p.add_argument("--minutes", type=float, default=60, help="the learning rate reaches zero then, or at --steps")
    p.add_argument("--steps", type=int, default=1_000_000)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--threads", type=int)
    return parser


if __name__ == "__main__":
    sys.exit(main())
