"""PPI++: by hand, coverage with a biased judge, what it saves, and that a useless judge costs nothing."""

from __future__ import annotations

import numpy as np
import pytest

from trimtab.errors import DataError
from trimtab.stats.prediction_powered import Powered, powered_mean


def test_by_hand() -> None:
    # lambda 1: mean(g) + mean(y - f) = 0.5 + (1 - 0 + 0)/3; var(y - f) over 2 is 1/3, var of the pooled judge 0.3
    found = powered_mean([1, 1, 0], [0, 1, 0], [1, 0, 1, 0], weight=1.0)
    assert found.mean == pytest.approx(0.5 + 1 / 3)
    pooled = np.var([0, 1, 0, 1, 0, 1, 0], ddof=1)
    assert found.standard_error == pytest.approx(np.sqrt((1 / 3) / 3 + pooled / 4))


def study(rng: np.random.Generator, n: int, more: int) -> Powered:
    """People say .50; the judge agrees in seven of ten and says .54."""
    truth = (rng.random(n + more) < 0.5).astype(float)
    said = np.where(truth == 1, rng.random(n + more) < 0.79, rng.random(n + more) < 0.29).astype(float)
    return powered_mean(truth[:n], said[:n], said[n:])


def test_coverage_and_saving_with_a_biased_judge() -> None:
    rng = np.random.default_rng(0)
    found = [study(rng, 300, 5000) for _ in range(600)]
    inside = np.mean([one.lo <= 0.5 <= one.hi for one in found])
    assert 0.925 <= inside <= 0.97
    assert np.mean([one.judge for one in found]) == pytest.approx(0.54, abs=0.005)
    assert np.mean([one.mean for one in found]) == pytest.approx(0.5, abs=0.005)
    assert np.mean([one.effective_n for one in found]) / 300 == pytest.approx(1.30, abs=0.06)  # 1 / (1 - .5²) less n/N


def test_a_useless_judge_costs_nothing() -> None:
    rng = np.random.default_rng(1)
    y = (rng.random(400) < 0.5).astype(float)
    found = powered_mean(y, rng.random(400), rng.random(4000))
    assert found.weight < 0.25
    assert found.standard_error <= y.std(ddof=1) / 20 * 1.001
    alone = powered_mean(y, y, [])
    assert (alone.mean, alone.weight) == (pytest.approx(y.mean()), 0)
    assert alone.effective_n == pytest.approx(400)


def test_a_perfect_judge_is_all_data() -> None:
    rng = np.random.default_rng(2)
    y = (rng.random(1100) < 0.6).astype(float)
    found = powered_mean(y[:100], y[:100], y[100:])
    assert found.weight == pytest.approx(1 / 1.1, abs=0.15)
    assert found.effective_n > 800


def test_what_is_refused() -> None:
    for labels, judged in (([1.0], [1.0]), ([1.0, 0.0], [1.0]), ([1.0, float("nan")], [1.0, 0.0])):
        with pytest.raises(DataError):
            powered_mean(labels, judged, [1.0])
    with pytest.raises(DataError, match="must be 0"):
        powered_mean([1, 0], [1, 0], [], weight=0.5)
