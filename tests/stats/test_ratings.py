"""Bradley-Terry and its tie models: known tables, laws of symmetry, who cannot be ranked, held-out loss."""

from __future__ import annotations

from math import exp, inf, isnan, log, sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.errors import DataError
from trimtab.stats.battles import Battles, aggregate, battles, components, outcome_of, pair_weights, take
from trimtab.stats.bradley_terry import (
    SCALE,
    TieModel,
    choose_ties,
    elo,
    fit,
    log_loss,
    row_terms,
    win_probability,
)

TIES: tuple[TieModel, ...] = ("half_win", "davidson", "rao_kupper")


def table(*rows: tuple[str, str, int, int, int]) -> Battles:
    """Wins, losses and ties of a against b."""
    first, second, outcome = [], [], []
    for a, b, wins, losses, ties in rows:
        n = wins + losses + ties
        first, second = [*first, *[a] * n], [*second, *[b] * n]
        outcome += [1.0] * wins + [0.0] * losses + [0.5] * ties
    return battles(first, second, outcome)


WIKIPEDIA = table(("A", "B", 2, 3, 0), ("A", "D", 1, 4, 0), ("B", "C", 5, 3, 0), ("C", "D", 1, 3, 0))


def test_the_worked_table() -> None:
    assert np.exp(fit(WIKIPEDIA).theta) == pytest.approx([0.63983, 1.04331, 0.65981, 2.27038], abs=1e-5)


@pytest.mark.parametrize(
    ("ties", "ratio", "tie"),
    [("half_win", 1.5, None), ("davidson", 5 / 3, 20 / sqrt(1500)), ("rao_kupper", 1.527525, 1.527525)],
)
def test_fifty_wins_thirty_losses_twenty_ties(ties: TieModel, ratio: float, tie: float | None) -> None:
    found = fit(table(("a", "b", 50, 30, 20)), ties=ties)
    assert exp(found.theta[0] - found.theta[1]) == pytest.approx(ratio, abs=1e-6)
    if tie is None:
        assert isnan(found.tie)
    else:
        assert found.tie == pytest.approx(tie, abs=1e-6)
        assert found.log_likelihood == pytest.approx(-102.965301, abs=1e-6)  # saturated: 50 ln .5 + 30 ln .3 + 20 ln .2


@pytest.mark.parametrize("ties", TIES)
@pytest.mark.parametrize("tie", [0.3, 1.1])
def test_slopes_and_curvatures_are_derivatives(ties: TieModel, tie: float) -> None:
    margin, y, h = np.array([-1.3, 0.2, 0.9]), np.array([1.0, 0.5, 0.0]), 1e-5
    _, (slope, tie_slope), (bend, cross, tie_bend) = row_terms(ties, margin, y, tie)
    up, down = row_terms(ties, margin + h, y, tie), row_terms(ties, margin - h, y, tie)
    assert slope == pytest.approx((up[0] - down[0]) / (2 * h), abs=1e-6)
    assert -bend == pytest.approx((up[1][0] - down[1][0]) / (2 * h), abs=1e-6)
    more, less = row_terms(ties, margin, y, tie + h), row_terms(ties, margin, y, tie - h)
    assert tie_slope == pytest.approx((more[0] - less[0]) / (2 * h), abs=1e-6)
    assert -cross == pytest.approx((more[1][0] - less[1][0]) / (2 * h), abs=1e-6)
    assert -tie_bend == pytest.approx((more[1][1] - less[1][1]) / (2 * h), abs=1e-6)


@pytest.mark.parametrize("ties", ["davidson", "rao_kupper"])
def test_chances_of_a_tie_model_sum_to_one(ties: TieModel) -> None:
    margin = np.linspace(-30, 30, 7)
    total = sum(np.exp(row_terms(ties, margin, np.full(7, y), 0.4)[0]) for y in (0.0, 0.5, 1.0))
    assert total == pytest.approx(np.ones(7))


GAMES = st.lists(
    st.tuples(st.sampled_from("abcd"), st.sampled_from("abcd"), st.sampled_from([0.0, 0.5, 1.0])).filter(
        lambda game: game[0] != game[1]
    ),
    min_size=6,
    max_size=40,
)


@settings(max_examples=40, deadline=None)
@given(GAMES, st.sampled_from(TIES), st.randoms(use_true_random=False))
def test_names_order_and_sides_do_not_matter(
    games: list[tuple[str, str, float]], ties: TieModel, random: np.random.Generator
) -> None:
    there = fit(battles(*map(list, zip(*games, strict=True))), ties=ties, prior_sd=2.0)
    other = dict(zip("abcd", "zxyw", strict=True))
    turned = [(other[b], other[a], 1 - y) for a, b, y in games]
    random.shuffle(turned)
    back = fit(battles(*map(list, zip(*turned, strict=True))), ties=ties, prior_sd=2.0)
    theta = dict(zip(back.names, back.theta, strict=True))
    assert [theta[other[name]] for name in there.names] == pytest.approx(list(there.theta), abs=1e-6)
    assert there.theta.sum() == pytest.approx(0, abs=1e-9)
    assert back.log_likelihood == pytest.approx(there.log_likelihood, abs=1e-6)


@settings(max_examples=30, deadline=None)
@given(GAMES)
def test_weights_are_repetitions(games: list[tuple[str, str, float]]) -> None:
    a, b, y = map(list, zip(*games, strict=True))
    twice = fit(battles(a * 3, b * 3, y * 3), prior_sd=1.0)
    weighted = fit(battles(a, b, y, weights=[3.0] * len(a)), prior_sd=1.0)
    assert twice.theta == pytest.approx(weighted.theta, abs=1e-8)


def test_who_cannot_be_ranked_is_named() -> None:
    rows = table(("a", "b", 3, 2, 0), ("b", "c", 1, 4, 0), ("a", "top", 0, 5, 0), ("x", "y", 2, 2, 0))
    found = fit(rows)
    assert found.components == (("a", "b", "c"), ("x", "y"), ("top",))
    assert found.unrankable == ("top", "x", "y")
    assert np.isnan(found.theta[found.names.index("top")])
    alone = fit(take(rows, rows.first == 0))
    assert alone.theta[:3] != pytest.approx(found.theta[:3])
    prior = fit(rows, prior_sd=1.0)
    assert prior.unrankable == ()
    assert prior.theta[prior.names.index("top")] == prior.theta.max()


def test_a_tie_connects_and_half_a_circle_does_not() -> None:
    assert [len(g) for g in components(table(("a", "b", 1, 0, 0), ("b", "c", 1, 0, 0)))] == [1, 1, 1]
    assert [len(g) for g in components(table(("a", "b", 1, 0, 0), ("b", "c", 1, 0, 0), ("c", "a", 1, 0, 0)))] == [3]
    assert [len(g) for g in components(table(("a", "b", 0, 0, 1)))] == [2]
    lost = fit(table(("a", "b", 5, 0, 0)))
    assert lost.unrankable == ("a", "b")
    assert isnan(lost.log_likelihood)


@pytest.mark.parametrize(("ties", "tie"), [("davidson", 0.0), ("rao_kupper", 1.0)])
def test_without_ties_every_model_is_plain(ties: TieModel, tie: float) -> None:
    found = fit(WIKIPEDIA, ties=ties)
    assert found.tie == tie
    assert found.theta == pytest.approx(fit(WIKIPEDIA).theta)
    assert log_loss(table(("A", "B", 0, 0, 1)), found) == inf


def test_only_ties_stay_finite() -> None:
    for ties in TIES:
        assert fit(table(("a", "b", 0, 0, 9)), ties=ties).theta == pytest.approx([0, 0], abs=1e-8)


def test_strength_and_ties_are_recovered() -> None:
    rng = np.random.default_rng(3)
    theta, n = np.array([-0.8, 0.0, 0.3, 0.5]), 8_000
    a = rng.integers(4, size=n)
    b = (a + 1 + rng.integers(3, size=n)) % 4
    margin = theta[a] - theta[b]
    for ties, tie in (("davidson", 0.7), ("rao_kupper", 1.6)):
        chance = np.stack([np.exp(row_terms(ties, margin, np.full(n, y), log(tie))[0]) for y in (0.0, 0.5, 1.0)])
        y = (rng.random(n) > np.cumsum(chance, axis=0)).sum(axis=0) / 2
        rows = battles([f"m{i}" for i in a], [f"m{i}" for i in b], y)
        found = fit(rows, ties=ties)
        assert found.theta == pytest.approx(theta, abs=0.08)
        assert found.tie == pytest.approx(tie, rel=0.06)
        losses = choose_ties(rows, folds=2)
        assert next(iter(losses)) == ties
        assert losses[ties] == pytest.approx(-found.log_likelihood / n, abs=0.01)


def test_covariates_take_length_out() -> None:
    """b is only longer, not better: a plain rating puts it first, one with the covariate does not."""
    rng = np.random.default_rng(1)
    n = 4000
    gap = rng.normal(-1.0, 0.5, size=n)  # a is shorter
    y = (rng.random(n) < 1 / (1 + np.exp(-(0.4 + 1.5 * gap)))).astype(float)
    plain = fit(battles(["a"] * n, ["b"] * n, y))
    found = fit(battles(["a"] * n, ["b"] * n, y, covariates=gap))
    assert plain.theta[0] < 0 < found.theta[0]
    assert found.coefficients == pytest.approx([1.5], abs=0.2)
    assert found.theta[0] - found.theta[1] == pytest.approx(0.4, abs=0.2)
    turned = fit(battles(["b"] * n, ["a"] * n, 1 - y, covariates=-gap))
    assert turned.theta == pytest.approx(found.theta, abs=1e-8)


def test_display_and_chance() -> None:
    found = fit(WIKIPEDIA)
    assert found.display.mean() == pytest.approx(1000)
    assert SCALE * log(10) == pytest.approx(400)
    assert win_probability(found, 3, 0) == pytest.approx(2.27038 / (2.27038 + 0.63983), abs=1e-5)


def test_elo_by_hand_and_by_order() -> None:
    assert elo(battles(["a"], ["b"], [1.0])).tolist() == [1002.0, 998.0]
    rows = battles(["a", "a"], ["b", "c"], [1.0, 0.0])
    assert elo(rows) != pytest.approx(elo(take(rows, [1, 0])), abs=1e-6)


def test_cells_and_balance() -> None:
    rows = battles(["a", "b", "b", "a"], ["b", "a", "c", "b"], [1.0, 0.0, 0.5, 0.0])
    cells, cell = aggregate(rows)
    assert len(cells) == 3
    assert cell[0] == cell[1] != cell[3]
    assert cells.weights.sum() == 4
    assert pair_weights(rows, floor=2).tolist() == [1 / 3, 1 / 3, 1 / 2, 1 / 3]


def test_both_bad_is_no_tie() -> None:
    rows = battles(["a", "a"], ["b", "b"], [outcome_of("both_bad"), outcome_of("tie")])
    assert (len(rows), rows.left_out, rows.outcome.tolist()) == (1, 1, [0.5])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((["a"], ["a"], [1.0]), "on both sides"),
        ((["a"], ["b"], [1.5]), "between 0 and 1"),
        ((["a", "b"], ["b"], [1.0]), "must match"),
    ],
)
def test_what_is_refused(arguments: tuple[list[str], list[str], list[float]], said: str) -> None:
    with pytest.raises(DataError, match=said):
        battles(*arguments)


def test_other_refusals() -> None:
    with pytest.raises(DataError, match="soft labels"):
        fit(battles(["a", "b"], ["b", "a"], [0.7, 0.4]), ties="davidson")
    with pytest.raises(DataError, match="not negative"):
        battles(["a"], ["b"], [1.0], weights=[-1.0])
    with pytest.raises(DataError, match="two ways"):
        battles(["a"], ["b"], [1.0], clusters=(["x"], ["y"], ["z"]))
    with pytest.raises(DataError, match="'won' is not one of"):
        outcome_of("won")
