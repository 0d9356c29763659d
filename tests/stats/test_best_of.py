"""Best of n: known values, the estimator against all choices, and the KL of a small distribution."""

from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.errors import DataError
from trimtab.stats.best_of import expected_best, kl_bound

SCORES = st.lists(st.integers(-20, 20).map(float), min_size=1, max_size=7)


@pytest.mark.parametrize(
    ("n", "nats"), [(1, 0.0), (2, 0.1931), (4, 0.6363), (8, 1.2044), (16, 1.8351), (64, 3.1745), (1000, 5.9088)]
)
def test_kl_bound_by_known_values(n: int, nats: float) -> None:
    assert kl_bound(n) == pytest.approx(nats, abs=5e-5)


@given(st.lists(st.floats(0.05, 1.0), min_size=2, max_size=5), st.integers(1, 5))
def test_the_kl_of_a_small_distribution_is_within_the_bound(weights: list[float], n: int) -> None:
    """Answers in order of their scores: P(best of n is i) = F_i^n - F_(i-1)^n."""
    p = np.array(weights) / sum(weights)
    above = np.cumsum(p)
    best = above**n - np.concatenate([[0.0], above[:-1]]) ** n
    assert float(best @ np.log(best / p)) <= kl_bound(n) + 1e-9


def test_expected_best_by_hand() -> None:
    """1, 2, 6: pairs have maxima 2, 6, 6."""
    assert expected_best([6.0, 1.0, 2.0], 1) == pytest.approx(3.0)
    assert expected_best([6.0, 1.0, 2.0], 2) == pytest.approx(14 / 3)
    assert expected_best([6.0, 1.0, 2.0], 3) == pytest.approx(6.0)


@given(SCORES, st.data())
def test_it_is_the_mean_over_all_choices(scores: list[float], data: st.DataObject) -> None:
    n = data.draw(st.integers(1, len(scores)))
    every = [max(chosen) for chosen in combinations(scores, n)]
    assert expected_best(scores, n) == pytest.approx(sum(every) / len(every), abs=1e-9)


def test_it_has_no_bias() -> None:
    """Over all ways to draw 3 of a fair die, its mean for the best of 2 is the true one, 161 / 36."""
    found = [expected_best(rolls, 2) for rolls in product(range(1, 7), repeat=3)]
    assert sum(found) / len(found) == pytest.approx(161 / 36)


def test_uniform_scores() -> None:
    """E[max of n uniform numbers] = n / (n + 1), from a fine grid; thousands of scores overflow nothing."""
    grid = (np.arange(5000) + 0.5) / 5000
    for n in (1, 4, 64, 1000):
        assert expected_best(grid, n) == pytest.approx(n / (n + 1), abs=1e-3)


@pytest.mark.parametrize(("scores", "n"), [([1.0], 2), ([1.0], 0), ([], 1), ([1.0, float("nan")], 1)])
def test_what_cannot_be_told(scores: list[float], n: int) -> None:
    with pytest.raises(DataError):
        expected_best(scores, n)
    with pytest.raises(DataError):
        kl_bound(0)
