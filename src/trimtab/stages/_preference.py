"""A preference method at work: the columns that it asks for, and the ``fit`` loop's task."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from trimtab.model.forward import reference_kl, target_logps
from trimtab.model.roles import Role
from trimtab.registry import Entry
from trimtab.stages._items import Item, Kind
from trimtab.stages._texts import Texts, Work
from trimtab.tensors.tree import TokenGroup, TreeBatch, pack, split_by_tokens
from trimtab.train.loop import Update, batch_at
from trimtab.train.reference import answer_logps
from trimtab.train.run import Means

# A column of a pair: which number of an answer, and of which of the two answers.
PAIR_COLUMNS = {
    f"{prefix}{side}{suffix}": (number, side)
    for side in ("chosen", "rejected")
    for prefix, suffix, number in (
        ("", "", "logps"), ("ref_", "", "ref_logps"), ("", "_tokens", "tokens"), ("", "_kl", "kl")
    )
}  # fmt: skip


@dataclass(frozen=True)
class Objective:
    """A preference loss with its options: what its items are and what it asks for."""

    entry: Entry
    options: Mapping[str, Any]

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """The columns that the loss names."""
        parameters = inspect.signature(self.entry.function).parameters
        return tuple(name for name in parameters if name not in self.entry.options)

    @property
    def kind(self) -> Kind:
        """What one item is: a pair, an answer, a prompt with its list of answers."""
        return "pair" if "chosen" in self.columns else "answer" if "desirable" in self.columns else "list"

    @property
    def beta(self) -> float:
        """What the method multiplies log-ratios by (1 when it has no such option)."""
        own = self.entry.options.get("beta")
        return float(self.options.get("beta", 1.0 if own is None else own.default))

    def rewards(self, numbers: Mapping[str, Tensor]) -> Tensor:
        """Implicit rewards of answers: beta times the log-ratio, without a reference the mean over tokens."""
        if self.needs_reference:
            return self.beta * (numbers["logps"] - numbers["ref_logps"])
        return self.beta * numbers["logps"] / numbers["tokens"]

    @property
    def needs_kl(self) -> bool:
        """It asks for the reference's whole distribution at every place, not only for its log-probabilities."""
        return any(name.endswith("_kl") for name in self.columns)

    @property
    def needs_reference(self) -> bool:
        """It compares with the model that training started from."""
        return self.needs_kl or any(name.startswith("ref_") or name == "baseline" for name in self.columns)

    def __call__(self, **columns: Tensor) -> Tensor:
        """One loss an item."""
        losses: Tensor = self.entry.function(**{name: columns[name] for name in self.columns}, **self.options)
        return losses


@dataclass(slots=True, kw_only=True)
class Micro:
    """A micro-batch: its tokens, and the items as indices of the packed answers.

    ``index`` is (P, 2) of better and worse for pairs, (I,) for answers, (G, K) for lists, padded with any answer where
    ``mask`` is False. ``ordered`` are all pairs of answers of which one was put before the other, for the log.
    ``weight`` is an item's share of the update: it sums to 1 over the update's micro-batches. ``units`` counts what
    counts the same (prompts, or answers) here, ``whole`` in the update.
    """

    batch: TreeBatch
    index: Tensor
    ordered: Tensor  # (P, 2) better, worse
    label: Tensor  # P(better beats worse) | liked | scores, in the shape of the items
    mask: Tensor
    weight: Tensor  # (items,)
    ref_logps: Tensor  # (A,), empty without a reference
    baseline: Tensor  # ()
    units: int
    whole: int

    def to(self, device: torch.device) -> Micro:
        """The same on a device."""
        names = ("index", "ordered", "label", "mask", "weight", "ref_logps", "baseline")
        moved = {name: getattr(self, name).to(device) for name in names}
        return replace(self, batch=self.batch.to(device), **moved)


class Preference:
    """Batches of judged prompts, one update a step: the ``fit`` loop's task."""

    def __init__(
        self, policy: Role, reference: Role | None, objective: Objective, items: Sequence[Item], *, batch: int,
        micro_tokens: int, seed: int, texts: Texts | None = None,
    ) -> None:  # fmt: skip
        self.policy, self.reference, self.objective, self.items = policy, reference, objective, items
        self.batch, self.micro_tokens, self.seed, self.texts = batch, micro_tokens, seed, texts

    def updates(self, step: int, log: Means) -> Iterator[Update[Work]]:
        """The step's batch, and the texts mixed into it."""
        chosen = [self.items[i] for i in batch_at(step, len(self.items), self.batch, self.seed)]
        strange = [item.mismatch for item in chosen if item.mismatch is not None]
        micros = self.micros(chosen, self._baseline(strange, log))
        tokens = sum(len(item.tokens) for item in chosen) + sum(len(item) for item, _ in strange)
        work: list[Work] = [partial(self.learn, micro) for micro in micros]
        if self.texts is not None:
            tokens += self.texts.num_tokens(step)
            work += self.texts.work(step)
        log.add({"train/tokens": float(tokens)})  # all that the policy reads, also what it only reads for the baseline
        yield Update(micros=work, accumulate=lambda call: call())

    def state(self) -> dict[str, Any]:
        """Nothing: the data order comes from (seed, step)."""
        return {}

    def load(self, state: Mapping[str, Any]) -> None:
        """Nothing to put back."""

    def micros(self, items: Sequence[Item], baseline: Tensor) -> list[Micro]:
        """Pack an update's items. Every prompt counts the same, whatever number of pairs; of thumbs, every answer."""
        answers = self.objective.kind == "answer"
        whole = sum(item.size for item in items) if answers else len(items)
        cuts = split_by_tokens([item.tokens for item in items], self.micro_tokens)
        return [self._pack([items[i] for i in cut], whole, baseline) for cut in cuts]

    def _pack(self, items: Sequence[Item], whole: int, baseline: Tensor) -> Micro:
        """One micro-batch of an update of ``whole`` prompts (or answers)."""
        width = max(len(item.scores) for item in items)
        index: list[list[int]] = []
        ordered: list[tuple[int, int]] = []
        label: list[list[float]] = []
        weight: list[float] = []
        first = 0
        for item in items:
            own = [(first + better, first + worse) for better, worse in item.ordered]
            ordered += own
            if item.pairs:
                index += map(list, own)
                label += [[probability] for _, _, probability in item.pairs]
                weight += [1 / whole / len(item.pairs)] * len(item.pairs)
            elif item.liked:
                index += [[first + answer] for answer, _ in item.liked]
                label += [[float(up)] for _, up in item.liked]
                weight += [1 / whole] * len(item.liked)
            else:
                rest = width - len(item.scores)
                index.append([*range(first, first + len(item.scores)), *[first] * rest])
                label.append([*item.scores, *[math.nan] * rest])
                weight.append(1 / whole)
            first += len(item.tokens.answers)
        labels = torch.tensor(label)
        known = [item.ref_logps for item in items if item.ref_logps is not None]
        single = self.objective.kind == "answer"
        return Micro(
            batch=pack([item.tokens for item in items]),
            index=torch.tensor(index).squeeze(1) if single else torch.tensor(index),
            ordered=torch.tensor(ordered, dtype=torch.long).reshape(-1, 2),
            label=labels.nan_to_num() if self.objective.kind == "list" else labels.squeeze(1),
            mask=~labels.isnan(),
            weight=torch.tensor(weight),
            ref_logps=torch.cat(known) if known else torch.zeros(0),
            baseline=baseline,
            units=sum(item.size for item in items) if single else len(items),
            whole=whole,
        )

    def learn(self, micro: Micro) -> dict[str, Tensor]:
        """Forward and backward of a micro-batch."""
        micro = micro.to(self.policy.trunk.device)
        numbers = self.numbers(micro)
        losses = self.losses(numbers, micro)  # (items,)
        loss = (losses * micro.weight).sum()
        loss.backward()
        mean = loss.detach() * micro.whole / micro.units  # what is minimised; a prompt's pairs share its weight
        return {"train/loss": mean.expand(micro.units), **self._readings(numbers, micro)}

    def numbers(self, micro: Micro) -> dict[str, Tensor]:
        """What is known of every answer (A,): its log-probabilities, its tokens, the KL over it."""
        batch, trunk = micro.batch, self.policy.trunk
        with trunk.using(self.policy.adapter):
            hidden = trunk.hidden(batch)[batch.predictor]  # (N, H)
            logps, _ = target_logps(trunk.head, hidden, batch.target)  # (N,)
        found = {
            "logps": batch.sum_by_answer(logps),
            "tokens": batch.sum_by_answer(torch.ones_like(logps)).clamp_min(1),
            "ref_logps": micro.ref_logps,
        }
        if self.objective.needs_kl:
            assert self.reference is not None
            theirs = self.reference.trunk
            with torch.no_grad(), theirs.using(self.reference.adapter):
                ref_hidden = theirs.hidden(batch)[batch.predictor]
            found["kl"] = batch.sum_by_answer(reference_kl(trunk.head, hidden, theirs.head, ref_hidden))
        return found

    def losses(self, numbers: Mapping[str, Tensor], micro: Micro) -> Tensor:
        """The method's loss of every item; a pair's soft label weighs both directions."""
        if self.objective.kind == "answer":
            columns = {name: numbers[name][micro.index] for name in ("logps", "ref_logps")}
            return self.objective(**columns, desirable=micro.label, baseline=micro.baseline)
        if self.objective.kind == "list":
            tables = {name: numbers[name][micro.index] for name in ("logps", "tokens")}
            return self.objective(**tables, scores=micro.label, mask=micro.mask)
        losses = self.objective(**self._pair(numbers, micro.index))
        if bool((micro.label != 1).any()):
            losses = micro.label * losses + (1 - micro.label) * self.objective(
                **self._pair(numbers, micro.index.flip(1))
            )
        return losses

    def _pair(self, numbers: Mapping[str, Tensor], index: Tensor) -> dict[str, Tensor]:
        """The columns of pairs, (P,) each."""
        place = {"chosen": index[:, 0], "rejected": index[:, 1]}
        wanted = {name: PAIR_COLUMNS[name] for name in self.objective.columns}
        return {name: numbers[number][place[side]] for name, (number, side) in wanted.items()}

    def _readings(self, numbers: Mapping[str, Tensor], micro: Micro) -> dict[str, Tensor]:
        """Implicit rewards and what they get right, for the log."""
        numbers = {name: number.detach() for name, number in numbers.items()}
        reward, logps = self.objective.rewards(numbers), numbers["logps"]
        if self.objective.kind == "answer":
            mine, up = reward[micro.index], micro.label == 1
            return {
                "train/accuracy": ((mine > self.objective.beta * micro.baseline) == up).float(),
                "rewards/chosen": mine[up], "rewards/rejected": mine[~up],
                "logps/chosen": logps[micro.index][up], "logps/rejected": logps[micro.index][~up],
            }  # fmt: skip
        better, worse = micro.ordered.unbind(1)
        return {
            "train/accuracy": (reward[better] > reward[worse]).float(),
            "rewards/chosen": reward[better], "rewards/rejected": reward[worse],
            "rewards/margin": reward[better] - reward[worse],
            "logps/chosen": logps[better], "logps/rejected": logps[worse],
        }  # fmt: skip

    def _baseline(self, strange: Sequence[tuple[TokenGroup, Tensor]], log: Means) -> Tensor:
        """KTO's z0: how far the policy is from the reference on answers to other prompts, at least 0, no gradient."""
        if "baseline" not in self.objective.columns:
            return torch.zeros(())
        assert strange
        mine = answer_logps(
            self.policy.trunk, self.policy.adapter, [tokens for tokens, _ in strange], micro_tokens=self.micro_tokens
        )
        drift = torch.cat(mine) - torch.cat([theirs for _, theirs in strange])
        baseline = drift.mean().clamp_min(0)
        log.add({"train/baseline": baseline})
        return baseline
