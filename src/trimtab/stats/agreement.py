"""How far people agree: Krippendorff's alpha with a bootstrap interval, and the human ceiling.

N units (items), R raters, a table (N, R) of values with NaN where a rater said nothing. Only units with two values or
more say anything. The customary thresholds (0.8 firm, 0.667 tentative) are for coding manuals; preferences seldom get
there, so alpha is shown beside the ceiling: how often one person agrees with the majority of the others.

Sources: Krippendorff 2019 (Content Analysis, 4th ed.), chapter 12; Hayes and Krippendorff 2007 (Comm. Methods Meas. 1,
77) for the metrics; the leave-one-out ceiling as in AlpacaEval (Dubois et al. 2023, arXiv:2305.14387).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import nan
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from trimtab.errors import DataError
from trimtab.stats.battles import Floats

Level = Literal["nominal", "ordinal", "interval", "ratio"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Alpha:
    """Krippendorff's alpha (1 perfect, 0 chance, below: worse than chance) and its interval, NaN when not asked for.

    ``units`` counts the units with two values or more, ``values`` the values in them.
    """

    alpha: float
    lo: float
    hi: float
    units: int
    values: int


def krippendorff_alpha(
    table: ArrayLike, *, level: Level = "nominal", resamples: int = 0, confidence: float = 0.95, seed: int = 0
) -> Alpha:
    """Return alpha = 1 - D_o / D_e over the coincidences of a table of values (N, R).

        o_cv = sum_u n_uc n_uv' / (m_u - 1),   D_o = sum o_cv delta²(c, v) / n,   D_e = sum n_c n_v delta² / (n (n - 1))

    delta² is 1 for unequal (nominal), (sum of n_g between, half at the ends)² (ordinal), (c - v)² (interval),
    ((c - v) / (c + v))² (ratio). The interval is the percentile bootstrap over units.

    Edge cases: no unit with two values, or only one value everywhere (no disagreement was possible), give NaN. A
    resample of that kind is left out. Errors: `DataError` for a table that is not (N, R), and for negative values at
    ratio level.
    """
    values, counts = value_counts(table)
    if level == "ratio" and np.any(values < 0):
        raise DataError("the ratio level takes values that are not negative")
    keep = counts.sum(axis=1) >= 2
    counts = counts[keep]
    n = counts.shape[0]
    lo = hi = nan
    if resamples and n:
        rng = np.random.default_rng(seed)
        times = np.stack([np.bincount(rng.integers(n, size=n), minlength=n) for _ in range(resamples)])
        draws = np.array([_alpha(values, counts, row.astype(np.float64), level) for row in times])
        draws = draws[~np.isnan(draws)]
        if draws.size:
            lo, hi = (float(q) for q in np.quantile(draws, [0.5 - confidence / 2, 0.5 + confidence / 2]))
    return Alpha(alpha=_alpha(values, counts, np.ones(n), level), lo=lo, hi=hi, units=n, values=int(counts.sum()))


def value_counts(table: ArrayLike) -> tuple[Floats, Floats]:
    """Return the distinct values (V,) and how often each unit has each, (N, V)."""
    x = np.asarray(table, dtype=np.float64)
    if x.ndim != 2:
        raise DataError(f"values must be a table (units, raters); got shape {x.shape}")
    seen = ~np.isnan(x)
    values, code = np.unique(x[seen], return_inverse=True)
    counts = np.zeros((x.shape[0], values.size))
    np.add.at(counts, (np.nonzero(seen)[0], code), 1.0)
    return values, counts


def _alpha(values: Floats, counts: Floats, weights: Floats, level: Level) -> float:
    """Alpha with each unit counted ``weights`` times."""
    per_unit = counts.sum(axis=1)  # m_u
    share = weights / np.maximum(per_unit - 1, 1)
    coincidence = (counts * share[:, None]).T @ counts - np.diag(share @ counts)  # (V, V)
    total = weights @ counts  # n_c
    n = float(total.sum())
    if n <= 1:
        return nan
    delta = _squared_distance(values, total, level)
    expected = float(total @ delta @ total) / (n - 1)
    return 1 - float(np.sum(coincidence * delta)) / expected if expected > 0 else nan


def _squared_distance(values: Floats, total: Floats, level: Level) -> Floats:
    """delta², (V, V)."""
    if level == "nominal":
        return 1.0 - np.eye(values.size)
    if level == "ordinal":
        rank = np.cumsum(total) - total / 2  # sum of n_g strictly between plus half of both ends = difference of these
        found: Floats = (rank[:, None] - rank) ** 2
        return found
    if level == "interval":
        found = (values[:, None] - values) ** 2
        return found
    if level == "ratio":
        both = values[:, None] + values
        found = np.divide(values[:, None] - values, both, out=np.zeros_like(both), where=both > 0) ** 2
        return found
    raise DataError(f"level {level!r} is not one of nominal, ordinal, interval, ratio")


def leave_one_out(table: ArrayLike) -> tuple[float, int]:
    """Return how often one rater agrees with the majority of the others on the unit, and on how many values that rests.

    Where the others are split evenly between k values, agreeing with one of them counts 1/k. Units are weighted alike
    (the mean over raters of a unit first). No unit with two values gives (NaN, 0). This is what a judge can reach.
    """
    _, counts = value_counts(table)
    counts = counts[counts.sum(axis=1) >= 2]
    if not counts.size:
        return nan, 0
    agreed = np.zeros(counts.shape[0])
    for c in range(counts.shape[1]):
        others = counts.copy()
        others[:, c] -= 1
        top = others.max(axis=1)
        agreed += counts[:, c] * (others[:, c] == top) / np.maximum((others == top[:, None]).sum(axis=1), 1)
    return float(np.mean(agreed / counts.sum(axis=1))), int(counts.sum())


def majority(table: ArrayLike) -> Floats:
    """Return the most frequent value of each unit, (N,); NaN for a draw at the top or no value at all."""
    values, counts = value_counts(table)
    if not values.size:
        return np.full(np.shape(np.asarray(table))[0], nan)
    top = counts.max(axis=1)
    clear = ((counts == top[:, None]).sum(axis=1) == 1) & (top > 0)
    return np.where(clear, values[np.argmax(counts, axis=1)], nan)
