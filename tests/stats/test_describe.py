from __future__ import annotations

from math import inf, isnan, nan, sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.stats.describe import histogram, spread, trend


def test_spread_by_hand() -> None:
    found = spread([4.0, 1.0, nan, 2.0, 3.0, inf, 5.0])
    assert (found.n, found.mean, found.minimum, found.median, found.maximum) == (5, 3.0, 1.0, 3.0, 5.0)
    assert (found.p10, found.p90) == pytest.approx((1.4, 4.6))
    assert found.std == pytest.approx(sqrt(2))


def test_spread_of_nothing() -> None:
    found = spread([nan])
    assert found.n == 0
    assert isnan(found.mean)
    assert isnan(found.p90)


def test_histogram_shares_its_edges() -> None:
    edges, shares = histogram({"a": [0, 0, 1, nan], "b": [2, 3], "c": []}, bins=3)
    assert edges.tolist() == [0, 1, 2, 3]
    assert shares["a"].tolist() == pytest.approx([2 / 3, 1 / 3, 0])
    assert shares["b"].tolist() == pytest.approx([0, 0, 1])
    assert shares["c"].tolist() == [0, 0, 0]


def test_histogram_of_nothing() -> None:
    edges, shares = histogram({})
    assert shares == {}
    assert len(edges) == 25


def test_trend_by_hand() -> None:
    # 1, 2, 3, 4, 10: slope 2 (centred t: -2..2, t.x = -2 - 2 + 4 + 20 = 20, t.t = 10), change 8.
    # Residuals 1, 0, -1, -2, 2: sum of squares 10, error sqrt(10/3/10) = 0.57735, t(3) = 3.18245, times 4: ± 7.3495
    found = trend([1, 2, 3, 4, 10])
    assert (found.start, found.end, found.change) == (1.0, 10.0, 8.0)
    assert (found.lo, found.hi) == pytest.approx((8 - 7.34955, 8 + 7.34955), abs=1e-4)
    assert found.direction == 1


def test_start_and_end_are_fifths() -> None:
    found = trend([0, 2, *[5] * 6, 7, 9])
    assert (found.start, found.end) == (1.0, 8.0)


def test_noise_has_no_direction() -> None:
    rng = np.random.default_rng(0)
    moved = [trend(rng.normal(size=20)).direction != 0 for _ in range(600)]
    assert 0.02 < np.mean(moved) < 0.08
    assert trend([3.0] * 10).direction == 0


def test_too_few_to_tell() -> None:
    found = trend([1.0, nan, 9.0])
    assert (found.n, found.change, found.direction) == (2, 8.0, 0)
    assert isnan(found.lo)
    assert trend([]).n == 0


@given(st.lists(st.floats(-1e3, 1e3), min_size=3, max_size=40))
def test_turning_a_curve_round_turns_its_trend_round(values: list[float]) -> None:
    there, back = trend(values), trend(values[::-1])
    assert (there.start, there.end) == pytest.approx((back.end, back.start))
    assert there.change == pytest.approx(-back.change, abs=1e-6)
