"""Plain description of numbers: spread, shared histograms, and where a curve is going. N values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, nan, sqrt

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtrit


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Count, mean, standard deviation (over N), extremes and three quantiles of the finite values."""

    n: int
    mean: float
    std: float
    minimum: float
    p10: float
    median: float
    p90: float
    maximum: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Trend:
    """Where a curve starts and ends, and whether it moved.

    ``start`` and ``end`` are the means of its first and last fifth; ``change`` is the rise of the least-squares line
    from the first to the last value, ``lo`` and ``hi`` its 95 % interval (NaN with fewer than three values).
    """

    n: int
    start: float
    end: float
    change: float
    lo: float
    hi: float

    @property
    def direction(self) -> int:
        """+1 when the curve rose, -1 when it fell, 0 when the interval of its change includes zero or is not known."""
        return 1 if self.lo > 0 else -1 if self.hi < 0 else 0


def finite(values: ArrayLike) -> NDArray[np.float64]:
    """Return the finite values, flat, in order."""
    flat = np.asarray(values, dtype=float).ravel()
    kept: NDArray[np.float64] = flat[np.isfinite(flat)]
    return kept


def spread(values: ArrayLike) -> Spread:
    """Describe the finite values (quantiles by linear interpolation); no values give NaN everywhere."""
    x = finite(values)
    if x.size == 0:
        return Spread(n=0, mean=nan, std=nan, minimum=nan, p10=nan, median=nan, p90=nan, maximum=nan)
    p10, median, p90 = (float(q) for q in np.quantile(x, [0.1, 0.5, 0.9]))
    return Spread(
        n=int(x.size),
        mean=float(x.mean()),
        std=float(x.std()),
        minimum=float(x.min()),
        p10=p10,
        median=median,
        p90=p90,
        maximum=float(x.max()),
    )


def histogram(
    samples: Mapping[str, ArrayLike], *, bins: int = 24
) -> tuple[NDArray[np.float64], dict[str, NDArray[np.float64]]]:
    """Return edges (bins + 1,) shared by all samples, and each sample's share of values in every bin (bins,).

    Shares sum to 1 for a sample with values; a sample without finite values gives zeros.
    """
    clean = {name: finite(values) for name, values in samples.items()}
    pooled = np.concatenate([*clean.values(), np.empty(0)])
    edges = np.histogram_bin_edges(pooled, bins=bins)  # 0 to 1 when there is nothing
    shares = {name: np.histogram(x, bins=edges)[0] / max(1, x.size) for name, x in clean.items()}
    return edges, shares


def trend(values: ArrayLike) -> Trend:
    """Return where a curve starts, ends and heads; non-finite values are left out.

    The interval treats the steps' deviations from the line as independent. Steps of one run are not quite, so it is
    narrower than it should be: good for "did this move at all", not for a claim.
    """
    x = finite(values)
    n = int(x.size)
    if n == 0:
        return Trend(n=0, start=nan, end=nan, change=nan, lo=nan, hi=nan)
    fifth = ceil(n / 5)
    start, end = float(x[:fifth].mean()), float(x[-fifth:].mean())
    if n < 3:
        return Trend(n=n, start=start, end=end, change=float(x[-1] - x[0]), lo=nan, hi=nan)
    t = np.arange(n) - (n - 1) / 2
    slope = float(t @ x / (t @ t))
    residual = x - x.mean() - slope * t
    error = sqrt(float(residual @ residual) / (n - 2) / float(t @ t))
    half = float(stdtrit(n - 2, 0.975)) * error * (n - 1)
    change = slope * (n - 1)
    return Trend(n=n, start=start, end=end, change=change, lo=change - half, hi=change + half)
