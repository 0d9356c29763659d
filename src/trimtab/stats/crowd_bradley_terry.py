"""Ratings and the reliability of each rater at once: crowd Bradley-Terry with a bias for the answer on the left.

    P(k says first) = eta_k sigmoid(d + b_k) + (1 - eta_k) sigmoid(b_k - d),    d = theta_first - theta_second

eta_k is how often rater k reads the scale the right way round: 1 an expert, 1/2 a coin, below 1/2 one who turns it
round. b_k is what being shown first is worth to k, in nats. With eta = 1 and b = 0 for all this is Bradley-Terry.

Source: Chen, Bennett, Collins-Thompson and Horvitz 2013 (WSDM), eq. 3 and 4; b_k is ours, in the place where a home
advantage stands in paired comparisons (Agresti 1990).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit, log_expit

from trimtab.errors import DataError
from trimtab.stats._minimise import minimise
from trimtab.stats.battles import Battles, Floats, Indices

RELIABILITY = (5.0, 2.0)
"""Beta prior on eta: worth five verdicts, four of them right. The mode of a rater who has said nothing is 0.8."""

BIAS_SD = 1.0
"""Standard deviation of the Gaussian prior on b, in nats."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CrowdRatings:
    """``theta`` (M,) of the models in nats, mean zero; ``reliability`` (K,) and ``left_bias`` (K,) of the raters."""

    names: tuple[str, ...]
    theta: Floats
    raters: tuple[str, ...]
    reliability: Floats
    left_bias: Floats
    log_posterior: float


def fit_crowd(
    rows: Battles,
    raters: Sequence[str],
    *,
    prior_sd: float = 2.0,
    reliability: tuple[float, float] = RELIABILITY,
    bias_sd: float = BIAS_SD,
) -> CrowdRatings:
    """Return the posterior mode: L-BFGS from equal models and raters with eta = 0.9.

    ``raters`` names the rater of each battle, (N,). A tie counts half for both sides. Turning every rating round and
    every eta into 1 - eta gives the same likelihood; the prior Beta(a, b) on eta, a > b, says which one is meant.
    ``bias_sd`` = 0 switches the bias off.

    Errors: `DataError` for lists that do not match, no battles, and priors that are not positive.
    """
    if len(raters) != len(rows):
        raise DataError(f"{len(rows)} comparisons, but {len(raters)} raters")
    if not len(rows):
        raise DataError("no comparisons to rate from")
    if prior_sd <= 0 or min(reliability) < 1 or bias_sd < 0:
        raise DataError(
            "priors must be proper: prior_sd above 0, both numbers of the Beta 1 or more, bias_sd 0 or more"
        )
    names, who = np.unique(np.array(raters, dtype=str), return_inverse=True)
    code = who.astype(np.intp)
    m, k = rows.models, names.size
    start = np.concatenate([np.zeros(m), np.full(k, np.log(9.0)), np.zeros(k)])
    free: tuple[float | None, float | None] = (None, None)
    bounds = [free] * (m + k) + [free if bias_sd else (0.0, 0.0)] * k

    def objective(at: Floats) -> tuple[float, Floats]:
        return negative_log_posterior(at, rows, code, prior_sd=prior_sd, reliability=reliability, bias_sd=bias_sd)

    options = {"maxiter": 2000, "maxfun": 4000, "ftol": 1e-13, "gtol": 1e-7}
    found, value = minimise(objective, start, bounds=bounds, options=options)
    theta, rho, bias = np.split(found, [m, m + k])
    return CrowdRatings(
        names=rows.names,
        theta=theta - theta.mean(),
        raters=tuple(str(name) for name in names),
        reliability=expit(rho),
        left_bias=bias,
        log_posterior=-value,
    )


def negative_log_posterior(
    at: Floats, rows: Battles, who: Indices, *, prior_sd: float, reliability: tuple[float, float], bias_sd: float
) -> tuple[float, Floats]:
    """Return what `fit_crowd` minimises and its gradient, at (theta (M,), logit eta (K,), b (K,)).

    ``who`` numbers the rater of each battle, (N,). With P1 = sigmoid(d + b), P0 = sigmoid(b - d) and
    Q = eta P1 + (1 - eta) P0, the term of a battle is y log Q + (1 - y) log(1 - Q).
    """
    m = rows.models
    k = (at.size - m) // 2
    theta, rho, bias = np.split(at, [m, m + k])
    d = theta[rows.first] - theta[rows.second]
    eta, b = expit(rho)[who], bias[who]
    right, wrong = expit(d + b), expit(b - d)
    p = eta * right + (1 - eta) * wrong
    p = np.clip(p, 1e-300, None)
    q = np.clip(eta * expit(-d - b) + (1 - eta) * expit(d - b), 1e-300, None)  # 1 - p without cancellation
    w, y = rows.weights, rows.outcome
    pull = w * (y / p - (1 - y) / q)  # d/dp of the row's term
    bend_right, bend_wrong = right * (1 - right), wrong * (1 - wrong)
    by_d = pull * (eta * bend_right - (1 - eta) * bend_wrong)
    by_b = pull * (eta * bend_right + (1 - eta) * bend_wrong)
    by_rho = pull * (right - wrong) * eta * (1 - eta)
    value = float(w @ (y * np.log(p) + (1 - y) * np.log(q)))
    alpha, beta = reliability
    value += float(np.sum((alpha - 1) * log_expit(rho) + (beta - 1) * log_expit(-rho)))
    value -= 0.5 * float(theta @ theta) / prior_sd**2
    slope_bias = np.bincount(who, by_b, k).astype(np.float64)
    if bias_sd:
        value -= 0.5 * float(bias @ bias) / bias_sd**2
        slope_bias = slope_bias - bias / bias_sd**2
    gradient = np.concatenate(
        [
            np.bincount(rows.first, by_d, m) - np.bincount(rows.second, by_d, m) - theta / prior_sd**2,
            np.bincount(who, by_rho, k) + (alpha - 1) * expit(-rho) - (beta - 1) * expit(rho),
            slope_bias,
        ]
    )
    return -value, -gradient
