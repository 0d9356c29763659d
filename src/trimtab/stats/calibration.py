"""Stated chances against what came true: temperature, isotonic regression, and how far off they are.

N scores or chances with an outcome in [0, 1] each (a soft label is the share of people who said so).

Sources: Guo, Pleiss, Sun and Weinberger 2017 (arXiv:1706.04599) for temperature and ECE; Zadrozny and Elkan 2002 (KDD)
for isotonic regression; Barlow et al. 1972 for pool-adjacent-violators, which is SciPy's here; Brier 1950.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, nan

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import isotonic_regression, minimize_scalar
from scipy.special import log_expit, xlog1py, xlogy

from trimtab.errors import DataError
from trimtab.stats.battles import Floats


def temperature(logits: ArrayLike, outcome: ArrayLike, *, weights: ArrayLike | None = None) -> float:
    """Return the T > 0 that minimises the cross-entropy of sigmoid(logit / T); above 1 the judge was too sure.

    The loss is convex in 1/T. Bounds 1e-3 to 1e3: perfectly separated verdicts want T = 0, useless ones infinity.

    Errors: `DataError` for lists that differ in length or are empty, outcomes outside [0, 1].
    """
    z, y, w = _checked(logits, outcome, weights)

    def loss(log_t: float) -> float:
        margin = z * exp(-log_t)
        return -float(w @ (y * log_expit(margin) + (1 - y) * log_expit(-margin)))

    bound = float(np.log(1e3))
    found = minimize_scalar(loss, bounds=(-bound, bound), method="bounded", options={"xatol": 1e-10})
    return exp(float(found.x))


@dataclass(frozen=True, slots=True, kw_only=True)
class Isotonic:
    """A rising function from scores to chances, linear between its knots ``x``, constant outside; see `isotonic`."""

    x: Floats
    y: Floats

    def __call__(self, scores: ArrayLike) -> Floats:
        """Return calibrated chances, same shape as the scores."""
        found: Floats = np.interp(np.asarray(scores, dtype=np.float64), self.x, self.y)
        return found


def isotonic(scores: ArrayLike, outcome: ArrayLike, *, weights: ArrayLike | None = None) -> Isotonic:
    """Return the rising function of the score with the least squared error (pool adjacent violators).

    Equal scores are pooled first. It needs some hundred verdicts; with fewer prefer `temperature`, one number.
    """
    s, y, w = _checked(scores, outcome, weights)
    x, code = np.unique(s, return_inverse=True)
    mass = np.bincount(code, w)
    keep = mass > 0
    fitted = isotonic_regression(np.bincount(code, w * y)[keep] / mass[keep], weights=mass[keep])
    return Isotonic(x=x[keep], y=np.asarray(fitted.x, dtype=np.float64))


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """How good chances are: expected calibration error, Brier score and log-loss (nats; infinite for a sure miss).

    ``stated``, ``found`` and ``counts`` (B,) are the mean chance, the share that came true and the number in each bin;
    empty bins are NaN.
    """

    ece: float
    brier: float
    log_loss: float
    stated: Floats
    found: Floats
    counts: Floats


def calibration(p: ArrayLike, outcome: ArrayLike, *, bins: int = 10) -> Calibration:
    """Return the calibration of chances in equal bins over [0, 1]: ECE = sum_b n_b/N |found_b - stated_b|.

    Errors: `DataError` for chances outside [0, 1] and lists that differ in length or are empty.
    """
    chance, y, _ = _checked(p, outcome, None)
    if np.any((chance < 0) | (chance > 1)):
        raise DataError("chances must lie between 0 and 1")
    where = np.minimum((chance * bins).astype(np.intp), bins - 1)
    counts = np.bincount(where, minlength=bins).astype(np.float64)
    empty = np.where(counts > 0, counts, nan)
    stated, came = np.bincount(where, chance, bins) / empty, np.bincount(where, y, bins) / empty
    return Calibration(
        ece=float(np.nansum(counts * np.abs(came - stated)) / y.size),
        brier=float(np.mean((chance - y) ** 2)),
        log_loss=-float(np.mean(xlogy(y, chance) + xlog1py(1 - y, -chance))),
        stated=stated,
        found=came,
        counts=counts,
    )


def _checked(values: ArrayLike, outcome: ArrayLike, weights: ArrayLike | None) -> tuple[Floats, Floats, Floats]:
    """Flat arrays of one length."""
    x, y = np.asarray(values, dtype=np.float64).ravel(), np.asarray(outcome, dtype=np.float64).ravel()
    w = np.ones(y.size) if weights is None else np.asarray(weights, dtype=np.float64).ravel()
    if not x.size == y.size == w.size or not y.size:
        raise DataError(f"{x.size} scores and {y.size} outcomes: one of each for one verdict or more is needed")
    if not np.isfinite(x).all() or not np.all((y >= 0) & (y <= 1)) or np.any(w < 0):
        raise DataError("scores must be finite, outcomes between 0 and 1, weights not negative")
    return x, y, w
