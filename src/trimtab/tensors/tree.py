"""TreeBatch: Groups of tokens laid end to end, each prompt once, without padding.

Letters used here and in ``model``:

    T  tokens in the batch          N  target tokens (answer tokens that a loss reads)
    A  answers in the batch         L  the longest answer         G  Groups

A Group of a prompt and k answers takes ``len(prompt) + sum(len(answer))`` places. Every answer continues at the
prompt's length, sees the prompt and itself, and nothing else. SFT is k=1, pairs are k=2, K-wise and group methods k=K.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenGroup:
    """A prompt and its answers as token ids.

    ``trained[i][t]`` tells whether token t of answer i is a target; ``None`` means all are. An answer of several turns
    keeps the other side's words in place and marks them untrained.
    """

    prompt: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]
    trained: tuple[tuple[bool, ...], ...] | None = None

    def __len__(self) -> int:
        """Tokens that this Group takes in a batch."""
        return len(self.prompt) + sum(len(answer) for answer in self.answers)


@dataclass(frozen=True, slots=True)
class Span:
    """Where a Group lies: its first token, the prompt's length, the answers' lengths."""

    start: int
    prompt: int
    answers: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeBatch:
    """Groups packed into one row of tokens, with the indices that losses need.

    The token at ``target`` is predicted by the hidden state at ``predictor``: for an answer's first token that is the
    prompt's last token (shared by all its answers), otherwise the token before. An answer without a prompt has no
    predictor for its first token, which is then no target.
    """

    ids: Tensor  # (T,) token ids
    position: Tensor  # (T,) each answer continues at its prompt's length
    spans: tuple[Span, ...]  # G
    predictor: Tensor  # (N,) index into T of the hidden state that predicts target n
    target: Tensor  # (N,) token ids
    answer: Tensor  # (N,) which answer target n belongs to
    column: Tensor  # (N,) place of target n among its answer's tokens
    last: Tensor  # (A,) index into T of each answer's last token
    lengths: tuple[int, ...]  # A; tokens of each answer
    group: tuple[int, ...]  # A; which Group each answer belongs to

    @property
    def num_answers(self) -> int:
        """A."""
        return len(self.lengths)

    @property
    def num_targets(self) -> int:
        """N."""
        return int(self.target.numel())

    @property
    def segments(self) -> list[int]:
        """Lengths of all segments in order: prompt, answers, next prompt, ..."""
        return list(chain.from_iterable((span.prompt, *span.answers) for span in self.spans))

    @property
    def mask(self) -> Tensor:
        """Which places of a padded answer table are targets: (A, L) bool."""
        return self.pad(torch.ones_like(self.target, dtype=torch.bool))

    def pad(self, flat: Tensor) -> Tensor:
        """Lay per-target numbers (N,) out as one row an answer (A, L), zero elsewhere."""
        table = flat.new_zeros((self.num_answers, max(self.lengths, default=0)))
        return table.index_put((self.answer, self.column), flat)

    def flat(self, table: Tensor) -> Tensor:
        """Read per-target numbers (N,) back from a table (A, L)."""
        return table[self.answer, self.column]

    def sum_by_answer(self, flat: Tensor) -> Tensor:
        """Sum per-target numbers (N,) within each answer: (A,)."""
        return flat.new_zeros(self.num_answers).index_add(0, self.answer, flat)

    def to(self, device: torch.device) -> TreeBatch:
        """Return the batch on a device."""
        tensors = ("ids", "position", "predictor", "target", "answer", "column", "last")
        moved = {name: getattr(self, name).to(device) for name in tensors}
        return TreeBatch(**moved, spans=self.spans, lengths=self.lengths, group=self.group)


def pack(groups: Sequence[TokenGroup]) -> TreeBatch:
    """Pack Groups into one TreeBatch; an empty answer has no target, and its last token is the prompt's."""
    ids: list[int] = []
    position: list[int] = []
    spans: list[Span] = []
    predictor: list[int] = []
    target: list[int] = []
    answer_of: list[int] = []
    column: list[int] = []
    last: list[int] = []
    lengths: list[int] = []
    owner: list[int] = []
    for g, item in enumerate(groups):
        start, p = len(ids), len(item.prompt)
        spans.append(Span(start, p, tuple(len(a) for a in item.answers)))
        ids.extend(item.prompt)
        position.extend(range(p))
        for i, tokens in enumerate(item.answers):
            begin, a = len(ids), len(lengths)
            ids.extend(tokens)
            position.extend(range(p, p + len(tokens)))
            trained = item.trained[i] if item.trained is not None else (True,) * len(tokens)
            for t, (token, wanted) in enumerate(zip(tokens, trained, strict=True)):
                before = begin + t - 1 if t else start + p - 1
                if wanted and (t or p):
                    predictor.append(before)
                    target.append(token)
                    answer_of.append(a)
                    column.append(t)
            last.append(begin + len(tokens) - 1 if tokens else start + p - 1)
            lengths.append(len(tokens))
            owner.append(g)
    as_long = [torch.tensor(x, dtype=torch.long) for x in (ids, position, predictor, target, answer_of, column, last)]
    return TreeBatch(
        ids=as_long[0], position=as_long[1], spans=tuple(spans), predictor=as_long[2], target=as_long[3],
        answer=as_long[4], column=as_long[5], last=as_long[6], lengths=tuple(lengths), group=tuple(owner),
    )  # fmt: skip


def split_by_tokens(groups: Iterable[TokenGroup], limit: int) -> list[list[int]]:
    """Cut Groups into consecutive micro-batches of at most ``limit`` tokens (one Group at least); return their indices.

    Groups are never broken: methods that compare answers of one prompt need them together.
    """
    sizes = [len(group) for group in groups]
    cuts, total = [0], 0
    for i, size in enumerate(sizes):
        if total and total + size > limit:
            cuts.append(i)
            total = 0
        total += size
    cuts.append(len(sizes))
    return [list(range(a, b)) for a, b in pairwise(cuts) if b > a]
