"""Learning by comparison: a preference loss on the policy's own answers, judged as they come. Online DPO and others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from trimtab.model.roles import Roles
from trimtab.seeds import derive
from trimtab.stages._episodes import as_item
from trimtab.stages._items import Item
from trimtab.stages._online_settings import KL, Compare
from trimtab.stages._preference import Objective, Preference
from trimtab.stages._rollout import Rollout, Sample
from trimtab.stages._rounds import Rounds
from trimtab.stages._texts import Texts, Work
from trimtab.tensors.tree import TokenGroup
from trimtab.train.loop import Update, epoch_order
from trimtab.train.run import Means, Run


class Comparison:
    """Samples, puts the answers to each prompt in order and learns from it: the ``fit`` loop's task.

    The reference's log-probabilities are those of the round's own passes: of the model that training started from, or,
    with ``compare.reference: previous``, of the policy as it was when it wrote the answers. KTO's baseline is the mean
    KL of these answers to that reference, which needs no answers to other prompts.
    """

    def __init__(
        self, run: Run, roles: Roles, rounds: Rounds, objective: Objective, *, epochs: int, minibatches: int,
        micro_tokens: int, kl: KL, compare: Compare, ptx: Texts | None = None,
    ) -> None:  # fmt: skip
        self.run, self.roles, self.rounds, self.compare = run, roles, rounds, compare
        self.epochs, self.minibatches, self.beta = epochs, minibatches, kl.beta
        self.learner = Preference(
            roles.actor, roles.reference, objective, [], batch=1, micro_tokens=micro_tokens, seed=run.seed
        )
        self.ptx, self.warmup = ptx, 0

    def state(self) -> dict[str, Any]:
        """That of the rounds."""
        return self.rounds.state()

    def load(self, state: Mapping[str, Any]) -> None:
        """Put it back."""
        self.rounds.load(state)

    @property
    def objective(self) -> Objective:
        """The loss, with its options."""
        return self.learner.objective

    def updates(self, step: int, log: Means) -> Iterator[Update[Work]]:
        """One round: sample, compare, then epochs x minibatches."""
        found = self.rounds.judged(step, log, beta=self.beta)
        if found is None:
            return
        sample, rollout, worth = found
        items = self._items(sample, rollout, worth)
        log.add({"rollout/compared": len(items) / len(sample.prompts)})
        if not items:
            return
        baseline = torch.zeros(())
        if "baseline" in self.objective.columns:
            reference = rollout.ref_logps if self.compare.reference == "initial" else rollout.logps
            baseline = ((rollout.logps - reference) * rollout.mask).sum(-1).mean().clamp_min(0)
            log.add({"train/baseline": baseline})
        share = -(-len(items) // self.minibatches)
        for epoch in range(self.epochs):
            order = epoch_order(len(items), derive(self.run.seed, "compared", step), epoch)
            for number, begin in enumerate(range(0, len(order), share)):
                micros = self.learner.micros([items[i] for i in order[begin : begin + share]], baseline)
                work: list[Work] = [partial(self.learner.learn, micro) for micro in micros]
                if self.ptx is not None:
                    work += self.ptx.work((step * self.epochs + epoch) * self.minibatches + number)
                yield Update(micros=work, accumulate=lambda call: call())

    def _items(self, sample: Sample, rollout: Rollout, worth: Tensor) -> list[Item]:
        """What each prompt's answers teach; a prompt whose answers are worth the same teaches nothing."""
        theirs = rollout.ref_logps if self.compare.reference == "initial" else rollout.logps
        reference = (theirs * rollout.mask).sum(-1).cpu()  # (B,)
        counted, group = self.rounds.counts(sample), sample.group
        found = []
        for g, item in enumerate(sample.items):
            rows = ((group == g) & counted).nonzero()[:, 0].tolist()
            order = sorted(distinct(sample, rows), key=lambda i: -float(worth[i]))
            if len(order) < 2 or not worth[order[0]] > worth[order[-1]]:
                continue
            if self.compare.pairs == "extremes" and self.objective.kind != "list":
                order = [order[0], order[-1]]
            tokens = as_item(item.prompt, [sample.flat[i] for i in order])
            found.append(self._item(tokens, [float(worth[i]) for i in order], reference[order]))
        return found

    def _item(self, tokens: TokenGroup, worth: list[float], reference: Tensor) -> Item:
        """Answers from the best to the worst, as the loss wants them."""
        known = reference if self.objective.needs_reference else None
        match self.objective.kind:
            case "pair":
                places = range(len(worth))
                pairs = tuple((i, j, 1.0) for i in places for j in places if worth[i] > worth[j])
                return Item(tokens=tokens, pairs=pairs, ref_logps=known)
            case "answer":
                middle = (worth[0] + worth[-1]) / 2
                liked = tuple((i, value > middle) for i, value in enumerate(worth))
                return Item(tokens=tokens, liked=liked, ref_logps=known)
            case "list":
                return Item(tokens=tokens, scores=tuple(worth), ref_logps=known)


def distinct(sample: Sample, rows: list[int]) -> list[int]:
    """The first of answers that are the same to the last token."""
    found: dict[tuple[int, ...], int] = {}
    for i in rows:
        found.setdefault(sample.flat[i].tokens, i)
    return list(found.values())
