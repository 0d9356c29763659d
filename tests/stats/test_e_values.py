"""E-values: mean one under the null, false alarms and power under watching, many tests."""

from __future__ import annotations

from itertools import product
from math import exp, log

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.errors import DataError
from trimtab.stats.e_values import (
    average,
    e_bh,
    from_p_value,
    holm,
    paired_path,
    path,
    running_interval,
    two_proportions,
)
from trimtab.stats.sequential import confidence_sequence, log_e_value


def test_paired_path_follows_the_process() -> None:
    found = paired_path([1, 0.5, 0, 1], prior=1)
    assert found.log_e == pytest.approx(log_e_value([1, 1, 1, 2], [0, 0, 1, 1], prior=1))
    assert found.stopped is None
    streak = paired_path([1] * 12, prior=1)
    # after n wins E = 2^n / (n + 1): 2^7 / 8 = 16, 2^8 / 9 = 28.4
    assert streak.stopped == 8
    assert streak.p_value == pytest.approx(13 / 2**12)


def test_evidence_once_seen_stays_seen() -> None:
    assert paired_path([1] * 10 + [0] * 10, prior=1).p_value == pytest.approx(11 / 2**10)


def stopping(p: float) -> np.ndarray:
    """P(stopped by n), (2000,), exactly: the random walk of wins, absorbed where E >= 20."""
    alive, stopped = np.array([1.0]), []
    for n in range(1, 2001):
        new = np.zeros(n + 1)
        new[1:] += alive * p
        new[:-1] += alive * (1 - p)
        wins = np.arange(n + 1)
        crossed = log_e_value(wins, n - wins) >= log(20)
        stopped.append(float(new[crossed].sum()))
        alive = np.where(crossed, 0.0, new)
    return np.cumsum(stopped)


def test_watching_every_one_of_two_thousand_verdicts() -> None:
    """False alarms stay below 5 %; with 55 % wins it stops in 95 of 100 studies, half by 716 verdicts."""
    assert stopping(0.5)[-1] == pytest.approx(0.0307, abs=1e-4)
    ahead = stopping(0.55)
    assert ahead[-1] == pytest.approx(0.9510, abs=1e-4)
    assert int(np.searchsorted(ahead, 0.5)) + 1 == 716


def test_running_interval_is_an_intersection() -> None:
    won = [1, 1, 1, 1, 1, 1, 0, 0, 0, 0]
    lo, hi = running_interval(won, prior=1)
    each = [confidence_sequence(sum(won[:n]), n - sum(won[:n]), prior=1) for n in range(1, 11)]
    assert lo == max(low for low, _ in each)
    assert hi == min(high for _, high in each)
    assert running_interval([]) == (0, 1)


@pytest.mark.parametrize("p", [0.03, 0.5, 0.8])
def test_two_proportions_have_mean_one(p: float) -> None:
    """By enumeration of four blocks, whatever the common rate."""
    mean = 0.0
    for outcomes in product((0, 1), repeat=8):
        chance = np.prod([p if y else 1 - p for y in outcomes])
        mean += float(chance) * exp(two_proportions(outcomes[:4], outcomes[4:]).log_e[-1])
    assert mean <= 1 + 1e-12
    if p == 0.5:
        assert mean == pytest.approx(1, abs=0.02)


def test_two_proportions_by_hand() -> None:
    # block 1: all plug-ins 1/2, factor 1. Block 2 after (1, 0): p_a = 2/3, p_b = 1/3, p_0 = 1/2: (2/3)² / (1/4)
    assert np.exp(two_proportions([1, 1], [0, 0]).log_e) == pytest.approx([1, 16 / 9])


@pytest.mark.parametrize("p", [0.03, 0.5])
def test_two_proportions_under_watching(p: float) -> None:
    rng = np.random.default_rng(int(100 * p))
    draws = rng.random((600, 2, 400)) < p
    alarms = [two_proportions(a, b).stopped is not None for a, b in draws]
    assert np.mean(alarms) < 0.065
    seen = [two_proportions(a, b).stopped for a, b in rng.random((30, 2, 600)) < np.array([p, p + 0.2])[:, None]]
    assert np.mean([at is not None for at in seen]) > 0.9


def test_a_p_value_becomes_an_e_value() -> None:
    grid = (np.arange(100_000) + 0.5) / 100_000
    assert from_p_value(grid).mean() == pytest.approx(1, abs=5e-3)
    assert from_p_value(0.01) == pytest.approx(5)
    assert (0.5 / grid).mean() > 5  # what 1 / (2 p) would be: no e-value, and growing with the grid
    with pytest.raises(DataError):
        from_p_value(0.0)


def test_many_tests_by_hand() -> None:
    # K = 4, alpha .05: k e >= 80: 100 >= 80, 2 x 41 >= 80, 3 x 20 < 80, 4 x 20 >= 80: all four
    assert e_bh([20, 100, 41, 20]).tolist() == [True] * 4
    assert e_bh([19, 100, 39, 1]).tolist() == [False, True, False, False]
    assert e_bh([10, 10]).tolist() == [False, False]
    # .01 <= .05/3, .02 <= .05/2, .2 > .05
    assert holm([0.2, 0.01, 0.02]).tolist() == [False, True, True]
    assert holm([0.03, 0.04]).tolist() == [False, False]
    assert holm([0.01]).tolist() == [True]
    assert e_bh([]).tolist() == holm([]).tolist() == []
    assert average([0.0, 3.0]) == 1.5
    assert average([]) == 1


@given(st.lists(st.floats(0.001, 1), min_size=1, max_size=8), st.integers(0, 7))
def test_holm_rejects_no_more_when_evidence_weakens(p: list[float], at: int) -> None:
    weaker = list(p)
    weaker[at % len(p)] = 1.0
    before, after = holm(p), holm(weaker)
    assert not np.any(after & ~before)


def test_path_of_nothing_and_refusals() -> None:
    assert (path([]).p_value, path([]).stopped) == (1.0, None)
    with pytest.raises(DataError, match="between 0 and 1"):
        paired_path([2.0])
    with pytest.raises(DataError, match="0 and 1"):
        two_proportions([0.5], [1])
