"""Next-token learning on texts: what SFT does, and what other stages mix into their updates."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from torch import Tensor

from trimtab.losses.lm import next_token
from trimtab.model.trunk import Trunk
from trimtab.tensors.tree import TokenGroup, TreeBatch, pack, split_by_tokens
from trimtab.train.loop import batch_at

Work = Callable[[], Mapping[str, Tensor]]


class Texts:
    """Batches of texts for one adapter; each gives ``weight`` x the token-mean cross-entropy of its answers."""

    def __init__(
        self, trunk: Trunk, adapter: str | None, tokens: Sequence[TokenGroup], *, batch: int, micro_tokens: int,
        seed: int, weight: float = 1.0, metric: str = "train/loss",
    ) -> None:  # fmt: skip
        self.trunk, self.adapter, self.tokens = trunk, adapter, tokens
        self.batch, self.micro_tokens, self.seed, self.weight, self.metric = batch, micro_tokens, seed, weight, metric

    def work(self, number: int) -> list[Work]:
        """Forward and backward of update ``number``, a call for each micro-batch; the mean is over the whole update."""
        items = [self.tokens[i] for i in batch_at(number, len(self.tokens), self.batch, self.seed)]
        packed = [pack([items[i] for i in cut]) for cut in split_by_tokens(items, self.micro_tokens)]
        total = max(1, sum(batch.num_targets for batch in packed))  # a batch may hold no target at all
        return [partial(self._learn, batch, total) for batch in packed]

    def _learn(self, batch: TreeBatch, total: int) -> dict[str, Tensor]:
        with self.trunk.using(self.adapter):
            logps, _ = self.trunk.logps(batch.to(self.trunk.device))  # at temperature 1: nothing here was sampled
            losses = next_token(logps)  # (N,)
            (self.weight * losses.sum() / total).backward()
        return {self.metric: losses.detach()}
