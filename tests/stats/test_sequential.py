from __future__ import annotations

from math import comb, exp, log

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.errors import DataError
from trimtab.stats.sequential import always_valid, confidence_sequence, log_e_value


@pytest.mark.parametrize(
    ("wins", "losses", "prior", "e_value"), [(15, 5, 1, 3.220601), (9, 1, 1, 9.309091), (550, 450, 10, 18.850012)]
)
def test_e_values_known_to_six_places(wins: int, losses: int, prior: float, e_value: float) -> None:
    assert exp(float(log_e_value(wins, losses, prior=prior))) == pytest.approx(e_value, abs=1e-6)


def test_e_value_by_hand() -> None:
    # a = 1: B(10, 2) / B(1, 1) * 2^10 = (9! 1! / 11!) * 1024 = 1024 / 110
    assert exp(float(log_e_value(9, 1, prior=1))) == pytest.approx(1024 / 110)


def test_confidence_sequence_known() -> None:
    assert confidence_sequence(15, 5, prior=1) == pytest.approx((0.4217, 0.9493), abs=1e-4)


@pytest.mark.parametrize("p", [0.2, 0.5, 0.71])
@pytest.mark.parametrize("prior", [1.0, 30.0])
def test_mean_of_the_e_value_is_one(p: float, prior: float) -> None:
    """The law everything rests on, by enumeration of 12 flips."""
    mean = sum(
        comb(12, w) * p**w * (1 - p) ** (12 - w) * exp(float(log_e_value(w, 12 - w, p=p, prior=prior)))
        for w in range(13)
    )
    assert mean == pytest.approx(1.0, rel=1e-10)


@given(st.integers(0, 400), st.integers(0, 400))
def test_ends_are_where_the_evidence_is_twenty(wins: int, losses: int) -> None:
    lo, hi = confidence_sequence(wins, losses)
    share = wins / (wins + losses) if wins + losses else 0.5
    assert 0 <= lo <= share <= hi <= 1
    for end in (lo, hi):
        if 0 < end < 1:
            assert float(log_e_value(wins, losses, p=end)) == pytest.approx(log(20), abs=1e-5)


@given(st.integers(0, 300), st.integers(0, 300))
def test_test_and_interval_agree(wins: int, losses: int) -> None:
    found = always_valid([1.0] * wins + [0.0] * losses)
    assert (found.e_value >= 20) == (not found.lo < 0.5 < found.hi)
    assert found.p_value == pytest.approx(min(1, 1 / found.e_value))


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0]), max_size=80))
def test_swapping_mirrors(won: list[float]) -> None:
    there, back = always_valid(won), always_valid([1 - x for x in won])
    assert (there.lo, there.hi) == pytest.approx((1 - back.hi, 1 - back.lo), abs=1e-9)
    assert there.e_value == pytest.approx(back.e_value)
    assert there.wins + there.ties + there.losses == len(won)


def test_ties_say_nothing() -> None:
    with_ties, without = always_valid([1.0] * 20 + [0.5] * 500 + [0.0] * 4), always_valid([1.0] * 20 + [0.0] * 4)
    assert (with_ties.lo, with_ties.hi, with_ties.e_value) == (without.lo, without.hi, without.e_value)
    assert with_ties.ties == 500


def test_no_verdicts() -> None:
    found = always_valid([])
    assert (found.e_value, found.p_value, found.lo, found.hi) == (1.0, 1.0, 0.0, 1.0)


def test_many_verdicts_do_not_overflow() -> None:
    found = always_valid(np.ones(5000))
    assert found.p_value < 1e-300
    assert found.lo > 0.97
    assert np.isfinite(found.e_value)


def test_bad_counts_are_refused() -> None:
    with pytest.raises(DataError, match="cannot be negative"):
        confidence_sequence(-1, 2)
    with pytest.raises(DataError, match="between 0 and 1"):
        always_valid([3.0])


def test_lopsided_counts_have_an_end_at_zero() -> None:
    # The mixture puts 1 win in 76 at far less than p = 1e-9 does, so that no positive p is refuted from below.
    lo, hi = confidence_sequence(1, 75)
    assert lo == 0.0
    assert 1 / 76 < hi < 0.4  # wide: the mixture expects differences of some 0.06
    assert confidence_sequence(75, 1) == pytest.approx((1 - hi, 1.0))


@pytest.mark.parametrize("p", [0.5, 0.65])
def test_looking_after_every_verdict_errs_at_most_one_time_in_twenty(p: float) -> None:
    """2,000 paths, a look after each of 1,000 verdicts: the true p is ever left out in 5 % of them at most (+ 3
    errors).

    A plain 95 % interval looked at as often would leave it out in about half.
    """
    rng = np.random.default_rng(5)
    wins = np.cumsum(rng.random((2000, 1000)) < p, axis=1)
    losses = np.arange(1, 1001) - wins
    evidence = log_e_value(wins, losses, p=p)
    ever_out = float(np.mean(evidence.max(axis=1) >= log(20)))
    assert 0.002 < ever_out < 0.05 + 3 * (0.05 * 0.95 / 2000) ** 0.5
    share = wins / np.arange(1, 1001)
    plain_out = np.abs(share - p) > 1.96 * np.sqrt(p * (1 - p) / np.arange(1, 1001))
    assert plain_out.any(axis=1).mean() > 0.3


def test_a_real_difference_is_found() -> None:
    rng = np.random.default_rng(6)
    wins = np.cumsum(rng.random((500, 1500)) < 0.57, axis=1)
    found = (log_e_value(wins, np.arange(1, 1501) - wins) >= log(20)).any(axis=1)
    assert found.mean() > 0.95
