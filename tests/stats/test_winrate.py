from __future__ import annotations

from math import isnan, nan, sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.errors import DataError
from trimtab.stats.winrate import accuracy, length_matched, outcome, outcomes, wilson, win_rate

Z = 1.959963984540054
WON = st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), min_size=1, max_size=60)


def test_outcome() -> None:
    assert (outcome(2.0, 1.0), outcome(1.0, 1.0), outcome(-1.0, 0.0)) == (1.0, 0.5, 0.0)
    with pytest.raises(DataError, match="score is missing"):
        outcome(nan, 0.0)


def test_outcomes_average_the_orders() -> None:
    # Prompt 0: a first 0.7, b first 0.4 for a: one win, one loss. Prompt 1: a wins both. Prompt 2: a tie and a loss.
    a = [[0.7, 0.4], [0.9, 0.8], [0.5, 0.1]]
    b = [[0.3, 0.6], [0.1, 0.2], [0.5, 0.9]]
    assert outcomes(a, b).tolist() == [0.5, 1.0, 0.25]
    assert outcomes([3, 1, 2], [1, 3, 2]).tolist() == [1.0, 0.0, 0.5]


@pytest.mark.parametrize(
    ("a", "b", "says"),
    [([1.0, 2.0], [1.0], "two lists of one length"), ([1.0, nan], [1.0, 2.0], "prompt 1: .* missing")],
)
def test_outcomes_refuse(a: list[float], b: list[float], says: str) -> None:
    with pytest.raises(DataError, match=says):
        outcomes(a, b)


def test_wilson_by_hand() -> None:
    # 8 of 10: (0.8 + 0.19207 ± 1.95996 sqrt(0.016 + 0.0096036)) / 1.38415 = (0.99207 ± 0.31361) / 1.38415
    lo, hi = wilson(0.8, 10)
    assert lo == pytest.approx(0.4901625, abs=1e-6)
    assert hi == pytest.approx(0.9433178, abs=1e-6)
    assert wilson(0.0, 10) == (0.0, pytest.approx(Z**2 / (10 + Z**2)))
    assert wilson(0.5, 0) == (0.0, 1.0)


@given(st.floats(0, 1), st.floats(0.5, 5000), st.floats(0.5, 0.999))
def test_wilson_solves_its_equation(mean: float, n: float, level: float) -> None:
    """An end p is where the mean lies exactly z standard errors of p away (or at 0 or 1)."""
    z = {0.95: Z}.get(level)
    lo, hi = wilson(mean, n, level=level)
    assert 0 <= lo <= mean <= hi <= 1
    if z:
        for end in (lo, hi):
            assert abs(mean - end) == pytest.approx(z * sqrt(end * (1 - end) / n), abs=1e-9)


@pytest.mark.parametrize("mean", [0.1, 0.5, 0.93])
def test_wilson_ends_are_z_errors_away(mean: float) -> None:
    for end in wilson(mean, 37):
        assert abs(mean - end) == pytest.approx(Z * sqrt(end * (1 - end) / 37), rel=1e-9)


def test_accuracy() -> None:
    assert accuracy([True] * 8 + [False] * 2) == (0.8, *wilson(0.8, 10))
    mean, lo, hi = accuracy([])
    assert isnan(mean)
    assert (lo, hi) == (0.0, 1.0)


def test_win_rate_without_ties_is_wilson() -> None:
    found = win_rate([1.0] * 8 + [0.0] * 2)
    assert (found.lo, found.hi) == pytest.approx(wilson(0.8, 10))
    assert (found.wins, found.ties, found.losses, found.n) == (8, 0, 2, 10)


def test_win_rate_with_ties_by_hand() -> None:
    # m = 0.6, s² = 2.5/5 - 0.36 = 0.14, m(1-m) = 0.24: d = (5 * 7/12 + 4) / 9 = 83/108, N/d = 540/83 = 6.5060
    found = win_rate([1, 1, 0.5, 0.5, 0])
    assert found.mean == pytest.approx(0.6)
    assert (found.lo, found.hi) == pytest.approx(wilson(0.6, 540 / 83), rel=1e-12)
    assert (found.wins, found.ties, found.losses) == (2, 2, 1)


def test_all_ties_do_not_close_the_interval() -> None:
    found = win_rate([0.5] * 50)
    # d = 4/54, N/d = 675: 0.5 ± z sqrt(0.25 / (675 + z²))
    half = Z * sqrt(0.25 / (675 + Z**2))
    assert (found.lo, found.hi) == pytest.approx((0.5 - half, 0.5 + half))


def test_several_seeds_of_a_prompt_count_once() -> None:
    once = win_rate([1.0, 0.5, 0.0])
    assert win_rate([1, 1, 0, 1, 0, 0], prompts=["a", "a", "b", "b", "c", "c"]) == once
    assert win_rate([1, 0, 0, 1, 1, 0], prompts=["a", "b", "c", "a", "b", "c"]) == once
    with pytest.raises(DataError, match="2 prompt names"):
        win_rate([1.0], prompts=["a", "b"])


def test_copying_every_verdict_adds_nothing() -> None:
    won = [1.0, 0.0, 1.0, 0.5, 1.0]
    assert win_rate(won * 10, prompts=list(range(5)) * 10) == win_rate(won)


@given(WON)
def test_swapping_the_models_mirrors_everything(won: list[float]) -> None:
    there, back = win_rate(won), win_rate([1 - x for x in won]).flipped()
    assert (there.mean, there.lo, there.hi) == pytest.approx((back.mean, back.lo, back.hi), abs=1e-12)
    assert (there.wins, there.ties, there.losses, there.n) == (back.wins, back.ties, back.losses, back.n)
    assert 0 <= there.lo <= there.mean <= there.hi <= 1


@given(WON)
def test_a_model_against_itself_is_even(scores: list[float]) -> None:
    found = win_rate(outcomes(scores, scores))
    assert found.mean == 0.5
    assert found.ties == len(scores)


@pytest.mark.parametrize(
    ("chances", "n", "repeats"),
    [((0.4, 0.0, 0.6), 40, 1), ((0.3, 0.3, 0.4), 60, 1), ((0.1, 0.7, 0.2), 100, 1), ((0.3, 0.1, 0.6), 50, 4)],
)
def test_interval_covers(chances: tuple[float, float, float], n: int, repeats: int) -> None:
    """95 % intervals hold the true rate in at least 93.5 % of 1,000 samples, and are not so wide that they always
    do."""
    rng = np.random.default_rng(11)
    truth = chances[1] / 2 + chances[2]
    drawn = rng.choice([0.0, 0.5, 1.0], p=chances, size=(1000, n, repeats))
    held = [found.lo <= truth <= found.hi for found in (win_rate(row.mean(axis=1)) for row in drawn)]
    assert 0.935 <= np.mean(held) < 1


def test_outcomes_outside_the_scale_are_refused() -> None:
    for won in ([2.0], [-0.1], [nan]):
        with pytest.raises(DataError, match="between 0 and 1"):
            win_rate(won)


def test_no_prompts_know_nothing() -> None:
    found = win_rate([])
    assert isnan(found.mean)
    assert (found.lo, found.hi, found.n) == (0.0, 1.0, 0)


def test_length_matched() -> None:
    # Differences over the longer: 0, 0.2 (kept, at the edge), 0.21, 0.5, and two empty answers (equal).
    won, a, b = [1, 0, 1, 1, 0.5], [100, 80, 79, 50, 0], [100, 100, 100, 100, 0]
    found = length_matched(won, a, b)
    assert found == win_rate([1, 0, 0.5])
    assert length_matched(won, a, b, fraction=0.0) == win_rate([1, 0.5])
    assert length_matched([1.0], [10], [100]) is None
    with pytest.raises(DataError, match="two lengths a prompt"):
        length_matched([1.0], [10, 20], [10, 20])


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.integers(0, 99), st.integers(0, 99)), min_size=1))
def test_length_matching_is_symmetric(rows: list[tuple[float, int, int]]) -> None:
    won, a, b = ([row[i] for row in rows] for i in range(3))
    there, back = length_matched(won, a, b), length_matched([1 - x for x in won], b, a)
    assert (there is None) == (back is None)
    if there and back:
        assert there.mean == pytest.approx(1 - back.mean)
        assert there.n == back.n


def test_a_verbose_copy_wins_only_by_length() -> None:
    """Two models of equal quality, the judge adds a point per token: all of the win is length, and matching shows
    it."""
    rng = np.random.default_rng(3)
    quality = rng.normal(size=(2, 4000))
    length_a, length_b = rng.integers(100, 260, 4000), rng.integers(80, 200, 4000)
    won = outcomes(quality[0] + length_a / 40, quality[1] + length_b / 40)
    raw, matched = win_rate(won), length_matched(won, length_a, length_b)
    assert matched is not None
    assert raw.mean > 0.68
    assert abs(matched.mean - 0.5) < (raw.mean - 0.5) / 2
