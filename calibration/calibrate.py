"""Artifact directory + clips -> INT8 artifact directory: the stages in their order. Needs no PyTorch.

ranges (collect.py) -> held-out steps (trials.py) -> plan (plan.py) -> keep list (sensitivity.py) -> Q/DQ (qdq.py) ->
figures of what was written, and whether it pays (pays.py). Knows nothing of options as text or of printing.
"""

from __future__ import annotations

import glob
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import Any

from videomar.artifacts import Manifest, hash_files, read_manifest, up_to_date
from videomar.calibration.clips import CalibrationClip
from videomar.calibration.collect import Progress, check_ranges, collect, linears_of, model_id, trajectory_key
from videomar.calibration.linears import Linear
from videomar.calibration.options import DEFAULTS, RANGES, Options
from videomar.calibration.plain import Graphs
from videomar.calibration.plan import best_plan, plans
from videomar.calibration.probe import Probe
from videomar.calibration.ranges import Ranges
from videomar.calibration.sensitivity import Tester, keep_list, one_at_a_time
from videomar.calibration.trials import Trial, record
from videomar.calibration.writing import Found, Source, first_report, write
from videomar.errors import ArtifactError, InputError, UserError
from videomar.graphs import TRANSFORMER_STEP
from videomar.onnx_interface import verify_graphs
from videomar.unfinished import scratch

LEAST_CLIPS = 4  # three to look at, one to hold out


@dataclass(frozen=True)
class Outcome:
    """What was made, for whoever prints it."""

    report: dict[str, Any]
    written: bool


def calibrate(
    directory: Path,
    output: Path,
    clips: Sequence[CalibrationClip],
    ranges_files: Sequence[Path] = (),
    options: Options = DEFAULTS,
    force: bool = False,
    progress: Progress = lambda stage, done, of: None,
) -> Outcome | None:
    """Write `output`; None when it already is what these inputs make.

    Without ranges_files a quarter of the clips, at least one, is held out and the rest is looked at; with them, the
    ranges are read and all clips are held out. Raises UserError for what cannot be used.
    """
    manifest = _source(directory)
    if directory.resolve().is_relative_to(output.resolve()):
        raise InputError(f"{output} holds the graphs to be quantized, which are never replaced; give another with -o")
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
    try:
        if seen:
            state.parent.mkdir(parents=True, exist_ok=True)
            sampling, threads = options.sampling, options.threads
            ranges = collect(directory, manifest, seen, sampling, state, threads, options.memory, progress)
        outcome = _quantize(directory, manifest, output, linears, ranges, held_out, inputs, force, options, progress)
    except (KeyboardInterrupt, UserError, OSError) as stop:
        if not state.exists():
            raise
        kept = f"what the clips showed so far is kept in {state}; the same command goes on from there"
        if isinstance(stop, KeyboardInterrupt):
            stop.args = (kept,)
            raise
        raise (type(stop) if isinstance(stop, UserError) else ArtifactError)(f"{stop}; {kept}") from stop
    for leftover in state.parent.glob(f".{glob.escape(output.resolve().name)}.*.{RANGES}"):
        leftover.unlink(missing_ok=True)
    return outcome


def _quantize(
    directory: Path,
    manifest: Manifest,
    output: Path,
    linears: Sequence[Linear],
    ranges: Ranges,
    held_out: Sequence[CalibrationClip],
    inputs: dict[str, str],
    force: bool,
    options: Options,
    progress: Progress,
) -> Outcome:
    """Everything after the ranges."""
    check_ranges(ranges, linears)

    with scratch("trials") as folder:
        trials = record(directory, manifest, held_out, options.sampling, options.threads, folder, progress)
        head = Graphs(directory, options.threads)
        found = _find(directory, linears, ranges, trials, head, options, progress)
        source = Source(directory, manifest, linears, ranges, held_out[0].prompt)
        report = first_report(source, found, options.target)
        written = write(source, found, report, trials, head, inputs, output, force, options)
    return Outcome(report, written)


def _find(
    directory: Path,
    linears: Sequence[Linear],
    ranges: Ranges,
    trials: Sequence[Trial],
    head: Graphs,
    options: Options,
    progress: Progress,
) -> Found:
    """The plan, every linear's and family's error alone, and the keep list."""
    probe = Probe(directory / f"{TRANSFORMER_STEP}.onnx", linears, options.threads)
    plan, tried = best_plan(list(plans(ranges, linears, probe.weights, options.method, options.alpha)), probe, trials)
    test = Tester(probe, trials, plan.thresholds, plan.divisors, head)
    ticks, total = count(1), len(linears) + len({linear.family for linear in linears})
    if options.sensitivity:
        alone = one_at_a_time(linears, test, lambda what: progress("sensitivity", next(ticks), total))
    else:
        alone = {"linears": {linear.name: test([linear.name]) for linear in linears}, "families": {}}
    forced = [linear.name for linear in linears if linear.name in options.keep or linear.family in options.keep]
    kept = keep_list(alone["linears"], forced, options.target, test, lambda what: progress("keep list", 1, 1))
    return Found(plan, tried, alone, kept)


def _source(directory: Path) -> Manifest:
    manifest = read_manifest(directory)
    if manifest.kind != "onnx" or manifest.precision == "int8":
        raise ArtifactError(
            f"{directory} holds {manifest.precision} {manifest.kind} artifacts, expected ONNX graphs in floating "
            "point; give the directory of `videomar export`"
        )
    verify_graphs(directory, manifest)
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


def _inputs(
    manifest: Manifest,
    seen: Sequence[CalibrationClip],
    held_out: Sequence[CalibrationClip],
    ranges_files: Sequence[Path],
    options: Options,
) -> dict[str, str]:
    files = {name: entry.sha256 for name, entry in manifest.files.items()}
    decides = ("method", "alpha", "target", "keep", "sensitivity", "sampling")
    data = {
        "source": hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest(),
        "clips": [trajectory_key(clip, options.sampling) for clip in seen],
        "held_out": [trajectory_key(clip, options.sampling) for clip in held_out],
        "ranges": [next(iter(hash_files([file]).values())) for file in ranges_files],
        "options": {name: getattr(options, name) for name in decides},
    }
    packages = {name: version(name) for name in ("videomar", "onnxruntime", "onnx")}
    return {**{key: json.dumps(value, sort_keys=True) for key, value in data.items()}, **packages}
