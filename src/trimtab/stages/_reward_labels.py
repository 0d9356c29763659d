"""Numbers that raters gave, on one scale: which attributes there are, and how their labels are standardised.

Shapes: K attributes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from trimtab.errors import ConfigError, DataError, did_you_mean
from trimtab.records.types import Group, Score

FEW_LABELS = 5
"""A rater with fewer labels of an attribute is standardised by the statistics of all."""

Key = tuple[str, str | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Moments:
    """Mean and standard deviation (over N) of some labels; equal labels have deviation 1, so that they become 0."""

    mean: float = 0.0
    std: float = 1.0
    constant: bool = False

    @classmethod
    def of(cls, numbers: Sequence[float]) -> Moments:
        """Those of a list that is not empty."""
        mean = math.fsum(numbers) / len(numbers)
        if min(numbers) == max(numbers):  # exactly: rounding dust would be blown up
            return cls(mean=numbers[0], constant=True)
        return cls(mean=mean, std=math.sqrt(math.fsum((x - mean) ** 2 for x in numbers) / len(numbers)))


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelScale:
    """How labels become targets.

    With ``standardised``, a label y of attribute a by rater r becomes ``(y - mean) / std``, with the statistics of all
    training labels of a, or of r's own where ``raters`` has them. What several raters say of one answer is averaged
    after that. Otherwise (labels that are chances) it is only averaged.
    """

    attributes: tuple[str, ...]
    pooled: Mapping[str, Moments]
    raters: Mapping[Key, Moments] = field(default_factory=dict)
    standardised: bool = True

    @classmethod
    def fit(
        cls, groups: Sequence[Group], attributes: Sequence[str], *, per_rater: bool, standardised: bool
    ) -> LabelScale:
        """The scale of some training Groups; no ``attributes`` means all that are found, in order of their names.

        An attribute that was found says something only if its labels differ: others are left out, or refused where they
        were asked for by name. Raises ConfigError for an attribute that no label has, and DataError when none is left.
        """
        labels: dict[str, list[float]] = {}
        own: dict[Key, list[float]] = {}
        for name, rater, value in _all(groups):
            labels.setdefault(name, []).append(value)
            own.setdefault((name, rater), []).append(value)
        for name in attributes:
            if name not in labels:
                raise ConfigError(f"attributes: no label has the attribute {name!r}{did_you_mean(name, labels)}")
        pooled = {name: Moments.of(labels[name]) for name in attributes or sorted(labels)}
        for name in attributes:
            if pooled[name].constant:
                raise ConfigError(f"attributes: every label of {name!r} is {labels[name][0]:g}, nothing to learn from")
        pooled = {name: moments for name, moments in pooled.items() if not moments.constant}
        if not pooled:
            raise DataError("every answer has the same labels, nothing to learn from")
        if per_rater and len({rater for _, rater in own}) < 2:
            raise ConfigError("per_rater would change nothing: the data names fewer than two raters")
        raters = {
            key: Moments.of(given)
            for key, given in own.items()
            if per_rater and key[0] in pooled and len(given) >= FEW_LABELS
        }
        return cls(attributes=tuple(pooled), pooled=pooled, raters=raters, standardised=standardised)

    def table(self, group: Group) -> dict[int, list[float]]:
        """Targets of a Group's labelled answers, K numbers each, ``nan`` where there is no label."""
        given: dict[tuple[int, str], list[float]] = {}
        for verdict in group.verdicts:
            if isinstance(verdict, Score):
                for name, value in verdict.values.items():
                    if name in self.pooled:
                        given.setdefault((verdict.answer, name), []).append(self._target(name, verdict.rater, value))
        return {
            answer: [_mean(given.get((answer, name), [])) for name in self.attributes]
            for answer in sorted({answer for answer, _ in given})
        }

    def _target(self, name: str, rater: str | None, value: float) -> float:
        if not self.standardised:
            return value
        moments = self.raters.get((name, rater), self.pooled[name])
        return (value - moments.mean) / moments.std

    def describe(self, groups: Sequence[Group]) -> Iterator[str]:
        """Say what a reader of the report should know: constants, missing labels, raters that were pooled."""
        labels = Counter(name for name, _, _ in _all(groups))
        constant = sorted(set(labels) - set(self.attributes))
        if constant:
            yield f"left out, because every label of it is the same: {', '.join(constant)}"
        rows = [(group, row) for group in groups for row in self.table(group).values()]
        missing = [group for group, row in rows for value in row if math.isnan(value)]
        if missing:
            yield (
                f"{len(missing)} of {len(rows) * len(self.attributes)} labels are missing and teach nothing "
                f"(the first: group {missing[0].id!r})"
            )
        if self.raters:
            every = {(name, rater) for name, rater, _ in _all(groups) if name in self.pooled}
            few = {rater for _, rater in every - set(self.raters)}
            if few:
                yield (
                    f"{len(few)} raters with fewer than {FEW_LABELS} labels of an attribute are standardised by the "
                    "statistics of all"
                )


def _all(groups: Sequence[Group]) -> Iterator[tuple[str, str | None, float]]:
    """Every label: attribute, rater, value."""
    for group in groups:
        for verdict in group.verdicts:
            if isinstance(verdict, Score):
                yield from ((name, verdict.rater, value) for name, value in verdict.values.items())


def _mean(numbers: Sequence[float]) -> float:
    return math.fsum(numbers) / len(numbers) if numbers else math.nan
