"""Artifact directory + clips -> INT8 artifact directory: the stages in their order. Needs no PyTorch.

ranges (collect.py) -> held-out steps (trials.py) -> plan (plan.py) -> keep list (sensitivity.py) -> Q/DQ (qdq.py) ->
figures of what was written, and whether it pays (pays.py). Knows nothing of options as text or of printing.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import math
import platform
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from videomar.artifacts import (
    FileEntry,
    Manifest,
    atomic_write,
    hash_files,
    read_manifest,
    up_to_date,
    verify,
    write_directory,
    write_manifest,
)
from videomar.calibration import qdq
from videomar.calibration.clips import CalibrationClip
from videomar.calibration.collect import check_ranges, collect, linears_of, model_id, trajectory_key
from videomar.calibration.linears import Linear
from videomar.calibration.overflow import closest
from videomar.calibration.pays import Timing, time_steps
from videomar.calibration.plain import Graphs
from videomar.calibration.plan import Plan, best_plan, plans
from videomar.calibration.probe import Probe
from videomar.calibration.ranges import Ranges, bin_edges, percentile
from videomar.calibration.sensitivity import Tester, keep_list, one_at_a_time
from videomar.calibration.trials import Errors, measure, record
from videomar.errors import ArtifactError, InputError, ParityError
from videomar.graphs import TRANSFORMER_STEP
from videomar.runtime.backends.choose import choose as choose_backend
from videomar.runtime.prompt import PromptTokenizer

RANGES, REPORT = "ranges.npz", "calibration.json"
LEAST_COSINE = 0.997  # of z, worse is no INT8 artifact (docs/calibrate.md)
LEAST_CLIPS = 4  # three to look at, one to hold out

Progress = Callable[[str, int, int], None]  # (stage, done, of)


@dataclass(frozen=True)
class Options:
    """What may be asked for; all of it decides the result but `threads`, `backend` and `memory`."""

    method: str = "auto"
    alpha: str = "auto"
    target: float = 0.999
    keep: tuple[str, ...] = ()
    sensitivity: bool = True
    knobs: dict[str, Any] = field(default_factory=dict)  # of `Pipeline`: frames, mask_steps...
    only_if_faster: bool = False
    threads: int | None = None
    backend: str = "auto"
    memory: int = 2 << 30


@dataclass(frozen=True)
class Outcome:
    """What was made, for whoever prints it."""

    report: dict[str, Any]
    written: bool


class _NotFaster(Exception):
    pass


def calibrate(
    directory: Path,
    output: Path,
    clips: Sequence[CalibrationClip],
    ranges_files: Sequence[Path] = (),
    options: Options = Options(),
    force: bool = False,
    progress: Progress = lambda stage, done, of: None,
) -> Outcome | None:
    """Write `output`; None when it already is what these inputs make.

    Without ranges_files a quarter of the clips, at least one, is held out and the rest is looked at; with them, the
    ranges are read and all clips are held out. Raises UserError for what cannot be used.
    """
    manifest = _source(directory)
    seen, held_out = _split(clips, bool(ranges_files))
    linears = linears_of(directory)
    _check_keep(options.keep, linears)
    inputs = _inputs(manifest, seen, held_out, ranges_files, options)
    if up_to_date(output, inputs) and not force:
        return None

    digest = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:12]
    state = output.resolve().with_name(f".{output.resolve().name}.{digest}.{RANGES}")
    ranges = Ranges(model_id(manifest))
    for file in ranges_files:
        ranges.merge(Ranges.load(file))
    if seen:
        state.parent.mkdir(parents=True, exist_ok=True)
        ranges = collect(directory, manifest, seen, options.knobs, state, options.threads, options.memory, progress)
    check_ranges(ranges, linears)

    steps = iter(range(10**9))
    trials = record(
        directory,
        manifest,
        held_out,
        options.knobs,
        options.threads,
        lambda: progress("held-out clips", next(steps) + 1, 0),
    )
    head = Graphs(directory, options.threads)
    probe = Probe(directory / f"{TRANSFORMER_STEP}.onnx", linears, options.threads)
    plan, tried = best_plan(list(plans(ranges, linears, probe.weights, options.method, options.alpha)), probe, trials)
    test = Tester(probe, trials, plan.thresholds, plan.divisors, head)
    done = iter(range(10**9))
    total = len(linears) + len({linear.family for linear in linears})
    alone = (
        one_at_a_time(linears, test, lambda what: progress("sensitivity", next(done) + 1, total))
        if options.sensitivity
        else {"linears": {linear.name: test([linear.name]) for linear in linears}, "families": {}}
    )
    kept = keep_list(alone["linears"], _kept(options.keep, linears), options.target, test, lambda what: None)
    del probe, test

    report = _report(manifest, ranges, linears, plan, tried, alone, kept, options)
    try:
        with write_directory(output, force) as folder:
            made = _write(directory, manifest, folder, linears, plan, kept, ranges, inputs)
            int8 = Graphs(folder, options.threads)
            errors = measure(trials, lambda feeds: int8(TRANSFORMER_STEP, feeds)["z"], head)
            if errors.cosine < LEAST_COSINE:
                raise ParityError(
                    f"the INT8 graph's z has a cosine of {errors.cosine:.5f} on held-out steps, expected at least "
                    f"{LEAST_COSINE}; ask for a higher --target, or --keep the worst linears"
                )
            timing, where = _timing(directory, manifest, folder, made, held_out[0].prompt, options)
            bytes_ = {n: _bytes(m, TRANSFORMER_STEP) for n, m in (("source", manifest), ("int8", made))}
            report |= {
                "errors": errors.as_data(),
                "trials": len(trials),
                "bytes": {**bytes_, "share_of_fp32": bytes_["int8"] / _bytes_fp32(manifest, bytes_["source"])},
                "timing": {
                    "backend": where,
                    "threads": options.threads,
                    "source_ms": timing.source,
                    "int8_ms": timing.quantized,
                    "speed": timing.speed,
                    "recommended": "int8" if timing.speed > 1 else manifest.precision,
                },
            }
            if options.only_if_faster and timing.speed <= 1:
                raise _NotFaster
            atomic_write(folder / REPORT, json.dumps(_strict(report), indent=1, allow_nan=False) + "\n")
            short = ("model", "source", "plan", "kept", "errors", "bytes", "timing")
            made.extra["calibration"] = {key: report[key] for key in short}
            made.checks[TRANSFORMER_STEP] = {"z": errors.relative}
            write_manifest(folder, made)
    except _NotFaster:
        return Outcome(report, written=False)
    for leftover in state.parent.glob(f".{output.resolve().name}.*.{RANGES}"):
        leftover.unlink(missing_ok=True)
    return Outcome(report, written=True)


def _source(directory: Path) -> Manifest:
    manifest = read_manifest(directory)
    if manifest.kind != "onnx" or manifest.precision == "int8":
        raise ArtifactError(
            f"{directory} holds {manifest.precision} {manifest.kind} artifacts, expected ONNX graphs in floating "
            "point; give the directory of `videomar export`"
        )
    verify(directory, manifest)
    return manifest


def _split(
    clips: Sequence[CalibrationClip], have_ranges: bool
) -> tuple[Sequence[CalibrationClip], Sequence[CalibrationClip]]:
    least = 1 if have_ranges else LEAST_CLIPS
    if len({clip.key for clip in clips}) < least:
        raise InputError(
            f"{len(clips)} calibration clips are given, expected at least {least} different ones"
            f"{'' if have_ranges else ' (a quarter is held out to measure on)'}; give more with --clips or --demo"
        )
    held = len(clips) if have_ranges else max(1, len(clips) // 4)
    return clips[: len(clips) - held], clips[len(clips) - held :]


def _check_keep(keep: Sequence[str], linears: Sequence[Linear]) -> None:
    known = {name for linear in linears for name in (linear.name, linear.family)}
    for name in keep:
        if name not in known:
            families = ", ".join(sorted({linear.family for linear in linears}))
            raise InputError(f"--keep is {name!r}, expected a linear such as {linears[0].name} or one of {families}")


def _kept(keep: Sequence[str], linears: Sequence[Linear]) -> list[str]:
    return [linear.name for linear in linears if linear.name in keep or linear.family in keep]


def _inputs(
    manifest: Manifest,
    seen: Sequence[CalibrationClip],
    held_out: Sequence[CalibrationClip],
    ranges_files: Sequence[Path],
    options: Options,
) -> dict[str, str]:
    files = {name: entry.sha256 for name, entry in manifest.files.items()}
    decides = ("method", "alpha", "target", "keep", "sensitivity", "knobs")
    data = {
        "source": hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest(),
        "clips": [trajectory_key(clip, options.knobs) for clip in seen],
        "held_out": [trajectory_key(clip, options.knobs) for clip in held_out],
        "ranges": [next(iter(hash_files([file]).values())) for file in ranges_files],
        "options": {name: getattr(options, name) for name in decides},
    }
    packages = {name: version(name) for name in ("videomar", "onnxruntime", "onnx")}
    return {**{key: json.dumps(value, sort_keys=True) for key, value in data.items()}, **packages}


def _write(
    directory: Path,
    manifest: Manifest,
    folder: Path,
    linears: Sequence[Linear],
    plan: Plan,
    kept: Sequence[str],
    ranges: Ranges,
    inputs: dict[str, str],
) -> Manifest:
    """Fill `folder` but for the report and the manifest, which is returned with its files listed."""
    for name in manifest.files:
        if not name.startswith(f"{TRANSFORMER_STEP}.onnx") and (directory / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(directory / name, folder / name)
    thresholds = {name: value for name, value in plan.thresholds.items() if name not in kept}
    file = f"{TRANSFORMER_STEP}.onnx"
    opset = qdq.quantize(directory / file, folder / file, linears, thresholds, plan.divisors)
    ranges.save(folder / RANGES)
    extra = {key: value for key, value in manifest.extra.items() if key != "lint"}
    return Manifest(
        kind="onnx",
        precision="int8",
        emitter=manifest.emitter,
        opset=max(opset, manifest.opset),
        config=manifest.config,
        inputs=inputs,
        made_by={
            **{name: version(name) for name in ("videomar", "onnx", "onnxruntime")},
            "host": platform.platform(terse=True),
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        },
        checks=dict(manifest.checks),
        extra={**extra, "activations": manifest.precision},
        files={f.name: FileEntry(f.stat().st_size, "") for f in folder.iterdir()},
    )


def _bytes(manifest: Manifest, graph: str) -> int:
    return sum(entry.size for name, entry in manifest.files.items() if name.startswith(f"{graph}.onnx"))


def _bytes_fp32(manifest: Manifest, size: int) -> int:
    return size if manifest.precision == "fp32" else 2 * size


def _timing(
    directory: Path, manifest: Manifest, folder: Path, made: Manifest, prompt: str, options: Options
) -> tuple[Timing, str]:
    tokenizer = PromptTokenizer(directory / "tokenizer.json", manifest.config.text)
    source, _ = choose_backend(directory, manifest, options.backend, options.threads)
    try:
        quantized, _ = choose_backend(folder, made, source.name, options.threads)
        try:
            return time_steps(source, quantized, manifest.config, tokenizer, prompt), source.name
        finally:
            quantized.close()
    finally:
        source.close()


def _report(
    manifest: Manifest,
    ranges: Ranges,
    linears: Sequence[Linear],
    plan: Plan,
    tried: dict[str, Errors],
    alone: dict[str, dict[str, Errors]],
    kept: Sequence[str],
    options: Options,
) -> dict[str, Any]:
    """All figures but those of the written graph; JSON-ready."""
    rows = {}
    for linear in linears:
        seen, choice = ranges.inputs[linear.name], plan.choices[linear.name]
        rows[linear.name] = {
            "family": linear.family,
            "quantized": linear.name not in kept,
            "min": seen.least,
            "max": seen.most,
            "percentile_99.99": percentile(seen.histogram.sum(axis=0), bin_edges(), 0.9999),
            "method": choice.method,
            "alpha": choice.alpha,
            "smoothed": linear.norm in plan.divisors,
            "threshold": choice.threshold,
            "output_relative": choice.error,
            "alone": alone["linears"][linear.name].as_data(),
        }
    return {
        "format": 1,
        "model": ranges.model,
        "source": {"precision": manifest.precision, "emitter": manifest.emitter},
        "clips": list(ranges.clips.values()),
        "plan": plan.name,
        "plans": {name: errors.as_data() for name, errors in tried.items()},
        "target": options.target,
        "kept": list(kept),
        "linears": rows,
        "families": {name: errors.as_data() for name, errors in alone["families"].items()},
        "fp16": [
            {"graph": r.graph, "tensor": r.tensor, "largest": r.largest, "share": r.share, "verdict": r.verdict}
            for r in closest(ranges.largest)
        ],
    }


def _strict(data: Any) -> Any:
    """Without NaN and infinity, which JSON does not have: null instead."""
    if isinstance(data, dict):
        return {key: _strict(value) for key, value in data.items()}
    if isinstance(data, list):
        return [_strict(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data
