"""A trained reward model as a scorer: text in, numbers out; or token batches when it shares the policy's tokens.

A reward model is an adapter, a scalar head, and a card. One that was trained on several attributes has a head for each
besides; its scalar head is their weighted sum, which is a linear function of the hidden state too. So whoever wants one
number an answer (PPO, best-of-n) reads one head, whatever the model was trained on.

    score_head.safetensors        weight (H,), bias ()
    score_head.json               the card; folders written without one load too
    attribute_heads.safetensors   weight (K, H), bias (K,); the names are on the card
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from trimtab.artifacts import write_json
from trimtab.config import ModelRef
from trimtab.errors import ModelError
from trimtab.model.trunk import ScalarHead, Trunk
from trimtab.records.types import Group
from trimtab.rewards.reading import read_card, same_tokens, score_groups
from trimtab.tensors.tree import TokenGroup, TreeBatch, pack, split_by_tokens

CARD = "score_head.json"
ATTRIBUTE_HEADS = "attribute_heads.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class Attribute:
    """One attribute that a model was trained on.

    ``weight`` is its share of the score. ``label_mean`` and ``label_std`` are those of the training labels: a head
    trained on standardised labels says ``(label - label_mean) / label_std``. ``output_mean`` and ``output_std`` are
    those of the head's own numbers on training answers.
    """

    name: str
    weight: float
    label_mean: float = 0.0
    label_std: float = 1.0
    output_mean: float = 0.0
    output_std: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """How a head was made.

    ``mean`` and ``std`` are those of the scores on training answers before the head was rescaled to 0 and 1. A model of
    preferences says that one answer beats another with probability ``sigmoid(std * (score - other))``.
    """

    loss: str = "bradley_terry"
    mean: float = 0.0
    std: float = 1.0
    attributes: tuple[Attribute, ...] = ()


class AttributeHeads(nn.Module):
    """One number for each of K attributes from a hidden state: W h + b, in float32, zero at the start."""

    def __init__(self, hidden_size: int, count: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(count, hidden_size))
        self.bias = nn.Parameter(torch.zeros(count))

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., H) -> (..., K)."""
        return hidden.to(self.weight.dtype) @ self.weight.T + self.bias


@dataclass(frozen=True, slots=True)
class RewardModel:
    """r(x, y) = w . h + b at the answer's last token (Ouyang et al., 2022)."""

    trunk: Trunk
    adapter: str | None
    head: ScalarHead
    micro_tokens: int = 4096
    card: Card = field(default=Card())
    heads: AttributeHeads | None = None

    @classmethod
    def open(cls, model: ModelRef, *, trunk: Trunk | None = None, dtype: str = "auto") -> RewardModel:
        """Load a reward model, on a given trunk when that is its base."""
        if model.artifact is None:
            raise ModelError(f"{model.name!r} is not a reward model: name a 'reward' stage or the folder of one")
        folder = model.artifact.folder
        head = ScalarHead.read(folder)
        card = _read_card(folder)
        heads = _read_heads(folder, card)
        if trunk is None:
            trunk = Trunk.load(model.base, dtype=dtype)
        device = trunk.device
        heads = None if heads is None else heads.to(device)
        return cls(trunk, trunk.adopt(model), head.to(device), card=card, heads=heads)

    def save(self, folder: Path) -> str:
        """Write the adapter (or the whole model), the head, the card, and the attributes' heads where there are any.

        Returns what the manifest calls the base (``Trunk.save``).
        """
        base = self.trunk.save(self.adapter, folder)
        self.head.save(folder)
        if self.heads is not None:
            state = {name: value.detach().clone().contiguous() for name, value in self.heads.state_dict().items()}
            save_file(state, folder / ATTRIBUTE_HEADS)
        write_json(folder / CARD, dataclasses.asdict(self.card))
        return base

    @property
    def trunks(self) -> tuple[Trunk, ...]:
        """The model that it reads with."""
        return (self.trunk,)

    def reads(self, trunk: Trunk) -> bool:
        """Tell whether it can be handed this trunk's tokens."""
        return same_tokens(self.trunk, trunk)

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
        return score_groups(self.trunk, groups, self.score_batch, micro_tokens=self.micro_tokens)

    def score_tokens(self, tokens: Sequence[TokenGroup]) -> list[list[float]]:
        """Scores of every answer of every Group of this model's own tokens."""
        return [table[:, 0].tolist() for table in self.read_tokens(tokens, attributes=False)]

    @torch.no_grad()
    def read_tokens(self, tokens: Sequence[TokenGroup], *, attributes: bool = True) -> list[Tensor]:
        """The score and what each attribute's head says, (k, 1 + K) for each Group of k answers; one pass for all.

        A head trained with ``mse`` speaks in deviations from the mean label, one trained with ``bce`` in logits.
        """
        tables: list[Tensor] = []
        for cut in split_by_tokens(tokens, self.micro_tokens):
            items = [tokens[i] for i in cut]
            batch = pack(items).to(self.trunk.device)
            with self.trunk.using(self.adapter):
                last = self.trunk.hidden(batch)[batch.last]  # (A, H)
            columns = [self.head(last)[:, None]]
            if attributes and self.heads is not None:
                columns.append(self.heads(last))
            tables += torch.cat(columns, 1).cpu().split([len(item.answers) for item in items])
        return tables


def _read_card(folder: Path) -> Card:
    """The card, or that of a plain model where the folder was written without one."""
    path = folder / CARD
    if not path.is_file():
        return Card()
    return read_card(Card, path, "a reward model's")


def _read_heads(folder: Path, card: Card) -> AttributeHeads | None:
    path = folder / ATTRIBUTE_HEADS
    if not card.attributes:
        return None
    if not path.is_file():
        raise ModelError(f"{folder} holds no {ATTRIBUTE_HEADS}, but its card names {len(card.attributes)} attributes")
    state = load_file(path)
    heads = AttributeHeads(state["weight"].shape[1], state["weight"].shape[0])
    heads.load_state_dict(state)
    if len(heads.bias) != len(card.attributes):
        raise ModelError(f"{folder}: {len(heads.bias)} heads for {len(card.attributes)} attributes")
    return heads
