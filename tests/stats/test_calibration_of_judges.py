"""Temperature, isotonic regression, and how far stated chances are off."""

from __future__ import annotations

from math import inf, log

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.errors import DataError
from trimtab.stats.calibration import calibration, isotonic, temperature


def test_temperature_by_hand() -> None:
    """One logit only: sigmoid(2 / T) must be the share that came true, 3 of 4: T = 2 / ln 3."""
    assert temperature([2.0] * 4, [1, 1, 1, 0]) == pytest.approx(2 / log(3), rel=1e-6)
    assert temperature([2.0, -2.0], [1, 0], weights=[3, 1]) < 0.01  # separated: as sure as it may be
    assert temperature([2.0, 2.0], [0.75, 0.75]) == pytest.approx(2 / log(3), rel=1e-6)


def test_an_overconfident_judge_is_cooled() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 1.5, size=6000)
    y = (rng.random(6000) < 1 / (1 + np.exp(-logits))).astype(float)
    assert temperature(3 * logits, y) == pytest.approx(3, rel=0.06)
    before = calibration(1 / (1 + np.exp(-3 * logits)), y)
    after = calibration(1 / (1 + np.exp(-3 * logits / temperature(3 * logits, y))), y)
    assert before.ece > 0.1
    assert after.ece < 0.025
    assert after.log_loss < before.log_loss
    assert after.brier < before.brier


def test_isotonic_by_hand() -> None:
    # 1, 0 violate: pooled to 1/2
    found = isotonic([1.0, 2.0, 3.0, 4.0], [0, 1, 0, 1])
    assert found([1.0, 2.0, 3.0, 4.0]) == pytest.approx([0, 0.5, 0.5, 1])
    assert found([-5.0, 9.0, 3.5]) == pytest.approx([0, 1, 0.75])
    assert isotonic([1.0, 1.0, 1.0], [0, 1, 1])(1.0) == pytest.approx(2 / 3)
    assert isotonic([1.0, 2.0], [1, 0], weights=[3, 1])(1.5) == pytest.approx(0.75)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(-5, 5), st.sampled_from([0.0, 0.5, 1.0])), min_size=1, max_size=30))
def test_isotonic_laws(rows: list[tuple[int, float]]) -> None:
    scores, outcome = np.array([r[0] for r in rows], float), np.array([r[1] for r in rows])
    found = isotonic(scores, outcome)
    assert np.all(np.diff(found(np.linspace(-6, 6, 50))) >= -1e-12)
    assert found(scores).mean() == pytest.approx(outcome.mean())
    assert isotonic(np.exp(scores), outcome)(np.exp(scores)) == pytest.approx(found(scores))
    assert np.mean((found(scores) - outcome) ** 2) <= outcome.var() + 1e-12


def test_calibration_by_hand() -> None:
    found = calibration([0.05, 0.05, 0.95, 0.95], [0, 1, 1, 1])
    # bins: .05 against 1/2 and .95 against 1: (.45 + .05) / 2
    assert found.ece == pytest.approx(0.25)
    assert found.brier == pytest.approx((0.05**2 + 0.95**2 + 2 * 0.05**2) / 4)
    assert found.log_loss == pytest.approx(-(log(0.95) + log(0.05) + 2 * log(0.95)) / 4)
    assert found.counts.tolist() == [2, *[0] * 8, 2]
    assert np.isnan(found.stated[1])
    assert calibration([1.0], [0]).log_loss == inf
    assert calibration([1.0, 0.0], [1, 0]).log_loss == 0


def test_what_is_refused() -> None:
    with pytest.raises(DataError, match="one of each"):
        temperature([], [])
    with pytest.raises(DataError, match="one of each"):
        isotonic([1.0], [1, 0])
    with pytest.raises(DataError, match="between 0 and 1"):
        calibration([1.2], [1])
    with pytest.raises(DataError, match="finite"):
        temperature([inf], [1])
