"""A language model behind an OpenAI-compatible endpoint as a judge: which of two answers is better, asked both ways.

    P(a beats b) = (p(first | a, b) + 1 - p(first | b, a)) / 2

with p the probability that the judge gives to the answer shown first (LLM as a judge: Zheng et al. 2023,
arXiv:2306.05685; both orders: Wang et al. 2023, arXiv:2305.17926; soft labels: Lee et al. 2023, arXiv:2309.00267).

As a scorer:

    score of answer i = mean of P(i beats j) over other answers j to the same prompt     the mean over a prompt is 1/2
    score of answer i = P(i beats r), r an answer kept with the judge (``against``)      for answers that come alone

A verdict is paid once: it is kept in the user's cache by the digest of everything that decides it, so a run that was
killed, or another one, reads it there. A reply without a verdict, or an endpoint that fails, stops the run.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from trimtab.artifacts import digest_of
from trimtab.config import ModelRef
from trimtab.errors import ModelError, RewardError
from trimtab.model.cache import cache_folder
from trimtab.records.types import Answer, Group, Message, Pair
from trimtab.rewards._ai_judge_card import JudgeCard, ask
from trimtab.rewards._ai_judge_http import Caller, secret
from trimtab.rewards._ai_judge_memory import Memory
from trimtab.rewards._ai_judge_words import OTHER, Call, Showing, both, text_of

if TYPE_CHECKING:
    from torch import Tensor

    from trimtab.model.trunk import Trunk
    from trimtab.tensors.tree import TreeBatch

Progress = Callable[[int, int], None]
CARD = "judge.json"
AGAINST = "against.json"
NO_TRUNK = "judge:"
"""How the base of an artifact begins that no model of ours reads with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Duel:
    """Two answers to one prompt, by their places, and what was said of them in both orders (``a`` first, ``b`` first).

    Answers of the same text are equal without being shown.
    """

    a: int
    b: int
    shown: tuple[Call, Call] | None

    @property
    def chance(self) -> float:
        """P(a beats b)."""
        return 0.5 if self.shown is None else both(*self.shown)

    @property
    def agree(self) -> bool:
        """Whether both orders have the same verdict."""
        return self.shown is None or self.shown[0].verdict == OTHER[self.shown[1].verdict]


@dataclass(frozen=True)
class AIJudge:
    """Asks the endpoint of its card, and remembers what it said; it has the shape of a ``Scorer``."""

    card: JudgeCard
    against: Mapping[str, str] | None = None
    """What answers are compared with, by the digest of the prompt; without it, with each other."""

    @classmethod
    def open(cls, model: ModelRef) -> AIJudge:
        """Open what a judge stage has left; nothing is asked yet.

        Errors: ModelError for a folder that holds none; ConfigError where its key is not in the environment.
        """
        from trimtab.rewards.reading import read_card  # torch, which is not needed to judge

        assert model.artifact is not None
        folder = model.artifact.folder
        if not (folder / CARD).is_file():
            raise ModelError(f"{folder} holds no {CARD}: it is not an AI judge")
        card = read_card(JudgeCard, folder / CARD, "an AI judge's")
        secret(card.key)  # a missing one is found before the first answer is sampled
        return cls(card, json.loads((folder / AGAINST).read_text()) if card.against else None)

    @property
    def trunks(self) -> tuple[Trunk, ...]:
        """No models of ours."""
        return ()

    def reads(self, trunk: Trunk) -> bool:
        """No: it is handed text, never tokens."""
        return False

    def score_batch(self, batch: TreeBatch) -> Tensor:
        """Refuse: a batch is tokens, and it reads text. It is never asked for, since nothing is read."""
        raise NotImplementedError("a judge reads text and not tokens; hand the Groups to 'score'")

    def score(self, groups: Sequence[Group]) -> list[list[float]]:
        """How often each answer of every Group beats the others, or the one kept for its prompt: 0 to 1, 1/2 a tie.

        Errors: RewardError, with the Group, for one answer that there is nothing to compare with, for a reply without
        a verdict, and for an endpoint that fails.
        """
        if self.against is not None:
            beside = [self._beside(group) for group in groups]
            wanted = [[(i, len(group.answers)) for i in range(len(group.answers))] for group in groups]
            return [[duel.chance for duel in duels] for duels in self.compare(beside, wanted)]
        for group in groups:
            if len(group.answers) == 1:
                raise RewardError(
                    f"judge {self.card.model!r} compares answers, and group {group.id!r} has only one: have 2 or more "
                    "sampled, or name answers to compare with in the judge's stage (against)"
                )
        wanted = [self._meetings(group) for group in groups]
        return [_shares(group, duels) for group, duels in zip(groups, self.compare(groups, wanted), strict=True)]

    def label(self, groups: Sequence[Group], *, progress: Progress | None = None) -> list[list[Pair]]:
        """Soft labels: for every Group a verdict on each two answers that meet, the likelier one as the better.

        An even chance is a tie; answers of the same text are no pair. How many meet: ``rivals``.
        """
        wanted = [self._meetings(group) for group in groups]
        return [
            [self._pair(duel) for duel in duels if duel.shown is not None]
            for duels in self.compare(groups, wanted, progress=progress)
        ]

    def compare(
        self, groups: Sequence[Group], wanted: Sequence[Sequence[tuple[int, int]]], *,
        progress: Progress | None = None,
    ) -> list[list[Duel]]:  # fmt: skip
        """Have pairs of answers compared, each in both orders: for every Group, the places of those wanted.

        Nothing is asked twice: not what the cache knows, and not what stands in several Groups. ``progress`` is told
        how many verdicts are in, and of how many.
        """
        texts = [[text_of(answer) for answer in group.answers] for group in groups]
        showings = [
            [Showing(prompt=g.prompt, first=own[a], second=own[b]) if own[a] != own[b] else None for a, b in pairs]
            for g, own, pairs in zip(groups, texts, wanted, strict=True)
        ]
        asked: dict[str, tuple[Showing, str]] = {}
        for group, own in zip(groups, showings, strict=True):
            for showing in filter(None, own):
                for order in (showing, showing.turned):
                    asked.setdefault(order.digest, (order, group.id))
        known = self._ask_all(asked, progress or _unseen)
        return [
            [
                Duel(a=a, b=b, shown=None if s is None else (known[s.digest], known[s.turned.digest]))
                for (a, b), s in zip(pairs, own, strict=True)
            ]
            for pairs, own in zip(wanted, showings, strict=True)
        ]

    # --- asking -------------------------------------------------------------------------------------------------------

    @cached_property
    def _memory(self) -> Memory:
        return Memory(cache_folder() / "judge" / f"{self.card.digest[:32]}.jsonl")

    def _ask_all(self, asked: Mapping[str, tuple[Showing, str]], progress: Progress) -> dict[str, Call]:
        """What is known or said of every showing, by its digest."""
        known = {digest: call for digest in asked if (call := self._memory.find(digest)) is not None}
        missing = [digest for digest in asked if digest not in known]
        progress(len(known), len(asked))
        if not missing:
            return known
        parallel = min(self.card.parallel, len(missing))
        with Caller(self.card.endpoint, parallel=parallel) as caller, ThreadPoolExecutor(parallel) as pool:
            waiting = [pool.submit(self._ask, caller, digest, *asked[digest]) for digest in missing]
            try:
                for digest, future in zip(missing, waiting, strict=True):
                    known[digest] = future.result()
                    progress(len(known), len(asked))
            except BaseException:
                caller.stop()
                for future in waiting:
                    future.cancel()
                raise
        return known

    def _ask(self, caller: Caller, digest: str, showing: Showing, name: str) -> Call:
        """One showing's verdict, which is remembered."""
        try:
            call = ask(self.card, caller, showing)
        except ModelError as error:
            raise RewardError(f"judge {self.card.model!r}, group {name!r}: {error}") from None
        self._memory.keep(digest, call)
        return call

    # --- who meets whom -----------------------------------------------------------------------------------------------

    def _beside(self, group: Group) -> Group:
        """The Group with what its answers are compared with behind them."""
        assert self.against is not None
        rival = self.against.get(prompt_digest(group.prompt))
        if rival is None and group.answers:
            raise RewardError(
                f"judge {self.card.model!r}: there is no answer to compare with (against) for the prompt of group "
                f"{group.id!r}"
            )
        return group.with_answers((*group.answers, Answer(text=rival or "")))

    def _meetings(self, group: Group) -> list[tuple[int, int]]:
        """Which answers of a Group are compared: the first of each text, in an order that their texts decide."""
        texts = [text_of(answer) for answer in group.answers]
        first = {text: i for i, text in reversed(list(enumerate(texts)))}
        salt = f"{self.card.seed} {prompt_digest(group.prompt)}".encode()
        order = sorted(first, key=lambda text: hmac.new(salt, text.encode(), hashlib.sha256).digest())
        return [(first[order[i]], first[order[j]]) for i, j in meetings(len(order), self.card.rivals)]

    def _pair(self, duel: Duel) -> Pair:
        chance, rater = duel.chance, self.card.rater
        if chance == 0.5:
            return Pair(better=duel.a, worse=duel.b, tie="tie", rater=rater)
        if chance > 0.5:
            return Pair(better=duel.a, worse=duel.b, probability=chance, rater=rater)
        return Pair(better=duel.b, worse=duel.a, probability=1 - chance, rater=rater)


def _unseen(done: int, total: int) -> None:
    """Show nobody how far it is."""


def meetings(count: int, rivals: int) -> Iterator[tuple[int, int]]:
    """Yield which of ``count`` meet when each meets ``rivals`` others: all, or neighbours on a ring.

    Everybody meets equally many. An odd count of everybody and of rivals cannot be had: then it is one rival less (of
    one rival: one more). From two rivals on, everybody is connected with everybody.
    """
    degree = min(rivals, count - 1)
    if degree % 2 and count % 2:
        degree += 1 if degree == 1 else -1
    for distance in range(1, degree // 2 + 1):
        half = 2 * distance == count  # from both sides the same meeting
        for i in range(count // 2 if half else count):
            yield i, (i + distance) % count
    if degree % 2:
        for i in range(count // 2):
            yield i, i + count // 2


def _shares(group: Group, duels: Sequence[Duel]) -> list[float]:
    """The mean of P(i beats j) over the other answers; those of the same text share a score, and are ties.

    Where not all meet, those that were met stand for all of another text.
    """
    texts = [text_of(answer) for answer in group.answers]
    copies = Counter(texts)
    met: dict[str, list[tuple[float, int]]] = {text: [] for text in copies}
    for duel in duels:
        a, b = texts[duel.a], texts[duel.b]
        met[a].append((duel.chance, copies[b]))
        met[b].append((1 - duel.chance, copies[a]))
    score: dict[str, float] = {}
    for text, own in met.items():
        same, others = copies[text] - 1, len(texts) - copies[text]
        won = sum(chance * n for chance, n in own) / sum(n for _, n in own) if own else 0.5
        score[text] = (0.5 * same + won * others) / max(1, same + others)
    return [score[text] for text in texts]


def prompt_digest(prompt: Sequence[Message]) -> str:
    """The identity of a prompt: 64 hexadecimal digits."""
    return digest_of([[message.role, message.content] for message in prompt])
