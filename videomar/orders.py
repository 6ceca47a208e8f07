"""In which order a frame's positions are predicted, made from its random order; the dial `order`.

Pure numpy. The random order is the only source of chance, so whoever replaces the noise replaces this too.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np


def arrange(order: np.ndarray, name: str, columns: int) -> np.ndarray:
    """A frame's order under one of config.ORDERS, from its random one: both permutations, [tokens] int64.

    random: as it is (the paper). structure: the positions of one colour of a checkerboard, then those of the other,
    each as they come; which colour is chance. spread: a low-discrepancy sequence over the frame from a random start,
    so that early positions lie far from each other.
    """
    if name == "random":
        return order
    rows, at = len(order) // columns, int(order[0])
    if name == "structure":
        black = (order // columns + order % columns - at // columns - at % columns) % 2 == 0
        return np.concatenate([order[black], order[~black]])
    row, column = np.divmod(spread(rows, columns), columns)
    shifted: np.ndarray = (row + at // columns) % rows * columns + (column + at % columns) % columns
    return shifted


@lru_cache(maxsize=8)
def spread(rows: int, columns: int) -> np.ndarray:
    """Every position once, in the order of a two-dimensional Kronecker sequence (R2, Roberts 2018): [tokens] int64.

    A cell is taken when the sequence first falls into it.
    """
    golden = 1.32471795724474602596  # the real root of x^3 = x + 1, the plane's golden ratio
    seen: dict[int, None] = {}
    n, lot = 0, 4 * rows * columns
    while len(seen) < rows * columns:
        at = np.arange(n, n + lot)
        n += lot
        row, column = (np.floor((0.5 + at * golden**-k) % 1 * size) for k, size in ((1, rows), (2, columns)))
        seen |= dict.fromkeys((row * columns + column).astype(np.int64).tolist())
    found = np.fromiter(seen, np.int64, rows * columns)
    found.flags.writeable = False
    return found
