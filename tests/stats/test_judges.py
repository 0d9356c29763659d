"""A judge's faults in numbers: by hand, for judges made to have them, and without them."""

from __future__ import annotations

from math import isnan, log

import numpy as np
import pytest

from trimtab.errors import DataError
from trimtab.stats.judges import (
    agreement,
    both_orders,
    consistency,
    drift,
    length_slope,
    position_effect,
    self_preference,
    simulator_card,
)


def test_both_orders_disagreeing_is_a_tie() -> None:
    assert both_orders([1, 1, 0, 0.5, 1, 0.5], [1, 0, 0, 0.5, 0.5, 0]).tolist() == [1, 0.5, 0, 0.5, 0.5, 0.5]
    assert consistency([1, 1, 0, 0.5], [1, 0, 0, 0.5]).mean == 0.75


def test_position_effect() -> None:
    assert position_effect([1] * 8, [0] * 8).value == 0.5  # always the first
    assert position_effect([0] * 8, [1] * 8).value == -0.5
    fair = position_effect([1, 0, 1, 0], [1, 0, 1, 0])
    assert (fair.value, fair.lo, fair.hi) == (0, 0, 0)
    # two prompts of different size count once each: means .5 and 0
    assert position_effect([1, 1, 1, 1], [0, 0, 0, 1], prompts=["p", "p", "p", "q"]).value == 0.25
    rng = np.random.default_rng(0)
    likes_first = [(rng.random(400) < 0.6, rng.random(400) < 0.4) for _ in range(80)]
    inside = [r.lo <= 0.1 <= r.hi for r in (position_effect(a, b) for a, b in likes_first)]
    assert 0.88 <= np.mean(inside) <= 1


def test_agreement_and_self_preference() -> None:
    assert agreement([1, 0.5, 0, 1], [1, 0.5, 1, 0]).mean == 0.5
    # own answer wins 3 of 4 for the judge, 1 of 4 for people
    found = self_preference([1, 1, 1, 0], [1, 0, 0, 0])
    assert found.value == 0.5
    assert found.lo < 0.5 < found.hi
    assert self_preference([1, 0], [1, 0]).value == 0


def test_length_slope() -> None:
    rng = np.random.default_rng(0)
    n = 3000
    gap = rng.normal(0, 300, size=n)
    quality = rng.normal(size=n)
    shape = np.tanh(gap / np.sqrt(np.mean(gap**2)))
    gold = (rng.random(n) < 1 / (1 + np.exp(-quality))).astype(float)
    judge = (rng.random(n) < 1 / (1 + np.exp(-(1.2 * shape + 2 * (gold - 0.5))))).astype(float)
    found = length_slope(judge, gap, gold=gold)
    assert found.value == pytest.approx(1.2, abs=0.25)
    assert found.lo < 1.2 < found.hi
    fair = length_slope(gold, gap)
    assert fair.lo < 0 < fair.hi
    turned = length_slope(1 - judge, -gap, gold=1 - gold)
    assert turned.value == pytest.approx(found.value)
    # +-1 gaps, 3 of 4 for the longer: tanh(1) b = ln 3
    assert length_slope([1, 1, 1, 0] * 500, [1] * 2000).value == pytest.approx(log(3) / np.tanh(1), rel=1e-3)
    assert isnan(length_slope([1, 0], [0, 0]).value)
    assert np.isfinite(length_slope([1, 0], [5, -5]).value)


def test_drift() -> None:
    before = [1, 0, 1, 0] * 10
    assert not drift(before, before).alarm
    few = drift(before, [0, *before[1:]])
    assert few.changed.mean == pytest.approx(1 / 40)
    assert not few.alarm
    # ten of forty moved, all down: sign test 2 / 2^10, share surely above a tenth
    moved = drift([1] * 40, [0] * 10 + [1] * 30)
    assert moved.p_value == pytest.approx(2 / 2**10)
    assert moved.alarm


def test_simulator_card() -> None:
    found = simulator_card([0.1, 0.2, -0.3, 0.4], [1, 2, -3, -4], confident=[True, True, True, False])
    # ranks 2 3 1 4 and 3 4 2 1: Spearman 1 - 6 (1 + 1 + 1 + 9) / (4 x 15)
    assert found.correlation == pytest.approx(1 - 72 / 60)
    assert found.sign.mean == 0.75
    assert found.confident is not None
    assert found.confident.mean == 1
    tied = simulator_card([1.0, 1.0, 2.0], [1.0, 2.0, 3.0])
    assert tied.correlation == pytest.approx(np.sqrt(3) / 2)  # ranks 1.5 1.5 3 and 1 2 3
    assert tied.confident is None
    assert isnan(simulator_card([1.0, 1.0], [1.0, 2.0]).correlation)


def test_what_is_refused() -> None:
    with pytest.raises(DataError, match="cannot be compared"):
        both_orders([1], [1, 0])
    with pytest.raises(DataError, match="between 0 and 1"):
        agreement([2], [1])
    with pytest.raises(DataError, match="one of each"):
        length_slope([1], [1, 2])
    with pytest.raises(DataError, match="prompt names"):
        position_effect([1, 0], [1, 0], prompts=["p"])
    with pytest.raises(DataError, match="finite"):
        simulator_card([1.0], [float("nan")])
