"""A graph of a preset with random weights in FP16, for the gate at full size: one a process, so that memory comes back.

`python -m videomar.export.random_graphs PRESET GRAPH EMITTER CACHE_TOKENS FOLDER`. Never checked against PyTorch, which
export does on real weights. Knows nothing of TensorRT.
"""

from __future__ import annotations

import gc
import sys
from pathlib import Path
from typing import Any

import torch

from videomar.config import PRESETS
from videomar.errors import InputError
from videomar.export.build import GraphBuilder
from videomar.export.emitters import emitter
from videomar.export.onnx_files import save
from videomar.graphs import contract
from videomar.model.head import DiffusionHead
from videomar.model.text import TextEncoder
from videomar.model.tokenizer import VideoTokenizer
from videomar.model.transformer import Transformer


class RandomModel:
    """Stands in for VideoMAR; a part is made when it is asked for and kept by no one."""

    def __init__(self, preset: str) -> None:
        if preset not in PRESETS:
            raise InputError(f"preset is {preset!r}, expected one of {', '.join(PRESETS)}; change --preset")
        self.config = PRESETS[preset]

    def __getattr__(self, part: str) -> Any:
        c = self.config
        t = c.transformer
        makers = {
            "video_tokenizer": lambda: VideoTokenizer(c.tokenizer),
            "text_encoder": lambda: TextEncoder(c.text),
            "transformer": lambda: Transformer(t, c.text.width, c.text.max_tokens),
            "diffusion_head": lambda: DiffusionHead(c.head, t.token_channels, t.width),
        }
        if part not in makers:
            raise AttributeError(part)
        return makers[part]().to(torch.float16).eval().requires_grad_(False)


def write_random_graph(preset: str, name: str, emitter_name: str, cache_tokens: int | None, folder: Path) -> None:
    """One FP16 graph of a preset, as `folder`/NAME.onnx; its system prompt is empty."""
    emit, model = emitter(emitter_name), RandomModel(preset)
    specs = contract(model.config, "fp16", emit.in_place, cache_tokens)
    with torch.inference_mode():
        graph = GraphBuilder(model, specs, emit, torch.float16, 0).build(name)  # type: ignore[arg-type]
        gc.collect()
        save(graph, folder / f"{name}.onnx")


if __name__ == "__main__":
    preset, name, emitter_name, cache, folder = sys.argv[1:]
    write_random_graph(preset, name, emitter_name, int(cache) or None, Path(folder))
