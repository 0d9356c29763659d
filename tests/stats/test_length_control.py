"""Length-controlled win rate: AlpacaEval 2's properties, recovery, verbose copies, a true optimum."""

from __future__ import annotations

import numpy as np
import pytest

from trimtab.errors import DataError
from trimtab.stats.length_control import _design, _lasso, _spread, length_controlled, prompt_difficulty

NO_COPIES = (np.zeros((0, 2)), np.zeros(0))


def study(n: int, seed: int, *, quality: float, length: float, extra: float) -> tuple[np.ndarray, ...]:
    """Outcomes against a baseline, both lengths; the model writes ``extra`` more characters."""
    rng = np.random.default_rng(seed)
    base = rng.gamma(4, 250, size=n)
    own = base + rng.normal(extra, 300, size=n)
    gap = own - base
    margin = quality + length * np.tanh(gap / gap.std(ddof=1))
    return 1 / (1 + np.exp(-margin)), own, base  # soft labels: no noise of votes


def test_a_model_against_itself_is_even() -> None:
    found = length_controlled(np.full(40, 0.5), np.arange(40), np.arange(40))
    assert (found.raw, found.controlled) == (0.5, 0.5)


def test_both_sides_sum_to_one() -> None:
    won, own, base = study(200, 0, quality=0.3, length=1.0, extra=400)
    won = (np.random.default_rng(1).random(200) < won).astype(float)
    gamma = np.random.default_rng(2).normal(size=200)
    for difficulty in (None, gamma):
        there = length_controlled(won, own, base, difficulty=difficulty)
        back = length_controlled(1 - won, base, own, difficulty=difficulty)
        assert there.controlled + back.controlled == pytest.approx(1, abs=1e-5)
        assert there.raw + back.raw == pytest.approx(1)


def test_parameters_are_recovered() -> None:
    won, own, base = study(600, 3, quality=0.4, length=0.9, extra=300)
    found = length_controlled(won, own, base)
    assert found.length == pytest.approx(0.9, abs=0.05)
    assert found.quality == pytest.approx(0.4, abs=0.05)
    assert found.controlled == pytest.approx(1 / (1 + np.exp(-0.4)), abs=0.012)
    assert found.raw > found.controlled + 0.05


def test_a_verbose_copy_of_the_baseline_moves_only_the_raw_rate() -> None:
    """The same quality, twice as long, before a judge who likes length: and the concise copy."""
    for extra, raw in ((600, 0.6), (-600, 0.4)):
        won, own, base = study(400, 5, quality=0.0, length=1.0, extra=extra)
        found = length_controlled(won, own, base)
        assert (found.raw - 0.5) * (raw - 0.5) > 0.005
        assert found.controlled == pytest.approx(0.5, abs=0.03)


def test_copies_pin_the_length_term_where_the_prompts_cannot() -> None:
    """All answers longer by nearly the same: length and quality look alike until copies of the baseline are judged."""
    rng = np.random.default_rng(0)
    base = np.full(100, 1000.0)
    own = base + rng.normal(900, 20, size=100)
    won = np.full(100, 0.8)
    gaps = rng.normal(0, 900, size=100)
    judged = 1 / (1 + np.exp(-2 * np.sign(gaps)))
    alone = length_controlled(won, own, base)
    found = length_controlled(won, own, base, copies=(judged, gaps))
    assert found.length > alone.length + 0.5
    assert found.controlled < alone.controlled - 0.1


def test_difficulty_belongs_to_the_prompt() -> None:
    rng = np.random.default_rng(0)
    gamma = rng.normal(size=300)
    won = 1 / (1 + np.exp(-(0.2 + 0.7 * gamma)))
    found = length_controlled(won, rng.normal(size=300), rng.normal(size=300), difficulty=gamma)
    assert found.difficulty == pytest.approx(0.7, abs=0.05)
    assert found.controlled == pytest.approx(float(np.mean(won)), abs=0.01)


@pytest.mark.parametrize("c", [1e-4, 0.05, 1.0, 1e4])
def test_the_penalised_optimum_satisfies_its_conditions(c: float) -> None:
    """Subgradient: |C g| <= 1 where the length term is 0, C g = its sign elsewhere; quality is free, so its g is 0."""
    won, own, base = study(80, 7, quality=0.5, length=0.8, extra=200)
    gap = own - base
    x = _design(gap, None, _spread(gap))
    beta = _lasso(x, won, c, NO_COPIES)
    slope = c * x.T @ (won - 1 / (1 + np.exp(-x @ beta)))
    if abs(beta[0]) < 1e-7:
        assert abs(slope[0]) <= 1 + 1e-3
    else:
        assert slope[0] / c == pytest.approx(np.sign(beta[0]) / c, abs=1e-4)
    assert slope[1] / c == pytest.approx(0, abs=1e-4)


def test_equal_lengths_leave_the_raw_rate() -> None:
    won = np.array([1.0] * 12 + [0.0] * 8)
    for gap in (0, 100):  # one and the same difference everywhere tells nothing either
        found = length_controlled(won, np.full(20, 500 + gap), np.full(20, 500))
        assert found.length == 0
        assert found.controlled == pytest.approx(0.6, abs=1e-5)


def test_the_interval_covers_its_own_estimate() -> None:
    won, own, base = study(60, 1, quality=0.5, length=0.5, extra=0)
    hard = (np.random.default_rng(0).random(60) < won).astype(float)
    found = length_controlled(hard, own, base, resamples=40)
    assert found.lo < found.controlled < found.hi
    assert 0.08 < found.hi - found.lo < 0.45


def test_few_prompts_without_a_length_effect_leave_the_raw_rate() -> None:
    rng = np.random.default_rng(0)
    won = (rng.random(30) < 0.7).astype(float)
    found = length_controlled(won, rng.normal(1000, 200, size=30), rng.normal(1000, 200, size=30))
    assert found.controlled == pytest.approx(won.mean(), abs=0.05)


def test_difficulties_are_recovered() -> None:
    rng = np.random.default_rng(0)
    gamma, quality = rng.normal(size=80), rng.normal(size=12)
    gap = rng.normal(0, 300, size=(12, 80))
    margin = 0.5 * np.tanh(gap / gap.std(axis=1, keepdims=True)) + gamma + quality[:, None]
    won = 1 / (1 + np.exp(-margin))
    won[0, :5] = np.nan
    found = prompt_difficulty(won, gap, ridge=0.05)
    assert np.corrcoef(found, gamma)[0, 1] > 0.99


def test_what_is_refused() -> None:
    with pytest.raises(DataError, match="one of each"):
        length_controlled([1.0, 0.0], [1, 2], [1, 2], difficulty=[1.0])
    with pytest.raises(DataError, match="one of each"):
        length_controlled([], [], [])
    with pytest.raises(DataError, match="between 0 and 1"):
        length_controlled([2.0], [1], [2])
    with pytest.raises(DataError, match="copies need"):
        length_controlled([1.0], [1], [2], copies=([0.5], [1, 2]))
    with pytest.raises(DataError, match="two tables"):
        prompt_difficulty([[1.0]], [[1.0, 2.0]])
