import math

import numpy as np
import pytest

from videomar.demo.chance import CHANCES
from videomar.demo.shares import chi_square, interval, p_value
from videomar.errors import InputError


def test_the_interval_agrees_with_published_and_hand_values():
    assert interval(0, 0) == (0, 1)
    # Newcombe 1998, table I, method 3: 81 of 263, 15 of 148, 0 of 20, 1 of 29.
    for hits, of, expected in (
        (81, 263, (0.2553, 0.3662)),
        (15, 148, (0.0624, 0.1605)),
        (0, 20, (0.0, 0.1611)),
        (1, 29, (0.0061, 0.1718)),
    ):
        assert interval(hits, of) == pytest.approx(expected, abs=1e-4)


def test_pearsons_statistic_by_hand():
    assert chi_square(np.array([30, 20]), np.array([0.5, 0.5])) == pytest.approx(2.0)  # 25/25 + 25/25
    assert chi_square(np.array([6, 2]), np.array([0.75, 0.25])) == pytest.approx(0)


def test_the_p_value_of_two_outcomes_is_the_exact_binomials():
    for hits, of in ((30, 40), (25, 40), (20, 40), (33, 40), (2, 5)):
        off = abs(hits - of / 2)
        exact = sum(math.comb(of, k) for k in range(of + 1) if abs(k - of / 2) >= off) / 2**of
        assert p_value([((hits, of - hits), (0.5, 0.5))]) == pytest.approx(exact, abs=0.012)


def test_the_p_value_of_many_cases_is_the_chi_square_distributions():
    # Three degrees of freedom: Q(x) = erfc(sqrt(x / 2)) + sqrt(2 x / pi) exp(-x / 2).
    counts = (290, 260, 230, 220)
    x = float(chi_square(np.array(counts), np.full(4, 0.25)))
    exact = math.erfc(math.sqrt(x / 2)) + math.sqrt(2 * x / math.pi) * math.exp(-x / 2)
    assert p_value([(counts, (0.25,) * 4)]) == pytest.approx(exact, abs=0.005)


def test_tables_are_tested_together():
    # Two tables of one degree each: the sum has two, Q(x) = exp(-x / 2).
    tables = [((560, 440), (0.5, 0.5)), ((530, 470), (0.5, 0.5))]
    x = sum(float(chi_square(np.array(c), np.array(p))) for c, p in tables)
    assert p_value(tables) == pytest.approx(math.exp(-x / 2), abs=0.005)


def test_true_draws_seldom_fail_and_wrong_shares_do():
    rng = np.random.default_rng(0)
    values = [
        p_value([(rng.multinomial(40, list(p.values())), list(p.values())) for p in CHANCES.values()])
        for _ in range(60)
    ]
    assert sum(v < 0.05 for v in values) <= 8 and 0.3 < np.mean(values) < 0.7  # of uniform values 3 are expected
    assert p_value([(rng.multinomial(40, [0.9, 0.1]), [0.5, 0.5])]) < 0.01
    assert p_value([((40, 0), (0.75, 0.25))]) < 0.01
    assert p_value([((20, 20), (0.75, 0.25))]) < 0.01


def test_no_clips_at_all_prove_nothing():
    assert p_value([((0, 0), (0.5, 0.5))]) == 1


def test_what_are_no_probabilities_is_refused():
    for counts, shares in (((1, 2), (0.5, 0.6)), ((1, 2), (1.0, 0.0)), ((1, 2, 3), (0.5, 0.5))):
        with pytest.raises(InputError, match="expected one share > 0 each"):
            p_value([(counts, shares)])
    with pytest.raises(InputError, match="5 hits of 4"):
        interval(5, 4)
