"""Several scorers as one, each standardised first."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from trimtab.artifacts import BESIDE
from trimtab.config import DataRef, ModelRef
from trimtab.data.judged import Bad, read_judged, read_unjudged, with_pairs
from trimtab.errors import ConfigError, DataError, RewardError, did_you_mean
from trimtab.records.types import Group, spread
from trimtab.rewards.ensemble import (
    MEMBERS,
    Ensemble,
    EnsembleCard,
    How,
    Member,
    keep_member,
    open_members,
    rows,
    save_card,
)  # fmt: skip
from trimtab.rewards.scorer import Scorer
from trimtab.stages import Result
from trimtab.stages._gated_fit import spearman
from trimtab.stages._judge_report import by_characters
from trimtab.stages._reward_report import compare_verdicts, report_pairs
from trimtab.train.run import Run, invariant


def ensemble(
    run: Run,
    *,
    members: tuple[ModelRef, ...],
    data: DataRef,
    heldout: DataRef | None = None,
    how: How = "mean",
    penalty: Annotated[float, Field(ge=0)] = 0.5,
    weights: Mapping[str, float] | None = None,
    limit: Annotated[int, Field(ge=1)] = 256,
    bad: Bad = "skip",
) -> Result:
    """Make one scorer of several (Coste et al., 2024, arXiv:2310.02743), to be named wherever a reward is.

    ``members``: reward models, gated ones, other ensembles, policies by their implicit reward. Each is standardised on
    the answers of ``data`` (``limit`` prompts of it at even distances) to mean 0 and deviation 1. ``how``: their mean,
    the worst of them, their mean less ``penalty`` times their variance (uncertain), or a sum by ``weights``, which
    names members. Members' agreement is told, and on ``heldout`` the accuracy of each beside that of all together.
    """
    _check(run, members, how, penalty, weights)
    groups = [group for group in read_unjudged(data.source, run=run, bad=bad) if group.answers]
    groups = spread(groups, limit)
    if sum(len(group.answers) for group in groups) < 2:
        raise DataError(f"{data.source}: there are no two answers in it to standardise members on")
    scorers = open_members(members, {}, dtype=run.dtype)
    kept: list[Member] = []
    tables: list[Tensor] = []
    run.reporter.begin(run.name, len(members), "member")
    for number, (ref, scorer) in enumerate(zip(members, scorers, strict=True)):
        assert ref.artifact is not None
        scores = _scores(ref, groups, scorer)
        mean, std = float(scores.mean()), float(scores.std(correction=0))
        invariant(std > 0, f"member {ref.name!r} gives every answer the same score")
        weight = 1.0 if weights is None else float(weights.get(ref.name, 0.0))
        at = keep_member(ref.artifact, run.folder, number)
        name = ref.artifact.name if "/" in ref.name else ref.name  # a place would not move along
        kept.append(Member(name=name, at=at, mean=mean, std=std, weight=weight))
        tables.append(scores)
        run.reporter.advance(number + 1, {})
    whole = Ensemble(scorers, EnsembleCard(members=tuple(kept), how=how, penalty=penalty))
    save_card(run.folder, whole.card)
    metrics = {"data/answers": float(tables[0].numel()), **_agreement(whole.standardise(torch.stack(tables)))}
    if heldout is not None:
        metrics |= _measure(run, whole, heldout, bad)
    return Result(base=_base(members[0], kept[0]), metrics=metrics)


def _base(first: ModelRef, kept: Member) -> str:
    """What the manifest calls the base: that of the first member, which a whole model that was copied in is itself."""
    assert first.artifact is not None
    copied = kept.at.startswith(f"{BESIDE}{MEMBERS}")
    return kept.at if first.artifact.whole and copied else first.base


def _check(
    run: Run, members: Sequence[ModelRef], how: How, penalty: float, weights: Mapping[str, float] | None
) -> None:
    """Refuse what cannot be meant."""
    where = f"stages.{run.name}"
    names = [member.name for member in members]
    if len(names) < 2:
        raise ConfigError(f"{where}.members: an ensemble has two members or more")
    if len(set(names)) < len(names):
        raise ConfigError(f"{where}.members: a member is named twice")
    for member in members:
        if member.artifact is None:
            raise ConfigError(f"{where}.members: {member.name!r} is no stage's result, so it scores nothing")
    if how != "uncertain" and penalty != 0.5:
        raise ConfigError(f"{where}.penalty would change nothing: how is {how!r}")
    if (how == "weighted") != (weights is not None):
        said = "needs weights" if weights is None else f"would change nothing: how is {how!r}"
        raise ConfigError(f"{where}.{'how: weighted' if weights is None else 'weights'} {said}")
    for name in weights or ():
        if name not in names:
            raise ConfigError(f"{where}.weights: no member {name!r}{did_you_mean(name, names)}")
    if weights is not None and not any(weights.values()):
        raise ConfigError(f"{where}.weights: every weight is 0, so every answer would have the same score")


def _scores(ref: ModelRef, groups: Sequence[Group], scorer: Scorer) -> Tensor:
    """A member's scores of all answers, (A,) float64."""
    found = scorer.score(groups)
    for group, row in zip(groups, found, strict=True):
        if not all(map(math.isfinite, row)):
            raise RewardError(
                f"member {ref.name!r} gives an answer to {group.id!r} a score that is not a finite number"
            )
    return torch.tensor([score for row in found for score in row], dtype=torch.float64)


def _agreement(table: Tensor) -> dict[str, float]:
    """Mean rank correlation of two members over all answers, and the mean deviation over members at an answer."""
    ranks = [spearman(a.numpy(), b.numpy()) for a, b in combinations(table, 2)]
    return {
        "members/agreement": sum(ranks) / len(ranks),
        "members/agreement_lowest": min(ranks),
        "members/disagreement": float(table.std(0, correction=0).mean()),
    }


def _measure(run: Run, whole: Ensemble, heldout: DataRef, bad: Bad) -> dict[str, float]:
    """Accuracy on held-out pairs: the ensemble's as stage ``reward`` tells it, every member's, "the longer wins"."""
    groups = read_judged(heldout.source, with_pairs, run=run, bad=bad).groups
    tokens = [whole.trunks[0].chat.group(group) for group in groups] if whole.trunks else by_characters(groups)

    def report(scores: Tensor) -> dict[str, float]:
        return report_pairs(compare_verdicts(groups, tokens, rows(groups, scores)), std=None)

    table = whole.read(groups)
    each = {m.name: report(row)["heldout/accuracy"] for m, row in zip(whole.card.members, table, strict=True)}
    return {**report(whole.combine(table)), **{f"members/accuracy/{name}": value for name, value in each.items()}}
