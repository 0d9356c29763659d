"""Pairwise comparisons as arrays: what every rating in this room is fitted to.

N battles between M models. The outcome of a battle is the first model's: 1 won, 0 lost, one half tied, in between for a
soft label. "Both are bad" is no tie: it speaks of the prompt more than of the models (arXiv:2510.02306), so
`outcome_of` gives NaN for it, and battles without an outcome are left out and counted.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from trimtab.errors import DataError

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]

OUTCOMES = {"first": 1.0, "second": 0.0, "tie": 0.5, "both_good": 0.5, "both_bad": float("nan")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Battles:
    """N comparisons between M named models; build it with `battles`.

    ``first``, ``second`` (N,) index ``names``; ``outcome`` and ``weights`` are (N,); ``covariates`` (N, C) turn round
    with the pair; ``clusters`` (N, D) number the groups of rows that depend on each other, in D ways (D = 0: none do).
    ``left_out`` counts the battles without an outcome.
    """

    names: tuple[str, ...]
    first: Indices
    second: Indices
    outcome: Floats
    weights: Floats
    covariates: Floats
    clusters: Indices
    left_out: int = 0

    def __len__(self) -> int:
        return len(self.first)

    @property
    def models(self) -> int:
        """M, the number of names."""
        return len(self.names)


def outcome_of(verdict: str) -> float:
    """Return the outcome of "first", "second", "tie", "both_good" or "both_bad" (NaN)."""
    if verdict not in OUTCOMES:
        raise DataError(f"verdict {verdict!r} is not one of {', '.join(OUTCOMES)}")
    return OUTCOMES[verdict]


def battles(
    first: Sequence[str],
    second: Sequence[str],
    outcome: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    covariates: ArrayLike | None = None,
    clusters: Sequence[Sequence[Hashable]] = (),
) -> Battles:
    """Return the comparisons of ``first`` against ``second`` with names in alphabetical order.

    ``clusters`` holds up to two lists of N labels, the rater of each row and then its prompt, say. Rows with a NaN
    outcome are left out.

    Errors: `DataError` for lists of different lengths, an outcome outside [0, 1], a weight that is negative or not
    finite, and a model compared with itself.
    """
    y = np.asarray(outcome, dtype=np.float64).ravel()
    n = y.size
    w = np.ones(n) if weights is None else np.asarray(weights, dtype=np.float64).ravel()
    x = np.zeros((n, 0)) if covariates is None else np.asarray(covariates, dtype=np.float64).reshape(n, -1)
    if not len(first) == len(second) == w.size == n or any(len(column) != n for column in clusters):
        raise DataError(f"{len(first)} first models, {len(second)} second models, {n} outcomes: lists must match")
    if np.any((y < 0) | (y > 1)):
        raise DataError("outcomes of a comparison must lie between 0 and 1 (or be missing)")
    if not (np.isfinite(w).all() and np.isfinite(x).all()) or np.any(w < 0):
        raise DataError("weights must be finite and not negative, covariates finite")
    if len(clusters) > 2:
        raise DataError("rows can be clustered in two ways at most")
    names, codes = np.unique(np.array([*first, *second], dtype=str), return_inverse=True)
    a, b = codes[:n].astype(np.intp), codes[n:].astype(np.intp)
    if np.any(a == b):
        row = int(np.argmax(a == b))
        raise DataError(f"comparison {row} has {first[row]!r} on both sides")
    kept = ~np.isnan(y)
    return Battles(
        names=tuple(str(name) for name in names),
        first=a[kept],
        second=b[kept],
        outcome=y[kept],
        weights=w[kept],
        covariates=x[kept],
        clusters=np.stack([_numbered(column) for column in clusters], axis=1)[kept]  # (N, D)
        if clusters
        else np.zeros((int(kept.sum()), 0), dtype=np.intp),
        left_out=int(n - kept.sum()),
    )


def take(rows: Battles, index: ArrayLike) -> Battles:
    """Return some of the rows (indices or a mask); names stay."""
    chosen = np.asarray(index)
    return replace(
        rows,
        first=rows.first[chosen],
        second=rows.second[chosen],
        outcome=rows.outcome[chosen],
        weights=rows.weights[chosen],
        covariates=rows.covariates[chosen],
        clusters=rows.clusters[chosen],
    )


def aggregate(rows: Battles) -> tuple[Battles, Indices]:
    """Return one row for each distinct (pair, outcome) with the summed weight, and each row's cell, (N,).

    Pairs are turned so that the first index is the lower one. With covariates nothing is merged.
    """
    turned = rows.first > rows.second
    sign = np.where(turned, -1.0, 1.0)
    straight = replace(
        rows,
        first=np.where(turned, rows.second, rows.first),
        second=np.where(turned, rows.first, rows.second),
        outcome=np.where(turned, 1 - rows.outcome, rows.outcome),
        covariates=rows.covariates * sign[:, None],
    )
    if rows.covariates.shape[1]:
        return straight, np.arange(len(rows), dtype=np.intp)
    values, outcome = np.unique(straight.outcome, return_inverse=True)
    key = (straight.first * rows.models + straight.second) * max(1, values.size) + outcome
    _, where, cell = np.unique(key, return_index=True, return_inverse=True)
    merged = take(straight, where)
    total = np.bincount(cell, weights=rows.weights, minlength=where.size).astype(np.float64)
    return replace(merged, weights=total), cell.astype(np.intp)


def components(rows: Battles, weights: Floats | None = None) -> list[Indices]:
    """Return the strongly connected groups of models, (indices each), the largest first.

    An arrow goes from the loser to the winner, both ways for a tie. A finite maximum of the Bradley-Terry likelihood
    exists exactly within one such group: somebody who only wins, or who met nobody, has no rating (Ford 1957).
    """
    w = rows.weights if weights is None else weights
    won, lost = (rows.outcome > 0) & (w > 0), (rows.outcome < 1) & (w > 0)
    tail = np.concatenate([rows.second[won], rows.first[lost]])
    head = np.concatenate([rows.first[won], rows.second[lost]])
    graph = coo_array((np.ones(tail.size), (tail, head)), shape=(rows.models, rows.models)).tocsr()
    count, label = connected_components(graph, directed=True, connection="strong")
    groups = [np.flatnonzero(label == k) for k in range(count)]
    return sorted(groups, key=lambda group: (-group.size, int(group[0])))


def pair_weights(rows: Battles, *, floor: float = 50.0) -> Floats:
    """Return w_i / max(n_pair, floor), (N,): weights that undo sampling some pairs more often than others.

    Active sampling shows close pairs more often; weighting by pair keeps them from ruling the fit, and the floor keeps
    rare pairs from ruling it instead. Source: the weighting of the Arena's own leaderboard code (arena-rank).
    """
    low, high = np.minimum(rows.first, rows.second), np.maximum(rows.first, rows.second)
    _, pair = np.unique(low * rows.models + high, return_inverse=True)
    found: Floats = rows.weights / np.maximum(np.bincount(pair, weights=rows.weights), floor)[pair]
    return found


def _numbered(labels: Sequence[Hashable]) -> Indices:
    """Number labels in order of first appearance."""
    known: dict[Hashable, int] = {}
    return np.array([known.setdefault(label, len(known)) for label in labels], dtype=np.intp)
