"""Intervals of ratings: sandwich against bootstrap, laws of repetition, coverage, degenerate resamples, ranks."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest

from trimtab.errors import DataError
from trimtab.stats.battles import Battles, battles
from trimtab.stats.bradley_terry import TieModel, fit
from trimtab.stats.rating_intervals import RatingIntervals, bootstrap, difference, ranks, sandwich


def games(n: int, seed: int, *, raters: int = 0, taste: float = 0.0) -> tuple[Battles, np.ndarray]:
    """Battles of four models; raters differ in what they like by ``taste``."""
    rng = np.random.default_rng(seed)
    theta = np.array([-0.5, -0.1, 0.2, 0.4])
    a = rng.integers(4, size=n)
    b = (a + 1 + rng.integers(3, size=n)) % 4
    who = rng.integers(max(1, raters), size=n)
    own = rng.normal(0, taste, size=(max(1, raters), 4)) if taste else np.zeros((max(1, raters), 4))
    y = rng.random(n) < 1 / (1 + np.exp(-(theta[a] - theta[b] + own[who, a] - own[who, b])))
    clusters = ([int(k) for k in who],) if raters else ()
    return battles([f"m{i}" for i in a], [f"m{i}" for i in b], y.astype(float), clusters=clusters), theta


def population(taste: float) -> float:
    """theta_0 - theta_3 of the average rater: the fit to every pair's exact chance, over normal tastes."""
    theta = np.array([-0.5, -0.1, 0.2, 0.4])
    at, weight = np.polynomial.hermite_e.hermegauss(41)
    pairs = [(i, j) for i in range(4) for j in range(i)]
    chance = [
        float(weight @ (1 / (1 + np.exp(-(theta[i] - theta[j] + np.sqrt(2) * taste * at))))) / float(weight.sum())
        for i, j in pairs
    ]
    found = fit(battles([f"m{i}" for i, _ in pairs], [f"m{j}" for _, j in pairs], chance)).theta
    return float(found[0] - found[3])


def test_two_models_by_hand() -> None:
    """One margin d = logit(.6) from 100 battles: var(d) = 1 / (n p (1 - p)), and theta = ± d/2."""
    rows = battles(["a"] * 100, ["b"] * 100, [1.0] * 60 + [0.0] * 40)
    found = sandwich(rows, fit(rows))
    assert found.standard_error == pytest.approx([0.5 / np.sqrt(24)] * 2, rel=1e-4)
    assert found.clusters == 100
    gap = difference(fit(rows), found, "a", "b")
    assert gap[0] == pytest.approx(np.log(1.5), abs=1e-6)
    assert gap[2] - gap[0] == pytest.approx(1.959964 / np.sqrt(24), rel=1e-4)


@pytest.mark.parametrize(("ties", "resamples", "rel"), [("half_win", 300, 0.12), ("davidson", 100, 0.22)])
def test_sandwich_and_bootstrap_agree_at_ten_thousand(ties: TieModel, resamples: int, rel: float) -> None:
    rows, _ = games(10_000, 0, raters=100, taste=0.5)
    tied = np.where(np.random.default_rng(9).random(len(rows)) < 0.15, 0.5, rows.outcome)
    rows = replace(rows, outcome=tied)
    ratings = fit(rows, ties=ties)
    there, back = sandwich(rows, ratings), bootstrap(rows, ratings, resamples=resamples)
    assert back.usable == 1
    assert there.standard_error == pytest.approx(back.standard_error, rel=rel)
    assert there.lo == pytest.approx(back.lo, abs=0.6 * there.standard_error.max())


def test_repetition() -> None:
    """Twice the battles: errors shrink by the root of two; the same raters twice: nothing is learnt."""
    rows, _ = games(400, 1, raters=40)
    alone = battles([rows.names[i] for i in rows.first], [rows.names[i] for i in rows.second], rows.outcome)
    twice = battles(
        [rows.names[i] for i in rows.first] * 2, [rows.names[i] for i in rows.second] * 2, [*rows.outcome] * 2
    )
    one, two = sandwich(alone, fit(alone)), sandwich(twice, fit(twice))
    assert two.standard_error == pytest.approx(one.standard_error / np.sqrt(2), rel=1e-5)
    kept = replace(twice, clusters=np.concatenate([rows.clusters, rows.clusters]))
    assert sandwich(kept, fit(kept)).standard_error == pytest.approx(sandwich(rows, fit(rows)).standard_error, rel=1e-5)


def test_clusters_of_raters_with_tastes_need_wider_intervals() -> None:
    """Simulated coverage, 60 studies of 40 raters with 30 verdicts: counted as independent they promise too much."""
    truth = population(1.5)
    inside, alone = [], []
    for seed in range(60):
        rows, _ = games(1200, seed, raters=40, taste=1.5)
        ratings = fit(rows)
        independent = replace(rows, clusters=rows.clusters[:, :0])
        for found, hits in ((sandwich(rows, ratings), inside), (sandwich(independent, ratings), alone)):
            _, low, high = difference(ratings, found, "m0", "m3")
            hits.append(low <= truth <= high)
    assert 0.86 <= np.mean(inside) <= 1.0
    assert np.mean(alone) < np.mean(inside) - 0.08


def test_coverage_without_clusters() -> None:
    hits = []
    for seed in range(60):
        rows, theta = games(300, 1000 + seed)
        found = sandwich(rows, fit(rows))
        centred = theta - theta.mean()
        hits.append((found.lo <= centred) & (centred <= found.hi))
    assert 0.90 <= np.mean(hits) <= 0.985


def test_two_ways_of_clustering() -> None:
    rows, _ = games(600, 4, raters=30, taste=0.8)
    rng = np.random.default_rng(0)
    own = np.arange(600)[:, None]
    # a second way in which every row is its own cluster adds nothing
    assert sandwich(replace(rows, clusters=np.concatenate([rows.clusters, own], axis=1)), fit(rows)).covariance == (
        pytest.approx(sandwich(rows, fit(rows)).covariance)
    )
    prompts = rng.integers(25, size=(600, 1))
    both = sandwich(replace(rows, clusters=np.concatenate([rows.clusters, prompts], axis=1)), fit(rows))
    assert np.isfinite(both.standard_error).all()
    assert both.clusters == 25


def test_one_cluster_tells_nothing() -> None:
    rows, _ = games(100, 0)
    one = replace(rows, clusters=np.zeros((100, 1), dtype=np.intp))
    assert np.isnan(sandwich(one, fit(one)).standard_error).all()
    assert np.isnan(bootstrap(one, fit(one), resamples=20).lo).all()


def test_degenerate_resamples_are_counted_and_not_believed() -> None:
    """A single upset holds the ranking together: it is missing from exp(-1) of all resamples."""
    rows = battles(["a"] * 30, ["b"] * 30, [1.0] * 29 + [0.0])
    found = bootstrap(rows, fit(rows), resamples=150)
    assert found.usable == pytest.approx(1 - np.exp(-1), abs=0.11)
    assert np.isfinite(found.lo).all()
    rare = battles(["a"] * 3, ["b"] * 3, [1.0, 1.0, 0.0], clusters=(["x", "x", "y"],))
    assert bootstrap(rare, fit(rare), resamples=100).usable == pytest.approx(0.5, abs=0.15)
    strict = battles(["a", "a", "b", "b"], ["b", "b", "c", "c"], [1.0, 0.0, 1.0, 0.0])
    assert np.isnan(bootstrap(strict, fit(strict), resamples=100).lo).all()  # usable in about a fifth


def test_the_unrankable_have_no_interval() -> None:
    rows = battles(["a"] * 6 + ["c"], ["b"] * 6 + ["a"], [1, 0, 1, 0, 1, 0, 1])
    ratings = fit(rows)
    for found in (sandwich(rows, ratings), bootstrap(rows, ratings, resamples=50)):
        assert np.isnan(found.lo[2])
    assert ranks(sandwich(rows, ratings)) == [1, 1, None]
    with pytest.raises(DataError, match="no model named 'z'"):
        difference(ratings, sandwich(rows, ratings), "a", "z")


def test_ranks_admit_doubt() -> None:
    found = RatingIntervals(
        lo=np.array([0.5, 0.2, -1.0, np.nan]),
        hi=np.array([0.9, 0.6, 0.1, np.nan]),
        covariance=np.eye(4),
        clusters=9,
    )
    assert ranks(found) == [1, 1, 3, None]


def test_fifty_models_and_a_hundred_thousand_battles() -> None:
    """Rows are merged first, so that a resample costs little: 500 in five seconds are ten milliseconds each."""
    rng = np.random.default_rng(0)
    theta = rng.normal(size=50)
    a = rng.integers(50, size=100_000)
    b = (a + 1 + rng.integers(49, size=100_000)) % 50
    rows = Battles(
        names=tuple(f"{i:02}" for i in range(50)),
        first=a,
        second=b,
        outcome=(rng.random(100_000) < 1 / (1 + np.exp(theta[b] - theta[a]))).astype(float),
        weights=np.ones(100_000),
        covariates=np.zeros((100_000, 0)),
        clusters=np.zeros((100_000, 0), dtype=np.intp),
    )
    ratings = fit(rows)
    start = time.process_time()
    bootstrap(rows, ratings, resamples=10)
    assert time.process_time() - start < 2
