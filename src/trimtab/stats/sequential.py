"""Always-valid comparison of two models: look as often as you like, stop when you like.

Robbins' mixture for coin flips. W wins and L losses of a over b (ties dropped), p the true share of wins:

    E_p = B(W + a, L + a) / B(a, a) / (p^W (1 - p)^L)

is a martingale with mean 1 under p, for every p: it averages the likelihood ratio q against p over q ~ Beta(a, a). By
Ville's inequality it ever reaches 1/α with probability at most α. Hence "reject p = 1/2 when E >= 1/α" is a test, and
{p : E_p < 1/α} a confidence sequence, that hold at all sample sizes at once (Robbins 1970; Howard et al. 2021,
arXiv:1810.08240).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, log

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import betaln, xlog1py, xlogy

from trimtab.errors import DataError

PRIOR = 30.0
"""``a`` of the mixing Beta(a, a): a standard deviation of 0.064, so sharpest for differences that are hard to see."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AlwaysValid:
    """The evidence against a coin flip, and the win rates that the data do not refute.

    ``e_value`` is the factor by which a fair bet against "both win equally often" has grown; ``p_value`` = min(1, 1/E).
    """

    wins: int
    ties: int
    losses: int
    e_value: float
    p_value: float
    lo: float
    hi: float


def log_e_value(wins: ArrayLike, losses: ArrayLike, *, p: float = 0.5, prior: float = PRIOR) -> NDArray[np.float64]:
    """Return log E_p for counts of any (broadcastable) shape.

        log B(W + a, L + a) - log B(a, a) - W log p - L log(1 - p)

    No verdicts give 0 (E = 1). p = 0 with a win, or p = 1 with a loss, gives infinity.
    """
    w, l = np.asarray(wins, dtype=float), np.asarray(losses, dtype=float)  # noqa: E741 - the formula's own letters
    evidence = betaln(w + prior, l + prior) - betaln(prior, prior) - xlogy(w, p) - xlog1py(l, -p)
    return np.asarray(evidence, dtype=np.float64)


def confidence_sequence(wins: int, losses: int, *, alpha: float = 0.05, prior: float = PRIOR) -> tuple[float, float]:
    """Return the ends of {p : E_p < 1/α}; (0, 1) before the first verdict.

    log E_p is convex in p with its minimum at W / (W + L), where it is at most 0; so the set is an interval, never
    empty, and each end is a root (an end within 1e-9 of 0 or 1 is given as 0 or 1).
    """
    if wins < 0 or losses < 0:
        raise DataError(f"counts of verdicts cannot be negative: {wins} wins, {losses} losses")
    if wins + losses == 0:
        return 0.0, 1.0
    threshold = log(1 / alpha)

    def excess(p: float) -> float:
        return float(log_e_value(wins, losses, p=p, prior=prior)) - threshold

    centre, edge = wins / (wins + losses), 1e-9
    lo = float(brentq(excess, edge, centre, xtol=1e-15)) if wins and excess(edge) > 0 else 0.0
    hi = float(brentq(excess, centre, 1 - edge, xtol=1e-15)) if losses and excess(1 - edge) > 0 else 1.0
    return lo, hi


def always_valid(won: ArrayLike, *, alpha: float = 0.05, prior: float = PRIOR) -> AlwaysValid:
    """Return the always-valid reading of one outcome a prompt, each in [0, 1].

    An outcome above one half is a win, below a loss; ties say nothing about who wins and are dropped (and counted). So
    the interval is for the share of wins *among decided prompts*, not for the win rate in which ties count one half.
    """
    values = np.asarray(won, dtype=float).ravel()
    if not np.all((values >= 0) & (values <= 1)):
        raise DataError("outcomes of a comparison must lie between 0 and 1")
    wins, losses = int((values > 0.5).sum()), int((values < 0.5).sum())
    evidence = float(log_e_value(wins, losses, prior=prior))
    lo, hi = confidence_sequence(wins, losses, alpha=alpha, prior=prior)
    return AlwaysValid(
        wins=wins,
        ties=values.size - wins - losses,
        losses=losses,
        e_value=exp(min(evidence, 700.0)),  # exp overflows just above; nobody reads a larger e-value
        p_value=min(1.0, exp(-evidence)),
        lo=lo,
        hi=hi,
    )
