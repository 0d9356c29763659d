"""Always-valid intervals for means: numbers of an independent implementation, peeking, the delta methods."""

from __future__ import annotations

from math import exp, inf, isnan, sqrt

import numpy as np
import pytest

from trimtab.errors import DataError
from trimtab.stats.mean_sequence import (
    Sample,
    compare_means,
    half_width,
    log_e_value,
    mixing_rate,
    proportion,
    ratio_of_users,
    sample,
    sample_from_sums,
    users_to_decide,
)


def test_the_known_means() -> None:
    old = sample_from_sums(3000, 1396.87, 52377.9767)
    new = sample_from_sums(3461, 2422.7, 134698.29)
    found = compare_means(old, new, expected_n=1000, relative=True)
    assert found.estimate == pytest.approx(0.503361, abs=1e-6)
    assert found.standard_error == pytest.approx(0.333412, abs=1e-6)
    assert (found.lo, found.hi) == pytest.approx((-0.558441, 1.565163), abs=1e-6)
    assert found.p_value == 1


def test_the_known_proportions() -> None:
    found = compare_means(proportion(1396, 3000), proportion(2422, 3461), expected_n=5000, relative=True)
    assert found.estimate == pytest.approx(0.503863, abs=1e-6)
    assert (found.lo, found.hi) == pytest.approx((0.400978, 0.606748), abs=1e-6)


def test_the_classical_form() -> None:
    """rho² = tau² / V: E is the likelihood ratio of N(0, tau²)-mixed drift to none, for pairs of variance V."""
    n, v, total = 40, 2.0, 17.0
    rho2 = mixing_rate(100) ** 2
    tau2 = rho2 * v
    by_hand = sqrt(v / (v + n * tau2)) * exp(tau2 * total**2 / (2 * v * (v + n * tau2)))
    z = (total / n) / sqrt(v / n)
    assert exp(float(log_e_value(z, n, expected_n=100))) == pytest.approx(by_hand)


@pytest.mark.parametrize("n", [10, 400, 20_000])
def test_the_interval_excludes_zero_where_the_test_rejects(n: int) -> None:
    width = half_width(1.0, n, expected_n=500)
    assert exp(float(log_e_value(width, n, expected_n=500))) == pytest.approx(20)


def test_it_is_tightest_where_it_was_told_to_be() -> None:
    """Against the width of an interval made for another size, at 1,000 users."""
    at = {expected: half_width(1 / sqrt(1000), 1000, expected_n=expected) for expected in (50, 700, 1000, 1400, 20_000)}
    assert min(at, key=at.__getitem__) == 1000


def test_peeking() -> None:
    """50 looks without an effect: the plain test cries wolf in a third of the studies, this one keeps its word."""
    rng = np.random.default_rng(0)
    steps = rng.normal(size=(1500, 50))
    n = 40.0 * np.arange(1, 51)
    z = np.cumsum(steps, axis=1) / np.sqrt(np.arange(1, 51))
    plain = np.mean((np.abs(z) > 1.96).any(axis=1))
    valid = np.mean((log_e_value(z, n, expected_n=1000) > np.log(20)).any(axis=1))
    assert 0.30 < plain < 0.39
    assert valid < 0.04


def test_swapping_the_arms() -> None:
    a, b = Sample(n=120, mean=1.0, variance=2.0), Sample(n=150, mean=1.4, variance=3.0)
    there, back = compare_means(a, b, expected_n=300), compare_means(b, a, expected_n=300)
    assert (there.lo, there.hi) == pytest.approx((-back.hi, -back.lo))
    assert there.p_value == pytest.approx(back.p_value)
    assert there.burnt_in
    assert not compare_means(a, Sample(n=99, mean=1.0, variance=1.0), expected_n=300).burnt_in


def test_samples_by_hand() -> None:
    assert sample([1.0, 2.0, 6.0]) == Sample(n=3, mean=3.0, variance=7.0)
    assert sample_from_sums(3, 9.0, 41.0) == Sample(n=3, mean=3.0, variance=7.0)
    assert isnan(sample([1.0]).variance)
    # two users with 1 thumb in 2 and 3 in 4: ratio 2/3, linearised (1 - 4/3)/3 and (3 - 8/3)/3, variance 2/81
    found = ratio_of_users([1, 3], [2, 4])
    assert (found.mean, found.variance) == pytest.approx((2 / 3, 2 / 81))


def test_messages_of_a_user_are_no_sample() -> None:
    """Every user repeats one answer: counted as messages the error is far too small, the delta method sees it."""
    rng = np.random.default_rng(1)
    size, like = rng.integers(1, 20, size=400), rng.random(400) < 0.5
    found = ratio_of_users(size * like, size)
    naive = sqrt(0.25 / size.sum())
    truth = np.std([float((size[i] * like[i]).sum() / size[i].sum()) for i in rng.integers(400, size=(300, 400))])
    assert sqrt(found.variance / found.n) == pytest.approx(truth, rel=0.15)
    assert truth > 3 * naive


def test_no_variance_and_too_few() -> None:
    one = compare_means(sample([1.0]), sample([2.0, 3.0]), expected_n=10)
    assert (one.lo, one.hi, one.p_value) == (-inf, inf, 1.0)
    flat = compare_means(sample([1.0] * 9), sample([1.0] * 9), expected_n=10)
    assert (flat.estimate, flat.p_value) == (0, 1)
    assert compare_means(sample([1.0] * 9), sample([2.0] * 9), expected_n=10).p_value < 1e-9


def test_users_to_decide() -> None:
    n = users_to_decide(0.2, 1.0, expected_n=1000)
    assert half_width(2 / sqrt(n), n, expected_n=1000) == pytest.approx(0.2)
    assert users_to_decide(0.0, 1.0, expected_n=1000) == inf
    assert users_to_decide(0.1, 1.0, expected_n=1000) > n


def test_what_is_refused() -> None:
    with pytest.raises(DataError, match="not zero"):
        compare_means(sample([-1.0, 1.0]), sample([1.0, 2.0]), expected_n=10, relative=True)
    with pytest.raises(DataError, match="above 0"):
        mixing_rate(0)
    with pytest.raises(DataError, match="not a proportion"):
        proportion(3, 2)
    with pytest.raises(DataError, match="finite number"):
        sample([float("nan")])
    with pytest.raises(DataError, match="at least 2"):
        sample_from_sums(1, 1, 1)
    with pytest.raises(DataError, match="more than nothing"):
        ratio_of_users([1, 2], [0, 0])
    with pytest.raises(DataError, match="one of each"):
        ratio_of_users([1], [1, 2])
