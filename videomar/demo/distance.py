"""Frechet distance between two sets of clips, in a small fixed feature of their frames and of their motion.

The feature is random and never trained: filters of a fixed seed, without a mean, cut off at zero and pooled. They
respond to outlines and their colours, and torn shapes have more of those. The scale means nothing by itself; the
distance between two true sets is the floor to read it by.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from videomar.errors import InputError

FILTERS = 12
WIDTH = 8  # pixels that a filter sees, both ways
STRIDE = 4
POOLED = 2  # means over 2x2 parts of the picture: where it is matters, too
SEED = 0
STEP = 4  # frames between the two of a difference, and between the frames that are looked at


def features(pictures: np.ndarray) -> np.ndarray:
    """Fixed features of pictures or of their differences: [n, size, size, 3] float -> [n, 2 * 2 * FILTERS] float64."""
    n, size = len(pictures), pictures.shape[1]
    filters = np.random.default_rng(SEED).standard_normal((3, WIDTH * WIDTH, FILTERS))
    filters = (filters - filters.mean(axis=1, keepdims=True)).reshape(-1, FILTERS)  # a plain ground says nothing
    filters /= np.linalg.norm(filters, axis=0)
    windows = np.lib.stride_tricks.sliding_window_view(pictures, (WIDTH, WIDTH), axis=(1, 2))[:, ::STRIDE, ::STRIDE]
    side = windows.shape[1]
    response = np.maximum(windows.reshape(n, side, side, -1).astype(np.float64) @ filters, 0)
    if side < POOLED:
        raise InputError(f"a picture of {size} pixels is too small, expected {WIDTH + STRIDE} or more")
    halves = np.array_split(np.arange(side), POOLED)
    parts = [response[:, a[0] : a[-1] + 1, b[0] : b[-1] + 1].mean(axis=(1, 2)) for a in halves for b in halves]
    return np.concatenate(parts, axis=1)


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """Frechet distance of the Gaussians fitted to features [n, d] and [m, d] (Dowson and Landau 1982), at least 0."""
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise InputError(f"features are {a.shape} and {b.shape}, expected two or more rows of one width each")
    first, second = (np.atleast_2d(np.cov(x, rowvar=False)) for x in (a, b))
    values, vectors = np.linalg.eigh(first)
    root = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
    # tr (C1 C2)^(1/2) by the symmetric product, whose eigenvalues are the same.
    mixed = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ second @ root), 0)).sum()
    apart = ((a.mean(axis=0) - b.mean(axis=0)) ** 2).sum()
    return float(max(0.0, apart + np.trace(first) + np.trace(second) - 2 * mixed))


def distances(clips: Sequence[np.ndarray], truth: Sequence[np.ndarray], given: int = 1) -> dict[str, float]:
    """How far generated clips are from true ones: {"frames": ..., "motion": ...}, both Frechet distances.

    clips, truth: [frames, size, size, 3] uint8 each. Frames are every fourth after the given; motion is the difference
    of frames four apart.
    """
    frames, motion = [], []
    for side in (clips, truth):
        stack = np.stack([clip[given - 1 :: STEP] for clip in side]).astype(np.float32) / 255
        frames.append(features(stack[:, 1:].reshape(-1, *stack.shape[2:])))
        motion.append(features(np.diff(stack, axis=1).reshape(-1, *stack.shape[2:])))
    return {"frames": frechet(*frames), "motion": frechet(*motion)}
