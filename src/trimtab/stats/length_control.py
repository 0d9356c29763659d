"""The win rate if both answers were equally long: a regression on the difference in length, after AlpacaEval 2.

    logit P(win on x) = a tanh(dlen / sd(dlen)) + b gamma_x + c,     LCWR = mean over x of sigmoid(b gamma_x + c)

dlen is the difference in characters, gamma_x the difficulty of prompt x (left out when not known: "minimal"). There is
no other intercept. a and b have an L1 penalty chosen by cross-validation over prompts. c has none: the published code
penalises it too, which on few prompts draws every model to 50 %, while here a fit that finds nothing leaves the raw
rate. It corrects an honest judge's taste for length only: answers written to fool a judge keep their win rate.

Source: Dubois, Galambosi, Liang and Hashimoto 2024 (arXiv:2404.04475), eq. 2 and 3, and its published code.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import nan

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit, log_expit

from trimtab.errors import DataError
from trimtab.stats._minimise import minimise
from trimtab.stats.battles import Floats, Indices

PENALTIES = tuple(float(c) for c in np.logspace(-4, 4, 10))
"""Inverse strengths of the L1 penalty that cross-validation chooses from."""

COPIES = 0.2
"""Weight of the baseline's copies, all together, as a share of the prompts'."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthControlled:
    """The raw and the length-controlled win rate over ``n`` prompts (shares, not percent) and the fit behind them.

    ``length`` is a, ``difficulty`` b (0 when gamma was not given), ``quality`` c; ``inverse_penalty`` the chosen C.
    ``lo`` and ``hi`` bound the controlled rate (bootstrap over prompts with the penalty held; NaN when not asked for).
    """

    raw: float
    controlled: float
    lo: float
    hi: float
    length: float
    difficulty: float
    quality: float
    inverse_penalty: float
    n: int


def length_controlled(
    won: ArrayLike,
    lengths: ArrayLike,
    baseline_lengths: ArrayLike,
    *,
    difficulty: ArrayLike | None = None,
    copies: tuple[ArrayLike, ArrayLike] | None = None,
    folds: int = 5,
    resamples: int = 0,
    level: float = 0.95,
    seed: int = 0,
) -> LengthControlled:
    """Return the win rate over a baseline with and without length, one outcome in [0, 1] a prompt, all lists (N,).

    The objective is C times the cross-entropy plus |a| + |b|, C from ten values by grouped ``folds``. The folds
    depend on ``seed`` and N only, so that swapping the two sides gives exactly one minus the rate.

    ``copies`` (outcomes, differences in length) are verdicts on longer and shorter copies of the baseline against
    itself: they inform the length term only and weigh 0.2 of the prompts together, as in the published code.

    Edge cases: with one and the same difference everywhere there is no length term; with fewer than two prompts a fold
    the weakest penalty is taken. Errors: `DataError` for lists that differ in length, outcomes outside [0, 1], no
    prompts.
    """
    y = np.asarray(won, dtype=np.float64).ravel()
    gap = np.asarray(lengths, dtype=np.float64).ravel() - np.asarray(baseline_lengths, dtype=np.float64).ravel()
    gamma = None if difficulty is None else np.asarray(difficulty, dtype=np.float64).ravel()
    if not y.size or gap.size != y.size or (gamma is not None and gamma.size != y.size):
        raise DataError(f"{y.size} outcomes and {gap.size} differences in length: one of each a prompt is needed")
    if not np.all((y >= 0) & (y <= 1)):
        raise DataError("outcomes of a comparison must lie between 0 and 1")
    x = _design(gap, gamma, _spread(gap))
    part = np.random.default_rng(seed).permutation(y.size) % folds
    more = _copies(copies, _spread(gap), x.shape[1])
    chosen = _choose(x, y, part, more) if y.size >= 2 * folds else PENALTIES[-1]
    beta = _lasso(x, y, chosen, more)
    lo = hi = nan
    if resamples:
        rng = np.random.default_rng(seed)
        draws = np.empty(resamples)
        for row in range(resamples):
            rows = rng.integers(y.size, size=y.size)
            again = _design(gap[rows], None if gamma is None else gamma[rows], _spread(gap[rows]))
            draws[row] = _rate(again, _lasso(again, y[rows], chosen, more, start=beta))
        lo, hi = (float(q) for q in np.quantile(draws, [0.5 - level / 2, 0.5 + level / 2]))
    return LengthControlled(
        raw=float(y.mean()),
        controlled=_rate(x, beta),
        lo=lo,
        hi=hi,
        length=float(beta[0]),
        difficulty=float(beta[2]) if gamma is not None else 0.0,
        quality=float(beta[1]),
        inverse_penalty=chosen,
        n=y.size,
    )


def prompt_difficulty(won: ArrayLike, length_gaps: ArrayLike, *, ridge: float = 1.0) -> Floats:
    """Return gamma, (N,): how much likelier a win on each prompt is, from M models against one baseline.

        logit P(model m wins on x) = a_m tanh(dlen_mx / sd_m) + gamma_x + c_m,      ridge/2 |gamma|² added

    ``won`` and ``length_gaps`` are (M, N); NaN where a model has no answer. The mean of gamma is near zero, not at it.

    Errors: `DataError` for shapes that differ and for a ridge that is not positive. Source: as above, section 3.
    """
    y, gap = np.asarray(won, dtype=np.float64), np.asarray(length_gaps, dtype=np.float64)
    if y.ndim != 2 or y.shape != gap.shape or ridge <= 0:
        raise DataError(f"two tables (models, prompts) and a positive ridge are needed; got {y.shape} and {gap.shape}")
    seen = ~(np.isnan(y) | np.isnan(gap))
    spread = np.array([float(np.std(row[ok])) or 1.0 if ok.any() else 1.0 for row, ok in zip(gap, seen, strict=True)])
    shape = np.where(seen, np.tanh(np.nan_to_num(gap) / spread[:, None]), 0.0)
    target = np.nan_to_num(y)
    m, n = y.shape

    def objective(at: Floats) -> tuple[float, Floats]:
        a, c, gamma = np.split(at, [m, 2 * m])
        margin = a[:, None] * shape + c[:, None] + gamma
        loss = -float(np.sum(seen * (target * margin + log_expit(-margin)))) + 0.5 * ridge * float(gamma @ gamma)
        slope = seen * (expit(margin) - target)
        by_model = slope.sum(axis=1) + 1e-6 * c
        return loss + 5e-7 * float(a @ a + c @ c), np.concatenate(
            [(slope * shape).sum(axis=1) + 1e-6 * a, by_model, slope.sum(axis=0) + ridge * gamma]
        )

    found, _ = minimise(objective, np.zeros(2 * m + n), options={"maxiter": 1000})
    return found[2 * m :]


def _design(gap: Floats, gamma: Floats | None, spread: float) -> Floats:
    """Columns tanh(gap / sd), 1 and, when given, gamma: (N, 2 or 3)."""
    columns = [np.tanh(gap / spread) if spread > 0 else np.zeros_like(gap), np.ones_like(gap)]
    return np.stack(columns if gamma is None else [*columns, gamma], axis=1)


def _spread(gap: Floats) -> float:
    """Standard deviation; 0 when all gaps are one number, which length and quality would explain equally well."""
    return float(np.std(gap, ddof=1)) if gap.size > 1 and np.ptp(gap) > 0 else 0.0


def _copies(copies: tuple[ArrayLike, ArrayLike] | None, spread: float, columns: int) -> tuple[Floats, Floats]:
    """Design and outcomes of the baseline's copies: a length column, and zeros where quality would stand."""
    if copies is None:
        return np.zeros((0, columns)), np.zeros(0)
    won, gap = (np.asarray(part, dtype=np.float64).ravel() for part in copies)
    if won.size != gap.size or not np.all((won >= 0) & (won <= 1)):
        raise DataError("copies need one outcome in [0, 1] and one difference in length each")
    x = np.zeros((won.size, columns))
    x[:, 0] = np.tanh(gap / spread) if spread > 0 else 0.0
    return x, won


def _lasso(
    x: Floats, y: Floats, inverse_penalty: float, copies: tuple[Floats, Floats], *, start: Floats | None = None
) -> Floats:
    """Minimise C sum cross-entropy + |a| + |b|, as a smooth problem in beta = up - down with up, down >= 0."""
    n, p = x.shape
    extra_x, extra_y = copies
    x, y = np.concatenate([x, extra_x]), np.concatenate([y, extra_y])
    weight = np.full(len(y), 1 / n)
    weight[n:] = COPIES / max(1, len(extra_y))
    scale = np.full(p, 1 / (inverse_penalty * n))  # per row, so that tolerances mean the same for every C
    scale[1] = 0.0  # quality

    def objective(at: Floats) -> tuple[float, Floats]:
        margin = x @ (at[:p] - at[p:])
        slope = x.T @ (weight * (expit(margin) - y))
        loss = -float(weight @ (y * margin + log_expit(-margin)))
        return loss + float(scale @ (at[:p] + at[p:])), np.concatenate([slope + scale, scale - slope])

    first = np.zeros(2 * p) if start is None else np.concatenate([np.maximum(start, 0), np.maximum(-start, 0)])
    options = {"ftol": 1e-14, "gtol": 1e-9, "maxiter": 500}
    found, _ = minimise(objective, first, bounds=[(0.0, 50.0)] * (2 * p), options=options)
    beta: Floats = found[:p] - found[p:]
    return beta


def _choose(x: Floats, y: Floats, part: Indices, copies: tuple[Floats, Floats]) -> float:
    """Return the C with the least held-out cross-entropy (copies included); the strongest penalty among equals."""
    extra_x, extra_y = copies
    extra_part = np.arange(len(extra_y)) % (int(part.max()) + 1)
    extra_weight = COPIES * len(y) / max(1, len(extra_y))
    losses = []
    for c in PENALTIES:
        loss = 0.0
        for k in np.unique(part):
            held, also = part == k, extra_part == k
            beta = _lasso(x[~held], y[~held], c, (extra_x[~also], extra_y[~also]))
            loss += _loss(x[held], y[held], beta) + extra_weight * _loss(extra_x[also], extra_y[also], beta)
        losses.append(loss)
    return PENALTIES[int(np.argmin(np.round(losses, 9)))]


def _loss(x: Floats, y: Floats, beta: Floats) -> float:
    """Summed cross-entropy."""
    margin = x @ beta
    return -float(np.sum(y * margin + log_expit(-margin)))


def _rate(x: Floats, beta: Floats) -> float:
    """Mean chance to win with the length column at zero."""
    return float(np.mean(expit(x[:, 1:] @ beta[1:])))
