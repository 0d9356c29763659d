"""A conversation with a simulated user who wants to know three things."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from trimtab.environments.tasks._fixtures import fixture
from trimtab.environments.text import Conversation, Dialogue, User
from trimtab.errors import DataError
from trimtab.records.types import Group

PATIENCE = 2
"""So many answers that miss the same question, and the user leaves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One thing that a user wants to know, and words of which one must fall."""

    question: str
    answered_by: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How many questions are settled, and how many answers in a row have missed the next."""

    settled: int
    misses: int


def dialogue(*, max_turns: int = 8, render_mode: str | None = None) -> Dialogue:
    """Help a user who has a goal (20 of them) and asks on by rules.

    The user asks one question after the other, once more after an answer that misses it, and leaves after the second.
    Each settled question earns its share; a whole conversation earns at most 1. A question counts as settled when one
    of its words falls, which is easily fooled: it shows several turns at work, not whether anybody was helped.
    """
    return Dialogue(fixture("dialogue"), simulated_user, settled_share, max_turns=max_turns, render_mode=render_mode)


def simulated_user(group: Group) -> User:
    """Return the user of a Group, whose goal is in ``meta["asks"]``; all that is remembered is the conversation."""
    goal = asks(group)

    def user(conversation: Conversation) -> str | None:
        now = progress(goal, _answers(conversation))
        if now.settled == len(goal) or now.misses >= PATIENCE:
            return None
        opening = "That is not what I meant." if now.misses else "Thank you."
        return f"{opening} {goal[now.settled].question}"

    return user


def settled_share(group: Group, conversation: Conversation, over: bool) -> float:
    """Return the share of the user's questions that the last answer has settled."""
    goal, answers = asks(group), _answers(conversation)
    return (progress(goal, answers).settled - progress(goal, answers[:-1]).settled) / len(goal)


def progress(goal: Sequence[Ask], answers: Sequence[str]) -> Progress:
    """Follow the questions through the answers, one at a time; a user who has left stays away."""
    now = Progress(settled=0, misses=0)
    for answer in answers:
        if now.settled == len(goal) or now.misses >= PATIENCE:
            return now
        hit = any(mentions(answer, word) for word in goal[now.settled].answered_by)
        now = Progress(settled=now.settled + hit, misses=0 if hit else now.misses + 1)
    return now


def mentions(text: str, word: str) -> bool:
    """Tell whether a word stands in a text, in any case, with no letter next to it (a figure may be: ``220°C``)."""
    return re.search(rf"(?<![^\W\d_]){re.escape(word)}(?![^\W\d_])", text, re.IGNORECASE) is not None


def asks(group: Group) -> tuple[Ask, ...]:
    """Read a user's goal; raises ``DataError`` for a Group without one."""
    rows = group.meta.get("asks")
    try:
        found = tuple(Ask(question=row["question"], answered_by=tuple(row["answered_by"])) for row in rows or ())
    except (TypeError, KeyError) as error:
        raise DataError(f"group {group.id!r}: meta['asks'] lists 'question' and 'answered_by': {error}") from None
    if not found:
        raise DataError(f"group {group.id!r}: meta['asks'] must list what the user wants to know")
    return found


def _answers(conversation: Conversation) -> list[str]:
    return [turn.content for turn in conversation if turn.role == "assistant"]
