"""The INT8 artifact directory: its graph, measured and timed as it lies there, and all figures beside it."""

from __future__ import annotations

import datetime
import json
import math
import platform
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from videomar.artifacts import FileEntry, Manifest, atomic_write, write_directory, write_manifest
from videomar.calibration import qdq
from videomar.calibration.linears import Linear
from videomar.calibration.options import LEAST_COSINE, RANGES, REPORT, Options
from videomar.calibration.overflow import closest
from videomar.calibration.pays import Timing, multiplied_by, time_steps
from videomar.calibration.plain import Graphs
from videomar.calibration.plan import Plan
from videomar.calibration.ranges import Ranges, bin_edges, percentile
from videomar.calibration.trials import Errors, Trial, measure
from videomar.errors import ParityError
from videomar.graphs import TRANSFORMER_STEP
from videomar.runtime.backends.choose import choose as choose_backend
from videomar.runtime.prompt import PromptTokenizer
from videomar.runtime.system import System

FILE = f"{TRANSFORMER_STEP}.onnx"


@dataclass(frozen=True)
class Source:
    """What is quantized, and what was seen of it."""

    directory: Path
    manifest: Manifest
    linears: Sequence[Linear]
    ranges: Ranges
    prompt: str  # for the timing


@dataclass(frozen=True)
class Found:
    """What measuring decided."""

    plan: Plan
    tried: Mapping[str, Errors]  # by plan
    alone: Mapping[str, Mapping[str, Errors]]  # "linears", "families" -> name
    kept: Sequence[str]  # linears left in floating point


class _NotFaster(Exception):
    pass


def write(
    source: Source,
    found: Found,
    report: dict[str, Any],
    trials: Sequence[Trial],
    head: Graphs,
    inputs: dict[str, str],
    output: Path,
    force: bool,
    options: Options,
) -> bool:
    """Write the directory and add its figures to `report`; whether it was kept.

    Raises ParityError when the written graph is not the model any more.
    """
    try:
        with write_directory(output, force) as folder:
            made = _fill(source, found, folder, inputs)
            int8 = Graphs(folder, options.threads)
            errors = measure(trials, lambda feeds: int8(TRANSFORMER_STEP, feeds)["z"], head)
            if errors.cosine < LEAST_COSINE:
                raise ParityError(
                    f"the INT8 graph's z has a cosine of {errors.cosine:.5f} on held-out steps, expected at least "
                    f"{LEAST_COSINE}; ask for a higher --target, or --keep the worst linears"
                )
            timing, where = _timing(source, folder, made, options)
            report |= {
                "errors": errors.as_data(),
                "trials": len(trials),
                "bytes": _bytes(source.manifest, made),
                "timing": {
                    "backend": where,
                    "threads": options.threads,
                    "source_ms": timing.source,
                    "int8_ms": timing.quantized,
                    "speed": timing.speed,
                    "recommended": "int8" if timing.speed > 1 else source.manifest.precision,
                    "arithmetic": multiplied_by(where, System()),
                },
            }
            if options.only_if_faster and timing.speed <= 1:
                raise _NotFaster
            atomic_write(folder / REPORT, json.dumps(strict(report), indent=1, allow_nan=False) + "\n")
            short = ("model", "source", "plan", "kept", "errors", "bytes", "timing")
            made.extra["calibration"] = {key: report[key] for key in short}
            made.checks[TRANSFORMER_STEP] = {"z": errors.relative}
            write_manifest(folder, made)
    except _NotFaster:
        return False
    return True


def first_report(source: Source, found: Found, target: float) -> dict[str, Any]:
    """All figures but those of the written graph; JSON-ready."""
    rows = {}
    for linear in source.linears:
        seen, choice = source.ranges.inputs[linear.name], found.plan.choices[linear.name]
        rows[linear.name] = {
            "family": linear.family,
            "quantized": linear.name not in found.kept,
            "min": seen.least,
            "max": seen.most,
            "percentile_99.99": percentile(seen.histogram.sum(axis=0), bin_edges(), 0.9999),
            "method": choice.method,
            "alpha": choice.alpha,
            "smoothed": linear.norm in found.plan.divisors,
            "threshold": choice.threshold,
            "output_relative": choice.error,
            "alone": found.alone["linears"][linear.name].as_data(),
        }
    return {
        "format": 1,
        "model": source.ranges.model,
        "source": {"precision": source.manifest.precision, "emitter": source.manifest.emitter},
        "clips": list(source.ranges.clips.values()),
        "plan": found.plan.name,
        "plans": {name: errors.as_data() for name, errors in found.tried.items()},
        "target": target,
        "kept": list(found.kept),
        "linears": rows,
        "families": {name: errors.as_data() for name, errors in found.alone["families"].items()},
        "fp16": [
            {"graph": r.graph, "tensor": r.tensor, "largest": r.largest, "share": r.share, "verdict": r.verdict}
            for r in closest(source.ranges.largest)
        ],
    }


def _fill(source: Source, found: Found, folder: Path, inputs: dict[str, str]) -> Manifest:
    """Write all but the report and the manifest, which is returned with its files listed."""
    manifest, directory = source.manifest, source.directory
    for name in manifest.files:
        if not name.startswith(FILE) and (directory / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(directory / name, folder / name)
    thresholds = {name: value for name, value in found.plan.thresholds.items() if name not in found.kept}
    opset = qdq.quantize(directory / FILE, folder / FILE, source.linears, thresholds, found.plan.divisors)
    source.ranges.save(folder / RANGES)
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


def _bytes(manifest: Manifest, made: Manifest) -> dict[str, float]:
    """Of transformer_step: the source's, INT8's, and INT8's share of what FP32 takes."""
    source, int8 = (sum(e.size for n, e in m.files.items() if n.startswith(FILE)) for m in (manifest, made))
    fp32 = source if manifest.precision == "fp32" else 2 * source
    return {"source": source, "int8": int8, "share_of_fp32": int8 / fp32}


def _timing(source: Source, folder: Path, made: Manifest, options: Options) -> tuple[Timing, str]:
    tokenizer = PromptTokenizer(source.directory / "tokenizer.json", source.manifest.config.text)
    floating, _ = choose_backend(source.directory, source.manifest, options.backend, options.threads)
    try:
        int8, _ = choose_backend(folder, made, floating.name, options.threads)
        try:
            return time_steps(floating, int8, source.manifest.config, tokenizer, source.prompt), floating.name
        finally:
            int8.close()
    finally:
        floating.close()


def strict(data: Any) -> Any:
    """Without NaN and infinity, which JSON does not have: null instead."""
    if isinstance(data, dict):
        return {key: strict(value) for key, value in data.items()}
    if isinstance(data, list):
        return [strict(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data
