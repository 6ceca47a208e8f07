"""Where to cut an activation's range, and how far to smooth it: whatever errs least on rows that were really seen.

Symmetric int8: scale = threshold / 127, activations per tensor, weights per output channel. SmoothQuant (Xiao et al.
2023, eq. 4) divides the input's channels by s and multiplies the matrix's rows by it; s is rounded to powers of two, so
that folding it into the norm in front rounds nothing in any precision. Knows nothing of graphs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from videomar.calibration.ranges import BINS, Seen, bin_edges

LEVELS = 127
ALPHAS = (0.2, 0.35, 0.5, 0.65, 0.8)
PERCENTILES = (0.9999, 0.99999)
METHODS = ("minmax", "percentile", "mse")


@dataclass(frozen=True)
class Choice:
    """How one linear's input is quantized."""

    threshold: float  # of the smoothed input
    method: str
    alpha: float | None  # None: not smoothed
    error: float  # of the linear's result on the kept rows, relative L2


def fake_quantize(values: np.ndarray, scale: float | np.ndarray) -> np.ndarray:
    """Round to int8 and back, as QuantizeLinear and DequantizeLinear do; float32."""
    return (np.clip(np.rint(values / scale), -LEVELS - 1, LEVELS) * scale).astype(np.float32)


def fake_quantize_weight(weight: np.ndarray) -> np.ndarray:
    """The same of a matrix [in, out], one scale an output channel."""
    largest = np.abs(weight).max(axis=0, keepdims=True)
    return fake_quantize(weight, np.where(largest > 0, largest, 1) / LEVELS)


def smoothing(seen: Sequence[Seen], weights: Sequence[np.ndarray], alpha: float) -> np.ndarray:
    """SmoothQuant's divisor of every channel of the input that these linears share: [in] float32 powers of two."""
    x = np.max([s.channels for s in seen], axis=0).astype(np.float64)
    w = np.max([np.abs(m).max(axis=1) for m in weights], axis=0).astype(np.float64)
    alive = (x > 0) & (w > 0)
    s = np.where(alive, x, 1) ** alpha / np.where(alive, w, 1) ** (1 - alpha)
    return np.exp2(np.rint(np.log2(np.where(alive, s, 1)))).astype(np.float32)


def mse_threshold(histogram: np.ndarray, absmax: float) -> float:
    """The threshold of least mean square error for values distributed as in a histogram of `ranges.py`."""
    edges = bin_edges()
    used = np.flatnonzero(histogram)
    centers, counts = (edges[used] + edges[used + 1]) / 2, histogram[used].astype(np.float64)
    candidates = np.unique(np.minimum(edges[1:][(edges[1:] > absmax / 64) & (edges[:-1] <= absmax)], absmax))
    beyond = np.maximum(centers - candidates[:, None], 0) ** 2 @ counts
    # Rounding errs uniformly within a step, but a value below half a step errs by itself.
    step = candidates[:, None] / LEVELS
    within = np.where(centers[None] < step / 2, centers[None] ** 2, step**2 / 12) * (
        centers[None] <= candidates[:, None]
    )
    return float(candidates[np.argmin(beyond + within @ counts)])


def thresholds(seen: Seen, divisor: np.ndarray | None, methods: Iterable[str] = METHODS) -> dict[str, float]:
    """Method -> threshold; of a smoothed input from its kept rows, whose exact maximum the channels still tell."""
    histogram, absmax = seen.histogram, seen.absmax
    if divisor is not None:
        bits = np.ascontiguousarray(seen.rows / divisor, np.float32).view(np.uint32).ravel() & 0x7FFFFFFF
        histogram = np.bincount(bits >> 18, minlength=BINS)
        absmax = float((seen.channels / divisor).max())
    upto, edges = np.cumsum(histogram), bin_edges()
    found = {"minmax": absmax}
    for share in PERCENTILES:
        index = min(int(np.searchsorted(upto, share * upto[-1])), BINS - 1)
        found[f"percentile {100 * share:g}"] = min(absmax, float(edges[index + 1]))
    found["mse"] = mse_threshold(histogram, absmax)
    return {name: value for name, value in found.items() if name.split()[0] in tuple(methods)}


def output_error(seen: Seen, weight: np.ndarray, divisor: np.ndarray | None, threshold: float) -> float:
    """Relative L2 error of the linear's result on the kept rows."""
    rows = seen.rows if divisor is None else seen.rows / divisor
    matrix = weight if divisor is None else weight * divisor[:, None]
    true = seen.rows @ weight
    off = fake_quantize(rows, threshold / LEVELS) @ fake_quantize_weight(matrix) - true
    return float(np.linalg.norm(off) / max(float(np.linalg.norm(true)), 1e-30))


def choose(
    seen: Sequence[Seen],
    weights: Sequence[np.ndarray],
    alphas: Sequence[float],
    methods: Sequence[str] = METHODS,
) -> tuple[np.ndarray | None, list[Choice]]:
    """Divisor and choices for linears that share one norm (or one linear without: give no alphas).

    seen: their inputs; weights: their matrices [in, out] float32. Not smoothing is always among the candidates.
    """
    best: tuple[float, np.ndarray | None, list[Choice]] | None = None
    for alpha in (None, *alphas):
        divisor = None if alpha is None else smoothing(seen, weights, alpha)
        choices = []
        for one, weight in zip(seen, weights, strict=True):
            tried = [
                Choice(value, name, alpha, output_error(one, weight, divisor, value))
                for name, value in thresholds(one, divisor, methods).items()
            ]
            choices.append(min(tried, key=lambda choice: choice.error))
        total = sum(choice.error**2 for choice in choices)
        if best is None or total < best[0]:
            best = total, divisor, choices
    assert best is not None
    return best[1], best[2]
