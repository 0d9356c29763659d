"""What preference methods learn from: judged prompts as tokens, with what the reference thinks of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from trimtab.data.judged import Check, with_orders, with_pairs, with_thumbs
from trimtab.errors import ConfigError
from trimtab.model.trunk import Trunk
from trimtab.records.types import Group, Thumb, decided, pairs
from trimtab.tensors.tree import TokenGroup, pack
from trimtab.train.reference import reference_logps
from trimtab.train.run import Run

Kind = Literal["pair", "answer", "list"]
KINDS: Mapping[Kind, tuple[Check, str]] = {
    "pair": (with_pairs, "strict preference"),
    "answer": (with_thumbs, "thumb or strict preference"),
    "list": (with_orders, "order of answers"),
}
"""What can be used of a Group for a kind of loss, and what that is called."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """A prompt with its answers as tokens, and what was said of them; answers are named by their index.

    ``pairs`` are (better, worse, P(better beats worse)); ``liked`` are (answer, was it liked); ``scores`` give the
    answers' order, higher is better.
    """

    tokens: TokenGroup
    pairs: tuple[tuple[int, int, float], ...] = ()
    liked: tuple[tuple[int, bool], ...] = ()
    scores: tuple[float, ...] = ()
    ref_logps: Tensor | None = None  # (k,)
    mismatch: tuple[TokenGroup, Tensor] | None = None  # the prompt with another's answer, and its ref_logps (1,)

    @property
    def size(self) -> int:
        """How many items of the loss it is."""
        return len(self.pairs) or len(self.liked) or 1

    @property
    def ordered(self) -> list[tuple[int, int]]:
        """All (better, worse) that were said or that follow from it."""
        if self.pairs:
            return [(better, worse) for better, worse, _ in self.pairs]
        marks = dict(self.liked) if self.liked else dict(enumerate(self.scores))
        return [(i, j) for i in marks for j in marks if marks[i] > marks[j]]

    @property
    def targets(self) -> tuple[int, ...]:
        """How many tokens of each answer are learned from."""
        batch = pack([self.tokens])
        return tuple(torch.bincount(batch.answer, minlength=batch.num_answers).tolist())


def make_item(kind: Kind, group: Group, tokens: TokenGroup) -> Item | None:
    """What a loss of this kind learns from a Group that its check has passed; ``None`` when verdicts cancel out."""
    match kind:
        case "pair":
            said = [(p.better, p.worse, 1.0 if p.probability is None else p.probability) for p in pairs(group)]
            return Item(tokens=tokens, pairs=tuple(said))
        case "answer":
            thumbs = liked(group)
            kept = replace(
                tokens, answers=tuple(tokens.answers[i] for i in thumbs),
                trained=None if tokens.trained is None else tuple(tokens.trained[i] for i in thumbs),
            )  # fmt: skip
            return Item(tokens=kept, liked=tuple(enumerate(thumbs.values()))) if thumbs else None
        case "list":
            scores = order(group)
            return Item(tokens=tokens, scores=scores) if len(set(scores)) > 1 else None


def liked(group: Group) -> dict[int, bool]:
    """Which answers were liked and which were not: by thumbs (most of them decide; a tie says nothing).

    Without thumbs, an answer that won some comparison and lost none was liked, and one that lost some and won none was
    not; of several votes on the same two answers, most decide.
    """
    votes: dict[int, int] = {}
    for verdict in group.verdicts:
        if isinstance(verdict, Thumb):
            votes[verdict.answer] = votes.get(verdict.answer, 0) + (1 if verdict.up else -1)
    if not votes:
        winners, losers = decided(group)
        votes = {index: 1 if index in winners else -1 for index in winners ^ losers}
    return {index: vote > 0 for index, vote in sorted(votes.items()) if vote}


def order(group: Group) -> tuple[float, ...]:
    """A number for every answer, higher is better: how often it was put before another minus how often behind one."""
    found = [0.0] * len(group.answers)
    for pair in pairs(group):
        found[pair.better] += 1
        found[pair.worse] -= 1
    return tuple(found)


def with_reference(
    items: Sequence[Item], run: Run, trunk: Trunk, adapter: str | None, *, micro_tokens: int,
    strangers: int | None = None,
) -> list[Item]:  # fmt: skip
    """Add what the reference thinks of every answer; with ``strangers``, also of another prompt's answer (KTO's z0).

    The stranger is the first judged answer of the next prompt in the data that is another prompt and with which it has
    at most ``strangers`` tokens: so it is the same at every step and its number is computed once.
    """
    tokens = [item.tokens for item in items]
    known = reference_logps(run, trunk, adapter, tokens, micro_tokens=micro_tokens)
    items = [replace(item, ref_logps=logps) for item, logps in zip(items, known, strict=True)]
    if strangers is None or not items:
        return items
    if len({item.tokens.prompt for item in items}) < 2:
        raise ConfigError(f"stages.{run.name}: this method compares with answers to other prompts; there is only one")
    mixed = [_stranger(items, i, strangers) for i in range(len(items))]
    theirs = reference_logps(run, trunk, adapter, mixed, micro_tokens=micro_tokens)
    return [replace(item, mismatch=pair) for item, pair in zip(items, zip(mixed, theirs, strict=True), strict=True)]


def _stranger(items: Sequence[Item], i: int, max_length: int) -> TokenGroup:
    """An item's prompt with the first answer of the next item of another prompt that fits; if none does, the shortest.

    What of that answer is trained where it belongs is trained here.
    """
    prompt = items[i].tokens.prompt

    def others() -> Iterator[TokenGroup]:
        later = (items[(i + step) % len(items)].tokens for step in range(1, len(items)))
        return (tokens for tokens in later if tokens.prompt != prompt)

    def length(tokens: TokenGroup) -> int:
        return len(prompt) + len(tokens.answers[0])

    fits = next((tokens for tokens in others() if length(tokens) <= max_length), None)
    found = min(others(), key=length) if fits is None else fits
    return replace(found, prompt=prompt, answers=found.answers[:1], trained=found.trained and found.trained[:1])
