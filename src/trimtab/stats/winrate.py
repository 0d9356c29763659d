"""Win rates and accuracies, each with an interval. N prompts, R repeats (orders of showing, seeds).

The unit is the prompt: answers to one prompt share its difficulty, so that several verdicts on it are averaged first
and count once. The interval is Wilson's score interval (Wilson 1927) with an effective number of prompts: `win_rate`.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from math import isnan, nan, sqrt

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri

from trimtab.errors import DataError

PRIOR_PROMPTS = 4.0
"""Weight, in prompts, of the belief that outcomes are spread as widely as wins and losses are (see `win_rate`)."""

LENGTH_FRACTION = 0.2
"""Answers count as equally long when the shorter has at least 80 % of the longer's length."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WinRate:
    """How often a beats b, over ``n`` prompts, ties counting one half; ``lo`` and ``hi`` bound it.

    ``wins``, ``ties`` and ``losses`` count prompts: where repeats disagree, their mean decides.
    """

    mean: float
    lo: float
    hi: float
    n: int
    wins: int
    ties: int
    losses: int

    def flipped(self) -> WinRate:
        """Return the same comparison seen from b: one minus everything."""
        return WinRate(
            mean=1 - self.mean,
            lo=1 - self.hi,
            hi=1 - self.lo,
            n=self.n,
            wins=self.losses,
            ties=self.ties,
            losses=self.wins,
        )


def outcome(score_a: float, score_b: float) -> float:
    """Return 1 when a's score is higher, 0 when b's is, and one half when they are equal.

    Errors: `DataError` when a score is NaN; a missing score is not a tie.
    """
    if isnan(score_a) or isnan(score_b):
        raise DataError(f"cannot compare the scores {score_a} and {score_b}: a judge's score is missing")
    return 1.0 if score_a > score_b else 0.0 if score_a < score_b else 0.5


def outcomes(scores_a: ArrayLike, scores_b: ArrayLike) -> NDArray[np.float64]:
    """Return one outcome a prompt, (N,), from scores of shape (N,) or (N, R).

    The R repeats of a prompt (both orders of showing, several seeds) are compared one by one and averaged, so that a
    judge who always prefers the first answer gives one half.

    Errors: `DataError` when the shapes differ or a score is NaN.
    """
    a, b = np.asarray(scores_a, dtype=float), np.asarray(scores_b, dtype=float)
    if a.shape != b.shape or a.ndim not in (1, 2):
        raise DataError(f"scores must be two lists of one length, (N,) or (N, R); they are {a.shape} and {b.shape}")
    missing = np.isnan(a) | np.isnan(b)
    if missing.any():
        raise DataError(f"prompt {int(np.argwhere(missing)[0][0])}: a judge's score is missing")
    won = np.where(a > b, 1.0, np.where(a < b, 0.0, 0.5))
    return won if won.ndim == 1 else won.mean(axis=1)


def wilson(mean: float, n: float, *, level: float = 0.95) -> tuple[float, float]:
    """Return Wilson's score interval for a proportion.

        (p + z²/2n ± z sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n)

    ``n`` may be fractional (an effective size). Never empty, never outside [0, 1]; n = 0 gives (0, 1).
    """
    if n <= 0:
        return 0.0, 1.0
    z = float(ndtri(0.5 + level / 2))
    centre = mean + z * z / (2 * n)
    half = z * sqrt(mean * (1 - mean) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # Rounding alone would otherwise give -1e-17, or leave the mean itself a hair outside at 0 and 1.
    return max(0.0, min(mean, (centre - half) / scale)), min(1.0, max(mean, (centre + half) / scale))


def accuracy(correct: ArrayLike, *, level: float = 0.95) -> tuple[float, float, float]:
    """Return the share of true entries and its Wilson interval: (mean, lo, hi). No entries give (nan, 0, 1)."""
    right = np.asarray(correct, dtype=float)
    if right.size == 0:
        return nan, 0.0, 1.0
    mean = float(right.mean())
    return mean, *wilson(mean, right.size, level=level)


def win_rate(won: ArrayLike, *, prompts: Sequence[Hashable] | None = None, level: float = 0.95) -> WinRate:
    """Return the mean outcome over prompts with a score interval.

    ``won`` holds numbers in [0, 1], one a prompt, or several when ``prompts`` names the prompt of each: then a prompt's
    outcomes are averaged first (clusters of equal weight). With m the mean and s² the variance (over N) of N prompts,

        dispersion d = (N s² / (m(1-m)) + 4) / (N + 4),     Wilson's interval with N/d prompts.

    Without ties s² = m(1-m), so d = 1 and this is Wilson's interval exactly. Ties and averaged repeats spread less,
    which narrows it; the four pseudo-prompts keep it from closing when all outcomes are equal (50 ties in 50 give 46 to
    54 %, near the rule of three). Symmetric: swapping a and b gives one minus the interval.

    Edge cases: no prompts give (nan, 0, 1). Errors: `DataError` for an outcome outside [0, 1].
    """
    values = np.asarray(won, dtype=float).ravel()
    if not np.all((values >= 0) & (values <= 1)):
        raise DataError("outcomes of a comparison must lie between 0 and 1")
    if prompts is not None:
        values = _prompt_means(values, prompts)
    n = int(values.size)
    if n == 0:
        return WinRate(mean=nan, lo=0.0, hi=1.0, n=0, wins=0, ties=0, losses=0)
    mean = float(values.mean())
    largest = mean * (1 - mean)
    spread = float(values.var()) / largest if largest > 0 else 1.0
    dispersion = min(1.0, (n * spread + PRIOR_PROMPTS) / (n + PRIOR_PROMPTS))
    lo, hi = wilson(mean, n / dispersion, level=level)
    wins, losses = int((values > 0.5).sum()), int((values < 0.5).sum())
    return WinRate(mean=mean, lo=lo, hi=hi, n=n, wins=wins, ties=n - wins - losses, losses=losses)


def length_matched(
    won: ArrayLike,
    lengths_a: ArrayLike,
    lengths_b: ArrayLike,
    *,
    fraction: float = LENGTH_FRACTION,
    level: float = 0.95,
) -> WinRate | None:
    """Return the win rate over the prompts whose two answers are about equally long, or ``None`` when there are none.

        |length_a - length_b| <= fraction * max(length_a, length_b)

    Judges and reward models like length (Singhal et al. 2023, arXiv:2310.03716), so a win rate that holds only where
    one answer is longer is not worth much. Matching is chosen over a regression on length because it assumes no shape
    and a reader can check it; its price is fewer prompts, and that these are not a random sample of all prompts.
    ``won`` holds one outcome a prompt, (N,), and so do the lengths (in any one unit, usually tokens).

    Errors: `DataError` when the three lists differ in length.
    """
    values = np.asarray(won, dtype=float)
    a, b = np.asarray(lengths_a, dtype=float), np.asarray(lengths_b, dtype=float)
    if values.ndim != 1 or values.shape != a.shape or values.shape != b.shape:
        raise DataError(f"one outcome and two lengths a prompt are needed; got {values.shape}, {a.shape}, {b.shape}")
    near = np.abs(a - b) <= fraction * np.maximum(a, b)
    return win_rate(values[near], level=level) if near.any() else None


def _prompt_means(values: NDArray[np.float64], prompts: Sequence[Hashable]) -> NDArray[np.float64]:
    """Average the outcomes of each prompt, in order of first appearance."""
    if len(prompts) != values.size:
        raise DataError(f"{values.size} outcomes, but {len(prompts)} prompt names")
    by_prompt: dict[Hashable, list[float]] = {}
    for prompt, value in zip(prompts, values.tolist(), strict=True):
        by_prompt.setdefault(prompt, []).append(value)
    return np.array([sum(group) / len(group) for group in by_prompt.values()])
