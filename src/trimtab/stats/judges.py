"""What an AI judge gets wrong, in numbers: position, length, itself, drift; and a simulator's past record.

N pairs of answers A and B. A judge is asked in both orders; every outcome is A's: 1, 0, one half, or between. The
interval of a mean is normal, over prompts when these are named. A simulator of users screens, it never promotes.

Sources: Zheng et al. 2023 (arXiv:2306.05685), sections 3.3 and 3.4, for both orders and the biases; Panickssery et al.
2024 (arXiv:2404.13076) for self-preference.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from math import nan, sqrt

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import bdtr, expit, ndtri

from trimtab.errors import DataError
from trimtab.stats.battles import Floats
from trimtab.stats.winrate import WinRate, win_rate


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A number with its interval; ``n`` units."""

    value: float
    lo: float
    hi: float
    n: int


def both_orders(a_first: ArrayLike, a_second: ArrayLike) -> Floats:
    """Return one outcome a pair, (N,): what both orders say, and a tie where they do not say the same."""
    x, y = _outcomes(a_first, a_second)
    return np.where((x > 0.5) & (y > 0.5), 1.0, np.where((x < 0.5) & (y < 0.5), 0.0, 0.5))


def consistency(a_first: ArrayLike, a_second: ArrayLike, *, prompts: Sequence[Hashable] | None = None) -> WinRate:
    """Return the share of pairs on which both orders name the same side, or both a tie."""
    x, y = _outcomes(a_first, a_second)
    return win_rate(np.sign(x - 0.5) == np.sign(y - 0.5), prompts=prompts)


def position_effect(
    a_first: ArrayLike, a_second: ArrayLike, *, prompts: Sequence[Hashable] | None = None, level: float = 0.95
) -> Estimate:
    """Return mean(outcome of what was shown first) - 1/2 = mean(a_first - a_second) / 2; 1/2: always the first."""
    x, y = _outcomes(a_first, a_second)
    return _mean((x - y) / 2, prompts, level)


def agreement(judge: ArrayLike, gold: ArrayLike, *, prompts: Sequence[Hashable] | None = None) -> WinRate:
    """Return the share of pairs on which the judge names the same side as the gold verdict, or both a tie.

    Put it beside `agreement.leave_one_out`, which is what a person reaches.
    """
    x, y = _outcomes(judge, gold)
    return win_rate(np.sign(x - 0.5) == np.sign(y - 0.5), prompts=prompts)


def self_preference(
    judge: ArrayLike, gold: ArrayLike, *, prompts: Sequence[Hashable] | None = None, level: float = 0.95
) -> Estimate:
    """Return mean(judge - gold) on pairs with exactly one answer by the judge's own family, seen from that answer.

    Above 0: the judge favours itself by so many points of win rate beyond what people say of the same answers.
    """
    x, y = _outcomes(judge, gold)
    return _mean(x - y, prompts, level)


def length_slope(
    outcome: ArrayLike, length_gap: ArrayLike, *, gold: ArrayLike | None = None, level: float = 0.95
) -> Estimate:
    """Return the logistic slope of A's outcome on tanh(gap / sd), gap = length of A less that of B, in nats.

    With ``gold`` its outcome less one half stands beside it, so that the slope is length *beyond* what people like. No
    intercept: naming the answers the other way round changes nothing. Sandwich interval, by pair.

    Edge cases: no difference in length anywhere gives NaN. A judge who goes by length alone has no finite slope; the
    ridge of 1e-3 then gives a large one.
    """
    y = np.asarray(outcome, dtype=np.float64).ravel()
    gap = np.asarray(length_gap, dtype=np.float64).ravel()
    if y.size != gap.size or not np.all((y >= 0) & (y <= 1)):
        raise DataError(
            f"{y.size} outcomes in [0, 1] and {gap.size} differences in length: one of each a pair is needed"
        )
    size = float(np.sqrt(np.mean(gap**2))) if gap.size else 0.0
    if size == 0:
        return Estimate(value=nan, lo=nan, hi=nan, n=y.size)
    columns = [np.tanh(gap / size)]
    if gold is not None:
        columns.append(_outcomes(y, gold)[1] - 0.5)
    x = np.stack(columns, axis=1)
    beta, ridge = np.zeros(x.shape[1]), 1e-3 * np.eye(x.shape[1])
    for _ in range(100):
        p = expit(x @ beta)
        information = x.T @ (x * (p * (1 - p))[:, None]) + ridge
        step = np.linalg.solve(information, x.T @ (y - p) - ridge @ beta)
        beta = beta + step / max(1.0, float(np.abs(step).max()))
        if np.abs(step).max() < 1e-10:
            break
    p = expit(x @ beta)
    bread = np.linalg.inv(x.T @ (x * (p * (1 - p))[:, None]) + ridge)
    meat = (x * (y - p)[:, None]).T @ (x * (y - p)[:, None])
    half = float(ndtri(0.5 + level / 2)) * sqrt(float((bread @ meat @ bread)[0, 0]))
    return Estimate(value=float(beta[0]), lo=float(beta[0]) - half, hi=float(beta[0]) + half, n=y.size)


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """Pinned canaries judged then and now: the share whose side changed, and whether it changed in one direction.

    ``p_value`` is the exact sign test (McNemar) among the changed; ``alarm`` when more changed than ``allowed`` or p is
    below 1 %.
    """

    changed: WinRate
    p_value: float
    alarm: bool


def drift(before: ArrayLike, now: ArrayLike, *, allowed: float = 0.1) -> Drift:
    """Return how a judge's verdicts on the same pinned pairs moved; the alarm needs the interval above ``allowed``."""
    x, y = _outcomes(before, now)
    move = np.sign(y - 0.5) - np.sign(x - 0.5)
    up, down = int((move > 0).sum()), int((move < 0).sum())
    p = min(1.0, 2 * float(bdtr(min(up, down), up + down, 0.5))) if up + down else 1.0
    changed = win_rate(move != 0)
    return Drift(changed=changed, p_value=p, alarm=changed.lo > allowed or p < 0.01)


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatorCard:
    """A simulator's forecasts of past experiments: Spearman's rank correlation and how often the sign was right.

    ``confident`` is the sign accuracy where the forecast's interval excluded zero (None without any).
    """

    correlation: float
    sign: WinRate
    confident: WinRate | None
    n: int


def simulator_card(forecast: ArrayLike, real: ArrayLike, *, confident: ArrayLike | None = None) -> SimulatorCard:
    """Return the card of E past experiments: forecast and real effects, (E,), and which forecasts were confident."""
    x, y = np.asarray(forecast, dtype=np.float64).ravel(), np.asarray(real, dtype=np.float64).ravel()
    if x.size != y.size or not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise DataError(f"{x.size} forecasts and {y.size} real effects: one finite number of each is needed")
    right = np.sign(x) == np.sign(y)
    sure = np.zeros(x.size, dtype=bool) if confident is None else np.asarray(confident, dtype=bool).ravel()
    ranks = np.stack([_ranks(x), _ranks(y)]) if x.size > 1 else np.zeros((2, 1))
    spread = ranks.std(axis=1)
    moment = float(np.mean((ranks[0] - ranks[0].mean()) * (ranks[1] - ranks[1].mean())))
    return SimulatorCard(
        correlation=moment / float(spread.prod()) if spread.all() else nan,
        sign=win_rate(right),
        confident=win_rate(right[sure]) if sure.any() else None,
        n=x.size,
    )


def _outcomes(a: ArrayLike, b: ArrayLike) -> tuple[Floats, Floats]:
    """Two lists of outcomes of one length."""
    x, y = np.asarray(a, dtype=np.float64).ravel(), np.asarray(b, dtype=np.float64).ravel()
    if x.size != y.size:
        raise DataError(f"{x.size} verdicts cannot be compared with {y.size}")
    if not np.all((x >= 0) & (x <= 1) & (y >= 0) & (y <= 1)):
        raise DataError("outcomes of a comparison must lie between 0 and 1")
    return x, y


def _mean(values: Floats, prompts: Sequence[Hashable] | None, level: float) -> Estimate:
    """A mean with a normal interval; with prompts their means count once each."""
    if prompts is not None:
        if len(prompts) != values.size:
            raise DataError(f"{values.size} verdicts, but {len(prompts)} prompt names")
        known: dict[Hashable, int] = {}
        code: NDArray[np.intp] = np.array([known.setdefault(one, len(known)) for one in prompts], dtype=np.intp)
        values = np.bincount(code, values) / np.bincount(code)
    n = values.size
    if n < 2:
        return Estimate(value=float(values[0]) if n else nan, lo=nan, hi=nan, n=n)
    mean = float(values.mean())
    half = float(ndtri(0.5 + level / 2)) * float(values.std(ddof=1)) / sqrt(n)
    return Estimate(value=mean, lo=mean - half, hi=mean + half, n=n)


def _ranks(values: Floats) -> Floats:
    """Ranks from 1, equal values sharing their mean rank."""
    _, code, count = np.unique(values, return_inverse=True, return_counts=True)
    top = np.cumsum(count)
    found: Floats = (top - (count - 1) / 2)[code]
    return found
