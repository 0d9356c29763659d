"""What a bake-off's rows say in numbers: methods held against each other, prompt by prompt, with intervals.

N prompts, S seeds. Comparisons are paired: two methods' answers to one prompt, of one seed. A prompt's outcomes are
averaged over the seeds first, so intervals are over prompts, for these very models; what another seed may do is told
beside them (``spread``).

A *measure* is what answers are judged by: the judge, of whom only who is preferred counts, or a score (what rules or a
reward model gave), of which the mean counts. A score that is only ever 0 or 1 is a share.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from trimtab.stats.winrate import WinRate, outcomes, wilson, win_rate

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """What answers are judged by; ``name`` is empty for the judge, ``share`` says that it is told in percent."""

    name: str = ""
    share: bool = True

    @property
    def judge(self) -> bool:
        """Only who is preferred counts, not by how much."""
        return not self.name

    @property
    def level(self) -> float:
        """What two methods that do not differ have: half of the wins, or no difference."""
        return 0.5 if self.judge else 0.0

    def of(self, row: Row) -> list[float]:
        """What a row's answers have, one number a prompt; empty where it was not measured."""
        found: list[float] = row["scores"] if self.judge else row.get("measured", {}).get(self.name, [])
        return found


JUDGE = Measure()


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One method against another: a win rate or a difference of scores, its 95 % interval, and each seed's own."""

    mean: float
    lo: float
    hi: float
    seeds: list[float]
    level: float

    @property
    def sign(self) -> int:
        """1 for more, -1 for less, 0 where the interval does not decide it."""
        return 1 if self.lo > self.level else -1 if self.hi < self.level else 0


def measures(rows: Sequence[Row]) -> list[Measure]:
    """What these rows were judged by: the judge first, then scores in the order of the rows."""
    names = dict.fromkeys(name for row in rows for name in row.get("measured", {}))
    found = [JUDGE] if any(row["scores"] for row in rows) else []
    for name in names:
        values = {value for row in rows for value in row.get("measured", {}).get(name, [])}
        found.append(Measure(name=name, share=values <= {0.0, 1.0}))
    return found


def by_method(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows by method: methods in the order of their first rows, each method's rows by seed."""
    found: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: int(row["seed"])):
        found.setdefault(row["method"], []).append(row)
    return {name: found[name] for name in dict.fromkeys(row["method"] for row in rows)}


def paired(a: Sequence[Row], b: Sequence[Row]) -> tuple[WinRate, list[float]] | None:
    """How often method a beats method b: on each prompt, the mean over the seeds that both have; and each seed's rate.

    The interval is over prompts, for these very models. ``None`` when no seed is common or nothing was judged.
    """
    found = _of_common_seeds(a, b, JUDGE)
    if found is None:
        return None
    won: NDArray[np.float64] = np.stack([outcomes(mine, theirs) for mine, theirs in found], axis=1)  # (N, S)
    return win_rate(won.mean(axis=1)), won.mean(axis=0).tolist()


def gain(a: Sequence[Row], b: Sequence[Row], measure: Measure) -> Compared | None:
    """How much higher method a scores than method b, d: on each prompt, the mean over the seeds that both have.

    Of a share, d is twice a win rate with ties less one, and has its interval (``win_rate``), which does not close
    where all prompts agree. Of other scores, Student's: d ± t(N - 1) s / sqrt(N), which closes where all d are equal.
    ``None`` when no seed is common, nothing was measured, or there is one prompt and no share.
    """
    found = _of_common_seeds(a, b, measure)
    if found is None:
        return None
    gained = np.stack([np.subtract(mine, theirs) for mine, theirs in found], axis=1)  # (N, S)
    own: NDArray[np.float64] = gained.mean(axis=1)
    mean, seeds = float(own.mean()), gained.mean(axis=0).tolist()
    if measure.share:
        rate = win_rate((1 + own) / 2)
        return Compared(mean=mean, lo=2 * rate.lo - 1, hi=2 * rate.hi - 1, seeds=seeds, level=0.0)
    if own.size < 2:
        return None
    half = float(student.ppf(0.975, own.size - 1)) * float(own.std(ddof=1)) / sqrt(own.size)
    return Compared(mean=mean, lo=mean - half, hi=mean + half, seeds=seeds, level=0.0)


def compare(a: Sequence[Row], b: Sequence[Row], measure: Measure = JUDGE) -> Compared | None:
    """Method a against method b: ``paired`` by the judge, ``gain`` by a score."""
    if not measure.judge:
        return gain(a, b, measure)
    found = paired(a, b)
    if found is None:
        return None
    rate, seeds = found
    return Compared(mean=rate.mean, lo=rate.lo, hi=rate.hi, seeds=seeds, level=0.5)


def _of_common_seeds(
    a: Sequence[Row], b: Sequence[Row], measure: Measure
) -> list[tuple[list[float], list[float]]] | None:
    """What both methods have, seed by seed; ``None`` when no seed is common or one of them was not measured."""
    mine, theirs = ({row["seed"]: measure.of(row) for row in rows} for rows in (a, b))
    seeds = sorted(mine.keys() & theirs.keys())
    if not seeds or not all(mine[seed] and theirs[seed] for seed in seeds):
        return None
    return [(mine[seed], theirs[seed]) for seed in seeds]


def over_start(rows: Sequence[Row], start: str, measure: Measure = JUDGE) -> dict[str, Compared]:
    """What ``compare`` says of every method against the start, where it says anything."""
    methods = by_method(rows)
    found = {name: compare(own, methods.get(start, []), measure) for name, own in methods.items() if name != start}
    return {name: pair for name, pair in found.items() if pair is not None}


def score(rows: Sequence[Row], measure: Measure) -> float | None:
    """A method's mean score over prompts and seeds; ``None`` where it was not measured."""
    found = [mean(measure.of(row)) for row in rows if measure.of(row)]
    return mean(found) if found else None


def heldout(rows: Sequence[Row]) -> tuple[float, float, float] | None:
    """The share of held-out pairs that a method puts right: mean over seeds, and Wilson's interval.

    One outcome a prompt as if all seeds agreed: never too narrow. ``None`` where it was not measured.
    """
    found = [row["metrics"] for row in rows if "heldout/accuracy" in row["metrics"]]
    if not found:
        return None
    share = mean([metrics["heldout/accuracy"] for metrics in found])
    return share, *wilson(share, min(metrics["heldout/prompts"] for metrics in found))


def longer_wins(rows: Sequence[Row]) -> float | None:
    """The share of held-out pairs that the rule "the longer answer" puts right."""
    found = [row["metrics"]["heldout/longer_wins"] for row in rows if "heldout/longer_wins" in row["metrics"]]
    return mean(found) if found else None


def spread(found: Mapping[str, Compared]) -> tuple[float, float] | None:
    """Return s and t s of the seeds' numbers: s² is their variance pooled over methods, t Student's for 95 %.

    Pooled, because the two or three seeds of one method say little of how far seeds are apart. ``None`` for one seed.
    """
    several = [pair.seeds for pair in found.values() if len(pair.seeds) > 1]
    if not several:
        return None
    freedom = sum(len(seeds) - 1 for seeds in several)
    deviation = sqrt(sum(float(np.var(seeds)) * len(seeds) for seeds in several) / freedom)
    return deviation, float(student.ppf(0.975, freedom)) * deviation


def families(rows: Sequence[Row], start: str) -> dict[str, list[str]]:
    """Methods that are one method at several strengths (``dpo-0_1``, ``dpo-1``), by what stands before the last "-"."""
    found: dict[str, list[str]] = {}
    for name in by_method(rows):
        family, dash, _ = name.rpartition("-")
        if dash and family and name != start:
            found.setdefault(family, []).append(name)
    return {family: names for family, names in found.items() if len(names) > 1}


def kl(rows: Sequence[Row]) -> float:
    """A method's mean KL from the start, nats an answer."""
    return mean([mean(row["kl"]) for row in rows])


def minutes(rows: Sequence[Row]) -> float:
    """A method's mean training time."""
    return mean([row["seconds"] for row in rows]) / 60


def peak(rows: Sequence[Row]) -> float | None:
    """A method's peak memory in GB; ``None`` for a start that was not trained."""
    return max((row["peak_gb"] for row in rows if row["peak_gb"] is not None), default=None)


def mean(values: Sequence[float]) -> float:
    """The mean; 0 of nothing."""
    return sum(values) / len(values) if values else 0.0
