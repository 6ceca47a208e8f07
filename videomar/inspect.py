"""What is in a checkpoint or artifact directory, read without loading a weight."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from videomar.arrays import read_arrays
from videomar.artifacts import MANIFEST, Manifest, read_manifest
from videomar.checkpoint import read_config
from videomar.config import ModelConfig
from videomar.errors import ArtifactError
from videomar.fields import FieldError, Fields, parse
from videomar.graphs import contract
from videomar.onnx_interface import verify_graphs

MOST_BYTES = 4 << 30  # of a file of ranges, unpacked


def describe(directory: Path) -> dict[str, Any]:
    """directory, kind, model, facts, files (name -> bytes), tensors (group -> lines); JSON-ready.

    Raises ArtifactError when it is neither a checkpoint nor an artifact directory, or a file of it is altered.
    """
    if (directory / MANIFEST).is_file():
        return _artifacts(directory)
    if (directory / "config.json").is_file():
        return _checkpoint(directory)
    if directory.suffix == ".npz" and directory.is_file():
        return _ranges(directory)
    raise ArtifactError(
        f"{directory} is neither a checkpoint (config.json) nor an artifact directory ({MANIFEST}); give one of those"
    )


def _artifacts(directory: Path) -> dict[str, Any]:
    manifest = read_manifest(directory)
    verify_graphs(directory, manifest)
    specs = contract(manifest.config, manifest.activations, manifest.emitter == "native")
    tensors = {
        spec.name: [
            *(f"in   {t.name:20} {t.dtype:8} {_axes(t.axes)}" for t in spec.inputs),
            *(f"out  {t.name:20} {t.dtype:8} {_axes(t.axes)}" for t in spec.outputs),
        ]
        for spec in specs.values()
    }
    return {
        "directory": str(directory),
        "kind": f"{manifest.kind} artifacts",
        "model": manifest.config.name,
        "facts": {
            "precision": manifest.precision,
            **_calibration(directory, manifest),
            "emitter": f"{manifest.emitter}, opset {manifest.opset}",
            **_model(manifest.config),
            "made by": ", ".join(f"{k} {v}" for k, v in manifest.made_by.items()),
            "checked": "every file's hash is right",
        },
        "files": {name: entry.size for name, entry in manifest.files.items()},
        "tensors": tensors,
        "checks": manifest.checks,
        "config": json.loads(manifest.config.to_json()),
    }


def _calibration(directory: Path, manifest: Manifest) -> dict[str, str]:
    """What `videomar calibrate` measured of INT8 graphs."""
    try:
        return _figures(manifest)
    except FieldError as error:
        raise ArtifactError(f"{directory / MANIFEST}: {error}; run `videomar calibrate` again") from None


def _figures(manifest: Manifest) -> dict[str, str]:
    if manifest.precision != "int8" or "calibration" not in manifest.extra:
        return {}
    figures = Fields(manifest.extra, "extra").fields("calibration")
    errors, timing, size = figures.fields("errors"), figures.fields("timing"), figures.fields("bytes")
    return {
        "between": f"{manifest.activations} between graphs",
        "ranges": f"{figures.text('plan')}; kept in floating point: {', '.join(figures.texts('kept')) or 'nothing'}",
        "held out": f"z cosine {errors.number('z_cosine'):.5f} at worst, sampled tokens "
        f"{errors.number('sampled_relative'):.4f} off",
        "pays": f"{timing.number('speed'):.2f}x a transformer step on {timing.text('backend')}, "
        f"{size.whole('int8')} bytes, {size.number('share_of_fp32'):.1%} of FP32's",
    }


def _ranges(file: Path) -> dict[str, Any]:
    """A ranges.npz of `videomar calibrate`: what is readable of it is its header."""
    try:
        header = Fields(parse(read_arrays(file, MOST_BYTES)["header"].tobytes()))
        inputs, graphs, names = header.fields("inputs"), header.fields("largest"), header.fields("clips")
        seen = {name: inputs.fields(name) for name in inputs}
        rows = [
            f"{name:40} {row.number('least', finite=False):12.5g} {row.number('most', finite=False):12.5g}  "
            f"{row.whole('count')} numbers"
            for name, row in seen.items()
        ]
        largest = [
            (tensors.number(name, finite=False), f"{graph}: {name}")
            for graph, tensors in ((graph, graphs.fields(graph)) for graph in graphs)
            for name in tensors
        ]
        clips, model = [names.text(key) for key in names], header.text("model")
    except (OSError, ValueError, LookupError, FieldError) as error:
        raise ArtifactError(f"{file} is not a file of ranges ({error!s:.80}); give a ranges.npz") from None
    return {
        "directory": str(file),
        "kind": "ranges",
        "model": f"checkpoint {model:.12}",
        "facts": {"clips": str(len(clips))},
        "files": {file.name: file.stat().st_size},
        "tensors": {
            "input of each linear: least, most": rows,
            "largest values, FP16 ends at 65504": [f"{v:12.5g}  {name}" for v, name in sorted(largest, reverse=True)],
        },
        "clips": clips,
    }


def _checkpoint(directory: Path) -> dict[str, Any]:
    config = read_config(directory)
    files = sorted(f for f in directory.iterdir() if f.is_file())
    headers = {f.name: _safetensors_header(f) for f in files if f.suffix == ".safetensors"}
    count = sum(_size(t["shape"]) for header in headers.values() for t in header.values())
    return {
        "directory": str(directory),
        "kind": "checkpoint",
        "model": config.name,
        "facts": {**_model(config), "weights": f"{count / 1e6:.2f} million"},
        "files": {f.name: f.stat().st_size for f in files},
        "tensors": {
            name: [f"{key:60} {t['dtype']:5} {t['shape']}" for key, t in header.items()]
            for name, header in headers.items()
        },
        "config": json.loads(config.to_json()),
    }


def _model(config: ModelConfig) -> dict[str, str]:
    t, v, s = config.transformer, config.tokenizer, config.sampling
    return {
        "transform.": f"width {t.width}, depth {t.depth}, {t.heads} heads of {t.head_dim}",
        "head": f"width {config.head.width}, depth {config.head.depth}",
        "tokenizer": f"strides {v.temporal_stride}x{v.spatial_stride}x{v.spatial_stride}, "
        f"{v.latent_channels} channels, latent scale {v.latent_scale}",
        "text": f"width {config.text.width}, depth {config.text.depth}, at most {config.text.max_tokens} tokens",
        "clips": f"{s.frames} frames of {s.width}x{s.height}, {s.fps:g} a second, from a picture that is "
        f"{'cropped' if s.fit == 'crop' else 'stretched'} to it{', or from none' * config.from_text}",
    }


def _axes(axes: tuple[int | str, ...]) -> str:
    return "[" + ", ".join(map(str, axes)) + "]"


def _size(shape: list[int]) -> int:
    size = 1
    for n in shape:
        size *= n
    return size


def _safetensors_header(file: Path) -> dict[str, dict[str, Any]]:
    """The tensor table at the start of a safetensors file: 8 bytes of length, then JSON."""
    try:
        with file.open("rb") as f:
            (length,) = struct.unpack("<Q", f.read(8))
            if length > 100 << 20:
                raise ValueError("header too long")
            header = Fields(parse(f.read(length)))
        tensors: dict[str, dict[str, Any]] = {}
        end = 0
        for name in header:
            if name != "__metadata__":
                row = header.fields(name)
                shape, offsets = row.wholes("shape"), row.wholes("data_offsets")
                end = max(end, *offsets)
                tensors[name] = {"dtype": row.text("dtype"), "shape": shape}
    except (OSError, ValueError, FieldError, struct.error) as error:
        raise ArtifactError(f"{file} is not a safetensors file ({error}); copy it again") from None
    if (size := file.stat().st_size) != 8 + length + end:
        raise ArtifactError(f"{file} has {size} bytes, expected {8 + length + end}; copy it again")
    return tensors
