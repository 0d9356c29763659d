"""Crowd Bradley-Terry: gradient by finite differences, the plain case, recovery of raters, symmetry of sides."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import approx_fprime

from trimtab.errors import DataError
from trimtab.stats.battles import Battles, battles
from trimtab.stats.bradley_terry import fit
from trimtab.stats.crowd_bradley_terry import fit_crowd, negative_log_posterior

THETA = np.array([-1.2, -0.3, 0.4, 1.1])


def crowd(n: int, eta: list[float], bias: list[float], seed: int = 0) -> tuple[Battles, list[str]]:
    rng = np.random.default_rng(seed)
    a = rng.integers(4, size=n)
    b = (a + 1 + rng.integers(3, size=n)) % 4
    who = rng.integers(len(eta), size=n)
    d, e, left = THETA[a] - THETA[b], np.array(eta)[who], np.array(bias)[who]
    p = e / (1 + np.exp(-d - left)) + (1 - e) / (1 + np.exp(d - left))
    y = (rng.random(n) < p).astype(float)
    return battles([f"m{i}" for i in a], [f"m{i}" for i in b], y), [f"r{k}" for k in who]


def test_the_gradient_is_the_derivative() -> None:
    rows, raters = crowd(60, [0.9, 0.6, 0.3], [0.0, 0.5, -0.4])
    who = np.unique(raters, return_inverse=True)[1]
    at = np.random.default_rng(1).normal(size=4 + 2 * 3)

    def loss(x: np.ndarray) -> float:
        return negative_log_posterior(x, rows, who, prior_sd=1.5, reliability=(5, 2), bias_sd=0.7)[0]

    _, gradient = negative_log_posterior(at, rows, who, prior_sd=1.5, reliability=(5, 2), bias_sd=0.7)
    assert gradient == pytest.approx(approx_fprime(at, loss, 1e-6), rel=1e-4, abs=1e-4)


def test_sure_raters_without_bias_are_plain_bradley_terry() -> None:
    rows, raters = crowd(400, [1.0], [0.0])
    found = fit_crowd(rows, raters, reliability=(1e7, 1.0), bias_sd=0.0, prior_sd=1e3)
    assert found.theta == pytest.approx(fit(rows).theta, abs=1e-3)
    assert found.left_bias.tolist() == [0.0]


def test_raters_are_told_apart() -> None:
    """An expert, a coin, one who turns the scale round, one who likes the left: and the models in spite of them."""
    rows, raters = crowd(4000, [0.97, 0.5, 0.15, 0.95], [0.0, 0.0, 0.0, 1.5])
    found = fit_crowd(rows, raters)
    expert, coin, contrary, left = found.reliability
    assert expert > 0.9
    assert coin == pytest.approx(0.5, abs=0.08)
    assert contrary < 0.25
    assert left > 0.85
    assert found.left_bias == pytest.approx([0, 0, 0, 1.5], abs=0.35)
    assert found.theta == pytest.approx(THETA, abs=0.2)
    assert np.abs(fit(rows).theta - THETA).max() > 0.5  # what ignoring the raters would have given


def test_turning_every_pair_turns_the_bias() -> None:
    rows, raters = crowd(600, [0.9, 0.7], [0.8, -0.3])
    names = rows.names
    turned = battles([names[i] for i in rows.second], [names[i] for i in rows.first], 1 - rows.outcome)
    there, back = fit_crowd(rows, raters), fit_crowd(turned, raters)
    assert back.theta == pytest.approx(there.theta, abs=1e-4)
    assert back.reliability == pytest.approx(there.reliability, abs=1e-4)
    assert back.left_bias == pytest.approx(-there.left_bias, abs=1e-4)
    assert back.log_posterior == pytest.approx(there.log_posterior, abs=1e-6)


def test_a_rater_who_said_next_to_nothing_is_an_ordinary_one() -> None:
    rows, raters = crowd(300, [0.95], [0.0])
    raters[0] = "new"
    found = fit_crowd(rows, raters)
    # Beta(5, 2) and one verdict, right or wrong: between 4/6 and 5/6
    assert 0.64 < found.reliability[found.raters.index("new")] < 0.85


def test_what_is_refused() -> None:
    rows, raters = crowd(5, [1.0], [0.0])
    with pytest.raises(DataError, match="4 raters"):
        fit_crowd(rows, raters[:4])
    with pytest.raises(DataError, match="proper"):
        fit_crowd(rows, raters, prior_sd=0.0)
    with pytest.raises(DataError, match="no comparisons"):
        fit_crowd(battles([], [], []), [])
