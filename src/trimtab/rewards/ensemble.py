"""Several scorers as one (Coste et al. 2024, arXiv:2310.02743), and how far they disagree.

Every member is first standardised on the same answers, z = (r - mean) / std: members' scales are arbitrary, and the one
with the largest would win. Then, for every answer, over M members:

    mean        mean z
    worst       min z
    uncertain   mean z - penalty var z        var over members, biased
    weighted    sum_m w_m z_m

``ensemble.json`` names each member by the place of its folder beside this one, so that a run can move.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from trimtab.artifacts import BESIDE, ITSELF, MANIFEST, Artifact, read_artifact, write_json
from trimtab.config import ModelRef
from trimtab.errors import ConfigError, ModelError
from trimtab.model.source import resolve
from trimtab.model.trunk import Trunk
from trimtab.records.types import Group
from trimtab.rewards.ai_judge import NO_TRUNK
from trimtab.rewards.implicit import STAGES as IMPLICIT
from trimtab.rewards.implicit import find_start, reference_beta
from trimtab.rewards.reading import Trunks, read_card, unique
from trimtab.rewards.scorer import Scorer, open_scorer
from trimtab.tensors.tree import TreeBatch

CARD = "ensemble.json"
MEMBERS = "members"

How = Literal["mean", "worst", "uncertain", "weighted"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One member: its name, its folder (``artifact:`` and the way from the ensemble's), its statistics, its weight."""

    name: str
    at: str
    mean: float = 0.0
    std: float = 1.0
    weight: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EnsembleCard:
    """How members become one score."""

    members: tuple[Member, ...]
    how: How = "mean"
    penalty: float = 0.5


def combine(scores: Tensor, how: How, *, penalty: float = 0.5, weights: Sequence[float] | None = None) -> Tensor:
    """One score an answer from standardised scores of M members, (M, A) -> (A,). ``weights`` (M,) for ``weighted``."""
    match how:
        case "mean":
            return scores.mean(0)
        case "worst":
            return scores.amin(0)
        case "uncertain":
            return scores.mean(0) - penalty * scores.var(0, correction=0)
        case "weighted":
            assert weights is not None
            return torch.tensor(weights, dtype=scores.dtype, device=scores.device) @ scores


@dataclass(frozen=True, slots=True)
class Ensemble:
    """Opened members and how they become one score."""

    scorers: tuple[Scorer, ...]
    card: EnsembleCard

    @classmethod
    def open(cls, model: ModelRef, *, trunk: Trunk | None = None, dtype: str = "auto") -> Ensemble:
        """Open every member; those on one base share a trunk, the given one when that is their base."""
        assert model.artifact is not None
        card = _read_card(model.artifact.folder)
        refs = [_find(model.artifact.folder, member) for member in card.members]
        return cls(open_members(refs, {} if trunk is None else {model.base: trunk}, dtype=dtype), card)

    @property
    def trunks(self) -> tuple[Trunk, ...]:
        """The members' trunks, each once."""
        return unique(trunk for scorer in self.scorers for trunk in scorer.trunks)

    def reads(self, trunk: Trunk) -> bool:
        """Tell whether every member can be handed this trunk's tokens."""
        return all(scorer.reads(trunk) for scorer in self.scorers)

    def score_batch(self, batch: TreeBatch) -> Tensor:
        """Scores (A,) of a batch of tokens that every member reads."""
        table = torch.stack([scorer.score_batch(batch) for scorer in self.scorers])
        return self.combine(self.standardise(table)).float()

    def score(self, groups: Sequence[Group]) -> list[list[float]]:
        """Scores of every answer of every Group."""
        return rows(groups, self.combine(self.read(groups)))

    def disagreement(self, groups: Sequence[Group]) -> list[list[float]]:
        """Deviation (biased) of the standardised members at every answer of every Group: what to have judged next."""
        return rows(groups, self.read(groups).std(0, correction=0))

    def read(self, groups: Sequence[Group]) -> Tensor:
        """The standardised members' scores of all answers in order, (M, A) float64."""
        found = [[score for row in scorer.score(groups) for score in row] for scorer in self.scorers]
        return self.standardise(torch.tensor(found, dtype=torch.float64))

    def standardise(self, scores: Tensor) -> Tensor:
        """Members' own scores (M, A) on one scale."""
        members = self.card.members
        mean, std = (
            torch.tensor(column, dtype=torch.float64, device=scores.device)[:, None]
            for column in ([m.mean for m in members], [m.std for m in members])
        )
        return (scores.double() - mean) / std

    def combine(self, table: Tensor) -> Tensor:
        """One score an answer, (M, A) -> (A,)."""
        weights = [member.weight for member in self.card.members]
        return combine(table, self.card.how, penalty=self.card.penalty, weights=weights)


def open_members(refs: Sequence[ModelRef], given: Mapping[str, Trunk], *, dtype: str) -> tuple[Scorer, ...]:
    """Open scorers; those on one base share a trunk."""
    trunks = Trunks(given, dtype=dtype)
    bases = (None if ref.base.startswith(NO_TRUNK) else trunks.of(ref.base) for ref in refs)
    return tuple(open_scorer(ref, trunk=trunk, dtype=dtype) for ref, trunk in zip(refs, bases, strict=True))


def rows(groups: Sequence[Group], flat: Tensor) -> list[list[float]]:
    """Numbers of all answers (A,) as a list for each Group."""
    return [part.tolist() for part in flat.split([len(group.answers) for group in groups])] if len(groups) else []


# --- where members are ------------------------------------------------------------------------------------------------


def save_card(folder: Path, card: EnsembleCard) -> None:
    """Write ``ensemble.json``."""
    members: list[dict[str, Any]] = [
        {"name": m.name, "at": m.at, "mean": m.mean, "std": m.std, "weight": m.weight} for m in card.members
    ]
    write_json(folder / CARD, {"how": card.how, "penalty": card.penalty, "members": members})


def keep_member(artifact: Artifact, work: Path, number: int) -> str:
    """Make sure that a member is found from the finished folder of a stage that works in ``work``; return its place.

    A stage of the same run will stand beside it. What comes from elsewhere is copied in, with the model that its
    training started from where its reward is measured from that one; only a base that is not this start stays where it
    is.

    Errors: ConfigError for an ensemble from elsewhere, ModelError where the start is not to be found any more.
    """
    if artifact.folder.parent == (work.parents[1] / "artifacts").resolve():
        return f"{BESIDE}../{artifact.folder.name}"
    if artifact.stage == "ensemble":
        raise ConfigError(
            f"{artifact.folder}: an ensemble of another run leans on its own members there; name those members here"
        )
    target = work / MEMBERS / str(number)
    facts: dict[str, Any] = {}
    if reference_beta(artifact.manifest) is not None:
        facts = _keep_start(artifact, target.parent)
    _copy(artifact, target, facts)
    return f"{BESIDE}{os.path.relpath(target, work)}"


def _keep_start(artifact: Artifact, members: Path) -> dict[str, Any]:
    """Copy what a policy's training started from beside its own copy; return what ``find_start`` reads there."""
    start = find_start(artifact)
    facts: dict[str, Any] = {"config": {**artifact.manifest["config"], "init": "base"}}
    if start.artifact is None:
        return {**facts, "inputs": {"base": resolve(start.base).digest}, "model": start.base}
    slot = f"base-{start.artifact.key[:12]}"
    _copy(start.artifact, members / slot, {})
    if not artifact.whole and artifact.base == str(start.artifact.folder):  # an adapter on that very model
        facts["base"] = f"{BESIDE}../{slot}"
    return {**facts, "inputs": {"base": start.artifact.key}}


def _copy(artifact: Artifact, target: Path, facts: Mapping[str, Any]) -> None:
    """Copy an artifact's folder, with a manifest that says what a scorer asks of it."""
    shutil.rmtree(target, ignore_errors=True)  # half of it, from before a kill
    skipped = shutil.ignore_patterns("checkpoints", "metrics.jsonl", MANIFEST)
    shutil.copytree(artifact.folder, target, ignore=skipped)
    kept = {name: artifact.manifest[name] for name in ("name", "stage", "key")}
    if artifact.stage in IMPLICIT:  # with which method it was trained
        kept["config"] = artifact.manifest.get("config", {})
    write_json(target / MANIFEST, {**kept, "base": ITSELF if artifact.whole else artifact.base, **facts})


def _find(folder: Path, member: Member) -> ModelRef:
    place = (folder / member.at.removeprefix(BESIDE)).resolve()
    artifact = read_artifact(place) if place.is_dir() else None
    if artifact is None or artifact.base is None:
        raise ModelError(f"{folder}: its member {member.name!r} is not at {member.at.removeprefix(BESIDE)!r} any more")
    return ModelRef(member.name, artifact.base, artifact)


def _read_card(folder: Path) -> EnsembleCard:
    path = folder / CARD
    if not path.is_file():
        raise ModelError(f"{folder} holds no {CARD}: it is not an ensemble")
    card = read_card(EnsembleCard, path, "an ensemble's")
    if not card.members:
        raise ModelError(f"{path}: it has no members")
    return card
