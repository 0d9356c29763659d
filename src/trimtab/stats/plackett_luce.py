"""Ratings from rankings of K things at a time: Plackett-Luce, with ties and partial rankings.

    P(r_1 > r_2 > ... > r_K) = prod_k exp(s_(k)) / sum_(l >= k) exp(s_(l))

The best is chosen among all, the second among the rest, and so on. A ranking speaks only of the things it names. Tied
things count as every order of them, each with the same share of the weight; so a tie of two is half a win and half a
loss, as in `bradley_terry`, and K = 2 is Bradley-Terry exactly. The log-likelihood stays concave.

Sources: Luce 1959; Plackett 1975 (Appl. Stat. 24, 193); Hunter 2004 (Ann. Stat. 32, 384) for existence and uniqueness;
Ouyang et al. 2022 (arXiv:2203.02155), section 3.5, for the weight of pairs taken from one ranking.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb, nan

import numpy as np
from numpy.typing import ArrayLike
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from trimtab.errors import DataError
from trimtab.stats.battles import Floats
from trimtab.stats.bradley_terry import RIDGE

Order = Sequence[Sequence[str]]
"""Names from best to worst; those in one inner list are tied."""

LARGEST_TIE = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Utilities:
    """Fitted utilities: ``theta`` (M,) in nats, mean zero over the ranked, NaN for who cannot be ranked."""

    names: tuple[str, ...]
    theta: Floats
    log_likelihood: float
    components: tuple[tuple[str, ...], ...]

    @property
    def shares(self) -> Floats:
        """Luce's choice weights, (M,): exp(theta) over their sum; the chance to be chosen first among all ranked."""
        weight = np.exp(self.theta)
        found: Floats = weight / np.nansum(weight)
        return found


def fit_rankings(
    orders: Sequence[Order], *, weights: ArrayLike | None = None, prior_sd: float | None = None
) -> Utilities:
    """Return the utilities that maximise the weighted log-likelihood less a ridge (1e-6, or 1/prior_sd²) on theta.

    Without a prior only the largest group of names that are connected both ways by "ranked above" gets a rating, the
    rest NaN (Hunter 2004, assumption 1). Names outside that group are taken out of the rankings first.

    Errors: `DataError` for a name twice in one ranking, more than 12 tied names, and weights that do not match.
    """
    amount = np.ones(len(orders)) if weights is None else np.asarray(weights, dtype=np.float64).ravel()
    if amount.size != len(orders) or not np.isfinite(amount).all() or np.any(amount < 0):
        raise DataError(f"{len(orders)} rankings need as many finite weights that are not negative")
    for order in orders:
        flat = [name for tier in order for name in tier]
        if len(flat) != len(set(flat)):
            raise DataError(f"a ranking names {Counter(flat).most_common(1)[0][0]!r} twice")
        if any(len(tier) > LARGEST_TIE for tier in order):
            raise DataError(f"a ranking ties more than {LARGEST_TIE} names")
    names = tuple(sorted({name for order in orders for tier in order for name in tier}))
    groups = _groups(names, orders, amount)
    member = set(names) if prior_sd is not None else set(groups[0]) if groups and len(groups[0]) > 1 else set()
    theta = np.full(len(names), nan)
    value = nan
    if member:
        kept = [[[name for name in tier if name in member] for tier in order] for order in orders]
        inside = [name for name in names if name in member]
        choices, linear, counts = _choices(kept, amount, {name: i for i, name in enumerate(inside)})
        found, value = _maximise(choices, linear, counts, RIDGE if prior_sd is None else 1 / prior_sd**2)
        theta[[name in member for name in names]] = found - found.mean()
    return Utilities(names=names, theta=theta, log_likelihood=value, components=groups)


def ranking_pairs(order: Order) -> list[tuple[str, str, float, float]]:
    """Return the C(K, 2) pairs of a ranking: (better, worse, outcome, weight), a tie with outcome one half.

    All pairs share the ranking's one unit of weight, 1 / C(K, 2) each (InstructGPT, eq. 1): they are one judgement.
    """
    tier_of = {name: rank for rank, tier in enumerate(order) for name in tier}
    weight = 1 / comb(len(tier_of), 2) if len(tier_of) > 1 else 0.0
    return [(a, b, 0.5 if tier_of[a] == tier_of[b] else 1.0, weight) for a, b in combinations(tier_of, 2)]


def _groups(names: tuple[str, ...], orders: Sequence[Order], weights: Floats) -> tuple[tuple[str, ...], ...]:
    """Strongly connected groups under "ranked above" (both ways for a tie), the largest first."""
    place = {name: i for i, name in enumerate(names)}
    arrows: set[tuple[int, int]] = set()
    for order, weight in zip(orders, weights.tolist(), strict=True):
        for a, b, outcome, _ in ranking_pairs(order) if weight > 0 else []:
            arrows.add((place[b], place[a]))
            if outcome == 0.5:
                arrows.add((place[a], place[b]))
    if not names:
        return ()
    at = np.array(sorted(arrows), dtype=np.intp).reshape(-1, 2)
    graph = coo_array((np.ones(len(at)), (at[:, 0], at[:, 1])), shape=(len(names), len(names))).tocsr()
    count, label = connected_components(graph, directed=True, connection="strong")
    found = [tuple(names[i] for i in np.flatnonzero(label == k)) for k in range(count)]
    return tuple(sorted(found, key=lambda group: (-len(group), group)))


def _choices(orders: Sequence[Order], weights: Floats, place: dict[str, int]) -> tuple[Floats, Floats, Floats]:
    """Return distinct choice sets (C, M) of 0 and 1, the linear part (M,), and the weight of each set (C,).

    The log-likelihood is linear'theta - sum_c weight_c log sum_(l in set c) exp(theta_l). In a tie of t over the rest
    R, averaged over orders, each subset U of the tie with u members stands above R with chance 1 / C(t, u).
    """
    linear = np.zeros(len(place))
    count: dict[frozenset[int], float] = {}
    for order, weight in zip(orders, weights.tolist(), strict=True):
        below: list[int] = []
        for tier in reversed([[place[name] for name in tier] for tier in order if tier]):
            for size in range(1, len(tier) + 1):
                for subset in combinations(tier, size):
                    if len(subset) + len(below) > 1:
                        members = frozenset((*subset, *below))
                        count[members] = count.get(members, 0.0) + weight / comb(len(tier), size)
            alone = not below and len(tier) == 1
            linear[tier] += 0.0 if alone else weight
            if not below and len(tier) > 1:
                linear[tier] -= weight / len(tier)  # who comes last, each as likely, is chosen by nobody
            below += tier
    choices = np.zeros((len(count), len(place)))
    for row, chosen_from in enumerate(count):
        choices[row, list(chosen_from)] = 1.0
    return choices, linear, np.array(list(count.values()), dtype=np.float64)


def _maximise(choices: Floats, linear: Floats, counts: Floats, ridge: float) -> tuple[Floats, float]:
    """Newton's method with step halving; returns theta (M,) and the log-likelihood."""
    m = linear.size
    theta = np.zeros(m)

    def value(at: Floats) -> float:
        top = float(at.max())
        return float(linear @ at - counts @ (np.log(choices @ np.exp(at - top)) + top) - 0.5 * ridge * at @ at)

    current = value(theta)
    for _ in range(200):
        weight = np.exp(theta - theta.max())
        p = choices * weight
        p /= p.sum(axis=1, keepdims=True)  # (C, M)
        gradient = linear - counts @ p - ridge * theta
        information = np.diag(counts @ p + ridge) - p.T @ (counts[:, None] * p) + 1 / m
        step = np.linalg.solve(information, gradient)
        if np.abs(step).max() < 1e-6:  # so near, rounding hides the climb; one full step ends it
            theta = theta + step
            current = value(theta)
            break
        length = 1.0
        while (new := value(theta + length * step)) < current and length > 1e-8:
            length /= 2
        theta, current = theta + length * step, max(new, current)
    return theta, current + 0.5 * ridge * float(theta @ theta)
