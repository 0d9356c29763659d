"""Next-token learning on texts: all that SFT does, and what other stages mix into their updates."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from trimtab.data.encode import encode
from trimtab.data.judged import Bad, read_demonstrations
from trimtab.losses.lm import next_token
from trimtab.model.trunk import Trunk
from trimtab.seeds import derive
from trimtab.tensors.tree import TokenGroup, TreeBatch, pack, split_by_tokens
from trimtab.train.loop import Update, batch_at
from trimtab.train.run import Means, Run

Work = Callable[[], Mapping[str, Tensor | float]]


class Texts:
    """Batches of texts for one adapter; each gives ``weight`` x the token-mean cross-entropy of its answers.

    By itself it is the ``fit`` loop's task; another task asks it for the ``work`` to add to an update.
    """

    def __init__(
        self, trunk: Trunk, adapter: str | None, tokens: Sequence[TokenGroup], *, batch: int, micro_tokens: int,
        seed: int, weight: float = 1.0, metric: str = "train/loss",
    ) -> None:  # fmt: skip
        self.trunk, self.adapter, self.tokens = trunk, adapter, tokens
        self.batch, self.micro_tokens, self.seed, self.weight, self.metric = batch, micro_tokens, seed, weight, metric

    def updates(self, step: int, log: Means) -> Iterator[Update[Work]]:
        """The step's batch."""
        log.add({"train/tokens": float(self.num_tokens(step))})
        yield Update(micros=self.work(step), accumulate=lambda call: call())

    def num_tokens(self, number: int) -> int:
        """Tokens that the model reads in batch ``number``."""
        return sum(map(len, self._batch(number)))

    def work(self, number: int) -> list[Work]:
        """Forward and backward of batch ``number``, a call for each micro-batch; the mean is over the whole batch."""
        items = self._batch(number)
        packed = [pack([items[i] for i in cut]) for cut in split_by_tokens(items, self.micro_tokens)]
        total = max(1, sum(batch.num_targets for batch in packed))  # a batch may hold no target at all
        return [partial(self._learn, batch, total) for batch in packed]

    def _batch(self, number: int) -> list[TokenGroup]:
        return [self.tokens[i] for i in batch_at(number, len(self.tokens), self.batch, self.seed)]

    def _learn(self, batch: TreeBatch, total: int) -> dict[str, Tensor]:
        with self.trunk.using(self.adapter):
            logps, _ = self.trunk.logps(batch.to(self.trunk.device))  # at temperature 1: nothing here was sampled
            losses = next_token(logps)  # (N,)
            (self.weight * losses.sum() / total).backward()
        return {self.metric: losses.detach()}

    @torch.no_grad()
    def mean_loss(self, limit: int = 24) -> float:
        """Token-mean loss over (at most ``limit`` of) the texts, at a fixed stride."""
        items = self.tokens[:: -(-len(self.tokens) // limit)]
        means = Means()
        with self.trunk.using(self.adapter):
            for cut in split_by_tokens(items, self.micro_tokens):
                logps, _ = self.trunk.logps(pack([items[i] for i in cut]).to(self.trunk.device))
                means.add({"loss": next_token(logps)})
        return means.result().get("loss", float("nan"))

    def state(self) -> dict[str, Any]:
        """Nothing: the data order comes from (seed, step)."""
        return {}

    def load(self, state: Mapping[str, Any]) -> None:
        """Nothing to put back."""


def mixed_in(
    run: Run, trunk: Trunk, adapter: str | None, source: str | None, *, name: str, weight: float, batch: int,
    max_length: int, micro_tokens: int, bad: Bad,
) -> Texts | None:  # fmt: skip
    """Read the texts that another stage's option ``name`` mixes into its updates; nothing without a source."""
    if source is None:
        return None
    what = "texts to mix in"
    groups = read_demonstrations(source, run=run, what=what, bad=bad)
    _, tokens = encode(groups, trunk.chat, max_length=max_length, run=run, what=what, bad=bad)
    return Texts(
        trunk, adapter, tokens, batch=batch, micro_tokens=micro_tokens, seed=derive(run.seed, name), weight=weight,
        metric=f"{name}/loss",
    )  # fmt: skip
