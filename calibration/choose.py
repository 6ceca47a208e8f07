"""Where to cut an activation's range, and how far to smooth it: whatever errs least on all that was seen.

An error is that of the linear's result: what rounding and cutting do to each input channel, and rounding to each row of
the matrix, weighted by the other and added up as if channels were independent. sensitivity.py measures the true effect.

Symmetric int8: scale = threshold / 127, activations per tensor, weights per output channel. SmoothQuant (Xiao et al.
2023, eq. 4) divides the input's channels by s and multiplies the matrix's rows by it; s is rounded to powers of two, so
that folding it into the norm in front rounds nothing in any precision. Knows nothing of graphs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from videomar.calibration.ranges import BINS, PER_OCTAVE, Seen, bin_edges, percentile

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
    error: float  # of the linear's result, relative L2


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


@dataclass(frozen=True)
class Energies:
    """An input's histogram with every value weighted by the square of the matrix row it is multiplied with."""

    values: np.ndarray  # of the smoothed input: a bin's middle
    energy: np.ndarray  # in each bin: count times squared row, summed over channels
    counts: np.ndarray
    edges: np.ndarray
    absmax: float
    weight_error: float  # that rounding the matrix alone makes in the result
    result: float  # the result's own energy

    @staticmethod
    def of(seen: Seen, weight: np.ndarray, divisor: np.ndarray | None) -> Energies:
        """weight: [in, out] float32, not smoothed; divisor: powers of two."""
        divisor = np.ones(len(weight), np.float32) if divisor is None else divisor
        matrix = weight * divisor[:, None]
        rows = (matrix.astype(np.float64) ** 2).sum(axis=1)
        octaves = -np.log2(divisor).astype(np.int64)
        more = int(np.abs(octaves).max())
        edges = bin_edges(more)
        at = (np.arange(BINS) + PER_OCTAVE * (octaves[:, None] + more)).ravel()
        energy = np.bincount(at, (seen.histogram * rows[:, None]).ravel(), len(edges) - 1)
        counts = np.bincount(at, seen.histogram.ravel(), len(edges) - 1)
        absmax = float((seen.channels / divisor).max())
        values = np.minimum((edges[:-1] + edges[1:]) / 2, absmax)
        middle = (bin_edges()[:-1] + bin_edges()[1:]) / 2
        moments = seen.histogram @ middle**2  # of the input as it was
        off = ((fake_quantize_weight(matrix) - matrix).astype(np.float64) ** 2).sum(axis=1)
        result = float(moments @ (weight.astype(np.float64) ** 2).sum(axis=1))
        return Energies(values, energy, counts, edges, absmax, float(moments / divisor**2 @ off), result)

    def error(self, thresholds: np.ndarray) -> np.ndarray:
        """Relative L2 error of the result for each threshold of the smoothed input."""
        step, v = thresholds[:, None] / LEVELS, self.values
        # Rounding errs uniformly within a step, but a value below half a step errs by itself.
        rounding = np.where(v < step / 2, v**2, step**2 / 12)
        each = np.where(v > thresholds[:, None], (v - thresholds[:, None]) ** 2, rounding)
        return np.sqrt((each @ self.energy + self.weight_error) / max(self.result, 1e-30))

    def thresholds(self) -> dict[str, float]:
        """Name of the method -> its threshold."""
        found = {"minmax": self.absmax}
        for share in PERCENTILES:
            found[f"percentile {100 * share:g}"] = min(self.absmax, percentile(self.counts, self.edges, share))
        tried = self.absmax * np.exp2(-np.arange(6 * 16) / 16)
        found["mse"] = float(tried[np.argmin(self.error(tried))])
        return found


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
            energies = Energies.of(one, weight, divisor)
            found = {k: v for k, v in energies.thresholds().items() if k.split()[0] in methods}
            errors = energies.error(np.array(list(found.values())))
            tried = [Choice(t, name, alpha, float(e)) for (name, t), e in zip(found.items(), errors, strict=True)]
            choices.append(min(tried, key=lambda choice: choice.error))
        total = sum(choice.error**2 for choice in choices)
        if best is None or total < best[0]:
            best = total, divisor, choices
    assert best is not None
    return best[1], best[2]
