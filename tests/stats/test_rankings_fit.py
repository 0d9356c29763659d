"""Plackett-Luce: a known table, K = 2, exact sums over orders, ties, who cannot be ranked, weights of pairs."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.errors import DataError
from trimtab.stats.battles import battles
from trimtab.stats.bradley_terry import fit
from trimtab.stats.plackett_luce import fit_rankings, ranking_pairs


def strict(*names: str) -> list[list[str]]:
    return [[name] for name in names]


GOLDEN = [strict("0", "1", "2"), strict("1", "0", "2"), strict("0", "2", "1"), strict("2", "1", "0")]


def test_the_known_table() -> None:
    found = fit_rankings(GOLDEN, weights=[6, 3, 2, 1])
    assert found.shares == pytest.approx([0.63655233, 0.28492762, 0.07852005], abs=2e-7)
    repeated = [order for order, times in zip(GOLDEN, [6, 3, 2, 1], strict=True) for _ in range(times)]
    assert fit_rankings(repeated).theta == pytest.approx(found.theta, abs=1e-9)


def test_two_things_at_a_time_is_bradley_terry() -> None:
    games = [("a", "b", 3, 2), ("b", "c", 4, 1), ("a", "c", 2, 2)]
    orders, first, second, outcome = [], [], [], []
    for a, b, wins, losses in games:
        orders += [strict(a, b)] * wins + [strict(b, a)] * losses
        first, second = [*first, *[a] * (wins + losses)], [*second, *[b] * (wins + losses)]
        outcome += [1.0] * wins + [0.0] * losses
    orders.append([["a", "c"]])  # a tie
    pairs = fit(battles([*first, "a"], [*second, "c"], [*outcome, 0.5]))
    assert fit_rankings(orders).theta == pytest.approx(pairs.theta, abs=1e-6)
    assert fit_rankings(orders).log_likelihood == pytest.approx(pairs.log_likelihood, abs=1e-9)


def test_a_tie_is_every_order_with_an_equal_share() -> None:
    base = [strict("a", "b", "c"), strict("c", "b", "a"), strict("b", "c", "a"), strict("d", "a"), strict("a", "d")]
    for tied in ([["a"], ["b", "c", "d"]], [["b", "c", "d"], ["a"]], [["d"], ["b", "c"], ["a"]]):
        spread, weights = list(base), [1.0] * len(base)
        tier = next(t for t in tied if len(t) > 1)
        orders = list(permutations(tier))
        for order in orders:
            at = tied.index(tier)
            spread.append([*tied[:at], *[[name] for name in order], *tied[at + 1 :]])
            weights.append(1 / len(orders))
        found, expected = fit_rankings([*base, tied]), fit_rankings(spread, weights=weights)
        assert found.theta == pytest.approx(expected.theta, abs=1e-8)
        assert found.log_likelihood == pytest.approx(expected.log_likelihood, abs=1e-9)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.permutations("abcd"), min_size=3, max_size=12), st.integers(2, 4))
def test_names_and_the_order_of_rows_do_not_matter(orders: list[list[str]], top: int) -> None:
    partial = [strict(*order[:top]) for order in orders]
    there = fit_rankings(partial, prior_sd=1.5)
    other = dict(zip("abcd", "zxyw", strict=True))
    back = fit_rankings([[[other[n] for n in tier] for tier in order] for order in reversed(partial)], prior_sd=1.5)
    theta = dict(zip(back.names, back.theta, strict=True))
    assert [theta[other[name]] for name in there.names] == pytest.approx(list(there.theta), abs=1e-7)


def test_utilities_are_recovered() -> None:
    rng = np.random.default_rng(0)
    theta = np.array([0.9, 0.3, -0.2, -1.0])
    drawn = np.argsort(-(theta + rng.gumbel(size=(3000, 4))), axis=1)  # Gumbel noise is Plackett-Luce
    found = fit_rankings([strict(*(str(i) for i in row[:3])) for row in drawn])  # K = 3 of 4 named
    full = fit_rankings([strict(*(str(i) for i in row)) for row in drawn])
    assert full.theta == pytest.approx(theta, abs=0.09)
    assert found.names == full.names


def test_who_cannot_be_ranked_is_named() -> None:
    found = fit_rankings([strict("top", "a", "b"), strict("top", "b", "a")])
    assert found.components == (("a", "b"), ("top",))
    assert np.isnan(found.theta[2])
    assert found.theta[:2] == pytest.approx([0, 0])
    assert fit_rankings([strict("top", "a", "b")], prior_sd=1.0).theta.argmax() == 2
    assert np.isnan(fit_rankings([strict("a", "b")]).theta).all()
    assert fit_rankings([]).names == ()


def test_pairs_of_one_ranking_share_its_weight() -> None:
    found = ranking_pairs([["a"], ["b", "c"], ["d"]])
    assert len(found) == 6
    assert sum(weight for *_, weight in found) == pytest.approx(1)
    assert ("b", "c", 0.5, 1 / 6) in found
    assert ("a", "d", 1.0, 1 / 6) in found
    assert ranking_pairs([["a"]]) == []


@pytest.mark.parametrize(
    ("orders", "weights", "said"),
    [
        ([[["a"], ["a"]]], None, "'a' twice"),
        ([[["a"], ["b"]]], [1.0, 2.0], "as many"),
        ([[["a"], ["b"]]], [-1.0], "not negative"),
        ([[[str(i) for i in range(13)]]], None, "more than 12"),
    ],
)
def test_what_is_refused(orders: list[list[list[str]]], weights: list[float] | None, said: str) -> None:
    with pytest.raises(DataError, match=said):
        fit_rankings(orders, weights=weights)
