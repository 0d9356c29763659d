"""What a reward model learns from: items of one kind, and the ``fit`` loop's task.

Shapes: A answers of a micro-batch, I items (P pairs, R lists, N labelled answers), K answers of the longest list or
attributes. Every prompt weighs 1 in an update, whatever number of items it has.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from trimtab.losses.reward._terms import centering, list_centering
from trimtab.model.trunk import ScalarHead, Trunk
from trimtab.records.types import Group, Pair, Ranking
from trimtab.registry import Entry
from trimtab.rewards.reward_model import AttributeHeads
from trimtab.stages._reward_labels import LabelScale
from trimtab.tensors.tree import TokenGroup, TreeBatch, pack, split_by_tokens
from trimtab.train.loop import Update, batch_at
from trimtab.train.run import Means, invariant

Kind = Literal["pairs", "orders", "labels"]
Columns = dict[str, Tensor]
Readings = Mapping[str, Tensor]


def kind_of(loss: Entry) -> Kind:
    """What a loss learns from, told by the columns that it asks for."""
    names = inspect.signature(loss.function).parameters
    return "pairs" if "better" in names else "orders" if "ranks" in names else "labels"


class Objective(Protocol):
    """Items of one kind: how they are laid out, and what they cost."""

    def columns(self, groups: Sequence[Group]) -> Columns:
        """The items of some packed Groups; ``weight`` (I,) sums to 1 for every Group."""
        ...

    def losses(self, scores: Tensor, columns: Columns) -> tuple[Tensor, Tensor, Readings]:
        """Losses (I,), what is added to them in training (I,), and readings for the log."""
        ...

    def at_zero(self, columns: Columns) -> Tensor | None:
        """What the losses (I,) must be while every score is 0, worked out another way; ``None`` for a user's loss."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """One answer is better than another; ``margin`` is multiplied by the pair's strength (1 when it has none)."""

    loss: Entry
    margin: float = 0.0
    center: float = 0.0

    def columns(self, groups: Sequence[Group]) -> Columns:
        """``better`` and ``worse`` are indices of answers (P,)."""
        rows: list[tuple[int, int, float, float, float]] = []
        for first, group in _placed(groups):
            own = [verdict for verdict in group.verdicts if isinstance(verdict, Pair)]
            rows += [
                (first + p.better, first + p.worse, _or_one(p.strength), _or_one(p.probability), 1 / len(own))
                for p in own
            ]
        better, worse, strength, probability, weight = zip(*rows, strict=True)
        return {
            "better": torch.tensor(better), "worse": torch.tensor(worse), "strength": torch.tensor(strength),
            "probability": torch.tensor(probability), "weight": torch.tensor(weight),
        }  # fmt: skip

    def losses(self, scores: Tensor, columns: Columns) -> tuple[Tensor, Tensor, Readings]:
        """From scores (A,)."""
        better, worse = scores[columns["better"]], scores[columns["worse"]]  # (P,)
        margin = self.margin * columns["strength"]
        losses: Tensor = self.loss.function(better, worse, margin=margin, probability=columns["probability"])
        readings = {"train/accuracy": (better > worse).float(), "train/margin": better - worse}
        return losses, self.center * centering(better, worse), readings

    def at_zero(self, columns: Columns) -> Tensor | None:
        """log(1 + e^m), whoever won; ln 2 without a margin."""
        return (self.margin * columns["strength"]).exp().log1p() if self.loss.name == "bradley_terry" else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Orders:
    """Answers in an order, best first."""

    loss: Entry
    center: float = 0.0

    def columns(self, groups: Sequence[Group]) -> Columns:
        """``index`` names the answers of every list (R, K), padded where ``mask`` is False."""
        index: list[list[int]] = []
        ranks: list[list[int]] = []
        weight: list[float] = []
        for first, group in _placed(groups):
            own = [verdict for verdict in group.verdicts if isinstance(verdict, Ranking)]
            weight += [1 / len(own)] * len(own)
            for ranking in own:
                index.append([first + answer for tier in ranking.order for answer in tier])
                ranks.append([rank for rank, tier in enumerate(ranking.order) for _ in tier])
        width = max(map(len, index))
        return {
            "index": torch.tensor([row + [0] * (width - len(row)) for row in index]),
            "ranks": torch.tensor([row + [0] * (width - len(row)) for row in ranks]),
            "mask": torch.tensor([[True] * len(row) + [False] * (width - len(row)) for row in index]),
            "weight": torch.tensor(weight),
        }

    def losses(self, scores: Tensor, columns: Columns) -> tuple[Tensor, Tensor, Readings]:
        """From scores (A,)."""
        table, mask = scores[columns["index"]], columns["mask"]  # (R, K)
        losses: Tensor = self.loss.function(table, columns["ranks"], mask)
        better, worse = _ordered(columns)
        margins = scores[better] - scores[worse]
        readings = {"train/accuracy": (margins > 0).float(), "train/margin": margins}
        return losses, self.center * list_centering(table, mask), readings

    def at_zero(self, columns: Columns) -> Tensor | None:
        """Sum over the answers of the log of how many compete, itself and those below it."""
        if self.loss.name != "plackett_luce":
            return None
        found = []
        for ranks, mask in zip(columns["ranks"].tolist(), columns["mask"].tolist(), strict=True):
            known = [rank for rank, there in zip(ranks, mask, strict=True) if there]
            found.append(math.fsum(math.log1p(sum(other > rank for other in known)) for rank in known))
        return torch.tensor(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Labels:
    """Answers with numbers, one head for each attribute."""

    loss: Entry
    scale: LabelScale

    def columns(self, groups: Sequence[Group]) -> Columns:
        """``index`` names the labelled answers (N,); ``labels`` and ``mask`` are (N, K)."""
        index: list[int] = []
        labels: list[list[float]] = []
        weight: list[float] = []
        for first, group in _placed(groups):
            table = self.scale.table(group)
            index += [first + answer for answer in table]
            labels += table.values()
            weight += [1 / len(table)] * len(table)
        targets = torch.tensor(labels)
        return {
            "index": torch.tensor(index), "labels": targets.nan_to_num(), "mask": ~targets.isnan(),
            "weight": torch.tensor(weight),
        }  # fmt: skip

    def losses(self, scores: Tensor, columns: Columns) -> tuple[Tensor, Tensor, Readings]:
        """From scores (A, K)."""
        losses: Tensor = self.loss.function(scores[columns["index"]], columns["labels"], columns["mask"])
        return losses, torch.zeros_like(losses), {}

    def at_zero(self, columns: Columns) -> Tensor | None:
        """The mean square of an answer's labels; ln 2 for chances."""
        known = columns["mask"].double()
        each = columns["labels"].double().square() if self.loss.name == "mse" else torch.full_like(known, math.log(2))
        return (each * known).sum(1) / known.sum(1) if self.loss.name in ("mse", "bce") else None


@dataclass(slots=True, kw_only=True)
class Micro:
    """A micro-batch: its tokens, its items, and the number of prompts in the whole update."""

    batch: TreeBatch
    columns: Columns
    prompts: int

    def to(self, device: torch.device) -> Micro:
        """The same on a device."""
        moved = {name: column.to(device) for name, column in self.columns.items()}
        return replace(self, batch=self.batch.to(device), columns=moved)


class Task:
    """Batches of judged Groups, one update a step."""

    def __init__(
        self, trunk: Trunk, head: ScalarHead | AttributeHeads, objective: Objective, groups: Sequence[Group],
        tokens: Sequence[TokenGroup], *, batch: int, micro_tokens: int, seed: int,
    ) -> None:  # fmt: skip
        self.trunk, self.head, self.objective, self.groups, self.tokens = trunk, head, objective, groups, tokens
        self.batch, self.micro_tokens, self.seed = batch, micro_tokens, seed

    def updates(self, step: int, log: Means) -> Iterator[Update[Micro]]:
        """The step's batch."""
        chosen = batch_at(step, len(self.tokens), self.batch, self.seed)
        cuts = split_by_tokens([self.tokens[i] for i in chosen], self.micro_tokens)
        micros = [self.micro([chosen[i] for i in cut], len(chosen)) for cut in cuts]
        yield Update(micros=micros, accumulate=self.accumulate)

    def micro(self, indices: Sequence[int], prompts: int) -> Micro:
        """Pack some Groups, with their items as indices of the packed answers."""
        batch = pack([self.tokens[i] for i in indices])
        return Micro(batch=batch, columns=self.objective.columns([self.groups[i] for i in indices]), prompts=prompts)

    def scores(self, micro: Micro) -> Tensor:
        """Scores (A,), or (A, K) of attributes, of a micro-batch's answers."""
        scores: Tensor = self.head(self.trunk.hidden(micro.batch)[micro.batch.last])
        return scores

    def accumulate(self, micro: Micro) -> Readings:
        """Losses of the items, averaged within a prompt, then over the update's prompts."""
        micro = micro.to(self.trunk.device)
        losses, added, readings = self.objective.losses(self.scores(micro), micro.columns)
        (((losses + added) * micro.columns["weight"]).sum() / micro.prompts).backward()
        return {"train/loss": losses, **readings}

    def state(self) -> dict[str, Any]:
        """Nothing: the data order comes from (seed, step)."""
        return {}

    def load(self, state: Mapping[str, Any]) -> None:
        """Nothing to put back."""

    @torch.no_grad()
    def check_start(self) -> None:
        """With a zero head every score is 0, and the first losses are known (a pair without a margin: ln 2)."""
        micro = self.micro([0], 1).to(self.trunk.device)
        scores = self.scores(micro)
        losses, _, _ = self.objective.losses(scores, micro.columns)
        known = self.objective.at_zero(micro.columns)
        off = 0.0 if known is None else float(((losses - known.to(losses)).abs() / (1 + losses)).max())
        invariant(
            not scores.any() and off < 1e-5,
            f"step 0: the reward loss is off by {off:.3g} from that of scores of zero: the head does not start at zero",
        )


def _placed(groups: Sequence[Group]) -> Iterator[tuple[int, Group]]:
    """Each Group with the index of its first answer among the packed answers."""
    starts = accumulate((len(group.answers) for group in groups), initial=0)
    return zip(starts, groups, strict=False)  # the last start is the number of answers


def _ordered(columns: Columns) -> tuple[Tensor, Tensor]:
    """Indices of answers (P,), (P,) of every pair that the lists put in order."""
    ranks, mask, index = columns["ranks"], columns["mask"], columns["index"]
    below = (ranks[:, None, :] > ranks[:, :, None]) & mask[:, None, :] & mask[:, :, None]
    row, better, worse = below.nonzero(as_tuple=True)
    return index[row, better], index[row, worse]


def _or_one(number: float | None) -> float:
    return 1.0 if number is None else number
