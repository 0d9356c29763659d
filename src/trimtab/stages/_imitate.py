"""Learning by imitation: the best of what was sampled becomes demonstrations. RAFT, best-of-n, rejection sampling."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from trimtab.model.roles import Roles
from trimtab.seeds import derive
from trimtab.stages._episodes import as_item
from trimtab.stages._online_settings import KL, Keep
from trimtab.stages._rollout import Sample
from trimtab.stages._rounds import Rounds
from trimtab.stages._texts import Texts, Work
from trimtab.tensors.tree import TokenGroup
from trimtab.train.loop import Update
from trimtab.train.run import Means, Run


class Imitation:
    """Samples, keeps the best answers and learns their next tokens: the ``fit`` loop's task.

    A step's answers are its data: ``epochs`` passes over those that were kept, in ``minibatches`` equal parts. The
    score of an answer may be less ``kl.beta`` times its KL to the reference (RAFT, section 4).
    """

    def __init__(
        self, run: Run, roles: Roles, rounds: Rounds, *, epochs: int, minibatches: int, micro_tokens: int, kl: KL,
        ptx: Texts | None = None,
    ) -> None:  # fmt: skip
        self.run, self.roles, self.rounds = run, roles, rounds
        self.epochs, self.minibatches, self.micro_tokens, self.beta = epochs, minibatches, micro_tokens, kl.beta
        self.ptx, self.warmup = ptx, 0

    def state(self) -> dict[str, Any]:
        """That of the rounds."""
        return self.rounds.state()

    def load(self, state: Mapping[str, Any]) -> None:
        """Put it back."""
        self.rounds.load(state)

    def updates(self, step: int, log: Means) -> Iterator[Update[Work]]:
        """One round: sample, keep the best, learn them."""
        found = self.rounds.judged(step, log, beta=self.beta)
        if found is None:
            return
        sample, _, worth = found
        kept = kept_answers(self.rounds.keep, sample, worth, self.rounds.counts(sample))
        log.add({"rollout/kept": len(kept) / len(sample.flat)})
        if not kept:
            return
        assert sample.scores is not None
        log.add({"rollout/kept_score": sample.scores[kept], "rollout/kept_length": sample.lengths[kept]})
        shown = _demonstrations(sample, kept)
        batch = -(-len(shown) // self.minibatches)
        texts = Texts(
            self.roles.actor.trunk, self.roles.actor.adapter, shown, batch=batch, micro_tokens=self.micro_tokens,
            seed=derive(self.run.seed, "kept", step), metric="policy/loss",
        )  # fmt: skip
        for number in range(self.epochs * -(-len(shown) // batch)):
            work = texts.work(number)
            if self.ptx is not None:
                work += self.ptx.work(step * self.epochs * self.minibatches + number)
            yield Update(micros=work, accumulate=lambda call: call())


def kept_answers(keep: Keep, sample: Sample, worth: Tensor, counted: Tensor) -> list[int]:
    """Places in the sample of the answers that are learned; of equals the first, and no text twice to a prompt."""
    possible = [i for i in range(len(sample.flat)) if bool(counted[i])]
    by_worth = sorted(possible, key=lambda i: -float(worth[i]))  # stable
    group = sample.group.tolist()
    match keep.how:
        case "best":
            best: dict[int, int] = {}
            for i in by_worth:
                best.setdefault(group[i], i)
            chosen = list(best.values())
        case "top":
            chosen = by_worth[: max(1, round(keep.share * len(sample.flat)))]
        case "above":
            chosen = [i for i in by_worth if float(worth[i]) > keep.threshold]
        case _:
            chosen = by_worth
    seen: set[tuple[int, tuple[int, ...]]] = set()
    distinct = []
    for i in chosen:
        text = (group[i], sample.flat[i].tokens)
        if text not in seen:
            seen.add(text)
            distinct.append(i)
    return sorted(distinct)


def _demonstrations(sample: Sample, kept: list[int]) -> list[TokenGroup]:
    """Each kept answer after its prompt; those to one prompt share it."""
    group = sample.group.tolist()
    by_prompt: dict[int, list[int]] = {}
    for i in kept:
        by_prompt.setdefault(group[i], []).append(i)
    return [as_item(sample.items[g].prompt, [sample.flat[i] for i in own]) for g, own in by_prompt.items()]
