"""E-values: evidence that may be watched, multiplied along time, averaged across looks, and corrected for many tests.

An e-value is a number whose mean is at most 1 when the null hypothesis is true: the payoff of a fair bet against it. By
Ville's inequality a product of fair bets ever reaches 1/alpha with probability at most alpha. The paired process for
wins and losses is in `sequential`; here are its path, two arms with a yes-or-no outcome, and many tests at once.

Sources: Ville 1939; Vovk and Wang 2021 (Ann. Stat. 49, 1736; arXiv:1912.06116); Turner, Ly and Grünwald 2024 (J. Stat.
Plan. Inference; arXiv:2106.02693); Wang and Ramdas 2022 (JRSS-B 84, 822; arXiv:2009.02824); Holm 1979.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, log

import numpy as np
from numpy.typing import ArrayLike, NDArray

from trimtab.errors import DataError
from trimtab.stats.battles import Floats, Indices
from trimtab.stats.sequential import PRIOR, confidence_sequence
from trimtab.stats.sequential import log_e_value as log_paired


@dataclass(frozen=True, slots=True, kw_only=True)
class Path:
    """A test watched from its first to its last row: log E after each, (T,), and what may be said at the end.

    ``p_value`` is the smallest min(1, 1/E) so far: evidence once seen stays seen. ``stopped`` is the first row (counted
    from 1) with E >= 1/alpha, or None.
    """

    log_e: Floats
    p_value: float
    stopped: int | None


def path(log_e: ArrayLike, *, alpha: float = 0.05) -> Path:
    """Return the reading of an e-process given by its logarithm after each row."""
    values = np.asarray(log_e, dtype=np.float64).ravel()
    crossed = np.flatnonzero(values >= log(1 / alpha))
    return Path(
        log_e=values,
        p_value=exp(-max(0.0, float(values.max()))) if values.size else 1.0,
        stopped=int(crossed[0]) + 1 if crossed.size else None,
    )


def paired_path(won: ArrayLike, *, alpha: float = 0.05, prior: float = PRIOR) -> Path:
    """Return the path of the paired test of `sequential.always_valid` over outcomes in order; ties change nothing."""
    values = np.asarray(won, dtype=np.float64).ravel()
    if not np.all((values >= 0) & (values <= 1)):
        raise DataError("outcomes of a comparison must lie between 0 and 1")
    return path(log_paired(np.cumsum(values > 0.5), np.cumsum(values < 0.5), prior=prior), alpha=alpha)


def running_interval(won: ArrayLike, *, alpha: float = 0.05, prior: float = PRIOR) -> tuple[float, float]:
    """Return the intersection of the confidence sequence over all looks so far: valid too, and never wider.

    An empty intersection (probability at most alpha) is given as the last interval. Cost: two roots a row.
    """
    values = np.asarray(won, dtype=np.float64).ravel()
    lo, hi = 0.0, 1.0
    last = (0.0, 1.0)
    for wins, losses in zip(np.cumsum(values > 0.5).tolist(), np.cumsum(values < 0.5).tolist(), strict=True):
        last = confidence_sequence(wins, losses, alpha=alpha, prior=prior)
        lo, hi = max(lo, last[0]), min(hi, last[1])
    return (lo, hi) if lo <= hi else last


def two_proportions(a: ArrayLike, b: ArrayLike, *, alpha: float = 0.05) -> Path:
    """Return the exact test that two arms have one success rate, from outcomes 0 or 1 in blocks of one A and one B.

        prod_t p_a(y_a) p_b(y_b) / (p_0(y_a) p_0(y_b)),    p_a = (s_a + 1) / (t + 1),    p_0 = (p_a + p_b) / 2

    t counts from 1, s_a the successes of A before t. p_0 is the point of the null nearest to (p_a, p_b), which makes
    every factor an e-value whatever the common rate is. Surplus outcomes of the longer list wait for a partner.

    Errors: `DataError` for outcomes other than 0 and 1.
    """
    y_a, y_b = np.asarray(a, dtype=np.float64).ravel(), np.asarray(b, dtype=np.float64).ravel()
    if not (np.isin(y_a, (0, 1)).all() and np.isin(y_b, (0, 1)).all()):
        raise DataError("this test takes outcomes 0 and 1")
    t = min(y_a.size, y_b.size)
    y_a, y_b = y_a[:t], y_b[:t]
    seen = np.arange(t) + 2.0
    p_a, p_b = ((np.cumsum(y) - y + 1) / seen for y in (y_a, y_b))  # from the past only
    p_0 = (p_a + p_b) / 2

    def chosen(p: Floats, y: Floats) -> Floats:
        return np.log(np.where(y == 1, p, 1 - p))

    return path(np.cumsum(chosen(p_a, y_a) + chosen(p_b, y_b) - chosen(p_0, y_a) - chosen(p_0, y_b)), alpha=alpha)


def from_p_value(p: ArrayLike) -> Floats:
    """Return 1 / (2 sqrt(p)), an e-value from any p-value: its mean over uniform p is exactly 1.

    1 / (2 p) would not do: its mean over uniform p is infinite. Source: Vovk and Wang 2021, eq. 1 with kappa = 1/2.
    """
    values = np.asarray(p, dtype=np.float64)
    if np.any((values <= 0) | (values > 1)):
        raise DataError("a p-value lies above 0 and at most at 1")
    found: Floats = 0.5 / np.sqrt(values)
    return found


def average(e_values: ArrayLike) -> float:
    """Return the mean of e-values, itself an e-value however they depend on each other. None at all give 1."""
    values = np.asarray(e_values, dtype=np.float64).ravel()
    return float(values.mean()) if values.size else 1.0


def e_bh(e_values: ArrayLike, *, alpha: float = 0.05) -> NDArray[np.bool_]:
    """Return which of K hypotheses to reject, (K,), with false discovery rate at most alpha, however they depend.

    Reject the k* largest, k* = max{k : e_(k) >= K / (alpha k)}.
    """
    e = np.asarray(e_values, dtype=np.float64).ravel()
    order = np.argsort(-e, kind="stable")
    return _reject_first(order, e[order] * alpha * np.arange(1, e.size + 1) >= e.size, last=True)


def holm(p_values: ArrayLike, *, alpha: float = 0.05) -> NDArray[np.bool_]:
    """Return which of K hypotheses to reject, (K,), with any false rejection at probability at most alpha.

    Go up the sorted p while p_(k) <= alpha / (K - k + 1).
    """
    p = np.asarray(p_values, dtype=np.float64).ravel()
    order = np.argsort(p, kind="stable")
    return _reject_first(order, p[order] <= alpha / np.arange(p.size, 0, -1), last=False)


def _reject_first(order: Indices, passes: NDArray[np.bool_], *, last: bool) -> NDArray[np.bool_]:
    """Reject up to the last that passes, or up to the first that does not."""
    if last:
        count = int(np.flatnonzero(passes)[-1]) + 1 if passes.any() else 0
    else:
        count = passes.size if passes.all() else int(np.argmin(passes))
    found = np.zeros(order.size, dtype=np.bool_)
    found[order[:count]] = True
    return found
