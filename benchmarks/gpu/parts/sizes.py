"""The models that are measured; on a CPU the full one has the full one's parts and no size."""

from __future__ import annotations

import dataclasses

from videomar.config import DEMO, VIDEOMAR_1_4B, HeadConfig, ModelConfig, SamplingConfig, TextConfig, TransformerConfig

SMALL = dataclasses.replace(
    DEMO,
    name="small",
    text=TextConfig(32, 64, 1, 2, 1, 64, 1e4, 64, 16),
    transformer=TransformerConfig(width=128, depth=2, heads=2, head_dim=64),
    head=HeadConfig(width=64, depth=2),
    sampling=SamplingConfig(frames=25, height=64, width=96, mask_steps=4, head_steps=5, max_beta=0.05),
)


def model(name: str, device: str) -> ModelConfig:
    """ "demo", or "full": the released size on a GPU, a small model on a CPU."""
    if name == "demo":
        return DEMO
    return VIDEOMAR_1_4B if device == "cuda" else SMALL


def own_clip(config: ModelConfig, device: str) -> ModelConfig:
    """The model with the sampling that is measured: its own on a GPU, a few steps of it on a CPU."""
    steps = {} if device == "cuda" else {"mask_steps": 3, "head_steps": 5}
    return dataclasses.replace(config, sampling=config.sampling.but(**steps))


def latent(config: ModelConfig) -> tuple[int, int, int]:
    """Latent frames, rows and columns of the model's own clip."""
    s, t = config.sampling, config.tokenizer
    return 1 + (s.frames - 1) // t.temporal_stride, s.height // t.spatial_stride, s.width // t.spatial_stride
