"""Are the outcomes as frequent as they should be? Counts against probabilities: a test and its confidence.

Pure numpy; the p-value is simulated with a fixed seed, so it holds for counts of any size and is the same everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from videomar.errors import InputError

DRAWS = 20_000  # simulated experiments: a p-value of 5 % is known to 0.15 points
SEED = 0
Z95 = 1.959964  # the normal quantile of a two-sided interval of 95 %


def interval(hits: int, of: int, z: float = Z95) -> tuple[float, float]:
    """The confidence interval of a share, Wilson's (1927): right for few cases and for shares near 0 and 1."""
    if not 0 <= hits <= of:
        raise InputError(f"there are {hits} hits of {of} cases, expected 0 to {of}")
    if of == 0:
        return 0.0, 1.0
    share, denominator = hits / of, 1 + z**2 / of
    centre = (share + z**2 / (2 * of)) / denominator
    half = z / denominator * np.sqrt(share * (1 - share) / of + z**2 / (4 * of**2))
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))


def chi_square(counts: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Pearson's statistic of counts [..., outcomes] against probabilities [outcomes]: [...] float64."""
    expected = counts.sum(axis=-1, keepdims=True) * shares
    return ((counts - expected) ** 2 / np.maximum(expected, 1e-12)).sum(axis=-1)


def p_value(tables: Sequence[tuple[Sequence[int], Sequence[float]]]) -> float:
    """How often true draws would be at least as far off, in all tables (counts, probabilities) together.

    The statistic is the sum of Pearson's over the tables; its distribution is simulated, DRAWS times. Raises InputError
    for probabilities that are none or do not fit their counts.
    """
    rng, observed, simulated = np.random.default_rng(SEED), 0.0, np.zeros(DRAWS)
    for counts, shares in tables:
        c, p = np.asarray(counts), np.asarray(shares, np.float64)
        if c.shape != p.shape or (p <= 0).any() or abs(p.sum() - 1) > 1e-9:
            raise InputError(f"counts {list(counts)} against shares {list(shares)}, expected one share > 0 each, sum 1")
        observed += float(chi_square(c, p))
        simulated += chi_square(rng.multinomial(int(c.sum()), p, DRAWS), p)
    return float((1 + (simulated >= observed - 1e-9).sum()) / (1 + DRAWS))
