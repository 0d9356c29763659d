"""Always-valid intervals for means: two groups of users, any metric with a variance, look whenever you like.

An estimate with standard error se after N users in all is, for large N, a Brownian motion in time N. Mixing its
likelihood ratio over a normal prior gives

    E = (1 + N rho²)^(-1/2) exp(N rho² z² / (2 (1 + N rho²))),  z = estimate / se,     p = min(1, 1/E)
    half width = se sqrt(N) sqrt(2 (N rho² + 1) / (N² rho²) ln(sqrt(N rho² + 1) / alpha))

rho sets where the interval is tightest, at N* users: rho² = (-2 ln alpha + ln(1 - 2 ln alpha)) / N*. N* is fixed before
the start. Asymptotic: it wants a burn-in (`BURN_IN` users an arm) before it is believed.

Sources: Robbins 1970 (Ann. Math. Stat. 41, 1397); Johari, Koomen, Pekelis and Walsh 2017 (KDD); Waudby-Smith, Arbour,
Sinha, Kennedy and Ramdas 2024 (Ann. Stat. 52, 2613; arXiv:2103.06476), Theorem 2.2 and appendix B.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, inf, log, nan, sqrt

import numpy as np
from numpy.typing import ArrayLike

from trimtab.errors import DataError
from trimtab.stats.battles import Floats

BURN_IN = 100
"""Users an arm before an asymptotic interval is worth believing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Users of one arm: how many, the mean of their values, and the variance of one user's value (over n - 1).

    For a ratio of sums (`ratio_of_users`) the variance is that of the linearised value.
    """

    n: int
    mean: float
    variance: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MeanDifference:
    """An effect and what may be said of it at this and every other look."""

    estimate: float
    standard_error: float
    lo: float
    hi: float
    e_value: float
    p_value: float
    n: int
    burnt_in: bool


def sample(values: ArrayLike) -> Sample:
    """Return the summary of one value a user, (n,): the unit is whoever was randomised, never the message.

    Errors: `DataError` for a value that is not finite. Fewer than two users give a NaN variance.
    """
    x = np.asarray(values, dtype=np.float64).ravel()
    if not np.isfinite(x).all():
        raise DataError("a value of the metric is not a finite number")
    return Sample(
        n=x.size, mean=float(x.mean()) if x.size else nan, variance=float(x.var(ddof=1)) if x.size > 1 else nan
    )


def sample_from_sums(n: int, total: float, squares: float) -> Sample:
    """Return the summary from the count, the sum and the sum of squares."""
    if n < 2:
        raise DataError(f"{n} users have no variance; at least 2 are needed")
    return Sample(n=n, mean=total / n, variance=(squares - total**2 / n) / (n - 1))


def proportion(successes: int, n: int) -> Sample:
    """Return the summary of yes-or-no values: variance p (1 - p)."""
    if not 0 <= successes <= n or n == 0:
        raise DataError(f"{successes} of {n} is not a proportion")
    p = successes / n
    return Sample(n=n, mean=p, variance=p * (1 - p))


def ratio_of_users(numerators: ArrayLike, denominators: ArrayLike) -> Sample:
    """Return sum(y) / sum(x) with users as units, for metrics such as thumbs a message, by the delta method.

    The linearised value of a user is (y - R x) / mean(x). Source: Deng, Knoblich and Lu 2018 (KDD), section 3.

    Errors: `DataError` for lists that differ in length, and for denominators that sum to nothing.
    """
    y, x = np.asarray(numerators, dtype=np.float64).ravel(), np.asarray(denominators, dtype=np.float64).ravel()
    if y.size != x.size or y.size < 2:
        raise DataError(f"{y.size} numerators and {x.size} denominators: one of each for two users or more is needed")
    if not (np.isfinite(y).all() and np.isfinite(x).all()) or x.sum() <= 0:
        raise DataError("numerators and denominators must be finite, and the denominators sum to more than nothing")
    ratio = float(y.sum() / x.sum())
    return Sample(n=y.size, mean=ratio, variance=float(((y - ratio * x) / x.mean()).var(ddof=1)))


def mixing_rate(expected_n: float, *, alpha: float = 0.05) -> float:
    """Return rho for an interval that is tightest at ``expected_n`` users."""
    if expected_n <= 0 or not 0 < alpha < 1:
        raise DataError(
            f"an expected number of users above 0 and alpha within (0, 1) are needed, not {expected_n}, {alpha}"
        )
    return sqrt((-2 * log(alpha) + log(1 - 2 * log(alpha))) / expected_n)


def half_width(standard_error: float, n: float, *, expected_n: float, alpha: float = 0.05) -> float:
    """Return the half width of the confidence sequence after ``n`` users."""
    mixed = n * mixing_rate(expected_n, alpha=alpha) ** 2
    return standard_error * sqrt(2 * (mixed + 1) / mixed * log(sqrt(mixed + 1) / alpha))


def log_e_value(z: ArrayLike, n: ArrayLike, *, expected_n: float, alpha: float = 0.05) -> Floats:
    """Return log E for z = estimate / se after n users, any broadcastable shapes; z = 0 gives less than 0."""
    mixed = np.asarray(n, dtype=np.float64) * mixing_rate(expected_n, alpha=alpha) ** 2
    found: Floats = mixed * np.asarray(z, dtype=np.float64) ** 2 / (2 * (1 + mixed)) - 0.5 * np.log1p(mixed)
    return found


def compare_means(
    a: Sample, b: Sample, *, expected_n: float, alpha: float = 0.05, relative: bool = False
) -> MeanDifference:
    """Return b - a, or (b - a) / a when ``relative``, with the always-valid interval and p.

    Relative effects by the delta method: variance v_b/(n_b a²) + v_a b²/(n_a a⁴).

    Edge cases: an arm with fewer than two users gives an unbounded interval and p = 1. Errors: `DataError` for a
    relative effect on a mean of zero.
    """
    if relative and a.mean == 0:
        raise DataError("a relative effect needs a baseline whose mean is not zero")
    n = a.n + b.n
    variance = a.variance / a.n + b.variance / b.n if min(a.n, b.n) > 1 else nan
    estimate = b.mean - a.mean
    if relative:
        estimate /= a.mean
        if min(a.n, b.n) > 1:
            variance = b.variance / (b.n * a.mean**2) + a.variance * b.mean**2 / (a.n * a.mean**4)
    if not variance >= 0:
        return MeanDifference(
            estimate=estimate, standard_error=nan, lo=-inf, hi=inf, e_value=1.0, p_value=1.0, n=n, burnt_in=False
        )
    error = sqrt(variance)
    half = half_width(error, n, expected_n=expected_n, alpha=alpha)
    z = estimate / error if error > 0 else 0.0 if estimate == 0 else inf
    evidence = float(log_e_value(min(abs(z), 1e8), n, expected_n=expected_n, alpha=alpha))
    return MeanDifference(
        estimate=estimate,
        standard_error=error,
        lo=estimate - half,
        hi=estimate + half,
        e_value=exp(min(evidence, 700.0)),
        p_value=exp(-max(evidence, 0.0)),
        n=n,
        burnt_in=min(a.n, b.n) >= BURN_IN,
    )


def users_to_decide(effect: float, variance: float, *, expected_n: float, alpha: float = 0.05) -> float:
    """Return about how many users in all, halved between the arms, until the interval leaves zero; inf for no effect.

    ``variance`` is one user's (both arms alike), so se = 2 sqrt(variance / N). Solved by bisection on log N.
    """
    if effect == 0 or variance < 0:
        return inf
    lo, hi = log(2.0), log(1e15)
    if half_width(2 * sqrt(variance / exp(hi)), exp(hi), expected_n=expected_n, alpha=alpha) > abs(effect):
        return inf
    for _ in range(200):
        middle = (lo + hi) / 2
        n = exp(middle)
        wide = half_width(2 * sqrt(variance / n), n, expected_n=expected_n, alpha=alpha) > abs(effect)
        lo, hi = (middle, hi) if wide else (lo, middle)
    return exp(hi)
