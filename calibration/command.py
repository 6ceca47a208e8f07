"""What `videomar calibrate` is asked for and what it prints; the work is calibrate.py's."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from videomar.artifacts import read_manifest
from videomar.calibration.calibrate import Outcome, calibrate
from videomar.calibration.clips import CalibrationClip, demo_clips, read_list
from videomar.calibration.options import Options
from videomar.calibration.overflow import FP16_MOST
from videomar.calibration.pays import advice, elsewhere
from videomar.calibration.writing import REPORT, strict
from videomar.demo.look import of_the_demo
from videomar.errors import InputError
from videomar.fields import Fields
from videomar.options import sampling_of, sampling_options
from videomar.progress import Progress
from videomar.runtime.system import System


def run(args: argparse.Namespace) -> int:
    """Quantize an artifact directory; 0 also where INT8 is not faster, which it says."""
    if args.alpha not in ("auto", "off"):
        _check_alpha(args.alpha)
    clips = _clips(args)
    options = Options(
        method=args.method,
        alpha=args.alpha,
        target=args.target,
        keep=tuple(args.keep),
        sensitivity=not args.no_sensitivity,
        sampling=sampling_options(args),
        only_if_faster=args.only_if_faster,
        threads=args.threads,
        backend=args.backend,
    )
    with Progress() as progress:
        outcome = calibrate(args.directory, args.output, clips, args.ranges, options, args.force, progress.at)
    if args.json:
        report = outcome.report if outcome else json.loads((args.output / REPORT).read_text())
        data = {"output": os.fsdecode(args.output), "wrote": bool(outcome and outcome.written)} | strict(report)
        print(json.dumps(data, indent=2, allow_nan=False))
    elif outcome is None:
        print(f"{args.output} is up to date (the same graphs, clips, options and versions)")
        if line := elsewhere(_timing(args.output), System()):
            print(line)
    else:
        print("\n".join(_as_text(args.output, outcome)))
    return 0


def _timing(directory: Path) -> Any:
    """What the directory says of the times that were taken when it was made."""
    return Fields(read_manifest(directory).extra, "extra").fields("calibration").plain("timing")


def _check_alpha(text: str) -> None:
    try:
        good = 0 < float(text) < 1
    except ValueError:
        good = False
    if not good:
        raise InputError(f"--alpha is {text!r}, expected auto, off or a number between 0 and 1")


def _clips(args: argparse.Namespace) -> list[CalibrationClip]:
    clips = [clip for i, file in enumerate(args.clips) for clip in read_list(file, args.given, 10**6 * i)]
    if args.demo:
        config = read_manifest(args.directory).config
        if not of_the_demo(config):
            raise InputError(
                f"--demo is for models of the demo world, {args.directory} holds {config.name}; give --clips"
            )
        sampling = sampling_of(config.sampling, args)
        clips += demo_clips(args.demo, args.given, sampling.height, sampling.width)
    return clips


def _as_text(output: Path, outcome: Outcome) -> list[str]:
    r = outcome.report
    errors, timing, size = r["errors"], r["timing"], r["bytes"]
    quantized = sum(row["quantized"] for row in r["linears"].values())
    cpu = f", {timing['arithmetic']['name']}" if timing.get("arithmetic") else ""
    lines = [
        f"wrote {output}" if outcome.written else f"wrote nothing: {output} would not be faster",
        f"  ranges      {r['plan']}, the best of {len(r['plans'])} ways; "
        f"{quantized} of {len(r['linears'])} linears in INT8"
        + (f", kept: {', '.join(r['kept'])}" if r["kept"] else ", none kept in floating point"),
        f"  held out    z cosine {errors['z_cosine']:.5f} at worst, z relative {errors['z_relative']:.4f}, "
        f"sampled tokens relative {errors['sampled_relative']:.4f} ({r['trials']} steps, teacher-forced)",
        f"  bytes       transformer_step {size['int8'] / 2**20:.2f} MiB, {size['share_of_fp32']:.1%} of FP32's",
        f"  time        {timing['int8_ms']:.2f} ms a transformer step, {r['source']['precision']} "
        f"{timing['source_ms']:.2f} ms: {timing['speed']:.2f}x ({timing['backend']}{cpu}, side by side)",
        "  nearest to FP16's end (65504):",
        *(f"    {row['share']:7.2%}  {row['graph']}: {row['tensor']}" for row in r["fp16"][:10]),
    ]
    words = {"overflow": "OVERFLOWS in FP16", "island": "needs FP32"}
    lines += [
        f"  {words[row['verdict']]}: {row['graph']}: {row['tensor']} reaches {row['largest']:g} of {FP16_MOST:g}"
        for row in r["fp16"]
        if row["verdict"] in words
    ]
    if any(row["verdict"] in words for row in r["fp16"]):
        lines.append(f"  export --precision fp16 --islands {output / 'calibration.json'} computes these in FP32")
    return lines + [line for line in [advice(timing, r["source"]["precision"])] if line]
