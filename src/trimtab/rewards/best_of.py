"""The best of several answers by a scorer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from trimtab.records.types import Group, Score


def best_of(groups: Sequence[Group], scores: Sequence[Sequence[float]], *, rater: str) -> list[Group]:
    """Groups with only their best answer, and its score as a verdict of attribute ``reward``; the first of equals.

    A Group without answers stays as it is.
    """
    found: list[Group] = []
    for group, own in zip(groups, scores, strict=True):
        if not own:
            found.append(group)
            continue
        best = max(range(len(own)), key=own.__getitem__)
        said = Score(answer=0, values={"reward": own[best]}, rater=rater)
        found.append(replace(group, answers=(group.answers[best],), verdicts=(said,)))
    return found
