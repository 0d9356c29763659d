"""How sure a rating is: sandwich covariance by cluster, cluster bootstrap, and ranks that admit doubt.

Verdicts of one rater, or on one prompt, share their quirks; counted as independent they give intervals that are too
narrow. Both ways here resample or sum whole clusters instead.

Sources: Huber 1967 and White 1982 (the sandwich); Cameron, Gelbach and Miller 2011 (J. Bus. Econ. Stat. 29, 238) for
two ways of clustering; Chiang et al. 2024 (arXiv:2403.04132) for the ranks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf, log, nan, sqrt

import numpy as np
from scipy.sparse import coo_array, csr_array
from scipy.special import ndtri

from trimtab.errors import DataError
from trimtab.stats.battles import Battles, Floats, Indices, aggregate, components, take
from trimtab.stats.bradley_terry import Problem, Ratings, row_terms, solve


@dataclass(frozen=True, slots=True, kw_only=True)
class RatingIntervals:
    """Bounds on each rating, (M,), in nats; NaN where a model is not ranked or nothing can be said.

    ``covariance`` (M, M) is of theta. ``clusters`` counts the independent units; ``usable`` is the share of bootstrap
    fits that were not degenerate (1 for the sandwich).
    """

    lo: Floats
    hi: Floats
    covariance: Floats
    clusters: int
    usable: float = 1.0

    @property
    def standard_error(self) -> Floats:
        """Standard errors of theta, (M,)."""
        return np.sqrt(np.diag(self.covariance))


def sandwich(rows: Battles, ratings: Ratings, *, level: float = 0.95) -> RatingIntervals:
    """Return normal intervals from H⁻¹ (sum_c g_c g_c') H⁻¹, g_c the summed gradient of cluster c.

    H is the information with the ridge. Rows without clusters are their own. With two ways of clustering the meat is
    that of the first plus that of the second less that of their intersection; where this is not positive the larger
    of the two is taken. Few clusters (below 30, say) make it too narrow, and one gives NaN: nothing can be told.
    """
    member = ratings.ranked
    used = take(rows, member[rows.first] & member[rows.second] & (rows.weights > 0))
    size = len(ratings.names)
    if not len(used):
        return RatingIntervals(
            lo=np.full(size, nan), hi=np.full(size, nan), covariance=np.full((size, size), nan), clusters=0
        )
    problem = Problem.of(used, ratings.ties, int(member.sum()), member)
    beta = np.concatenate([ratings.theta[member], ratings.coefficients, [log(ratings.tie)] if problem.has_tie else []])
    _, (slope, tie_slope), bends = row_terms(ratings.ties, problem.margin(beta), used.outcome, problem.tie(beta))
    information = problem.information(*(used.weights * bend for bend in bends))
    m, c = problem.models, problem.x.shape[1]
    penalty = np.concatenate([np.full(m, ratings.ridge), np.full(c, ratings.covariate_ridge), np.full(1, 1e-6)])
    information += np.diag(penalty[: problem.size])
    information[:m, :m] += 1 / m
    bread = np.linalg.inv(information)
    gradients = _gradients(problem, used.weights * slope, used.weights * tie_slope)
    ways = _ways(used)
    meats = [_meat(gradients, way) for way in ways]
    meat = meats[0] + meats[1] - meats[2] if len(meats) == 3 else meats[0]
    found = bread @ meat @ bread
    if len(meats) == 3 and np.any(np.diag(found) <= 0):
        found = max((bread @ one @ bread for one in meats[:2]), key=np.trace)
    clusters = min(int(way.max()) + 1 for way in ways[:2])
    covariance = np.full((size, size), nan)
    if clusters > 1:
        covariance[np.ix_(member, member)] = found[:m, :m]
    half = float(ndtri(0.5 + level / 2)) * np.sqrt(np.diag(covariance))
    return RatingIntervals(lo=ratings.theta - half, hi=ratings.theta + half, covariance=covariance, clusters=clusters)


def bootstrap(
    rows: Battles, ratings: Ratings, *, resamples: int = 500, level: float = 0.95, seed: int = 0
) -> RatingIntervals:
    """Return percentile intervals from resampled clusters (the first way of clustering; rows when there is none).

    The point stays the fit to all data. A resample in which somebody who is ranked falls out of the connected group
    is degenerate: left out and counted in ``usable``. With fewer than half usable the bounds are NaN: an
    interval from the lucky half would be a story about luck.
    """
    if resamples < 1:
        raise DataError(f"{resamples} resamples; at least 1 is needed")
    cells, cell = aggregate(rows)
    unit = rows.clusters[:, 0] if rows.clusters.shape[1] else np.arange(len(rows), dtype=np.intp)
    _, unit = np.unique(unit, return_inverse=True)
    units = int(unit.max()) + 1 if unit.size else 0
    weight_of: csr_array = coo_array((rows.weights, (unit, cell)), shape=(units, len(cells))).tocsr()  # (K, cells)
    member = ratings.ranked
    inside = member[cells.first] & member[cells.second]
    rng = np.random.default_rng(seed)
    draws = np.full((resamples, len(ratings.names)), nan)
    for row in range(resamples if member.any() and units > 1 else 0):
        times = np.bincount(rng.integers(units, size=units), minlength=units)
        weights = times @ weight_of
        if ratings.prior_sd is None and not (weights > 0).all():  # all cells there: connected as before
            groups = components(cells, weights)
            if not member[groups[0]].all() or groups[0].size < member.sum():
                continue
        used = take(replace(cells, weights=weights), inside & (weights > 0))
        if len(used):
            draws[row] = solve(used, ratings, member).theta
    good = ~np.isnan(draws[:, member]).any(axis=1) if member.any() else np.zeros(resamples, dtype=bool)
    usable = float(good.mean())
    lo, hi = np.full(len(ratings.names), nan), np.full(len(ratings.names), nan)
    covariance = np.full((len(ratings.names), len(ratings.names)), nan)
    if usable >= 0.5 and good.sum() > 1:
        kept = draws[good][:, member]
        lo[member], hi[member] = np.quantile(kept, [0.5 - level / 2, 0.5 + level / 2], axis=0)
        covariance[np.ix_(member, member)] = np.cov(kept, rowvar=False)
    return RatingIntervals(lo=lo, hi=hi, covariance=covariance, clusters=units, usable=usable)


def ranks(intervals: RatingIntervals) -> list[int | None]:
    """Return 1 + the number of models whose lower bound lies above one's upper bound; None without an interval.

    So nobody is called second to a model that is not clearly better, and several can share a rank.
    """
    found: list[int | None] = []
    for upper in intervals.hi:
        above = int(np.sum(intervals.lo > upper))  # NaN compares as false
        found.append(None if np.isnan(upper) else 1 + above)
    return found


def difference(
    ratings: Ratings, intervals: RatingIntervals, a: str, b: str, *, level: float = 0.95
) -> tuple[float, float, float]:
    """Return theta_a - theta_b in nats with its normal interval: (difference, lo, hi); NaN where one is not ranked."""
    for name in (a, b):
        if name not in ratings.names:
            raise DataError(f"no model named {name!r} was compared")
    i, j = ratings.names.index(a), ratings.names.index(b)
    gap = float(ratings.theta[i] - ratings.theta[j])
    v = intervals.covariance
    half = float(ndtri(0.5 + level / 2)) * sqrt(max(0.0, float(v[i, i] + v[j, j] - 2 * v[i, j])) if i != j else 0.0)
    return (gap, gap - half, gap + half) if half < inf else (gap, nan, nan)


def _gradients(problem: Problem, slope: Floats, tie_slope: Floats) -> csr_array:
    """One row of parameter slopes for each battle, (N, P)."""
    n, m = slope.size, problem.models
    row, at, value = [np.arange(n)] * 2, [problem.first, problem.second], [slope, -slope]
    for j in range(problem.x.shape[1]):
        row, at, value = [*row, np.arange(n)], [*at, np.full(n, m + j)], [*value, slope * problem.x[:, j]]
    if problem.has_tie:
        row, at, value = [*row, np.arange(n)], [*at, np.full(n, problem.size - 1)], [*value, tie_slope]
    shape = (n, problem.size)
    found: csr_array = coo_array(
        (np.concatenate(value), (np.concatenate(row), np.concatenate(at))), shape=shape
    ).tocsr()
    return found


def _ways(rows: Battles) -> list[Indices]:
    """Cluster numbers, (N,), for each meat: one way, or first, second and both."""
    if not rows.clusters.shape[1]:
        return [np.arange(len(rows), dtype=np.intp)]
    columns = [np.unique(column, return_inverse=True)[1] for column in rows.clusters.T]
    if len(columns) == 2:
        _, both = np.unique(columns[0] * (int(columns[1].max()) + 1) + columns[1], return_inverse=True)
        columns.append(both)
    return columns


def _meat(gradients: csr_array, clusters: Indices) -> Floats:
    """Sum over clusters of the outer product of the summed gradient, (P, P)."""
    n = clusters.size
    member = coo_array((np.ones(n), (clusters, np.arange(n))), shape=(int(clusters.max()) + 1, n)).tocsr()
    summed = member @ gradients  # (K, P)
    found: Floats = (summed.T @ summed).toarray()
    return found
