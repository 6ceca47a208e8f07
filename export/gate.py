"""`videomar build --gate`: does a real builder, on a machine without a GPU, take every graph?

Builds into a temporary directory and keeps nothing. Goes on after a failure, so that one run shows them all.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from videomar.artifacts import MANIFEST, FileEntry, Manifest
from videomar.checkpoint import read_config
from videomar.config import PRESETS, ModelConfig
from videomar.errors import ArtifactError, InputError
from videomar.export.engine import probe
from videomar.export.linter import lint_file
from videomar.export.profiles import ENGINES, Sizes, axis_ranges, profiles
from videomar.export.sources import BuildOptions, Source, jobs, open_source, weights_bytes
from videomar.export.workers import failure, free_memory, run_job
from videomar.graphs import TRANSFORMER_STEP, contract
from videomar.unfinished import scratch

PROVES = (
    "{builder}, ahead of time, no GPU used. It proves that every graph parses, that types and shapes fit, and that "
    "kernels exist for them.\nIt proves no numbers, no speed, and nothing of a Jetson: those engines are built by "
    "another TensorRT, on the board."
)


@dataclass(frozen=True)
class Row:
    """What became of one graph."""

    graph: str
    emitter: str
    precision: str
    engine_bytes: int = 0
    seconds: float = 0.0
    peak_bytes: int = 0
    error: str = ""
    note: str = ""


def gate(
    directories: list[Path],
    options: BuildOptions,
    graphs: tuple[str, ...] = ENGINES,
    progress: Callable[[str], None] = lambda what: None,
) -> Iterator[Row]:
    """Build every graph of artifact directories; of a checkpoint, export every emitter and precision first (torch).

    Yields a row as soon as it is known; one with an error should have built. Raises UserError where nothing can be
    tried.
    """
    with scratch("gate") as folder:
        seen = set()
        here, _ = probe(options.builder, folder)
        for directory in _artifacts(directories, options, folder, progress):
            source = open_source(directory, options)
            m = source.manifest
            for name in graphs:
                key = (m.files[f"{name}.onnx"].sha256, str(source.profiles[name]))
                if key in seen:  # only the transformer differs between emitters
                    yield Row(name, m.emitter, m.precision, note="the same graph as above")
                    continue
                seen.add(key)
                progress(f"{m.emitter} {m.precision} {name}")
                yield _row(source, name, options, here, folder)
            if directory.parent == folder and (m.emitter, m.precision) == ("native", "fp16"):
                why = "not exported: TensorRT has no kernel for FP32 Attention"
                yield Row("transformer_step", "native", "fp32", note=why)


def gate_preset(
    preset: str,
    options: BuildOptions,
    graphs: tuple[str, ...] = ENGINES,
    progress: Callable[[str], None] = lambda what: None,
) -> Iterator[Row]:
    """Build every graph of a preset with random FP16 weights, one on the disk at a time; torch makes them.

    At full size FP32 would double the memory and prove nothing more: it builds at demo size.
    """
    if preset not in PRESETS:
        raise InputError(f"preset is {preset!r}, expected one of {', '.join(PRESETS)}; change --preset")
    config = PRESETS[preset]
    sizes = Sizes.of(config, **options.sizes)
    with scratch("gate") as folder:
        here, _ = probe(options.builder, folder)
        for emitter, opset, cache in (("portable", 18, None), ("native", 24, _cache_tokens(config, sizes))):
            specs, ranges = contract(config, "fp16", cache is not None, cache), axis_ranges(config, sizes, 0, cache)
            for name in graphs if cache is None else [TRANSFORMER_STEP]:  # only it differs between emitters
                progress(f"exporting {emitter} fp16 {name}")
                words = [preset, name, emitter, str(cache or 0), str(folder)]
                made = subprocess.run(
                    [sys.executable, "-m", "videomar.export.unchecked_graphs", *words], capture_output=True, text=True
                )
                if made.returncode:
                    last = (made.stderr.strip().splitlines() or [f"code {made.returncode}"])[-1]
                    yield Row(name, emitter, "fp16", error=f"it could not be exported: {last}")
                    continue
                files = {f.name: FileEntry(f.stat().st_size, "") for f in folder.glob(f"{name}.onnx*")}
                manifest = Manifest("onnx", "fp16", emitter, opset, config, files=files)
                made_for = profiles(specs, ranges, sizes.passes)
                progress(f"building {emitter} fp16 {name}")
                yield _row(Source(folder, manifest, specs, made_for, sizes), name, options, here, folder)
                for file in files:
                    (folder / file).unlink()


def _cache_tokens(config: ModelConfig, sizes: Sizes) -> int:
    """Length of a cache for the largest clip; export wants at least 64."""
    t = config.tokenizer
    frames = 1 + (sizes.frames - 1) // t.temporal_stride
    return max(64, frames * (sizes.height // t.spatial_stride) * (sizes.width // t.spatial_stride))


def _row(source: Source, name: str, options: BuildOptions, here: object, folder: Path) -> Row:
    job = jobs(source, folder, options, here)[name] | {"load": False}  # type: ignore[arg-type]
    found, free = lint_file(source.directory / f"{name}.onnx"), free_memory()
    outcome = run_job(job, folder)
    what = (name, source.manifest.emitter, source.manifest.precision)
    peak = outcome.get("peak_bytes", 0)
    Path(job["engine"]).unlink(missing_ok=True)
    if "error" in outcome:
        why = failure(name, outcome, weights_bytes(source, name), job["workspace"], free, Path("-"))
        return Row(*what, peak_bytes=peak, error="; ".join([str(why), *map(str, found)]))
    errors = "; ".join(map(str, found))  # it builds and is wrong: what the linter is for
    return Row(*what, outcome["bytes"], outcome["seconds"], peak, error=errors)


def _artifacts(
    directories: list[Path], options: BuildOptions, folder: Path, progress: Callable[[str], None]
) -> Iterator[Path]:
    for directory in directories:
        if (directory / MANIFEST).is_file():
            yield directory
        elif (directory / "config.json").is_file():
            yield from _exported(directory, options, folder, progress)
        else:
            raise ArtifactError(
                f"{directory} is neither an artifact directory ({MANIFEST}) nor a checkpoint (config.json)"
            )


def _exported(checkpoint: Path, options: BuildOptions, folder: Path, progress: Callable[[str], None]) -> Iterator[Path]:
    from videomar.export.unchecked_graphs import write_graphs

    config = read_config(checkpoint)
    cache = _cache_tokens(config, Sizes.of(config, **options.sizes))
    made: dict[str, Path] = {}  # by precision: emitters differ in the transformer alone
    for emitter, precision in (("portable", "fp16"), ("portable", "fp32"), ("native", "fp16")):
        progress(f"exporting {checkpoint.name}, {emitter} {precision}")
        out = folder / f"{emitter}-{precision}"
        tokens = cache if emitter == "native" else None
        write_graphs(checkpoint, out, precision, emitter, tokens, made.get(precision))
        made.setdefault(precision, out)
        yield out
