"""Signs of careless raters: exact tails, honest raters left alone, careless ones found, the alarm on exclusions."""

from __future__ import annotations

from math import comb, isnan, log

import numpy as np
import pytest

from trimtab.errors import DataError
from trimtab.stats.raters import exclusion_alarm, gold_misses, odd_votes, over_cap, position_bias, too_fast


def test_position_bias_by_hand() -> None:
    # 9 of 10 first: two-sided tail 2 (1 + 10) / 2^10
    found = position_bias([1.0] * 9 + [0.0] + [0.5] * 5)
    assert (found.rate, found.n) == (0.9, 10)
    assert found.p_value == pytest.approx(22 / 1024)
    assert not found.flag
    assert position_bias([1.0] * 60 + [0.0] * 20).flag
    assert position_bias([0.0] * 60 + [1.0] * 20).flag
    nothing = position_bias([0.5])
    assert isnan(nothing.rate)
    assert (nothing.lo, nothing.hi, nothing.flag) == (0, 1, False)


def test_too_fast() -> None:
    # 500 words at 1,000 a minute take 30 s
    found = too_fast([29.0, 31.0, 2.0, float("nan")], [500, 500, 20, 500])
    assert (found.rate, found.n, found.flag) == (pytest.approx(1 / 3), 3, False)
    # at least 8 of 10 at an allowed share of .1
    tail = sum(comb(10, k) * 0.1**k * 0.9 ** (10 - k) for k in range(8, 11))
    hasty = too_fast([1.0] * 8 + [60.0] * 2, [500] * 10)
    assert hasty.p_value == pytest.approx(tail, rel=1e-4)
    assert hasty.flag


def test_gold_misses() -> None:
    assert gold_misses([True] * 7 + [False] * 3).rate == pytest.approx(0.3)
    assert not gold_misses([True] * 7 + [False] * 3).flag
    assert gold_misses([False] * 10 + [True] * 2).flag
    assert gold_misses([]).n == 0


def crowd_votes(rng: np.random.Generator, n: int) -> tuple[list[np.ndarray], np.ndarray]:
    """For each pair 30 votes of others, and what an honest rater says of it: all drawn from the pair's own chances."""
    chances = rng.dirichlet([0.6, 0.5, 0.6], size=n)
    histories = [rng.choice([0.0, 0.5, 1.0], size=30, p=chance) for chance in chances]
    honest = np.array([rng.choice([0.0, 0.5, 1.0], p=chance) for chance in chances])
    return histories, honest


def test_honest_raters_are_left_alone_and_careless_ones_found() -> None:
    rng = np.random.default_rng(0)
    wrongly = found = 0
    for _ in range(60):
        histories, honest = crowd_votes(rng, 60)
        wrongly += odd_votes(honest, histories).flagged is not None
        careless = rng.choice([0.0, 0.5, 1.0], size=60)
        found += odd_votes(careless, histories).flagged is not None
    assert wrongly <= 2
    assert found >= 54


def test_odd_votes_by_hand() -> None:
    # against nine votes 1: p of a 0 is 2 x 1/10, of a 1 it is 1; chances (0 + 1)/12 and (9 + 1)/12
    odd, even = odd_votes([0.0], [[1.0] * 9]), odd_votes([1.0], [[1.0] * 9])
    assert odd.log_tail == pytest.approx(-log(2) - 0.5 * log(0.2))
    assert odd.log_random == pytest.approx(log((1 / 3) / (1 / 12)))
    assert even.log_tail == pytest.approx(-log(2))
    assert even.log_random == pytest.approx(log((1 / 3) / (10 / 12)))
    assert odd_votes([], []).log_e == 0


def test_the_random_bet_is_fair() -> None:
    """Mean one over the next vote, when chances are as the history says (add-one)."""
    history = [0.0, 0.5, 1.0, 1.0, 1.0]
    chance = {0.0: 2 / 8, 0.5: 2 / 8, 1.0: 4 / 8}
    mean = sum(p * np.exp(odd_votes([v], [history]).log_random) for v, p in chance.items())
    assert mean == pytest.approx(1)


def test_daily_cap() -> None:
    assert over_cap(["a", "a", "b", "a", "a"], [1, 1, 1, 1, 2], cap=2).tolist() == [False, False, False, True, False]


def test_the_alarm_on_exclusions() -> None:
    quiet = exclusion_alarm((20, 1000), (3, 100))
    assert not quiet.flag
    jump = exclusion_alarm((20, 1000), (30, 100))
    assert jump.flag
    assert jump.rate == 0.3
    # Fisher's tail by hand: 2 of 4 now against 0 of 4: C(4,2) C(4,0) / C(8,2) = 6 / 28
    assert exclusion_alarm((0, 4), (2, 4)).p_value == pytest.approx(6 / 28)
    assert exclusion_alarm((5, 10), (0, 10)).p_value == 1
    assert not exclusion_alarm((10_000, 100_000), (11_000, 100_000)).flag  # sure, but small
    assert not exclusion_alarm((0, 0), (0, 0)).flag


def test_what_is_refused() -> None:
    with pytest.raises(DataError):
        position_bias([2.0])
    with pytest.raises(DataError):
        too_fast([1.0], [1, 2])
    with pytest.raises(DataError, match=r"0, 0\.5 or 1"):
        odd_votes([0.7], [[1.0]])
    with pytest.raises(DataError):
        odd_votes([1.0], [])
    with pytest.raises(DataError):
        over_cap(["a"], [], cap=1)
    with pytest.raises(DataError):
        exclusion_alarm((3, 2), (0, 1))
