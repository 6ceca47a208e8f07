"""Graphs for the gate: traced and written, never checked against PyTorch, which export does.

`python -m videomar.export.unchecked_graphs PRESET GRAPH EMITTER CACHE_TOKENS FOLDER` writes one graph of a preset with
random FP16 weights: one a process, so that memory comes back. Knows nothing of TensorRT.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import torch

from videomar.artifacts import Manifest, write_manifest
from videomar.config import PRESETS
from videomar.errors import InputError
from videomar.export.build import GraphBuilder
from videomar.export.emitters import emitter
from videomar.export.export import DTYPES
from videomar.export.onnx_files import save
from videomar.export.profiles import ENGINES
from videomar.graphs import TRANSFORMER_STEP, contract
from videomar.model.random_parts import RandomParts
from videomar.model.videomar import PartsOfCheckpoint
from videomar.runtime.prompt import PromptTokenizer


def write_random_graph(preset: str, name: str, emitter_name: str, cache_tokens: int | None, folder: Path) -> None:
    """One FP16 graph of a preset, as `folder`/NAME.onnx; its system prompt is empty."""
    if preset not in PRESETS:
        raise InputError(f"preset is {preset!r}, expected one of {', '.join(PRESETS)}; change --preset")
    emit, model = emitter(emitter_name), RandomParts(PRESETS[preset], torch.float16)
    specs = contract(model.config, "fp16", emit.in_place, cache_tokens)
    with torch.inference_mode():
        save(GraphBuilder(model, specs, emit, torch.float16, 0, folder).build(name), folder / f"{name}.onnx")


def write_graphs(
    checkpoint: Path, folder: Path, precision: str, emitter_name: str, cache_tokens: int | None, same: Path | None
) -> None:
    """An artifact directory of a checkpoint's engines' graphs; `same` has all but the transformer's already."""
    emit, model = emitter(emitter_name), PartsOfCheckpoint(checkpoint, DTYPES[precision])
    specs = contract(model.config, precision, emit.in_place, cache_tokens)
    prefix = PromptTokenizer(checkpoint / "tokenizer.json", model.config.text).prefix
    builder = GraphBuilder(model, specs, emit, DTYPES[precision], prefix, folder)
    folder.mkdir()
    shutil.copy(checkpoint / "tokenizer.json", folder)
    for name in ENGINES:
        file = f"{name}.onnx"
        if same is not None and name != TRANSFORMER_STEP:
            os.link(same / file, folder / file)
            continue
        with torch.inference_mode():
            save(builder.build(name), folder / file)
        model.release()
    extra = {"cache_tokens": cache_tokens}
    write_manifest(folder, Manifest("onnx", precision, emit.name, emit.opset, model.config, extra=extra))


if __name__ == "__main__":
    preset, name, emitter_name, cache, folder = sys.argv[1:]
    write_random_graph(preset, name, emitter_name, int(cache) or None, Path(folder))
