"""A Group: one prompt, its k answers, and what was said about them. No torch here.

    Message(role, content)
    Answer(text | messages, model, finish, logprob)
    Verdict = Pair | Ranking | Score | Thumb | Edit
    Group(id, prompt, answers, verdicts, meta)

Everything is frozen; a change makes a new record. Answers are named by their index in ``Group.answers``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from trimtab.errors import DataError

Role = Literal["system", "user", "assistant", "tool"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant", "tool")
Finish = Literal["stop", "length"]
Tie = Literal["tie", "both_good", "both_bad"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str

    def __post_init__(self) -> None:
        """Refuse an unknown role."""
        if self.role not in ROLES:
            raise DataError(f"role {self.role!r} is not one of {', '.join(ROLES)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One answer to the Group's prompt.

    ``finish`` is ``"stop"`` when the writer ended it, ``"length"`` when a cap cut it, ``None`` when unknown (treated as
    ended). ``messages`` holds the rest of a conversation when the answer is more than one turn (SFT on several
    assistant turns, tool use); then ``text`` is the last assistant turn. ``logprob`` is the writer's own sum over
    tokens, in nats.
    """

    text: str
    messages: tuple[Message, ...] = ()
    model: str | None = None
    finish: Finish | None = None
    logprob: float | None = None

    def __post_init__(self) -> None:
        """Refuse an unknown finish reason."""
        if self.finish not in ("stop", "length", None):
            raise DataError(f"finish {self.finish!r} is not 'stop' or 'length'")


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """Who gave a verdict, when, how long it took (seconds), and why: common to all verdicts.

    Raters are written ``human:rater-07``, ``judge:model@hash``, ``rule:name``, ``reward:hash``, ``file:name``.
    """

    rater: str | None = None
    time: str | None = None
    seconds: float | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair(Said):
    """``better`` beats ``worse`` (indices), or neither does (``tie``).

    ``strength`` is the paper's rating step (Llama-2: 0 negligibly .. 3 significantly better) and feeds margins;
    ``probability`` is a soft label, P(better beats worse), from a judge.
    """

    better: int
    worse: int
    strength: float | None = None
    probability: float | None = None
    tie: Tie | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking(Said):
    """Answers from best to worst; answers in the same inner tuple are tied."""

    order: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Score(Said):
    """Numbers given to one answer, by attribute."""

    answer: int
    values: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Thumb(Said):
    """A thumb up or down for one answer."""

    answer: int
    up: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit(Said):
    """Somebody rewrote one answer."""

    answer: int
    text: str


Verdict = Pair | Ranking | Score | Thumb | Edit


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """One prompt, its answers and the verdicts on them.

    ``prompt`` may be empty (plain text, pretraining); ``answers`` may be empty (prompts to sample from).
    """

    id: str
    prompt: tuple[Message, ...] = ()
    answers: tuple[Answer, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse verdicts on answers that are not there."""
        for verdict in self.verdicts:
            for index in answers_named(verdict):
                if not 0 <= index < len(self.answers):
                    raise DataError(
                        f"group {self.id!r}: {type(verdict).__name__.lower()} names answer {index}, "
                        f"but there are {len(self.answers)} answers (numbered from 0)"
                    )

    def with_answers(self, answers: tuple[Answer, ...]) -> Group:
        """Return this prompt with other answers and no verdicts."""
        return replace(self, answers=answers, verdicts=())


def answers_named(verdict: Verdict) -> tuple[int, ...]:
    """Return the indices of the answers that a verdict speaks of."""
    match verdict:
        case Pair():
            return (verdict.better, verdict.worse)
        case Ranking():
            return tuple(index for tier in verdict.order for index in tier)
        case Score() | Thumb() | Edit():
            return (verdict.answer,)


def pairs(group: Group) -> list[Pair]:
    """Return every strict preference in a Group: its pairs and those its rankings imply. Ties are left out."""
    found: list[Pair] = []
    for verdict in group.verdicts:
        if isinstance(verdict, Pair) and verdict.tie is None:
            found.append(verdict)
        elif isinstance(verdict, Ranking):
            for i, tier in enumerate(verdict.order):
                for lower in verdict.order[i + 1 :]:
                    found.extend(Pair(better=b, worse=w, rater=verdict.rater) for b in tier for w in lower)
    return found


def votes(group: Group) -> Counter[tuple[int, int]]:
    """Count the strict preferences for each (better, worse); of a soft label the likelier side counts."""
    found: Counter[tuple[int, int]] = Counter()
    for pair in pairs(group):
        chance = 1.0 if pair.probability is None else pair.probability
        if chance != 0.5:
            found[(pair.better, pair.worse) if chance > 0.5 else (pair.worse, pair.better)] += 1
    return found


def decided(group: Group) -> tuple[set[int], set[int]]:
    """Return the answers that win some comparison and those that lose one; of several votes on two answers, most."""
    counted = votes(group)
    sides = [pair for pair, count in counted.items() if count > counted[pair[::-1]]]
    return {better for better, _ in sides}, {worse for _, worse in sides}


def best_answers(group: Group) -> list[int]:
    """Return the answers that are worth learning from: those that win a comparison and lose none (see ``decided``).

    In a circle, or with as many votes on both sides, all that win are best; where nothing was compared, all. Answers
    with more thumbs down than up are left out of these, so there may be none.
    """
    winners, losers = decided(group)
    thumbs: Counter[int] = Counter()
    for verdict in group.verdicts:
        if isinstance(verdict, Thumb):
            thumbs[verdict.answer] += 1 if verdict.up else -1
    found = winners - losers or winners or {better for better, _ in votes(group)} or range(len(group.answers))
    return sorted(index for index in found if thumbs[index] >= 0)


def best_only(group: Group) -> Group:
    """Leave out answers that lost or were disliked: a rejected answer is no demonstration."""
    kept = best_answers(group)
    return group if len(kept) == len(group.answers) else group.with_answers(tuple(group.answers[i] for i in kept))


def spread(groups: Sequence[Group], limit: int) -> list[Group]:
    """Return at most ``limit`` Groups at even distances, from the first on: which ones depends on nothing else."""
    count = min(limit, len(groups))
    return [groups[i * len(groups) // count] for i in range(count)]
