"""Signs that a rater is careless, and that we exclude too many: reasons for a person to look, never a deletion.

Every function returns numbers and a flag. A flag becomes an exclusion only as a stored decision that can be taken back,
and `exclusion_alarm` watches how many there are: a broken check that throws away honest votes must be seen in a day.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from math import exp, log

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import bdtr, gammaln, logsumexp

from trimtab.errors import DataError
from trimtab.stats.battles import Floats
from trimtab.stats.e_values import from_p_value
from trimtab.stats.winrate import wilson

WORDS_PER_MINUTE = 1000.0
"""Nobody reads faster: silent reading of English goes at 238 words a minute on average, skimming at two to three times
that (Brysbaert 2019, J. Mem. Lang. 109)."""

VOTES = (0.0, 0.5, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """A rate with Wilson's interval over ``n``, a p-value where there is a null to test, and whether to look."""

    rate: float
    lo: float
    hi: float
    n: int
    p_value: float
    flag: bool


def position_bias(outcome: ArrayLike, *, alpha: float = 0.001) -> Share:
    """Return how often what was shown first (on the left) won, ties left out, against one half.

    Exact two-sided binomial p. Positions are drawn at random, so an honest rater has one half whatever the answers are.
    ``outcome`` (N,) is the first-shown answer's: 1, 0 or one half.
    """
    y = np.asarray(outcome, dtype=np.float64).ravel()
    if not np.all((y >= 0) & (y <= 1)):
        raise DataError("outcomes of a comparison must lie between 0 and 1")
    first, n = int((y > 0.5).sum()), int((y != 0.5).sum())
    p = min(1.0, 2 * float(bdtr(min(first, n - first), n, 0.5))) if n else 1.0
    return _share(first, n, p, p < alpha)


def too_fast(
    seconds: ArrayLike, words: ArrayLike, *, words_per_minute: float = WORDS_PER_MINUTE, allowed: float = 0.1
) -> Share:
    """Return the share of verdicts given faster than the words shown can be read.

    Flagged when surely above ``allowed`` (exact binomial tail of at least so many at that share, below 1 %). Unknown
    durations (NaN) are left out.
    """
    spent, shown = np.asarray(seconds, dtype=np.float64).ravel(), np.asarray(words, dtype=np.float64).ravel()
    if spent.size != shown.size:
        raise DataError(f"{spent.size} durations, but {shown.size} counts of words")
    known = ~np.isnan(spent)
    fast = int(np.sum(spent[known] < shown[known] * 60 / words_per_minute))
    return _above(fast, int(known.sum()), allowed)


def gold_misses(correct: ArrayLike, *, allowed: float = 0.25) -> Share:
    """Return the share of gold items that were answered wrongly; flagged when surely above ``allowed``."""
    right = np.asarray(correct, dtype=bool).ravel()
    return _above(int((~right).sum()), right.size, allowed)


@dataclass(frozen=True, slots=True, kw_only=True)
class OddVotes:
    """Evidence that one's votes are not drawn like everybody's, as e-values (natural logarithms).

    ``log_tail`` bets on votes in the crowd's tails, ``log_random`` on a coin; ``log_e`` is the log of their mean.
    ``flagged`` is the first vote (counted from 1) at which the mean reached 1/alpha, or None.
    """

    log_tail: float
    log_random: float
    log_e: float
    flagged: int | None


def odd_votes(votes: ArrayLike, histories: Sequence[ArrayLike], *, alpha: float = 0.01) -> OddVotes:
    """Return the sequential test of a rater's votes against what others said of the same pairs.

        tail:   prod 1 / (2 sqrt(p_i)),  p_i = min(1, 2 min(1 + #{h <= v}, 1 + #{h >= v}) / (#h + 1))
        random: prod (1/3) / ((#{h = v} + 1) / (#h + 3))

    ``votes`` are 0, one half or 1, in order; ``histories`` the others' votes on each pair, in the same direction. Both
    products, and hence their mean, reach 1/alpha for an honest rater with probability at most about alpha. The first is
    the Arena's idea (Chiang et al. 2024, arXiv:2403.04132, section 5) with a calibrator that is an e-value: 1/(2 p) has
    no finite mean over uniform p. The second is a likelihood ratio, and the one with power against clicking at random:
    its logarithm grows by KL(coin || crowd) a vote.

    Errors: `DataError` for other votes, and lists that differ in length.
    """
    v = np.asarray(votes, dtype=np.float64).ravel()
    if v.size != len(histories):
        raise DataError(f"{v.size} votes, but {len(histories)} histories")
    tail, random = np.zeros(v.size), np.zeros(v.size)
    for row, (vote, history) in enumerate(zip(v.tolist(), histories, strict=True)):
        h = np.asarray(history, dtype=np.float64).ravel()
        if vote not in VOTES or not np.isin(h, VOTES).all():
            raise DataError("votes are 0, 0.5 or 1")
        extreme = min(1 + int(np.sum(h <= vote)), 1 + int(np.sum(h >= vote)))
        tail[row] = log(float(from_p_value(min(1.0, 2 * extreme / (h.size + 1)))))
        random[row] = log((h.size + 3) / (3 * (int(np.sum(h == vote)) + 1)))
    both = np.cumsum(np.stack([tail, random]), axis=1)  # (2, N)
    mean: Floats = np.asarray(logsumexp(both, axis=0)) - log(2)
    crossed = np.flatnonzero(mean >= log(1 / alpha))
    last = both[:, -1] if v.size else np.zeros(2)
    return OddVotes(
        log_tail=float(last[0]),
        log_random=float(last[1]),
        log_e=float(mean[-1]) if v.size else 0.0,
        flagged=int(crossed[0]) + 1 if crossed.size else None,
    )


def over_cap(raters: Sequence[Hashable], days: Sequence[Hashable], *, cap: int) -> NDArray[np.bool_]:
    """Return which verdicts, in order, exceed ``cap`` by one rater on one day, (N,)."""
    if len(raters) != len(days):
        raise DataError(f"{len(raters)} raters, but {len(days)} days")
    seen: dict[tuple[Hashable, Hashable], int] = {}
    found = np.zeros(len(raters), dtype=np.bool_)
    for row, key in enumerate(zip(raters, days, strict=True)):
        seen[key] = seen.get(key, 0) + 1
        found[row] = seen[key] > cap
    return found


def exclusion_alarm(
    before: tuple[int, int], now: tuple[int, int], *, alpha: float = 0.001, factor: float = 2.0
) -> Share:
    """Return today's rate of exclusion, flagged when it jumped: (excluded, all) of a quiet time against today's.

    One-sided p by Fisher's exact test (hypergeometric tail); the rate must also be ``factor`` times the old one, so
    that a large site is not woken by a tenth of a percent.

    Errors: `DataError` when more are excluded than there are.
    """
    (old, old_all), (new, new_all) = before, now
    if not (0 <= old <= old_all and 0 <= new <= new_all):
        raise DataError(f"excluded cannot exceed all: {before}, {now}")
    k = np.arange(new, min(new_all, old + new) + 1)
    chance = _log_choose(new_all, k) + _log_choose(old_all, old + new - k) - _log_choose(old_all + new_all, old + new)
    p = min(1.0, exp(float(logsumexp(chance)))) if new else 1.0
    jumped = new_all > 0 and new / new_all >= factor * (old / old_all if old_all else 0.0)
    return _share(new, new_all, p, p < alpha and jumped)


def _share(count: int, n: int, p: float, flag: bool) -> Share:
    """A rate with its interval."""
    rate = count / n if n else float("nan")
    lo, hi = wilson(rate, n) if n else (0.0, 1.0)
    return Share(rate=rate, lo=lo, hi=hi, n=n, p_value=p, flag=flag)


def _above(count: int, n: int, allowed: float) -> Share:
    """A rate tested against an allowed one: P(X >= count) at that rate; flagged below 1 %."""
    p = 1 - float(bdtr(count - 1, n, allowed)) if count else 1.0
    return _share(count, n, p, p < 0.01)


def _log_choose(n: int, k: ArrayLike) -> Floats:
    """Log binomial coefficient; minus infinity where k is above n."""
    chosen = np.asarray(k, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = gammaln(n + 1) - gammaln(chosen + 1) - gammaln(np.maximum(n - chosen, 0) + 1)
    return np.where((chosen < 0) | (chosen > n), -np.inf, found)
