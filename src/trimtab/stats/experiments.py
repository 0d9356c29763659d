"""Running an experiment on users: who sees which arm, is the split sound, less noise, and what must not get worse.

The unit is whoever was randomised (a user). Means and their always-valid intervals are in `mean_sequence`, paired
verdicts in `sequential`, the closing sentence in `verdict`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import chdtrc

from trimtab.errors import DataError
from trimtab.stats.battles import Floats, Indices
from trimtab.stats.mean_sequence import MeanDifference, Sample, compare_means

BUCKETS = 10_000

MISMATCH = 0.001
"""A sample-ratio p-value below this withholds every verdict (Fabijan et al. 2019, KDD)."""

RAMP = (0.01, 0.05, 0.10, 0.25, 0.50)
"""Shares of traffic that a new arm goes through."""


def fnv1a32(text: str) -> int:
    """Return the 32-bit FNV-1a hash of the text's UTF-8 bytes (Fowler, Noll and Vo; IETF draft-eastlake-fnv)."""
    value = 0x811C9DC5
    for byte in text.encode():
        value = ((value ^ byte) * 0x01000193) & 0xFFFFFFFF
    return value


def bucket(seed: str, unit: str) -> float:
    """Return where a unit falls in [0, 1), in steps of 1/10,000: the same for ever, and different for each seed.

    fnv1a32(str(fnv1a32(seed + unit))) mod 10000 / 10000, version 2 of GrowthBook's public scheme, so that their SDKs
    agree with us. Use a seed for each experiment: with a shared one the same users always meet the new arm.
    """
    return fnv1a32(str(fnv1a32(seed + unit))) % BUCKETS / BUCKETS


def arm_of(seed: str, unit: str, weights: Sequence[float], *, coverage: float = 1.0) -> int | None:
    """Return the index of a unit's arm, or None when it is not in the experiment.

    Arm i owns [start_i, start_i + coverage w_i), start_i the sum of the weights before it, so that wider coverage
    moves nobody from one arm to another. Store the arm on first exposure: weights may change later, a user may not.

    Errors: `DataError` for weights that are negative or do not sum to 1, and a coverage outside [0, 1].
    """
    share = np.asarray(weights, dtype=np.float64)
    if share.ndim != 1 or not share.size or np.any(share < 0) or abs(float(share.sum()) - 1) > 1e-9:
        raise DataError(f"weights of arms must be positive and sum to 1; they are {list(weights)}")
    if not 0 <= coverage <= 1:
        raise DataError(f"coverage {coverage} is not a share")
    at = bucket(seed, unit)
    start = np.concatenate([[0.0], np.cumsum(share)[:-1]])
    inside = np.flatnonzero((at >= start) & (at < start + coverage * share))
    return int(inside[0]) if inside.size else None


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleRatio:
    """Whether users fell into the arms as planned; on ``alarm`` no verdict of the experiment counts."""

    observed: tuple[int, ...]
    expected: tuple[float, ...]
    p_value: float
    alarm: bool


def sample_ratio(observed: Sequence[int], weights: Sequence[float], *, threshold: float = MISMATCH) -> SampleRatio:
    """Return the chi-squared test of exposed users against the planned weights (K arms, K - 1 degrees of freedom).

    Errors: `DataError` for lists that differ in length, negative counts, weights that are not positive.
    """
    seen, share = np.asarray(observed, dtype=np.float64), np.asarray(weights, dtype=np.float64)
    if seen.shape != share.shape or seen.size < 2 or np.any(seen < 0) or np.any(share <= 0):
        raise DataError(
            f"counts {list(observed)} and weights {list(weights)}: two arms or more, one of each, are needed"
        )
    planned = share / share.sum() * seen.sum()
    statistic = float(np.sum((seen - planned) ** 2 / planned)) if seen.sum() else 0.0
    p = float(chdtrc(seen.size - 1, statistic))
    return SampleRatio(
        observed=tuple(int(n) for n in observed), expected=tuple(planned.tolist()), p_value=p, alarm=p < threshold
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Cuped:
    """Values with what was known before taken off, (N,); ``theta`` the slope, ``reduction`` the variance that went."""

    values: Floats
    theta: float
    reduction: float


def cuped(values: ArrayLike, before: ArrayLike, *, arms: ArrayLike | None = None) -> Cuped:
    """Return Y - theta (X - mean X), theta = cov(Y, X) / var(X): same mean effect, variance times 1 - rho².

    ``before`` is the same users' metric from before the experiment; NaN (a new user) counts as the mean. With ``arms``
    theta is pooled within the arms, so that the effect itself does not enter it. X must not depend on the arm.

    Source: Deng, Xu, Kohavi and Walker 2013 (WSDM), eq. 4 and 5. Errors: `DataError` for lists that differ in length.
    """
    y, x = np.asarray(values, dtype=np.float64).ravel(), np.asarray(before, dtype=np.float64).ravel()
    arm = np.zeros(y.size) if arms is None else np.asarray(arms).ravel()
    if not y.size == x.size == arm.size or not np.isfinite(y).all():
        raise DataError(
            f"{y.size} finite values, {x.size} from before and {arm.size} arms: one of each a user is needed"
        )
    known = np.isfinite(x)
    x = np.where(known, x, x[known].mean() if known.any() else 0.0)
    covariance = spread = total = 0.0
    for one in np.unique(arm):
        chosen = arm == one
        dy, dx = y[chosen] - y[chosen].mean(), x[chosen] - x[chosen].mean()
        covariance, spread, total = covariance + float(dx @ dy), spread + float(dx @ dx), total + float(dy @ dy)
    theta = covariance / spread if spread > 0 else 0.0
    reduction = covariance * theta / total if total > 0 else 0.0
    return Cuped(values=y - theta * (x - x.mean()) if y.size else y, theta=theta, reduction=reduction)


@dataclass(frozen=True, slots=True, kw_only=True)
class Guardrail:
    """Something that must not get worse by more than ``margin`` (relative to the old arm when ``relative``).

    ``worse`` says which way harm lies: "higher" for latency, errors and cost, "lower" for retention. A quantile becomes
    a mean by counting: p95 latency has not grown if no more than 5 % are slower than the old arm's p95.
    """

    name: str
    worse: Literal["higher", "lower"] = "higher"
    margin: float = 0.0
    relative: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardrailReading:
    """``breached``: harm is beyond the margin, roll back. ``safe``: it is within. Neither: not known yet."""

    guardrail: Guardrail
    difference: MeanDifference
    breached: bool
    safe: bool


def check_guardrail(
    guardrail: Guardrail, old: Sample, new: Sample, *, expected_n: float, alpha: float = 0.05
) -> GuardrailReading:
    """Return the one-sided always-valid reading of a guardrail (the two-sided interval at 2 alpha).

    ``breached`` at any look happens with probability at most alpha while the harm is within the margin; it is not
    believed before the burn-in. With several guardrails divide alpha by their number.
    """
    found = compare_means(old, new, expected_n=expected_n, alpha=2 * alpha, relative=guardrail.relative)
    lo, hi = (found.lo, found.hi) if guardrail.worse == "higher" else (-found.hi, -found.lo)
    return GuardrailReading(
        guardrail=guardrail,
        difference=found,
        breached=found.burnt_in and lo > guardrail.margin,
        safe=found.burnt_in and hi <= guardrail.margin,
    )


def next_share(current: float, readings: Sequence[GuardrailReading]) -> float:
    """Return the new arm's next share of traffic: 0 on a breach, as it was before the burn-in, else `RAMP`'s next."""
    if any(reading.breached for reading in readings):
        return 0.0
    if not all(reading.difference.burnt_in for reading in readings):
        return current
    return next((share for share in RAMP if share > current + 1e-12), current)


def unit_means(values: ArrayLike, units: Sequence[str]) -> tuple[tuple[str, ...], Floats]:
    """Return the units in alphabetical order and each one's mean, (U,): messages become users before any test.

    Errors: `DataError` for lists that differ in length.
    """
    x = np.asarray(values, dtype=np.float64).ravel()
    if x.size != len(units):
        raise DataError(f"{x.size} values, but {len(units)} units")
    names, code = np.unique(np.array(units, dtype=str), return_inverse=True)
    where: Indices = code.astype(np.intp)
    means: Floats = np.bincount(where, x, names.size) / np.maximum(np.bincount(where, minlength=names.size), 1)
    return tuple(str(name) for name in names), means
