"""Experiments: buckets that other software agrees with, sound splits, less noise, guardrails, the ramp."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from trimtab.errors import DataError
from trimtab.stats.experiments import (
    RAMP,
    Guardrail,
    arm_of,
    bucket,
    check_guardrail,
    cuped,
    fnv1a32,
    next_share,
    sample_ratio,
    unit_means,
)
from trimtab.stats.mean_sequence import Sample, compare_means, sample


@pytest.mark.parametrize(("seed", "unit", "at"), [("seed", "a", 0.0505), ("seed", "b", 0.2696), ("foo", "ab", 0.2575)])
def test_buckets_that_others_compute(seed: str, unit: str, at: float) -> None:
    assert bucket(seed, unit) == at


@pytest.mark.parametrize(("text", "value"), [("", 0x811C9DC5), ("a", 0xE40C292C), ("foobar", 0xBF9CF968)])
def test_the_hash_by_its_published_values(text: str, value: int) -> None:
    assert fnv1a32(text) == value


def test_arms_follow_their_weights_and_stay() -> None:
    users = [f"user-{i}" for i in range(4000)]
    arms = [arm_of("exp", user, [0.5, 0.3, 0.2]) for user in users]
    assert np.bincount(arms) / 4000 == pytest.approx([0.5, 0.3, 0.2], abs=0.025)
    assert not sample_ratio(np.bincount(arms).tolist(), [0.5, 0.3, 0.2]).alarm
    narrow = [arm_of("exp", user, [0.5, 0.3, 0.2], coverage=0.1) for user in users]
    assert all(few is None or few == all_ for few, all_ in zip(narrow, arms, strict=True))
    assert np.mean([few is not None for few in narrow]) == pytest.approx(0.1, abs=0.02)
    other = [arm_of("other", user, [0.5, 0.3, 0.2]) for user in users]
    assert np.mean([a == b for a, b in zip(arms, other, strict=True)]) == pytest.approx(0.38, abs=0.03)  # independent
    assert arm_of("exp", "u", [1.0], coverage=0.0) is None


def test_sample_ratio_by_hand() -> None:
    # (60 - 50)² / 50 twice = 4: the tail of chi-squared(1) at 4
    found = sample_ratio([60, 40], [0.5, 0.5])
    assert found.p_value == pytest.approx(0.0455003)
    assert not found.alarm
    assert sample_ratio([6000, 5600], [1, 1]).alarm
    assert sample_ratio([0, 0], [1, 1]).p_value == 1


def test_cuped_takes_off_what_was_known() -> None:
    rng = np.random.default_rng(0)
    n, rho = 4000, 0.7
    before = rng.normal(size=n)
    arm = rng.integers(2, size=n)
    y = 0.2 * arm + rho * before + np.sqrt(1 - rho**2) * rng.normal(size=n)
    found = cuped(y, before, arms=arm)
    assert found.theta == pytest.approx(rho, abs=0.04)
    assert found.reduction == pytest.approx(rho**2, abs=0.03)
    plain = compare_means(sample(y[arm == 0]), sample(y[arm == 1]), expected_n=n)
    less = compare_means(sample(found.values[arm == 0]), sample(found.values[arm == 1]), expected_n=n)
    assert less.standard_error == pytest.approx(plain.standard_error * np.sqrt(1 - rho**2), rel=0.03)
    assert less.estimate == pytest.approx(0.2, abs=3 * less.standard_error)
    assert found.values.mean() == pytest.approx(y.mean())


def test_cuped_edges() -> None:
    y = np.array([1.0, 2.0, 4.0])
    assert cuped(y, [5, 5, 5]).values.tolist() == y.tolist()
    new_users = cuped(y, [np.nan] * 3)
    assert (new_users.theta, new_users.reduction) == (0, 0)
    shifted = cuped(y, [1.0, np.nan, 3.0])
    assert shifted.values == pytest.approx(cuped(y, [1.0, 2.0, 3.0]).values)
    # theta = cov / var = (1.5 + 1.5) / 2 = 1.5: 1 + 1.5, 2, 4 - 1.5
    assert shifted.values == pytest.approx([2.5, 2.0, 2.5])


LATENCY = Guardrail(name="slow answers", worse="higher", margin=0.02)


def test_guardrails() -> None:
    old = Sample(n=4000, mean=0.05, variance=0.05 * 0.95)
    assert check_guardrail(LATENCY, old, Sample(n=4000, mean=0.15, variance=0.13), expected_n=5000).breached
    fine = check_guardrail(LATENCY, old, Sample(n=4000, mean=0.04, variance=0.04), expected_n=5000)
    assert (fine.breached, fine.safe) == (False, True)
    open_ = check_guardrail(LATENCY, old, Sample(n=4000, mean=0.068, variance=0.06), expected_n=5000)
    assert (open_.breached, open_.safe) == (False, False)
    early = check_guardrail(LATENCY, old, Sample(n=50, mean=0.9, variance=0.1), expected_n=5000)
    assert (early.breached, early.safe) == (False, False)
    keep = replace(LATENCY, worse="lower", relative=True, margin=0.1)
    assert check_guardrail(keep, old, Sample(n=4000, mean=0.02, variance=0.02), expected_n=5000).breached
    assert not check_guardrail(keep, old, Sample(n=4000, mean=0.15, variance=0.13), expected_n=5000).breached


def test_a_guardrail_holds_its_alarms() -> None:
    """Harm exactly at the margin, 40 looks: alarms in at most alpha of the studies."""
    rng = np.random.default_rng(0)
    alarms = 0
    for _ in range(150):
        old, new = rng.normal(0, 1, size=2000), rng.normal(0.1, 1, size=2000)
        limit = Guardrail(name="x", margin=0.1)
        alarms += any(
            check_guardrail(limit, sample(old[:n]), sample(new[:n]), expected_n=2000).breached
            for n in range(100, 2001, 100)
        )
    assert alarms / 150 < 0.06


def test_the_ramp() -> None:
    old, bad = Sample(n=4000, mean=0.05, variance=0.05), Sample(n=4000, mean=0.3, variance=0.2)
    fine = check_guardrail(LATENCY, old, old, expected_n=5000)
    breach = check_guardrail(LATENCY, old, bad, expected_n=5000)
    early = check_guardrail(LATENCY, old, Sample(n=3, mean=0.0, variance=0.1), expected_n=5000)
    share, seen = 0.0, []
    for _ in range(6):
        share = next_share(share, [fine])
        seen.append(share)
    assert tuple(seen) == (*RAMP, 0.5)
    assert next_share(0.25, [fine, breach]) == 0
    assert next_share(0.05, [fine, early]) == 0.05


def test_units() -> None:
    names, means = unit_means([1, 2, 3, 10], ["b", "a", "b", "a"])
    assert names == ("a", "b")
    assert means.tolist() == [6, 2]


def test_what_is_refused() -> None:
    with pytest.raises(DataError, match="sum to 1"):
        arm_of("s", "u", [0.5, 0.6])
    with pytest.raises(DataError, match="not a share"):
        arm_of("s", "u", [1.0], coverage=2)
    with pytest.raises(DataError, match="two arms"):
        sample_ratio([5], [1.0])
    with pytest.raises(DataError, match="one of each"):
        cuped([1.0, 2.0], [1.0])
    with pytest.raises(DataError, match="2 units"):
        unit_means([1.0], ["a", "b"])
