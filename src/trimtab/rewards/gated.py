"""Several attributes, mixed by a gate that reads the prompt (ArmoRM: Wang et al. 2024, arXiv:2406.12845).

    R  = W h                      K attributes of an answer, h its last token's hidden state, frozen
    R' = R T                      without what is mere verbosity
    g  = softmax(MLP(z) / tau)    z the hidden state of the prompt's last token: the gate never sees an answer
    r  = (s sum_k g_k R'_k - mean) / std

``Attributes`` makes R' in training and in use: the same object is saved. (The authors' public code computes R' and then
trains and tests its gate on R.)

    gated.safetensors    weight (K, H), debias (K or K + 1, K), gate/...
    gated.json           the card

Shapes: A answers, G prompts, K attributes, H hidden size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from trimtab.artifacts import write_json
from trimtab.config import ModelRef
from trimtab.errors import ModelError
from trimtab.model.trunk import Trunk
from trimtab.records.types import Group
from trimtab.rewards.reading import adopt, read_card, same_tokens, score_groups
from trimtab.tensors.tree import TreeBatch

CARD = "gated.json"
WEIGHTS = "gated.safetensors"
LENGTH = "length"
"""The verbosity of an answer when no attribute says it: its length in tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GatedCard:
    """How a gated reward was made.

    ``verbosity`` is an attribute's name or ``length``, which is divided by ``longest`` so that it is of the size of a
    label; ``penalties`` are the lambdas, one an attribute. ``mean`` and ``std`` are those of the scaled, gated sum on
    training answers.
    """

    attributes: tuple[str, ...]
    verbosity: str
    penalties: tuple[float, ...]
    label_low: tuple[float, ...]
    label_high: tuple[float, ...]
    ridges: tuple[float, ...]
    longest: float = 1.0
    hidden: int
    layers: int
    temperature: float
    mean: float = 0.0
    std: float = 1.0


def debias_matrix(penalties: Sequence[float], verbosity: int | None) -> Tensor:
    """T with R' = R T: each attribute less its penalty times verbosity, (K,) -> (K, K) float64.

    ``verbosity`` is the place of the attribute that is taken off; its own penalty is 1, so its column becomes 0.
    ``None``: what is taken off is no attribute and stands behind them, (K + 1, K).
    """
    size = len(penalties)
    matrix = torch.eye(size, dtype=torch.float64)
    taken = torch.tensor(penalties, dtype=torch.float64)
    if verbosity is None:
        return torch.cat([matrix, -taken[None]])
    matrix[verbosity] -= taken
    return matrix


class Attributes(nn.Module):
    """R' (A, K) from hidden states (A, H) and the answers' lengths (A,)."""

    weight: Tensor
    debias: Tensor

    def __init__(self, weight: Tensor, debias: Tensor, *, longest: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("weight", weight.float())  # (K, H)
        self.register_buffer("debias", debias.float())  # (K, K) or, with the length behind the attributes, (K + 1, K)
        self.longest = longest

    def plain(self, last: Tensor, lengths: Tensor) -> Tensor:
        """R (A, K), and the length behind it where T takes it off (A, K + 1)."""
        found = last.to(self.weight.dtype) @ self.weight.T
        if len(self.debias) == len(self.weight):
            return found
        return torch.cat([found, lengths.to(found)[:, None] / self.longest], 1)

    def forward(self, last: Tensor, lengths: Tensor) -> Tensor:
        """Return R T."""
        return self.plain(last, lengths) @ self.debias


class Gate(nn.Module):
    """Shares of the attributes (G, K) from hidden states of prompts (G, H): softmax(MLP(z) / temperature).

    Equal shares at the start: the last layer begins at zero. ``scale`` is learned beside it: attributes of [0, 1] lie
    too near each other for log-odds. ``center`` and ``spread`` standardise z by the training prompts.
    """

    center: Tensor
    spread: Tensor

    def __init__(self, hidden_size: int, count: int, *, hidden: int, layers: int, temperature: float) -> None:
        super().__init__()
        sizes = [hidden_size, *[hidden] * layers]
        steps: list[nn.Module] = []
        for before, after in pairwise(sizes):
            steps += [nn.Linear(before, after), nn.ReLU()]
        final = nn.Linear(sizes[-1], count)
        nn.init.zeros_(final.weight)
        nn.init.zeros_(final.bias)
        self.net = nn.Sequential(*steps, final)
        self.log_scale = nn.Parameter(torch.zeros(()))
        self.temperature = temperature
        self.register_buffer("center", torch.zeros(hidden_size))
        self.register_buffer("spread", torch.ones(hidden_size))

    def forward(self, prompt: Tensor) -> Tensor:
        """Shares of the attributes, (G, H) -> (G, K): at least 0, summing to 1."""
        found: Tensor = self.net((prompt.to(self.center) - self.center) / self.spread)
        return (found / self.temperature).softmax(-1)

    def mix(self, attributes: Tensor, shares: Tensor) -> Tensor:
        """Scores (A,): the scaled sum of R' (A, K) by the shares of each answer's prompt (A, K)."""
        return self.log_scale.exp() * (shares * attributes).sum(-1)


@dataclass(frozen=True, slots=True)
class GatedReward:
    """A reward model's frozen body, attributes on it, and a gate over them."""

    trunk: Trunk
    adapter: str | None
    attributes: Attributes
    gate: Gate
    card: GatedCard
    micro_tokens: int = 4096

    @classmethod
    def open(cls, model: ModelRef, *, trunk: Trunk | None = None, dtype: str = "auto") -> GatedReward:
        """Load one, on a given trunk when that is its base."""
        assert model.artifact is not None
        folder = model.artifact.folder
        card = _read_card(folder)
        state = load_file(folder / WEIGHTS)
        if trunk is None:
            trunk = Trunk.load(model.base, dtype=dtype)
        attributes = Attributes(state.pop("weight"), state.pop("debias"), longest=card.longest)
        with torch.random.fork_rng(devices=[]):  # what it draws is overwritten, and nobody else's draws move
            gate = Gate(
                trunk.hidden_size, len(card.attributes), hidden=card.hidden, layers=card.layers,
                temperature=card.temperature,
            )  # fmt: skip
        gate.load_state_dict({name.removeprefix("gate/"): tensor for name, tensor in state.items()})
        return cls(trunk, adopt(trunk, model), attributes.to(trunk.device), gate.to(trunk.device), card)

    def save(self, folder: Path) -> None:
        """Write the adapter where there is one, the weights and the card."""
        if self.adapter is not None:
            self.trunk.save_adapter(self.adapter, folder)
        state = {**self.attributes.state_dict(), **{f"gate/{k}": v for k, v in self.gate.state_dict().items()}}
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}, folder / WEIGHTS)
        write_json(folder / CARD, dataclasses.asdict(self.card))

    @property
    def trunks(self) -> tuple[Trunk, ...]:
        """The model that it reads with."""
        return (self.trunk,)

    def reads(self, trunk: Trunk) -> bool:
        """Tell whether it can be handed this trunk's tokens."""
        return same_tokens(self.trunk, trunk)

    @torch.no_grad()
    def read_batch(self, batch: TreeBatch) -> tuple[Tensor, Tensor]:
        """The attributes without verbosity (A, K), and the shares that the gate gives them (A, K)."""
        with self.trunk.using(self.adapter):
            last, prompt = read_hidden(self.trunk, batch)
        lengths = torch.tensor(batch.lengths, device=last.device)
        owner = torch.tensor(batch.group, dtype=torch.long, device=last.device)
        return self.attributes(last, lengths), self.gate(prompt)[owner]

    @torch.no_grad()
    def score_batch(self, batch: TreeBatch) -> Tensor:
        """Scores (A,) of a batch of this model's own tokens."""
        attributes, shares = self.read_batch(batch)
        return (self.gate.mix(attributes, shares) - self.card.mean) / self.card.std

    def score(self, groups: Sequence[Group]) -> list[list[float]]:
        """Scores of every answer of every Group."""
        return score_groups(self.trunk, groups, self.score_batch, micro_tokens=self.micro_tokens)


def read_hidden(trunk: Trunk, batch: TreeBatch) -> tuple[Tensor, Tensor]:
    """Hidden states of every answer's last token (A, H) and of every prompt's (G, H), under the adapter in use.

    Plain text without a prompt has zeros there.
    """
    hidden = trunk.hidden(batch)  # (T, H)
    ends = torch.tensor([span.start + span.prompt - 1 for span in batch.spans], device=hidden.device)
    there = torch.tensor([span.prompt > 0 for span in batch.spans], device=hidden.device)
    return hidden[batch.last], hidden[ends.clamp_min(0)] * there[:, None].to(hidden.dtype)


def _read_card(folder: Path) -> GatedCard:
    path = folder / CARD
    if not path.is_file() or not (folder / WEIGHTS).is_file():
        raise ModelError(f"{folder} holds no {CARD} and {WEIGHTS}: it is not a gated reward model")
    return read_card(GatedCard, path, "a gated reward model's")
