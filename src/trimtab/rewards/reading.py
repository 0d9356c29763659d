"""What all scorers share: adapters that need not be there, and Groups read in batches that do not matter."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from trimtab.config import ModelRef, check_options
from trimtab.errors import ModelError
from trimtab.model.trunk import Trunk
from trimtab.records.types import Group
from trimtab.tensors.tree import TokenGroup, TreeBatch, pack, split_by_tokens

ADAPTER = "adapter_config.json"
Card = TypeVar("Card")


def same_tokens(trunk: Trunk, other: Trunk) -> bool:
    """Tell whether two trunks are the same base, so that one may read the other's tokens."""
    return trunk is other or trunk.loaded.source.digest == other.loaded.source.digest


def adopt(trunk: Trunk, model: ModelRef) -> str | None:
    """Put a scorer's adapter on its base; ``None`` when it has none of its own and reads the base as it is."""
    if model.artifact is None or not (model.artifact.folder / ADAPTER).is_file():
        return None
    return trunk.adopt(model)


def read_card(kind: type[Card], path: Path, what: str) -> Card:
    """Read a scorer's card, the JSON of a dataclass of this kind; ModelError when it is not ``what`` it should be."""
    try:
        said = json.loads(path.read_text())
    except ValueError as error:
        raise ModelError(f"{path}: not {what} card ({error})") from None
    if not isinstance(said, dict):
        raise ModelError(f"{path}: not {what} card")
    return kind(**check_options(kind, said, str(path)))


@torch.no_grad()
def score_groups(
    trunk: Trunk, groups: Sequence[Group], score: Callable[[TreeBatch], Tensor], *, micro_tokens: int
) -> list[list[float]]:
    """Scores of every answer of every Group, tokenised by a trunk; a Group without answers gets an empty list."""
    tokens = [trunk.chat.group(group) if group.answers else None for group in groups]
    found = iter(score_tokens(trunk, [item for item in tokens if item is not None], score, micro_tokens=micro_tokens))
    return [[] if item is None else next(found) for item in tokens]


@torch.no_grad()
def score_tokens(
    trunk: Trunk, tokens: Sequence[TokenGroup], score: Callable[[TreeBatch], Tensor], *, micro_tokens: int
) -> list[list[float]]:
    """Scores of every answer of every Group of a trunk's own tokens; every Group has an answer."""
    found: list[list[float]] = []
    for cut in split_by_tokens(tokens, micro_tokens):
        items = [tokens[i] for i in cut]
        scores = score(pack(items).to(trunk.device)).cpu()  # (A,)
        found += [part.tolist() for part in scores.split([len(item.answers) for item in items])]
    return found


def unique(trunks: Iterable[Trunk]) -> tuple[Trunk, ...]:
    """The different trunks, each once, in order."""
    return tuple({id(trunk): trunk for trunk in trunks}.values())


class Trunks:
    """Trunks by the base that they were loaded from, so that models on one base share it."""

    def __init__(self, given: Mapping[str, Trunk], *, dtype: str) -> None:
        self._known = dict(given)
        self._dtype = dtype

    def of(self, base: str) -> Trunk:
        """The trunk of a base, loaded at its first use."""
        if base not in self._known:
            self._known[base] = Trunk.load(base, dtype=self._dtype)
        return self._known[base]
