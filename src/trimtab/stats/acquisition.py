"""Which pair to ask about next: uncertainty, disagreement, information, spread; and always a random slice.

N candidate pairs with features d = phi(a) - phi(b), (N, F), from a reward model's last layer; p = sigmoid(w'd) the
chance that a wins. The random slice is what an unbiased evaluation and an honest "labels saved" rest on.

Sources: Houlsby et al. 2011, BALD (arXiv:1112.5745); Shen et al. 2025, optimal design for preference pairs
(arXiv:2502.04354); Sener and Savarese 2018, core-set (arXiv:1708.00489), with Gonzalez 1985 for its bound; Dwaracherla
et al. 2024, double Thompson sampling (arXiv:2402.00396); Jones, Schonlau and Welch 1998 for expected improvement;
Chiang et al. 2024 (arXiv:2403.04132) for pairs of models.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtr, xlogy

from trimtab.errors import DataError
from trimtab.stats.battles import Floats, Indices

RANDOM_SHARE = 0.2


def entropy(p: ArrayLike) -> Floats:
    """Return H(p) = -p ln p - (1 - p) ln(1 - p) in nats, any shape; it seeks noise when used alone."""
    chance = np.asarray(p, dtype=np.float64)
    if np.any((chance < 0) | (chance > 1)):
        raise DataError("chances must lie between 0 and 1")
    return -np.asarray(xlogy(chance, chance) + xlogy(1 - chance, 1 - chance), dtype=np.float64)


def bald(p: ArrayLike) -> Floats:
    """Return H(mean p) - mean H(p) over E members or posterior samples, (E, N) -> (N,): doubt that a label can remove.

    Zero where all members agree, even at p = 1/2; at most ln 2.
    """
    chance = np.atleast_2d(np.asarray(p, dtype=np.float64))
    removed: Floats = entropy(chance.mean(axis=0)) - entropy(chance).mean(axis=0)
    return np.clip(removed, 0.0, None)


def posterior_covariance(features: ArrayLike, p: ArrayLike, *, ridge: float = 1.0) -> Floats:
    """Return S = (ridge I + sum_i p_i (1 - p_i) d_i d_i')⁻¹, (F, F), from the pairs that are labelled: Laplace."""
    d, chance = np.asarray(features, dtype=np.float64), np.asarray(p, dtype=np.float64).ravel()
    if d.ndim != 2 or d.shape[0] != chance.size or ridge <= 0:
        raise DataError(
            f"features {d.shape}, {chance.size} chances, ridge {ridge}: (N, F), N and a positive number are needed"
        )
    return np.asarray(
        np.linalg.inv(ridge * np.eye(d.shape[1]) + d.T @ (d * (chance * (1 - chance))[:, None])), dtype=np.float64
    )


def d_optimal(features: ArrayLike, p: ArrayLike, covariance: ArrayLike, batch: int) -> Indices:
    """Return ``batch`` pairs, greedily, each with the largest log(1 + p (1 - p) d'Sd), S updated after every pick.

        S <- S - v S d d'S / (1 + v d'Sd),    v = p (1 - p)

    The sum of the gains is the growth of log det of the information, which greed serves to within 1 - 1/e
    (Nemhauser et al. 1978: it is submodular). Cost: batch x N x F. Ties go to the lower index.

    Errors: `DataError` for a batch larger than N.
    """
    d, s = np.asarray(features, dtype=np.float64), np.array(covariance, dtype=np.float64)
    chance = np.asarray(p, dtype=np.float64).ravel()
    _enough(batch, d.shape[0])
    noise = chance * (1 - chance)
    gain = noise * np.einsum("nf,fg,ng->n", d, s, d)
    picked: list[int] = []
    for _ in range(batch):
        gain[picked] = -np.inf
        one = int(np.argmax(gain))
        picked.append(one)
        direction = s @ d[one]
        scale = noise[one] / (1 + noise[one] * float(d[one] @ direction))
        s -= scale * np.outer(direction, direction)
        gain = np.where(np.isneginf(gain), gain, gain - noise * scale * (d @ direction) ** 2)
    return np.array(picked, dtype=np.intp)


def k_center(features: ArrayLike, batch: int, *, covered: ArrayLike | None = None) -> Indices:
    """Return ``batch`` rows of (N, F), each the farthest from all chosen so far and from ``covered`` (M, F).

    At most twice the best possible covering radius (Gonzalez 1985). Without ``covered`` the start is the row nearest to
    the mean. Exact duplicates come last.
    """
    x = np.asarray(features, dtype=np.float64)
    _enough(batch, x.shape[0])
    distance = np.full(x.shape[0], np.inf)
    for row in [] if covered is None else np.asarray(covered, dtype=np.float64):
        distance = np.minimum(distance, np.sum((x - row) ** 2, axis=1))
    picked: list[int] = []
    for _ in range(batch):
        if not picked and np.isinf(distance).all():
            one = int(np.argmin(np.sum((x - x.mean(axis=0)) ** 2, axis=1)))
        else:
            one = int(np.argmax(distance))
        picked.append(one)
        distance = np.minimum(distance, np.sum((x - x[one]) ** 2, axis=1))
        distance[picked] = -1.0
    return np.array(picked, dtype=np.intp)


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Chosen rows: ``active`` by the rule, ``random`` by lot from all candidates; no row is in both."""

    active: Indices
    random: Indices

    @property
    def rows(self) -> Indices:
        """All of them, the random slice first."""
        return np.concatenate([self.random, self.active])


def select(
    features: ArrayLike,
    prompts: ArrayLike,
    p: ArrayLike,
    covariance: ArrayLike,
    batch: int,
    *,
    random_share: float = RANDOM_SHARE,
    widen: int = 4,
    seed: int = 0,
) -> Batch:
    """Return the default batch: a random slice, then D-optimal pairs among a spread of prompts.

    The slice, ceil(random_share x batch) rows, is drawn first and from all candidates, so it is an unbiased sample of
    them. Of the rest, rows with the same prompt features and the same d (up to sign) are taken once, k-center keeps
    ``widen`` times as many as are needed, spread over prompts (N, G), and D-optimal greed chooses among these.

    Errors: `DataError` for a batch larger than N, and a share outside [0, 1].
    """
    d, phi = np.asarray(features, dtype=np.float64), np.asarray(prompts, dtype=np.float64)
    chance = np.asarray(p, dtype=np.float64).ravel()
    n = d.shape[0]
    _enough(batch, n)
    if not 0 <= random_share <= 1:
        raise DataError(f"a random share of {random_share} is not a share")
    rng = np.random.default_rng(seed)
    lot = np.sort(rng.choice(n, size=int(np.ceil(round(random_share * batch, 9))), replace=False)).astype(np.intp)
    want = batch - lot.size
    rest = np.setdiff1d(np.arange(n), lot)
    leading = np.take_along_axis(d, np.argmax(np.abs(d), axis=1)[:, None], axis=1) if d.shape[1] else np.ones((n, 1))
    key = np.round(np.concatenate([phi, d * np.where(leading < 0, -1.0, 1.0)], axis=1), 9)
    _, first = np.unique(key[rest], axis=0, return_index=True)
    distinct = rest[np.sort(first)]
    if distinct.size < want:  # too many copies: fill up with them after all
        distinct = np.concatenate([distinct, np.setdiff1d(rest, distinct)[: want - distinct.size]])
    near = distinct[k_center(phi[distinct], min(widen * want, distinct.size), covered=phi[lot] if lot.size else None)]
    near = np.sort(near)
    chosen = near[d_optimal(d[near], chance[near], covariance, want)]
    return Batch(active=chosen.astype(np.intp), random=lot)


def expected_improvement(mean: ArrayLike, deviation: ArrayLike, best: float) -> Floats:
    """Return s (phi(u) + u Phi(u)), u = (mean - best) / s: how much a look is expected to raise the best, (N,).

    With s = 0 it is max(mean - best, 0).
    """
    mu, s = np.asarray(mean, dtype=np.float64), np.asarray(deviation, dtype=np.float64)
    if np.any(s < 0):
        raise DataError("deviations cannot be negative")
    u = np.divide(mu - best, s, out=np.zeros(np.broadcast(mu, s).shape), where=s > 0)
    density = np.exp(-(u**2) / 2) / np.sqrt(2 * np.pi)
    return np.where(s > 0, s * (density + u * ndtr(u)), np.maximum(mu - best, 0.0))


def double_thompson(rewards: ArrayLike, *, seed: int = 0, tries: int = 20) -> tuple[int, int]:
    """Return two answers to compare: the best under one posterior sample, and the best under another one.

    ``rewards`` (E, K) holds E samples (or ensemble members) for K >= 2 answers. When the second agrees with the first
    it is drawn again, up to ``tries`` times; then the first sample's runner-up is taken.
    """
    r = np.asarray(rewards, dtype=np.float64)
    if r.ndim != 2 or r.shape[1] < 2 or not r.shape[0]:
        raise DataError(f"rewards must be (samples, answers) with two answers or more; got {r.shape}")
    rng = np.random.default_rng(seed)
    start = r[int(rng.integers(r.shape[0]))]
    first = int(np.argmax(start))
    for _ in range(tries):
        second = int(np.argmax(r[int(rng.integers(r.shape[0]))]))
        if second != first:
            return first, second
    return first, int(np.argsort(-start, kind="stable")[1])


def model_pairs(covariance: ArrayLike, counts: ArrayLike) -> Floats:
    """Return the chance to show each pair of models next, (M, M), symmetric, zero diagonal, sum 1.

    Proportional to sqrt(V_ab / n_ab) - sqrt(V_ab / (n_ab + 1)): how much one more battle narrows the interval of the
    pair, V_ab = V_aa + V_bb - 2 V_ab' the variance of their difference times the battles so far. ``covariance`` (M, M)
    is of theta; ``counts`` (M, M) the battles of each pair, and a pair that never met counts as having met once.

    Source: Chiang et al. 2024, section 5 (there with the variance of the pair's own win rate).
    """
    v, n = np.asarray(covariance, dtype=np.float64), np.asarray(counts, dtype=np.float64)
    if v.shape != n.shape or v.ndim != 2 or v.shape[0] != v.shape[1] or v.shape[0] < 2:
        raise DataError(f"a covariance and counts (M, M) are needed; got {v.shape} and {n.shape}")
    n = np.maximum(n, 1.0)
    spread = np.maximum(np.diag(v)[:, None] + np.diag(v) - 2 * v, 0.0) * n
    gain = np.sqrt(spread / n) - np.sqrt(spread / (n + 1))
    np.fill_diagonal(gain, 0.0)
    total = float(gain.sum())
    return gain / total if total > 0 else (1 - np.eye(len(v))) / (len(v) * (len(v) - 1))


def _enough(batch: int, n: int) -> None:
    """Refuse to choose more than there are."""
    if not 0 <= batch <= n:
        raise DataError(f"a batch of {batch} cannot be chosen from {n} candidates")
