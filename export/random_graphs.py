"""A graph of a preset with random weights in FP16, for the gate at full size: one a process, so that memory comes back.

`python -m videomar.export.random_graphs PRESET GRAPH EMITTER CACHE_TOKENS FOLDER`. Never checked against PyTorch, which
export does on real weights. Knows nothing of TensorRT.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from videomar.config import PRESETS
from videomar.errors import InputError
from videomar.export.build import GraphBuilder
from videomar.export.emitters import emitter
from videomar.export.onnx_files import save
from videomar.graphs import contract
from videomar.model.random_parts import RandomParts


def write_random_graph(preset: str, name: str, emitter_name: str, cache_tokens: int | None, folder: Path) -> None:
    """One FP16 graph of a preset, as `folder`/NAME.onnx; its system prompt is empty."""
    if preset not in PRESETS:
        raise InputError(f"preset is {preset!r}, expected one of {', '.join(PRESETS)}; change --preset")
    emit, model = emitter(emitter_name), RandomParts(PRESETS[preset], torch.float16)
    specs = contract(model.config, "fp16", emit.in_place, cache_tokens)
    with torch.inference_mode():
        save(GraphBuilder(model, specs, emit, torch.float16, 0, folder).build(name), folder / f"{name}.onnx")


if __name__ == "__main__":
    preset, name, emitter_name, cache, folder = sys.argv[1:]
    write_random_graph(preset, name, emitter_name, int(cache) or None, Path(folder))
