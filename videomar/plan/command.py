"""`videomar plan`: from options to a report. The caller measures this machine; knows nothing of the runtime."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from videomar.artifacts import MANIFEST, atomic_write, read_manifest
from videomar.checkpoint import CONFIG, read_config
from videomar.config import PRESETS, ModelConfig
from videomar.errors import InputError
from videomar.options import sampling_of
from videomar.plan import training_report
from videomar.plan.devices import LOCAL, Device, device
from videomar.plan.report import as_data, as_svg, as_text, make_report
from videomar.plan.request import Request
from videomar.plan.training import Sizes, training_memory


def read_model(source: str) -> tuple[ModelConfig, dict[str, Any]]:
    """The config of a checkpoint, artifact directory or preset, and the fields of a Request that it decides.

    Raises InputError for what is none of them, ArtifactError for one that cannot be read.
    """
    directory = Path(source)
    if (directory / MANIFEST).is_file():
        manifest = read_manifest(directory)
        known = {"precision": manifest.precision, "emitter": manifest.emitter}
        return manifest.config, known | {"cache_tokens": manifest.cache_tokens}
    if (directory / CONFIG).is_file():
        return read_config(directory), {}
    if source in PRESETS:
        return PRESETS[source], {}
    raise InputError(
        f"{source} is neither a checkpoint (config.json), nor an artifact directory ({MANIFEST}), nor a preset; "
        f"give one of those, such as {', '.join(PRESETS)}"
    )


def read_request(args: argparse.Namespace) -> Request:
    """What the options ask for; what they leave open is the model's default, and FP16 portable graphs."""
    config, known = read_model(args.source)
    fields = known | {k: getattr(args, k) for k in ("precision", "emitter", "cache_tokens") if getattr(args, k)}
    return Request(
        config,
        sampling_of(config.sampling, args),
        given=args.given,
        text_embeddings=args.text_embeddings is not None,
        **fields,
    )


def run(args: argparse.Namespace, this_machine: Callable[[], Device]) -> int:
    """Print the plan; 0 when it fits on every device asked for, 1 when not. this_machine: measures when called."""
    devices = [this_machine() if name == LOCAL else device(name) for name in args.device]
    if args.training:
        return _training(args, devices)
    if not devices:
        raise InputError("no device to plan for, expected one or more; give --device, such as --device orin-nx-16")
    request = read_request(args)
    reports = [make_report(request, d) for d in devices]
    if args.json:
        data = [as_data(r) for r in reports]
        print(json.dumps(data[0] if len(data) == 1 else data, indent=2))
    else:
        print("\n\n".join(as_text(r) for r in reports))
    if args.svg:
        atomic_write(args.svg, as_svg(reports))
    return 0 if all(r.fits for r in reports) else 1


def _training(args: argparse.Namespace, devices: Sequence[Device]) -> int:
    config, _ = read_model(args.source)
    clip = sampling_of(config.sampling, args)
    sizes = Sizes(
        config,
        clip.frames,
        clip.height,
        clip.width,
        args.batch,
        accumulate=args.accumulate,
        recompute=args.recompute,
        lora=args.lora,
        activation_bytes=4 if args.precision == "fp32" else 2,
    )
    moments = training_memory(sizes)
    if args.json:
        print(json.dumps(training_report.as_data(sizes, moments, devices), indent=2))
    else:
        print(training_report.as_text(sizes, moments, devices))
    return 0 if all(training_report.fits(moments, d) for d in devices) else 1
