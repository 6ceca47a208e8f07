"""`videomar export`: a checkpoint directory -> an artifact directory of checked ONNX graphs."""

from __future__ import annotations

import datetime
import gc
import json
import platform
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import onnx
import onnxruntime
import torch

from videomar.artifacts import Manifest, hash_files, up_to_date, write_directory, write_manifest
from videomar.config import PRESETS
from videomar.demo.words import write_tokenizer
from videomar.errors import ArtifactError, InputError, ParityError
from videomar.export.build import GraphBuilder
from videomar.export.checks import check_graph
from videomar.export.emitters import emitter
from videomar.export.linter import lint_file
from videomar.export.onnx_files import save
from videomar.graphs import (
    DIFFUSION_HEAD,
    GRAPHS,
    HEAD_CONDITION,
    HEAD_STEP,
    TEXT_ENCODER,
    TEXT_KEY_VALUES,
    TOKENIZER_DECODER,
    TOKENIZER_ENCODER,
    TOLERANCE,
    TRANSFORMER_STEP,
    contract,
)
from videomar.model.random_parts import RandomParts
from videomar.model.videomar import PARTS, PartsOfCheckpoint
from videomar.runtime.prompt import PromptTokenizer

Progress = Callable[[str, float, float], None]  # stage, seconds done as expected, of how many
WORTH_COLLECTING = 64 << 20  # bytes of weights; after tracing, to look for what still holds them takes a second
LEAST_CACHE = 64  # the check's own clips have to fit
# Seconds that tracing a graph and checking it took on a shared core, of the demo model: only their proportions count.
SECONDS = {
    TEXT_ENCODER: (20, 0.5),
    TEXT_KEY_VALUES: (10, 0.5),
    TOKENIZER_ENCODER: (88, 1.5),
    TOKENIZER_DECODER: (65, 1.5),
    TRANSFORMER_STEP: (30, 0.5),
    DIFFUSION_HEAD: (18, 0.5),
    HEAD_CONDITION: (0.5, 0.5),
    HEAD_STEP: (0.5, 0.5),
}
DTYPES = {"fp32": torch.float32, "fp16": torch.float16}


def export_checkpoint(
    checkpoint: Path,
    out: Path,
    precision: str = "fp32",
    emitter_name: str = "portable",
    cache_tokens: int | None = None,
    force: bool = False,
    progress: Progress = lambda stage, done, total: None,
    islands: Mapping[str, Collection[str]] | None = None,
) -> bool:
    """Write every graph of `checkpoint` into `out` and check each against PyTorch; False if `out` is up to date.

    islands: tensors to be computed in FP32 although the rest is FP16, graph -> names.
    Raises ArtifactError for a bad checkpoint or target, InputError for an unknown option, ParityError when a graph's
    numbers miss the contract's tolerance; then `out` is left as it was.
    """
    files = [checkpoint / n for n in ("config.json", "tokenizer.json", *(f"{part}.safetensors" for part in PARTS))]
    for file in files:
        if not file.is_file():
            raise ArtifactError(f"checkpoint {checkpoint} lacks {file.name}; copy the whole directory again")
    if checkpoint.resolve().is_relative_to(out.resolve()):
        raise InputError(f"{out} holds the checkpoint, expected another directory to write; give another one with -o")
    return _export(
        lambda dtype: PartsOfCheckpoint(checkpoint, dtype),
        lambda file: shutil.copy(checkpoint / "tokenizer.json", file),
        hash_files(files),
        Options(out, precision, emitter_name, cache_tokens, force, progress, islands or {}),
    )


def export_random(
    preset: str,
    seed: int,
    out: Path,
    precision: str = "fp32",
    emitter_name: str = "portable",
    cache_tokens: int | None = None,
    force: bool = False,
    progress: Progress = lambda stage, done, total: None,
) -> bool:
    """As `export_checkpoint`, of a preset with random weights and the demo world's words: for measuring, not for video.

    Raises InputError for an unknown preset or option, ParityError and ArtifactError as there.
    """
    if preset not in PRESETS:
        raise InputError(f"--random-weights wants a preset, one of {', '.join(PRESETS)}, got {preset!r}")
    return _export(
        lambda dtype: RandomParts(PRESETS[preset], dtype, seed),
        write_tokenizer,
        {"preset": preset, "seed": str(seed)},
        Options(out, precision, emitter_name, cache_tokens, force, progress),
    )


@dataclass(frozen=True)
class Options:
    """What an export is asked for."""

    out: Path
    precision: str
    emitter: str
    cache_tokens: int | None
    force: bool
    progress: Progress
    islands: Mapping[str, Collection[str]] = field(default_factory=dict)


def _export(
    parts: Callable[[torch.dtype], PartsOfCheckpoint],
    write_words: Callable[[Path], object],
    made_from: dict[str, str],
    options: Options,
) -> bool:
    out, precision, cache_tokens, progress = options.out, options.precision, options.cache_tokens, options.progress
    emit = emitter(options.emitter)
    if cache_tokens is not None and cache_tokens < LEAST_CACHE:
        raise InputError(f"cache tokens is {cache_tokens}, expected at least {LEAST_CACHE}; change --cache-tokens")
    inputs = {
        **made_from,
        "precision": precision,
        "emitter": emit.name,
        "cache_tokens": str(cache_tokens),
        "islands": json.dumps({graph: sorted(names) for graph, names in sorted(options.islands.items())}),
        "videomar": version("videomar"),
        "torch": torch.__version__,
    }
    if options.islands and precision != "fp16":
        raise InputError(f"FP32 islands are for FP16, got --precision {precision}; leave --islands away")
    if not options.force and up_to_date(out, inputs):
        return False
    total, done = 1.0 + sum(map(sum, SECONDS.values())), 1.0
    progress("loading the checkpoint", 0, total)
    # One part of the model in memory at a time: in the graph's precision, then, to check the graph, in FP32.
    reference = parts(torch.float32)
    config = reference.config
    specs = contract(config, precision, emit.in_place, cache_tokens)
    source = parts(DTYPES[precision])
    reference.check()
    with write_directory(out, force=options.force) as directory, torch.inference_mode():
        write_words(directory / "tokenizer.json")
        prefix = PromptTokenizer(directory / "tokenizer.json", config.text).prefix
        builder = GraphBuilder(source, specs, emit, DTYPES[precision], prefix, directory, options.islands)
        checks: dict[str, dict[str, float]] = {}
        lint: dict[str, list[str]] = {}  # what TensorRT cannot build; a board without the onnx package reads it here
        for name in GRAPHS:
            tracing, checking = SECONDS[name]
            progress(f"exporting {name}", done, total)
            file = directory / f"{name}.onnx"
            save(builder.build(name), file)
            source.release()
            if sum(f.stat().st_size for f in directory.glob(f"{name}.onnx*")) > WORTH_COLLECTING:
                gc.collect()
            if found := lint_file(file, tensorrt=False):
                raise ParityError(str(found[0]))
            lint[name] = [str(f) for f in lint_file(file)]
            done += tracing
            progress(f"checking {name} against PyTorch", done, total)
            checks[name] = check_graph(
                file, specs[name], reference, prefix, TOLERANCE[precision][name], emit.in_place, cache_tokens
            )
            done += checking
        progress("writing", done, total)
        write_manifest(
            directory,
            Manifest(
                kind="onnx",
                precision=precision,
                emitter=emit.name,
                opset=emit.opset,
                config=config,
                inputs=inputs,
                made_by={
                    "videomar": version("videomar"),
                    "torch": torch.__version__,
                    "onnx": onnx.__version__,
                    "onnxruntime": onnxruntime.__version__,
                    "host": platform.platform(terse=True),
                    "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
                },
                checks=checks,
                extra={"cache_tokens": cache_tokens, "lint": lint, "fp32_operators": builder.wide},
            ),
        )
    return True
