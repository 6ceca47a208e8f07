"""The command's options: names, ranges, help. Knows nothing of what the sub-commands do."""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

from videomar.config import ANNEALS, FITS, ORDERS, SOLVERS, SamplingConfig, SamplingOptions
from videomar.errors import InputError
from videomar.parsing import Completion, Parser, Version, output, path
from videomar.quality import EXACT, LEVELS, at_quality

Run = Callable[[argparse.Namespace], int]
BACKENDS = ("auto", "ort-cpu", "ort-cuda", "ort-trt", "trt", "trt-rtx")  # choose.py's, without importing numpy for -h
PLANNED = ("orin-nano-8", "orin-nx-16", "agx-orin-64", "thor-128", "h200", "local")  # plan/devices.py's, likewise


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


def _size(text: str) -> tuple[int, int]:
    """HEIGHTxWIDTH, or one number for both."""
    height, both, width = text.partition("x")
    return _whole(1, 16384)(height), _whole(1, 16384)(width if both else height)


_WHOLE = "refuse a prompt that is longer than the model's text tokens, instead of cutting it"
_FROM_TEXT = "no picture: the first frame is made of the sentence, by a model that was trained for it"
_COUNT, _PIXELS, _THREADS, _SEED = _whole(1), _whole(1, 16384), _whole(1, 1024), _whole(0, 2**63 - 1)


def _reporting(p: argparse.ArgumentParser) -> None:
    """What `compare` and `replay` share."""
    p.add_argument("--json", type=output, help="write every number there")
    p.add_argument("--html", type=output, help="write a report there: one file, opens offline")
    p.add_argument("--png", type=output, help="write a picture of the report's first page there")
    p.add_argument("--threads", type=_THREADS, help="CPU threads (default: one a core)")
    p.add_argument("--backend", choices=BACKENDS, default="auto", help="what runs artifacts and engines")


def _sampling(p: argparse.ArgumentParser) -> None:
    """Every option of a generation, under the names of SamplingConfig; what is not given leaves no trace."""
    add = partial(p.add_argument, default=argparse.SUPPRESS)
    add("--frames", type=_COUNT, help="pixel frames in all, 1 + 8k")
    add("--height", type=_PIXELS, help="of the video, pixels")
    add("--width", type=_PIXELS, help="of the video, pixels")
    add("--size", type=_size, action=_Size, metavar="HEIGHTxWIDTH", help="both at once; one number for a square")
    add(
        "--fit",
        choices=FITS,
        help="a picture of another shape: crop to the centre (default), or stretch (the authors')",
    )
    add("--mask-steps", type=_COUNT, help="transformer passes a latent frame")
    add("--head-steps", type=_COUNT, help="diffusion steps a token")
    add("--guidance-scale", type=_number(0, 1000), help="1 turns guidance off and halves the work")
    add(
        "--temperature",
        type=_number(0, 1000),
        help="factor on the diffusion noise; 1: the authors' code (default: the paper's)",
    )
    add(
        "--no-guidance-ramp",
        dest="guidance_ramp",
        action="store_false",
        help="the same guidance scale in every mask step",
    )
    add(
        "--token-clip",
        type=lambda text: _number(0, 10**6)(text) or None,
        help="bound on tokens after the first generated frame; 0: none",
    )
    add("--kv-window", type=_COUNT, help="latent frames seen besides the first (default: all)")
    _quality(p)
    add("--order", choices=ORDERS, help="positions of a frame: random (default, the paper's), structure first, spread")
    add("--detail-steps", type=_COUNT, help="with --order structure: mask steps for the second half of the positions")
    add("--head-solver", choices=SOLVERS, help="ancestral (default, the paper's) or ddim, which bears few head steps")
    add("--head-steps-end", type=_COUNT, help="diffusion steps go down to this over a frame (default: --head-steps)")
    add("--head-anneal", choices=ANNEALS, help="how they go down (default linear)")
    add("--guidance-start", type=_number(0, 1), help="guidance from this share of a frame's mask steps on (default 0)")
    add("--guidance-end", type=_number(0, 1), help="guidance up to this share of them (default 1)")
    add("--refresh-every", type=_COUNT, help="mask steps between whole passes; the others compute what changes")
    add("--known-share", type=_number(0, 1), help="with --refresh-every: share of the known positions computed too")
    add(
        "--guidance-passes",
        type=int,
        choices=(1, 2),
        help="2: one branch at a time, with half the K/V (default: 2 where only that fits the memory)",
    )


def _quality(p: argparse.ArgumentParser) -> None:
    p.add_argument("--quality", choices=LEVELS, default=EXACT, help="a set of the dials below (default exact: none)")


def _serving(p: argparse.ArgumentParser) -> None:
    """Where a server listens, what it keeps and what it allows; defaults as of serving/settings.py."""
    p.add_argument("--host", default="127.0.0.1", help="address to listen at (default: this machine alone)")
    p.add_argument("--port", type=_whole(0, 65535), default=8000)
    p.add_argument("--directory", type=path, default=Path("videomar-jobs"), help="of jobs, inputs and clips")
    p.add_argument("--database", help="shared with other servers: postgresql://... (default: in --directory)")
    p.add_argument("--clips", metavar="URL", help="of inputs and clips where servers share no --directory: s3://...")
    p.add_argument(
        "--lease", type=_number(1, 3600), default=15, help="seconds until a silent server's jobs are others'"
    )
    p.add_argument("--fleet", type=_fleet, metavar="N or MIN:MAX", help="replicas on Ray Serve (default: this process)")
    p.add_argument("--replica-gpus", type=_number(0, 16), default=0, help="GPUs that Ray gives each (default 0)")
    p.add_argument("--in-flight", type=_whole(1, 64), default=2, help="clips that take turns (default 2)")
    p.add_argument("--api-key-file", type=path, help="keys, one a line; clients send one as a bearer token")
    p.add_argument("--no-api-key", action="store_true", help="let everybody who reaches --host use it")
    p.add_argument("--allow-origin", action="append", default=[], metavar="URL", help="pages elsewhere that may call")
    p.add_argument("--keep", type=_time, default=86400.0, help="how long a clip stays (default 24h; 0: for ever)")
    p.add_argument("--max-disk", type=_bytes, help="bytes of all inputs and clips, such as 20G; the oldest go first")
    p.add_argument("--memory", type=_bytes, help="bytes that model and clips may take (default: what is free)")
    p.add_argument("--max-queue", type=_COUNT, default=100, help="jobs that may wait (default 100)")
    p.add_argument("--max-per-client", type=_COUNT, default=50, help="jobs of one client, unfinished (default 50)")
    p.add_argument("--max-upload", type=_bytes, default=32 << 20, help="bytes of a request (default 32M)")
    p.add_argument("--max-pixels", type=_COUNT, default=7680 * 4320, help="of an uploaded picture (default 8K)")
    p.add_argument("--max-frames", type=_COUNT, default=257, help="pixel frames of a clip (default 257)")
    p.add_argument("--max-steps", type=_COUNT, default=20_000, help="mask steps of a clip (default 20000)")
    p.add_argument("--max-prompt", type=_COUNT, default=4000, help="characters (default 4000)")
    p.add_argument("--grace", type=_number(0, 86400), default=30, help="seconds for clips to finish on SIGTERM")
    p.add_argument("--threads", type=_THREADS, help="CPU threads (default: one a core)")
    p.add_argument("--backend", choices=BACKENDS, default="auto", help="what runs it (default: what is best here)")


def _measure(pattern: str, units: dict[str, int], expected: str) -> Callable[[str], float]:
    """A number with a unit."""

    def convert(text: str) -> float:
        match = re.fullmatch(rf"(\d{{1,12}}(?:\.\d{{1,6}})?)({pattern})", text)
        if not match:
            raise argparse.ArgumentTypeError(f"is {text!r:.40}, expected {expected}")
        return float(match[1]) * units[match[2]]

    return convert


def _fleet(text: str) -> tuple[int, int]:
    """Replicas, from and to."""
    match = re.fullmatch(r"(\d{1,4})(?::(\d{1,4}))?", text)
    least, most = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 1 <= least <= most:
        raise argparse.ArgumentTypeError(f"is {text!r:.40}, expected a number of replicas such as 2, or 1:4")
    return least, most


def _time(text: str) -> float | None:
    """Seconds; None for 0."""
    units = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
    return _measure("[smhd]?", units, "a time such as 90s, 15m, 24h or 7d")(text) or None


def _bytes(text: str) -> int:
    units = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
    return int(_measure("[KMGT]?", units, "a size such as 500M, 20G or 1T")(text))


class _Size(argparse.Action):
    """--size sets height and width."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: Any = None) -> None:
        namespace.height, namespace.width = values


def sampling_options(args: argparse.Namespace) -> SamplingOptions:
    """What the command line says of a generation, for `SamplingConfig.but`."""
    names = (field.name for field in dataclasses.fields(SamplingConfig))
    return cast(SamplingOptions, {name: getattr(args, name) for name in names if hasattr(args, name)})


def sampling_of(own: SamplingConfig, args: argparse.Namespace) -> SamplingConfig:
    """The model's own options with those of the command line: a level's dials first, then single ones."""
    return at_quality(own, getattr(args, "quality", EXACT)).but(**sampling_options(args))


def levels_of(own: SamplingConfig, args: argparse.Namespace) -> dict[str, SamplingConfig]:
    """Every level of quality with the command line's single dials; raises InputError where one level is asked for."""
    if args.quality != EXACT:
        raise InputError(f"--deadline chooses the level itself, got --quality {args.quality}; give one of the two")
    return {level: at_quality(own, level).but(**sampling_options(args)) for level in LEVELS}


def parser(runs: Mapping[str, Run]) -> argparse.ArgumentParser:
    """The whole command line; `runs` maps every sub-command to its function."""
    whole = Parser(prog="videomar", description="Run VideoMAR outside PyTorch.")
    whole.add_argument("--version", action=Version, nargs=0, help="say which version this is")
    shells = ("bash", "zsh", "tcsh")
    whole.add_argument("--print-completion", action=Completion, choices=shells, help="for `eval`, by a shell")
    commands = whole.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(run=runs[name])
        loud = sub.add_mutually_exclusive_group()
        loud.add_argument("-q", "--quiet", action="store_true", help="say nothing but results, warnings and errors")
        loud.add_argument("-v", "--verbose", action="store_true", help="say more, and where an error was raised")
        return sub

    p = command("import", "Turn the official weights into a checkpoint directory.")
    p.add_argument("--transformer", type=path, required=True, help="VideoMAR's .pth or .safetensors")
    p.add_argument("--tokenizer", type=path, required=True, help="Cosmos: a diffusers directory or NVIDIA's archives")
    p.add_argument("--text", type=path, required=True, help="Qwen2-VL-1.5B-Instruct, a transformers directory")
    p.add_argument("-o", "--output", type=output, required=True, help="checkpoint directory to write")
    p.add_argument("--weights", choices=("ema", "model"), default="ema")
    words = p.add_mutually_exclusive_group()
    words.add_argument(
        "--system-prompt-file", type=path, metavar="FILE", help="put in front of every prompt, byte for byte"
    )
    words.add_argument("--no-system-prompt", action="store_true", help="do without, even at the released sizes")
    p.add_argument(
        "--plain-qwen2", action="store_true", help="take a Qwen2 or Qwen2.5 text model, which the release does not have"
    )
    p.add_argument(
        "--text-positions",
        choices=("padded", "masked"),
        help="where prompts are padded on the left: whether padding counts as positions (default padded)",
    )
    p.add_argument(
        "--rope-split", type=_COUNT, nargs=3, metavar=("FRAME", "ROW", "COLUMN"), help="head channels an axis"
    )
    p.add_argument("--tokenizer-strides", type=_COUNT, nargs=2, metavar=("SPACE", "TIME"))
    p.add_argument("--frames", type=_COUNT, help="pixel frames to generate by default, 1 + 8k (default 25)")
    p.add_argument("--size", type=_size, metavar="HEIGHTxWIDTH", help="to generate by default (default 480x768)")
    p.add_argument("--force", action="store_true")

    p = command("export-official", "Write a checkpoint back in the authors' layout, for their code: import's inverse.")
    p.add_argument("checkpoint", type=path, help="checkpoint directory, such as models/demo")
    p.add_argument("-o", "--output", type=output, required=True, help="directory to write")
    p.add_argument("--force", action="store_true", help="replace what an earlier run wrote; never other files")

    p = command("export", "Write a checkpoint's graphs as ONNX and check each against PyTorch.")
    p.add_argument("checkpoint", type=path, help="checkpoint directory, such as models/demo")
    p.add_argument("-o", "--output", type=output, required=True, help="artifact directory to write")
    p.add_argument(
        "--random-weights", type=_SEED, metavar="SEED", help="for measuring: CHECKPOINT is a preset, videomar-1.4b"
    )
    p.add_argument("--precision", choices=("fp32", "fp16"), default="fp32")
    p.add_argument(
        "--emitter",
        choices=("portable", "native"),
        default="portable",
        help="portable: primitive operators, runs anywhere; native: opset 24, K/V written in place (ONNX Runtime 1.24)",
    )
    p.add_argument(
        "--islands",
        type=path,
        metavar="CALIBRATION.json",
        help="fp16 only: compute in FP32 what `videomar calibrate` saw come too near to FP16's largest number",
    )
    p.add_argument(
        "--fp32",
        nargs="+",
        default=[],
        metavar="GRAPH:TENSOR",
        help="fp16 only: compute these in FP32, as `videomar bisect` names them",
    )
    p.add_argument(
        "--cache-tokens",
        type=int,
        help="native only: bake in a K/V cache of this many tokens (latent frames * h * w), as TensorRT wants it",
    )
    p.add_argument("--force", action="store_true", help="replace the directory even if it is up to date or not ours")

    p = command("embed", "Write a prompt's text states to a file, so that a board needs no text encoder.")
    p.add_argument("directory", type=path, help="artifact directory of `videomar export`")
    p.add_argument("--prompt", required=True, help="a sentence that says what happens")
    p.add_argument("--whole-prompt", action="store_true", help=_WHOLE)
    p.add_argument("-o", "--output", type=output, required=True, help="an .npz")
    p.add_argument("--threads", type=_THREADS)
    p.add_argument("--backend", choices=BACKENDS, default="auto")

    p = command("generate", "Continue a picture or a clip as a sentence says, or make a clip of the sentence alone.")
    p.add_argument("directory", type=path, help="artifact directory of `videomar export`")
    p.add_argument(
        "--image", type=path, help="the first frame; - reads it from standard input (default: made, if trained for it)"
    )
    p.add_argument("--video", type=path, help="a video file or a directory of pictures whose end is continued instead")
    p.add_argument("--given", type=_COUNT, default=9, help="frames taken from --video, 1 + 8k (default 9)")
    p.add_argument("--start", type=_number(0, 10**6), metavar="SECONDS", help="take them from there on, not its end")
    p.add_argument("--no-resample", action="store_true", help="take them by count, not by time at the model's rate")
    p.add_argument("--join", action="store_true", help="write what comes before the given frames of --video, too")
    p.add_argument("--prompt", help="a sentence that says what happens")
    p.add_argument("--whole-prompt", action="store_true", help=_WHOLE)
    p.add_argument("--text-embeddings", type=path, help="instead of --prompt: a file of `videomar embed`")
    p.add_argument(
        "-o",
        "--output",
        type=path,
        required=True,
        help="an .mp4, .webm, .gif or .webp, a directory for PNG frames, or - for an mp4 on standard output",
    )
    p.add_argument("--contact-sheet", type=output, metavar="FILE", help="write the frames in rows there: a picture")
    p.add_argument("--json", action="store_true", help="print what was made and how long it took as JSON")
    _sampling(p)
    p.add_argument(
        "--deadline", type=_number(0.01, 10**6), metavar="SECONDS", help="the best level that is done in time"
    )
    p.add_argument("--seed", type=_SEED, default=0)
    p.add_argument("--fps", type=_number(0.1, 1000), default=argparse.SUPPRESS, help="(default: the model's)")
    p.add_argument("--no-memory-check", action="store_true", help="try even if the plan says that memory is short")
    p.add_argument("--threads", type=_THREADS, help="CPU threads (default: one a core)")
    p.add_argument("--backend", choices=BACKENDS, default="auto", help="what runs it (default: what is best here)")

    p = command("calibrate", "Quantize an artifact directory's transformer to INT8 and say whether it pays.")
    p.add_argument("directory", type=path, help="artifact directory of `videomar export`")
    p.add_argument("-o", "--output", type=output, required=True, help="INT8 artifact directory to write")
    p.add_argument(
        "--clips", type=path, nargs="+", default=[], metavar="LIST", help="text files of lines clip<TAB>prompt"
    )
    p.add_argument("--demo", type=_COUNT, metavar="N", help="use N clips of the demo world, too")
    p.add_argument("--given", type=_COUNT, default=1, help="frames taken from each clip, 1 + 8k (default 1)")
    p.add_argument(
        "--ranges", type=path, nargs="+", default=[], metavar="FILE", help="use these ranges.npz; only measure on clips"
    )
    p.add_argument("--method", choices=("auto", "minmax", "percentile", "mse"), default="auto")
    p.add_argument("--alpha", default="auto", help="SmoothQuant's: auto, off or a number between 0 and 1")
    p.add_argument(
        "--target",
        type=_number(0, 1),
        default=0.999,
        help="cosine of z on held-out steps, reached by keeping linears in floating point (default 0.999)",
    )
    p.add_argument("--keep", nargs="+", default=[], metavar="NAME", help="linears or families to keep in any case")
    p.add_argument("--no-sensitivity", action="store_true", help="leave out the families' and sampled tokens' errors")
    p.add_argument("--only-if-faster", action="store_true", help="write nothing where INT8 is not faster")
    p.add_argument("--json", action="store_true", help="print every figure as JSON")
    _sampling(p)
    p.add_argument("--threads", type=_THREADS, help="CPU threads (default: one a core)")
    p.add_argument("--backend", choices=BACKENDS, default="auto", help="what the timing is taken on")
    p.add_argument("--force", action="store_true", help="replace the directory even if it is up to date or not ours")

    p = command("plan", "Say what a generation needs and how long it takes on a device, before anything is built.")
    p.add_argument("source", metavar="DIR|PRESET", help="checkpoint, artifact directory, or a preset: videomar-1.4b")
    p.add_argument("--device", nargs="+", default=[], help=f"one or more of {', '.join(PLANNED)}")
    _sampling(p)
    p.add_argument("--given", type=_whole(0), default=1, help="conditioning frames, 1 + 8k (default 1); 0: no picture")
    p.add_argument("--precision", choices=("fp32", "fp16", "int8"), help="(default: the artifacts', or fp16)")
    p.add_argument("--emitter", choices=("portable", "native"), help="(default: the artifacts', or portable)")
    p.add_argument("--cache-tokens", type=_COUNT, help="native only: length of a fixed K/V cache")
    p.add_argument("--text-embeddings", nargs="?", const="", help="a prompt of `videomar embed`: no text encoder")
    p.add_argument("--json", action="store_true", help="everything, as JSON")
    p.add_argument("--svg", type=output, help="write the chart there too")
    p.add_argument(
        "--training", action="store_true", help="the memory of a training step instead, at --precision fp32 or half"
    )
    p.add_argument("--batch", type=_COUNT, default=16, help="--training: clips a step (default 16)")
    p.add_argument("--accumulate", type=_COUNT, default=1, help="--training: parts that they go through in (default 1)")
    p.add_argument("--recompute", action="store_true", help="--training: activations are made again on the way back")
    p.add_argument("--lora", type=_whole(1, 1024), metavar="RANK", help="--training: low-rank updates only")

    p = command("build", "Build TensorRT engines of an artifact directory, on the machine that runs them.")
    p.add_argument("directories", type=path, nargs="*", metavar="DIR", help="artifact directory of `videomar export`")
    p.add_argument("-o", "--output", type=output, help="engine directory to write")
    p.add_argument("--frames", type=_COUNT, help="pixel frames of the longest clip, 1 + 8k")
    p.add_argument("--height", type=_PIXELS, help="of the largest picture, pixels")
    p.add_argument("--width", type=_PIXELS, help="of the largest picture, pixels")
    p.add_argument(
        "--static", action="store_true", help="this picture size only; default: down to half of it both ways"
    )
    p.add_argument("--mask-steps", type=_COUNT, help="the fewest transformer passes a latent frame")
    p.add_argument("--branches", type=int, choices=(1, 2), default=2, help="2 with guidance (default), 1 without")
    p.add_argument(
        "--guidance-passes", type=int, choices=(1, 2), default=1, help="2: one branch at a time, with half the K/V"
    )
    p.add_argument("--kv-window", type=_COUNT, help="latent frames seen besides the first (default: all)")
    p.add_argument("--max-text", type=_COUNT, help="tokens of the longest prompt")
    p.add_argument("--builder", choices=("auto", "tensorrt", "tensorrt-rtx"), default="auto")
    p.add_argument("--workspace", type=_COUNT, default=2048, help="MiB a kernel may use as scratch (default 2048)")
    p.add_argument(
        "--tactic-memory", type=_whole(0), default=0, help="MiB to try kernels in (default: half of the free)"
    )
    p.add_argument("--timing-cache", type=output, help="file (default: one a TensorRT and GPU in ~/.cache/videomar)")
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

    p = command("inspect", "Show what a checkpoint or artifact directory holds.")
    p.add_argument("directory", type=path)
    p.add_argument("--tensors", action="store_true", help="list every graph's (or file's) tensors too")
    p.add_argument("--json", action="store_true", help="everything, as JSON")

    p = command("evaluate", "Measure an artifact directory on the demo world.")
    p.add_argument("directory", type=path)
    p.add_argument("--cases", type=_COUNT, default=200)
    p.add_argument("--seed", type=_SEED, default=10**9)
    p.add_argument("--frames", type=_COUNT, default=17)
    p.add_argument("--size", type=_PIXELS, default=64, help="pixels, both ways")
    p.add_argument("--given", type=_COUNT, default=1, help="conditioning frames, 1 + 8k")
    _quality(p)
    p.add_argument("--json", type=output, help="write the figures there too")
    p.add_argument("--threads", type=_THREADS)
    p.add_argument("--backend", choices=BACKENDS, default="auto")

    p = command("tune", "Measure which dials pay here: time a clip against what is lost, on this device and model.")
    p.add_argument("directory", type=path, help="artifact directory or engines")
    p.add_argument("-o", "--output", type=output, required=True, help="JSON of every figure; a run goes on from it")
    p.add_argument("--html", type=output, help="write a page with clips side by side there: one file, opens offline")
    p.add_argument("--cases", type=path, metavar="LIST", help="text file of lines picture-or-clip<TAB>prompt")
    p.add_argument("--count", type=_COUNT, default=4, help="without --cases: scenes of the demo world (default 4)")
    p.add_argument("--given", type=_COUNT, default=1, help="frames taken from each clip of --cases (default 1)")
    p.add_argument("--drawn", type=_whole(0), default=100, help="demo model: clips judged a setting (default 100)")
    p.add_argument("--minutes", type=_number(0.01, 10**6), help="begin no setting after that")
    _sampling(p)
    p.add_argument("--seed", type=_SEED, default=0)
    p.add_argument("--threads", type=_THREADS, help="CPU threads (default: one a core)")
    p.add_argument("--backend", choices=BACKENDS, default="auto", help="what runs it (default: what is best here)")

    p = command("compare", "Say whether candidates are still the model: every rung from text states to finished clips.")
    p.add_argument("reference", type=path, help="the first directory: checkpoint, ONNX artifacts or engines")
    p.add_argument("candidates", type=path, nargs="+", metavar="candidate", help="directories compared with it")
    p.add_argument("--image", type=path, action="append", default=[], help="a first frame; as often as wanted")
    p.add_argument("--prompt", action="append", default=[], help="one for every --image, or one for all")
    p.add_argument("--cases", type=_COUNT, default=4, help="clips without --image: held-out demo scenes (default 4)")
    p.add_argument("--from-text", action="store_true", help=_FROM_TEXT)
    p.add_argument("--seed", type=_SEED, default=0)
    _sampling(p)
    p.add_argument("--layers", type=path, help="for --html: what `videomar bisect --json` wrote")
    p.add_argument("--ranges", type=path, help="for --html: ranges.npz of an INT8 directory")
    p.add_argument("--sensitivity", type=path, help="for --html: calibration.json of an INT8 directory")
    _reporting(p)

    p = command("bisect", "Find the first layer and loop step where B leaves A, and the precision that mends it.")
    p.add_argument("a", type=path, metavar="A", help="what is right: a checkpoint or ONNX artifacts")
    p.add_argument(
        "b", type=path, metavar="B", help="what may be wrong: ONNX artifacts; of engines the loop step alone"
    )
    p.add_argument("--image", type=path, action="append", default=[], help="a first frame; as often as wanted")
    p.add_argument("--prompt", action="append", default=[], help="one for every --image, or one for all")
    p.add_argument("--cases", type=_COUNT, default=4, help="clips without --image: held-out demo scenes (default 4)")
    p.add_argument("--from-text", action="store_true", help=_FROM_TEXT)
    p.add_argument("--seed", type=_SEED, default=0)
    _sampling(p)
    p.add_argument(
        "--json", type=output, help="write it there, with every layer of that call; `compare --layers` reads it"
    )
    p.add_argument("--threads", type=_THREADS, help="CPU threads (default: one a core)")
    p.add_argument("--backend", choices=BACKENDS, default="auto", help="what runs artifacts and engines")

    p = command("record", "Record a golden pack: what engines have to reproduce on the device.")
    p.add_argument("directory", type=path, help="artifact directory, best of FP32")
    p.add_argument("-o", "--output", type=output, required=True, help="pack to write")
    p.add_argument("--image", type=path, help="the clip's first frame (default: a held-out demo scene)")
    p.add_argument("--prompt", help="the clip's sentence")
    p.add_argument("--from-text", action="store_true", help=_FROM_TEXT)
    p.add_argument("--seed", type=_SEED, default=0)
    _sampling(p)
    p.add_argument("--threads", type=_THREADS, help="CPU threads (default: one a core)")
    p.add_argument("--backend", choices=BACKENDS, default="auto", help="what runs the artifacts")
    p.add_argument("--force", action="store_true", help="replace the directory even if it is up to date or not ours")

    p = command("replay", "Verify engines or artifacts against a golden pack, without PyTorch or the checkpoint.")
    p.add_argument("pack", type=path, help="directory of `videomar record`")
    p.add_argument("directory", type=path, help="engines or artifacts to verify")
    _reporting(p)

    p = command(
        "serve", "Serve a page and OpenAI's Videos API: clips queue, take turns, and are seen while they are made."
    )
    p.add_argument("artifacts", type=path, help="artifact or engine directory")
    _serving(p)

    p = command("doctor", "Say what is installed here, what follows, and what mends what is broken.")
    p.add_argument("--json", action="store_true", help="everything, as JSON")
    p.add_argument("--strict", action="store_true", help="exit with 1 if something is broken")

    p = command(
        "train", "Train a model on the demo world or own clips: tokenizer, transformer; then a head of few steps."
    )
    p.add_argument("part", choices=("tokenizer", "transformer", "head"))
    p.add_argument("-o", "--output", type=output, required=True, help="checkpoint directory")
    p.add_argument(
        "--from", dest="start", type=path, help="go on from this checkpoint, not from nothing; head: its teacher"
    )
    p.add_argument("--head-steps", type=_COUNT, help="head: diffusion steps that it learns to take (6)")
    p.add_argument("--absorb-guidance", action="store_true", help="head: learn it, so that none is computed")
    p.add_argument("--preset", default="demo", help="the model's sizes where there is no --from (demo)")
    p.add_argument("--clips", type=path, help="folder of videos (without it: the demo world)")
    p.add_argument("--captions", type=path, help='JSON lines: {"file": "a.mp4", "caption": "what happens"}')
    p.add_argument("--cache", type=output, help="where what is read of the clips is kept (OUTPUT/latents)")
    p.add_argument("--stages", help="TOML file of stages, or a preset: see docs/training.md")
    p.add_argument("--minutes", type=_number(0, 10**6), help="in all; stages keep their shares (60)")
    p.add_argument("--steps", type=_COUNT, help="in all, likewise; with both, whichever ends first (head: 400 of them)")
    p.add_argument("--layers", action="append", default=[], help="train the parameters of this pattern; repeatable")
    p.add_argument("--lora", type=_whole(1, 1024), metavar="RANK", help="train low-rank updates of --from")
    p.add_argument("--learning-rate", type=_number(1e-9, 1), help="of every stage, instead of its own")
    p.add_argument("--recompute", action="store_true", help="gradient checkpointing: less memory, a third more time")
    p.add_argument("--save-every", type=_number(0, 10**4), default=10.0, metavar="MINUTES", help="checkpoints (10)")
    p.add_argument("--resume", action="store_true", help="go on with the unfinished run in OUTPUT")
    p.add_argument("--force", action="store_true", help="begin anew over an unfinished run, or replace a checkpoint")
    p.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    p.add_argument("--seed", type=_SEED, default=0)
    p.add_argument("--threads", type=_THREADS)
    return whole
