"""What to ask next: formulas by hand and by slow loops, laws of batches, and a small race against random."""

from __future__ import annotations

from math import log

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit

from trimtab.errors import DataError
from trimtab.stats.acquisition import (
    bald,
    d_optimal,
    double_thompson,
    entropy,
    expected_improvement,
    k_center,
    model_pairs,
    posterior_covariance,
    select,
)


def test_entropy_and_bald_by_hand() -> None:
    assert entropy([0.0, 0.5, 1.0]) == pytest.approx([0, log(2), 0])
    # members sure and opposed: all of ln 2 can be removed; members who agree on a coin: nothing
    assert bald([[0.0, 0.5, 0.9], [1.0, 0.5, 0.9]]) == pytest.approx([log(2), 0, 0], abs=1e-12)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_bald_is_between_nothing_and_one_bit(members: list[float]) -> None:
    found = bald(np.array(members)[:, None])[0]
    assert 0 <= found <= log(2) + 1e-12
    assert bald(1 - np.array(members)[:, None])[0] == pytest.approx(found, abs=1e-9)


def test_d_optimal_is_the_greedy_log_determinant() -> None:
    rng = np.random.default_rng(0)
    d, p = rng.normal(size=(15, 4)), rng.random(15)
    precision = np.eye(4)
    expected: list[int] = []
    for _ in range(6):
        gains = [
            np.linalg.slogdet(precision + p[i] * (1 - p[i]) * np.outer(d[i], d[i]))[1] if i not in expected else -np.inf
            for i in range(15)
        ]
        expected.append(int(np.argmax(gains)))
        precision += p[expected[-1]] * (1 - p[expected[-1]]) * np.outer(d[expected[-1]], d[expected[-1]])
    assert d_optimal(d, p, np.eye(4), 6).tolist() == expected
    labelled = posterior_covariance(d[expected], p[expected])
    assert np.linalg.inv(labelled) == pytest.approx(precision)


def test_d_optimal_does_not_repeat_itself() -> None:
    d = np.array([[3.0, 0.0], [2.9, 0.0], [2.8, 0.0], [0.0, 2.0]])
    assert set(d_optimal(d, np.full(4, 0.5), np.eye(2), 2).tolist()) == {0, 3}
    assert d_optimal(d, np.full(4, 0.5), np.eye(2), 4).size == 4
    assert d_optimal(-d, np.full(4, 0.5), np.eye(2), 3).tolist() == d_optimal(d, np.full(4, 0.5), np.eye(2), 3).tolist()


def test_k_center_covers() -> None:
    x = np.array([[0.0], [0.1], [5.0], [5.1], [9.0]])
    assert set(k_center(x, 3).tolist()) in ({2, 0, 4}, {3, 0, 4}, {2, 1, 4})
    assert k_center(x, 1, covered=[[0.0]]).tolist() == [4]
    assert sorted(k_center(np.zeros((3, 1)), 3).tolist()) == [0, 1, 2]
    rng = np.random.default_rng(0)
    points = rng.normal(size=(12, 2))

    def radius(chosen: tuple[int, ...]) -> float:
        return max(min(float(np.linalg.norm(p - points[c])) for c in chosen) for p in points)

    from itertools import combinations

    best = min(radius(chosen) for chosen in combinations(range(12), 3))
    assert radius(tuple(k_center(points, 3).tolist())) <= 2 * best + 1e-12


def test_the_default_batch() -> None:
    rng = np.random.default_rng(0)
    d, phi, p = rng.normal(size=(200, 5)), rng.normal(size=(200, 3)), rng.random(200)
    d[100:110], phi[100:110], p[100:110] = 30.0, 5.0, 0.5  # ten copies of the most telling pair
    d[105:110] *= -1  # five of them shown the other way round
    found = select(d, phi, p, np.eye(5), 30, seed=4)
    assert (found.random.size, found.active.size) == (6, 24)
    assert np.unique(found.rows).size == 30
    assert np.isin(np.arange(100, 110), found.rows).sum() == 1
    again = select(d, phi, p, np.eye(5), 30, seed=4)
    assert again.rows.tolist() == found.rows.tolist()
    assert select(d, phi, p, np.eye(5), 200).rows.size == 200
    assert select(d, phi, p, np.eye(5), 5, random_share=1.0).active.size == 0
    copies = select(np.ones((9, 2)), np.ones((9, 1)), np.full(9, 0.5), np.eye(2), 5, random_share=0.0)
    assert np.unique(copies.active).size == 5


def test_the_random_slice_is_a_fair_sample() -> None:
    """Every candidate is drawn as often as any other, however uninteresting."""
    d = np.arange(20.0)[:, None]
    drawn = np.zeros(20)
    for seed in range(600):
        drawn[select(d, d, np.full(20, 0.5), np.eye(1), 10, seed=seed).random] += 1
    assert drawn / 600 == pytest.approx(np.full(20, 0.1), abs=0.05)


def test_expected_improvement() -> None:
    rng = np.random.default_rng(0)
    simulated = np.maximum(rng.normal(0.3, 0.8, size=200_000) - 0.5, 0).mean()
    assert expected_improvement([0.3], [0.8], 0.5) == pytest.approx([simulated], rel=0.02)
    assert expected_improvement([0.7, 0.2], [0.0, 0.0], 0.5) == pytest.approx([0.2, 0.0])


def test_double_thompson() -> None:
    assert double_thompson([[3.0, 2.0, 1.0]]) == (0, 1)  # one sample: its best and its runner-up
    split = np.array([[1.0, 0.0, -1.0], [0.0, 1.0, -1.0]])
    assert {frozenset(double_thompson(split, seed=s)) for s in range(20)} == {frozenset((0, 1))}


def test_pairs_of_models() -> None:
    cov = np.diag([1.0, 1.0, 4.0])
    found = model_pairs(cov, np.full((3, 3), 10))
    assert found.sum() == pytest.approx(1)
    assert found == pytest.approx(found.T)
    assert found[0, 2] > found[0, 1]
    assert model_pairs(np.eye(3), [[0, 100, 1], [100, 0, 1], [1, 1, 0]])[0, 2] > 0.24
    assert model_pairs(np.zeros((2, 2)), np.ones((2, 2))) == pytest.approx(np.array([[0, 0.5], [0.5, 0]]))


def accuracy_of(rule: str, seed: int) -> list[float]:
    """Logistic preferences in 12 dimensions, widely differing pairs: held-out accuracy after 20, 40, .. 120 labels."""
    rng = np.random.default_rng(seed)
    w = rng.normal(size=12)
    d = rng.normal(size=(800, 12)) * np.exp(rng.normal(0, 0.7, size=(800, 1)))
    y = (rng.random(800) < expit(d @ w)).astype(float)
    test = rng.normal(size=(800, 12))
    labelled, found = list(range(20)), []
    what = np.zeros(12)
    for _ in range(6):
        x, t = d[labelled], y[labelled]
        for _ in range(30):
            p = expit(x @ what)
            what = what + np.linalg.solve(x.T @ (x * (p * (1 - p))[:, None]) + np.eye(12), x.T @ (t - p) - what)
        found.append(float(np.mean((test @ what > 0) == (test @ w > 0))))
        rest = np.setdiff1d(np.arange(800), labelled)
        p = expit(d[rest] @ what)
        if rule == "random":
            chosen = rng.choice(rest, 20, replace=False)
        else:
            cov = posterior_covariance(x, expit(x @ what))
            chosen = rest[d_optimal(d[rest], p, cov, 20)]
        labelled += chosen.tolist()
    return found


def test_design_beats_lot_on_easy_ground() -> None:
    """A well-specified model, where it must: the mean gain over a learning curve is positive over eight seeds."""
    gain = [np.mean(accuracy_of("d_optimal", s)) - np.mean(accuracy_of("random", s)) for s in range(8)]
    assert np.mean(gain) > 2 * np.std(gain, ddof=1) / np.sqrt(8) > 0


def test_what_is_refused() -> None:
    with pytest.raises(DataError):
        entropy([1.1])
    with pytest.raises(DataError, match="cannot be chosen"):
        d_optimal(np.ones((2, 1)), [0.5, 0.5], np.eye(1), 3)
    with pytest.raises(DataError):
        posterior_covariance(np.ones((2, 1)), [0.5])
    with pytest.raises(DataError, match="not a share"):
        select(np.ones((2, 1)), np.ones((2, 1)), [0.5, 0.5], np.eye(1), 1, random_share=2)
    with pytest.raises(DataError):
        expected_improvement([1.0], [-1.0], 0)
    with pytest.raises(DataError, match="two answers"):
        double_thompson([[1.0]])
    with pytest.raises(DataError):
        model_pairs(np.eye(1), np.eye(1))
