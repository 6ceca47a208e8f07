from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from videomar.config import ORDERS
from videomar.orders import arrange


@given(st.integers(1, 12), st.integers(1, 12), st.sampled_from(ORDERS), st.integers(0, 99))
def test_every_order_is_a_permutation_that_begins_where_the_random_one_does_and_leaves_it_alone(
    rows: int, columns: int, name: str, seed: int
) -> None:
    random = np.random.default_rng(seed).permutation(rows * columns)
    before = random.copy()
    order = arrange(random, name, columns)
    assert sorted(order) == list(range(rows * columns)) and np.array_equal(random, before)
    if name != "spread":
        assert order[0] == random[0]


def test_structure_first_is_one_colour_of_a_checkerboard_and_then_the_other_each_in_the_random_order() -> None:
    random = np.array([5, 0, 1, 2, 3, 4, 6, 7, 8])
    # 3 x 3; 5 is a white field (row 1, column 2), like 1, 3 and 7.
    assert arrange(random, "structure", 3).tolist() == [5, 1, 3, 7, 0, 2, 4, 6, 8]


def nearest(order: np.ndarray, columns: int) -> float:
    """Mean distance of each of these positions to the nearest other, around the edges too."""
    size = np.array([64 // columns, columns])
    places = np.stack(np.divmod(order, columns), axis=1)
    apart = np.abs(places[:, None] - places)
    apart = np.minimum(apart, size - apart)
    away = np.hypot(*np.moveaxis(apart, -1, 0)) + 99 * np.eye(len(order))
    return float(away.min(axis=1).mean())


@pytest.mark.parametrize("count", [4, 8, 16])
def test_early_positions_of_a_spread_order_lie_farther_apart_than_chance_puts_them(count: int) -> None:
    rng = np.random.default_rng(0)
    randoms = [rng.permutation(64) for _ in range(50)]
    spread = [nearest(arrange(r, "spread", 8)[:count], 8) for r in randoms]
    assert min(spread) > np.mean([nearest(r[:count], 8) for r in randoms])
    starts = {int(arrange(r, "spread", 8)[0]) for r in randoms}
    assert len(starts) > 20, "the start is not left to chance"
