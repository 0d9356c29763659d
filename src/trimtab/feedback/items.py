"""Items: Groups that wait for people, what a person may see of one, and what they say of it.

People see answers in an order of their own, without a word on who wrote them, and speak of them by their place there.
What is stored speaks of the Group's own numbers: ``renumber`` goes from one to the other.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Row, select

from trimtab.errors import DataError
from trimtab.feedback import tables
from trimtab.feedback.errors import MissingError
from trimtab.feedback.projects import Project
from trimtab.feedback.store import Tx, storable
from trimtab.records import strict_json
from trimtab.records.codec import decode_group, encode_group
from trimtab.records.types import Answer, Edit, Group, Message, Pair, Ranking, Score, Thumb, Verdict, answers_named
from trimtab.seeds import derive

Ask = Literal["pair", "ranking", "score", "thumb", "edit", "write"]
ANSWERS_NEEDED: dict[Ask, tuple[int, int | None]] = {  # from, to
    "pair": (2, 2),
    "ranking": (2, None),
    "score": (1, None),
    "thumb": (1, None),
    "edit": (1, None),
    "write": (0, None),
}
Slice = Literal["random", "active", "gold"]
SLICES: tuple[Slice, ...] = ("random", "active", "gold")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What a person sees of an item: no model, no id or meta of the Group, no verdict; answers in their own order."""

    item: str
    ask: Ask
    prompt: tuple[Message, ...]
    answers: tuple[Answer, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """A Group in the queue: what is asked about it, of how many people, and (gold) which verdicts are right."""

    id: str
    ask: Ask
    slice: Slice
    priority: float
    overlap: int
    group: Group
    gold: tuple[Verdict, ...] = ()

    def positions(self, project: Project, person: str) -> tuple[int, ...]:
        """Return which of the Group's answers stands in each place for a person; it is always the same for them."""
        return positions(project.seed, self.id, person, len(self.group.answers))

    def shown(self, project: Project, person: str) -> Shown:
        """Return what this person may see."""
        answers = (self.group.answers[index] for index in self.positions(project, person))
        return Shown(
            item=self.id,
            ask=self.ask,
            prompt=self.group.prompt,
            answers=tuple(Answer(text=answer.text, messages=answer.messages) for answer in answers),
        )


def get_item(tx: Tx, project: Project, item: str, *, hold: bool = False) -> Item:
    """Return an item of this project; with ``hold``, nobody else changes what hangs on it until the end."""
    table = tables.item
    query = select(table).where(table.c.project == project.id, table.c.id == item)
    row = tx.execute(query.with_for_update(key_share=True) if hold else query).first() if storable(item) else None
    if row is None:
        raise MissingError(f"no item {item!r} in this project")
    return item_of(row)


def item_of(row: Row[Any]) -> Item:
    """Return the item that a row of the table is."""
    group = decode_group(_object(row.body))
    gold = () if row.gold is None else decode_verdicts(strict_json.loads(row.gold), len(group.answers))
    return Item(
        id=row.id,
        ask=row.ask,
        slice=row.slice,
        priority=row.priority,
        overlap=row.overlap,
        group=group,
        gold=gold,
    )


def positions(seed: int, item: str, person: str, count: int) -> tuple[int, ...]:
    """Return a permutation of ``count`` answers; position p shows answer ``positions[p]``.

    Each of the count! orders is as likely as another over items and persons; nobody can tell it without the seed.
    """
    return tuple(sorted(range(count), key=lambda index: derive(seed, "position", item, person, index)))


def renumber(verdict: Verdict, numbers: Sequence[int]) -> Verdict:
    """Return the verdict on answer ``numbers[i]`` wherever it speaks of answer i."""
    match verdict:
        case Pair():
            return dataclasses.replace(verdict, better=numbers[verdict.better], worse=numbers[verdict.worse])
        case Ranking():
            return dataclasses.replace(verdict, order=tuple(tuple(numbers[i] for i in tier) for tier in verdict.order))
        case Score() | Thumb() | Edit():
            return dataclasses.replace(verdict, answer=numbers[verdict.answer])


def encode_verdicts(verdicts: Sequence[Verdict], name: str = "") -> object:
    """Return verdicts in the codec's JSON; ``name`` stands in the error for one that names a negative number."""
    return encode_group(Group(id=name, answers=_blank(_most(verdicts)), verdicts=tuple(verdicts))).get("verdicts", [])


def decode_verdicts(rows: object, count: int, name: str = "") -> tuple[Verdict, ...]:
    """Return the verdicts that JSON holds; raise ``DataError`` where one is wrong or names no answer of ``count``."""
    return decode_group({"id": name, "answers": [{"text": ""}] * count, "verdicts": rows}).verdicts


def dump_group(group: Group) -> str:
    """Return a Group as one line of JSON."""
    try:
        text = strict_json.dumps(encode_group(group))
        text.encode()
    except ValueError as error:  # NaN, infinity, half a surrogate pair
        raise DataError(f"group {group.id!r} cannot be stored: {error}") from None
    return text


def check_text(text: str | None) -> None:
    """Refuse text that a database cannot hold as it is."""
    if text is not None and not storable(text):
        raise DataError("text cannot be stored that holds a NUL character or half a surrogate pair")


def _most(verdicts: Sequence[Verdict]) -> int:
    return 1 + max((index for verdict in verdicts for index in answers_named(verdict)), default=0)


def _blank(count: int) -> tuple[Answer, ...]:
    return (Answer(text=""),) * count


def _object(text: str) -> dict[str, object]:
    found = strict_json.loads(text)
    assert isinstance(found, dict)
    return found
