"""Best of n answers: what it gains, without bias, and how far it moves the policy at most."""

from __future__ import annotations

from math import log

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import gammaln

from trimtab.errors import DataError


def kl_bound(n: int) -> float:
    """Return the largest KL(best of n || policy), in nats: log n - (n - 1) / n.

    Exact for a score without ties over infinitely many answers, otherwise more than the truth. n = 1: 0; 16: 1.8351.

    Source: Beirami et al. 2024 (arXiv:2401.01879).
    """
    if n < 1:
        raise DataError(f"the best of {n} answers: there must be 1 or more")
    return log(n) - (n - 1) / n


def expected_best(scores: ArrayLike, n: int) -> float:
    """Estimate the mean score of the best of n answers from N >= n sampled ones, (N,) -> a number, without bias.

        sum_i C(i - 1, n - 1) r_(i) / C(N, n),    r_(1) <= ... <= r_(N)

    It is the mean of the best over all C(N, n) choices of n from the N, so it uses all of them; n = 1 is the plain
    mean, n = N the maximum. Binomials by logarithms: no overflow.

    Errors: DataError for n below 1 or above N, and for a score that is not finite.

    Source: Nakano et al. 2021, WebGPT (arXiv:2112.09332); the same form as pass@k of Chen et al. 2021
    (arXiv:2107.03374).
    """
    ordered = np.sort(np.asarray(scores, dtype=float).ravel())
    size = len(ordered)
    if not 1 <= n <= size:
        raise DataError(f"the best of {n} answers cannot be told from {size} scores")
    if not np.isfinite(ordered).all():
        raise DataError("a score is not a finite number")
    rank = np.arange(n, size + 1)  # the best of the chosen ones has at least n - 1 below it
    weight = np.exp(_log_choose(rank - 1, n - 1) - _log_choose(np.array(size), n))
    return float(weight @ ordered[n - 1 :] / weight.sum())


def _log_choose(n: np.ndarray, k: int) -> np.ndarray:
    """Logarithm of the binomial coefficient."""
    found: np.ndarray = gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)
    return found
