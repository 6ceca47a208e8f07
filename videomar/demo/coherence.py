"""Whether a clip shows one of its scene's futures, whole: one shape where one must be, in one colour; and which.

Sees only pixels and the scene's truth; knows nothing of models or of how a clip was made.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from videomar.demo.world import COLORS, Scene, background, futures, render
from videomar.errors import InputError

PATCH = 8  # pixels, both ways: what one token draws
MOST_WRONG = 0.4  # of a patch: a shape that is 2 pixels off costs a quarter, a token of another future most of it


@dataclass(frozen=True)
class Future:
    """What one generated clip shows, of the futures that its sentence may have."""

    prompt: str
    motion: str  # that the prompt asks for
    outcome: str  # the future that is nearest
    wrong: float  # share of the worst patch of all generated frames that is not as in that future
    coherent: bool  # nowhere more wrong than MOST_WRONG


def patch_errors(frames: np.ndarray, truth: np.ndarray, scene: Scene) -> np.ndarray:
    """How wrong the worst patch of every frame is: [frames] float64; 1 is a patch with a shape where none belongs.

    frames, truth: [frames, size, size, 3] uint8. The colour distance of frame and truth, averaged over each 8x8 patch
    at every offset, in units of the distance between the shape's colour and the background's.
    """
    size = frames.shape[1]
    contrast = np.linalg.norm(background(scene, size).mean(axis=(0, 1)) - np.asarray(COLORS[scene.color]))
    away = np.linalg.norm(frames.astype(np.float32) - truth, axis=-1) / (255 * contrast)
    sums = np.pad(away, ((0, 0), (1, 0), (1, 0))).cumsum(axis=1, dtype=np.float64).cumsum(axis=2)
    high, low = np.s_[PATCH:], np.s_[:-PATCH]
    patches = sums[:, high, high] - sums[:, low, high] - sums[:, high, low] + sums[:, low, low]
    worst: np.ndarray = patches.max(axis=(1, 2)) / PATCH**2
    return worst


def judge(frames: np.ndarray, scene: Scene, given: int = 1) -> Future:
    """Hold the generated frames of a clip, those after the first `given`, against every future of its scene.

    frames: [frames, size, size, 3] uint8. The nearest future is the one with the least mean of `patch_errors`. Raises
    InputError for other arrays.
    """
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[1] != frames.shape[2] or frames.shape[3] != 3:
        raise InputError(f"a clip is {frames.dtype} {frames.shape}, expected uint8 [frames, size, size, 3]")
    if not 0 <= given < len(frames):
        raise InputError(f"given frames is {given}, expected 0 to {len(frames) - 1}: at least one has to be generated")
    errors = {
        future.outcome: patch_errors(frames[given:], render(future, len(frames), frames.shape[1], given), scene)
        for future in futures(scene)
    }
    nearest = min(errors, key=lambda outcome: float(errors[outcome].mean()))
    wrong = float(errors[nearest].max())
    return Future(scene.prompt, scene.motion, nearest, wrong, wrong <= MOST_WRONG)
