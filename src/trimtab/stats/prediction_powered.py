"""A few people and many judge labels: a win rate that is the people's, with the judge only making it sharper.

    estimate = lambda mean f(unlabelled) + mean(Y - lambda f),    lambda = cov(Y, f) / ((1 + n/N) var f) in [0, 1]
    se² = lambda² var f / N + var(Y - lambda f) / n

Whatever the judge's bias, the estimate aims at the people's mean; a useless judge gives lambda = 0, the plain mean.

Sources: Angelopoulos, Bates, Fannjiang, Jordan and Zrnic 2023 (Science 382, 669); Angelopoulos, Duchi and Zrnic 2023,
PPI++ (arXiv:2311.01453), eq. 5 and Example 6.1; Boyeau et al. 2025, AutoEval Done Right (arXiv:2403.07008).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import nan, sqrt

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtri

from trimtab.errors import DataError


@dataclass(frozen=True, slots=True, kw_only=True)
class Powered:
    """The people's mean with its interval; ``effective_n`` people alone would have given the same error.

    ``people`` and ``judge`` are the plain means (the judge's over all rows): how far they differ is the judge's bias.
    """

    mean: float
    lo: float
    hi: float
    standard_error: float
    weight: float
    n: int
    unlabelled: int
    effective_n: float
    people: float
    judge: float


def powered_mean(
    labels: ArrayLike, judged: ArrayLike, unlabelled: ArrayLike, *, weight: float | None = None, level: float = 0.95
) -> Powered:
    """Return the prediction-powered mean of Y with a normal interval.

    ``labels`` and ``judged`` are the people's and the judge's outcomes on the same n prompts, ``unlabelled`` the
    judge's on N more, drawn the same way. One value a prompt: average several verdicts first. ``weight`` fixes lambda.

    Edge cases: no unlabelled rows give the plain mean. Errors: `DataError` for lists that do not match, fewer than two
    labels, values that are not finite.
    """
    y, f, g = (np.asarray(part, dtype=np.float64).ravel() for part in (labels, judged, unlabelled))
    if y.size != f.size or y.size < 2:
        raise DataError(f"{y.size} labels and {f.size} judge's labels: one of each on two prompts or more is needed")
    if not all(np.isfinite(part).all() for part in (y, f, g)):
        raise DataError("a label is missing or not finite; leave its prompt out")
    n, more = y.size, g.size
    pooled = np.concatenate([f, g])
    spread = float(pooled.var(ddof=1))
    if weight is None:
        covariance = float(np.cov(y, f)[0, 1])
        weight = min(1.0, max(0.0, covariance / ((1 + n / more) * spread))) if more and spread > 0 else 0.0
    elif weight and not more:
        raise DataError("without unlabelled rows the judge's weight must be 0")
    rest = y - weight * f
    variance = float(rest.var(ddof=1)) / n + (weight**2 * spread / more if more else 0.0)
    mean = float(rest.mean()) + (weight * float(g.mean()) if more else 0.0)
    error = sqrt(variance)
    half = float(ndtri(0.5 + level / 2)) * error
    return Powered(
        mean=mean,
        lo=mean - half,
        hi=mean + half,
        standard_error=error,
        weight=weight,
        n=n,
        unlabelled=more,
        effective_n=float(y.var(ddof=1)) / variance if variance > 0 else nan,
        people=float(y.mean()),
        judge=float(pooled.mean()),
    )
