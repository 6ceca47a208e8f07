"""Official weights, imported, exported and run with cached K/V, against the naive reading of the same file.

The naive side (tests/naive.py) is float64, keeps no cache, takes one token at a time and reads the authors' layout.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from videomar.artifacts import Manifest, read_manifest, write_manifest
from videomar.config import SamplingConfig
from videomar.export.build import GraphBuilder
from videomar.export.emitters import EMITTERS
from videomar.export.importing import import_checkpoint
from videomar.export.onnx_files import save
from videomar.graphs import DIFFUSION_HEAD, TEXT_KEY_VALUES, TRANSFORMER_STEP, contract
from videomar.model.videomar import PartsOfCheckpoint
from videomar.runtime.backends.ort import OrtBackend
from videomar.runtime.sampler import sample_frames
from videomar.schedule import SeededNoise
from videomar.steps import ClipShape, ClipSteps


def load(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


made = load("originals", Path(__file__).parent / "originals.py")
HEAD_STEPS = 125  # the paper's betas make fewer steps so steep that float32 itself is lost


@dataclass(frozen=True)
class Clip:
    grid: tuple[int, int]
    given: int
    frames: int
    guidance: float
    window: int | None = None
    text: int = 3


CLIPS = {
    "image to video": Clip((2, 3), 1, 3, 3.0),
    "two given frames, no guidance": Clip((1, 4), 2, 4, 1.0),
    "three given frames, another grid": Clip((3, 2), 3, 4, 2.0, text=7),
    "a window of one frame": Clip((1, 3), 1, 4, 3.0, window=1),
}
OTHER = {"depth": 3, "heads": 1, "head_dim": 32, "head_width": 40, "head_depth": 1}
MadeOnce = Callable[[str, Callable[[Path], None]], Path]
MODELS = {  # the second: other depth, width, heads and rotary split; in-place K/V; prompts padded on the left
    "three heads of 16, portable": ({}, made.SPLIT, "portable", "right"),
    "one head of 32, three blocks, native, padded on the left": (OTHER, (16, 8, 8), "native", "left"),
}  # fmt: skip


@pytest.fixture(scope="module", params=MODELS.values(), ids=MODELS.keys())
def model(request: pytest.FixtureRequest, made_once: MadeOnce) -> tuple[dict, OrtBackend, tuple]:
    """(weights as the file has them, the exported graphs on ONNX Runtime, rotary split)."""
    sizes, split, emitter, side = request.param
    weights, emit = made.official(2, **sizes), EMITTERS[emitter]

    def fill(place: Path) -> None:
        made.write_all(place, side)
        file = place / "videomar.pth"
        torch.save({"model": made.official(1, **sizes), "model_ema": weights}, file)
        import_checkpoint(file, place / "cosmos", place / "qwen", place / "checkpoint", rope_split=split)
        parts = PartsOfCheckpoint(place / "checkpoint")
        specs = contract(parts.config, "fp32", emit.in_place)
        builder = GraphBuilder(parts, specs, emit, torch.float32, 0)  # type: ignore[arg-type]
        (place / "graphs").mkdir()
        for name in (TEXT_KEY_VALUES, TRANSFORMER_STEP, DIFFUSION_HEAD):
            with torch.inference_mode():
                save(builder.build(name), place / "graphs" / f"{name}.onnx")
        write_manifest(place / "graphs", Manifest("onnx", "fp32", emit.name, emit.opset, parts.config))

    graphs = made_once(f"official-{emitter}-{side}", fill) / "graphs"
    named = {name: tensor.double().numpy() for name, tensor in weights.items()}
    return named, OrtBackend(graphs, read_manifest(graphs), 1, lean=True), split


@pytest.mark.parametrize("clip", CLIPS.values(), ids=CLIPS.keys())
def test_a_whole_clip_equals_the_naive_one(model: tuple[dict, OrtBackend, tuple], clip: Clip) -> None:
    weights, backend, split = model
    rng = np.random.default_rng(5)
    channels, width = backend.config.transformer.token_channels, backend.config.text.width
    latents = rng.standard_normal((channels, clip.given, *clip.grid)).astype(np.float32)
    states = rng.standard_normal((1, clip.text, width)).astype(np.float32)
    sampling = SamplingConfig(mask_steps=2, head_steps=HEAD_STEPS, guidance_scale=clip.guidance, kv_window=clip.window)
    steps = ClipSteps(backend.config, sampling, ClipShape(clip.frames, clip.given, *clip.grid))
    got = np.stack(list(sample_frames(backend, steps, states, latents, SeededNoise(0)))[clip.given :], axis=1)
    expected = made.naive.generate(
        weights, latents.astype(float), states[0].astype(float), SeededNoise(0), split, clip.frames, 2, HEAD_STEPS,
        clip.guidance, window=clip.window or 10**9, padding_side=backend.config.text.padding_side,
    )[:, clip.given :]  # fmt: skip
    assert 0.1 < np.abs(expected).mean() < 30
    assert np.linalg.norm(got - expected) / np.linalg.norm(expected) < 1e-4
