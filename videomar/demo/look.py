"""Whether a model is of the demo world, and whether a picture looks like it: smooth nearly everywhere."""

from __future__ import annotations

import numpy as np

from videomar.config import ModelConfig

ROUGH = 0.05  # of the whole range from black to white: how far a pixel may lie from the middle of its neighbours
SHARE = 0.1  # of the pixels; the outline of one shape is less
LEAST = 48  # pixels: in a smaller picture an outline is much of it


def of_the_demo(config: ModelConfig) -> bool:
    """Whether its words are the demo's few: a language model has thousands."""
    return config.text.vocab_size <= 100


def outside(frames: np.ndarray) -> bool:
    """Whether any of these frames, [n, height, width, 3] uint8, is no shape over a soft gradient."""
    if min(frames.shape[1:3]) < LEAST:
        return False
    x = frames.astype(np.float32) / 255
    across = np.abs(x[:, 1:-1, 1:-1] - (x[:, 1:-1, :-2] + x[:, 1:-1, 2:]) / 2)
    down = np.abs(x[:, 1:-1, 1:-1] - (x[:, :-2, 1:-1] + x[:, 2:, 1:-1]) / 2)
    rough = np.maximum(across, down).max(axis=-1) > ROUGH
    return bool((rough.mean(axis=(1, 2)) > SHARE).any())
