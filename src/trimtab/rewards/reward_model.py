"""A trained reward model as a scorer: text in, numbers out; or token batches when it shares the policy's tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trimtab.config import ModelRef
from trimtab.errors import ModelError
from trimtab.model.trunk import ScalarHead, Trunk
from trimtab.records.types import Group
from trimtab.tensors.tree import TokenGroup, TreeBatch, pack, split_by_tokens


@dataclass(frozen=True, slots=True)
class RewardModel:
    """r(x, y) = w . h + b at the answer's last token (Ouyang et al., 2022)."""

    trunk: Trunk
    adapter: str | None
    head: ScalarHead
    micro_tokens: int = 4096

    @classmethod
    def open(cls, model: ModelRef, *, trunk: Trunk | None = None, dtype: str = "auto") -> RewardModel:
        """Load a reward model, on a given trunk when that is its base."""
        if model.artifact is None:
            raise ModelError(f"{model.name!r} is not a reward model: name a 'reward' stage or the folder of one")
        head = ScalarHead.read(model.artifact.folder)
        if trunk is None:
            trunk = Trunk.load(model.base, dtype=dtype)
        return cls(trunk, trunk.adopt(model), head.to(trunk.device))

    def is_on(self, trunk: Trunk, adapter: str | None) -> bool:
        """Tell whether this adapter of this trunk is the one that the scores are read from."""
        return self.trunk is trunk and self.adapter == adapter

    @torch.no_grad()
    def score_batch(self, batch: TreeBatch) -> Tensor:
        """Scores (A,) of a batch of this model's own tokens."""
        with self.trunk.using(self.adapter):
            return self.head(self.trunk.hidden(batch)[batch.last])  # type: ignore[no-any-return]

    def score(self, groups: Sequence[Group]) -> list[list[float]]:
        """Scores of every answer of every Group; text is tokenised with this model's own tokenizer and template."""
        return self.score_tokens([self.trunk.chat.group(group) for group in groups])

    def score_tokens(self, tokens: Sequence[TokenGroup]) -> list[list[float]]:
        """Scores of every answer of every Group of this model's own tokens."""
        scores: list[list[float]] = []
        for cut in split_by_tokens(tokens, self.micro_tokens):
            items = [tokens[i] for i in cut]
            flat = iter(self.score_batch(pack(items).to(self.trunk.device)).tolist())
            scores += [[next(flat) for _ in item.answers] for item in items]
        return scores
