"""What people said, for good: an event is added and never changed, and a later one can supersede it.

    verdict   verdicts on an item's answers, or an answer of their own; supersedes what the person said of it before
    skip      no verdict, with a reason; the item never comes back to this person
    undo      takes back the person's current event on an item; what that one had superseded holds again

``label`` says what holds now, one row for an item and a person, and is written in the same transaction. ``replay``
works it out from the events alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import ColumnElement, Row, bindparam, delete, insert, select, update

from trimtab.errors import DataError, InvariantError
from trimtab.feedback import people, queue, tables
from trimtab.feedback.errors import ConflictError, MissingError
from trimtab.feedback.items import Item, check_text, decode_verdicts, encode_verdicts, get_item, renumber
from trimtab.feedback.projects import Project
from trimtab.feedback.store import Tx, storable
from trimtab.records import strict_json
from trimtab.records.types import Verdict

Kind = Literal["verdict", "skip", "undo"]
VERSION = 1  # of what an event's value means
PAGE = 1000

_CURRENT = (
    select(tables.event.c.id)
    .join(tables.label, tables.label.c.event == tables.event.c.seq)
    .where(tables.label.c.item == bindparam("p_item"), tables.label.c.person == bindparam("p_person"))
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """What a person says of an item in one act, answers named by the place where the person saw them.

    One act may hold several verdicts (a score for each answer, an edit and a pair). ``written`` is an answer of their
    own; it has the number after the last answer, and verdicts may name it.
    """

    verdicts: tuple[Verdict, ...] = ()
    written: str | None = None
    seconds: float | None = None
    client_time: str | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One row: ``value`` is JSON text with the Group's own answer numbers, ``shown`` what stood in each place.

    ``extra`` says that all of the item's places were taken by others when it came; it counts, but fills no place.
    ``at`` is the server's time and ``client_time`` what the client says, both when it was said.
    """

    seq: int
    id: str
    item: str
    person: str
    kind: Kind
    value: str | None
    shown: tuple[int, ...]
    seconds: float | None
    client_time: str | None
    reason: str | None
    supersedes: str | None
    extra: bool
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Current:
    """What holds now of what a person said of an item."""

    event: str
    kind: Kind
    value: str | None
    extra: bool


def submit(tx: Tx, project: Project, person: str, item: str, submission: Submission) -> Event:
    """Store a verdict, and return the event once it is in the transaction.

    It fills the place that the person holds. Where the lease was lost it fills any open one, and where there is none it
    is kept as ``extra``. A second verdict on the same item supersedes the first. Raises ``MissingError``,
    ``DeniedError``, and ``DataError`` for verdicts that do not fit the item.
    """
    people.enter(tx, project.id, person)
    asked = get_item(tx, project, item, hold=True)
    shown = asked.positions(project, person)
    value = _value(asked, submission, shown)
    before = _current(tx, item, person)
    extra = not queue.sit(tx, item, person)
    event = _append(
        tx, project, person, item, "verdict", submission, value=value, shown=shown, supersedes=before, extra=extra
    )
    _write_label(tx, project, event)
    return event


def skip(tx: Tx, project: Project, person: str, item: str, reason: str, *, seconds: float | None = None) -> Event:
    """Store that a person would not judge an item, and give their place to others."""
    people.enter(tx, project.id, person)
    get_item(tx, project, item, hold=True)
    before = _current(tx, item, person)
    queue.stand(tx, item, person)
    said = Submission(reason=reason, seconds=seconds)
    event = _append(tx, project, person, item, "skip", said, supersedes=before, extra=False)
    _write_label(tx, project, event)
    return event


def undo(tx: Tx, project: Project, person: str, event: str | None = None) -> Event:
    """Take back one of the person's events, by default the last that still holds, and return the new event.

    What it had superseded holds again; where that is nothing, the person has the item on lease once more if a place is
    open. Raises ``MissingError`` where there is nothing to take back and ``ConflictError`` for an event that does not
    hold any more.
    """
    people.enter(tx, project.id, person)
    last = _last(tx, project, person, event)
    get_item(tx, project, last.item, hold=True)
    before = None if last.supersedes is None else _event(tx, tables.event.c.id == last.supersedes)
    extra = False
    if before is None:
        queue.sit(tx, last.item, person, until=tx.now + project.settings.lease_seconds)
    elif before.kind == "skip":
        queue.stand(tx, last.item, person)
    else:
        extra = not queue.sit(tx, last.item, person)
    undone = _append(tx, project, person, last.item, "undo", Submission(), supersedes=last.id, extra=extra)
    if before is None:
        tx.execute(delete(tables.label).where(tables.label.c.item == last.item, tables.label.c.person == person))
    else:
        _write_label(tx, project, dataclasses.replace(before, extra=extra))
    return undone


def recent(tx: Tx, project: Project, person: str, limit: int = 10) -> list[Event]:
    """Return what a person could take back, the last said first."""
    label, event = tables.label, tables.event
    query = select(event).join(label, label.c.event == event.c.seq)
    mine = (label.c.project == project.id, label.c.person == person)
    rows = tx.execute(query.where(*mine).order_by(label.c.event.desc()).limit(limit))
    return [_of(row) for row in rows]


def all_events(tx: Tx, project: Project, *, after: int = 0, item: str | None = None) -> Iterator[Event]:
    """Yield a project's events in the order they were said, from the one after ``after`` (a ``seq``), in pages."""
    event = tables.event
    only = [] if item is None else [event.c.item == item]
    while True:
        page = select(event).where(event.c.project == project.id, event.c.seq > after, *only)
        rows = tx.execute(page.order_by(event.c.seq).limit(PAGE)).all()
        yield from map(_of, rows)
        if len(rows) < PAGE:
            return
        after = rows[-1].seq


def view(tx: Tx, project: Project) -> dict[tuple[str, str], Current]:
    """Return what holds now, by (item, person), from ``label``."""
    label, event = tables.label, tables.event
    query = select(label, event.c.id, event.c.value).join(event, label.c.event == event.c.seq)
    return {
        (row.item, row.person): Current(event=row.id, kind=row.kind, value=row.value, extra=row.extra)
        for row in tx.execute(query.where(label.c.project == project.id))
    }


def replay(events: Iterable[Event]) -> dict[tuple[str, str], Current]:
    """Return what holds after these events, by (item, person); raise ``InvariantError`` for an impossible history."""
    said: dict[tuple[str, str], list[Event]] = {}
    for event in events:
        stack = said.setdefault((event.item, event.person), [])
        if event.supersedes != (stack[-1].id if stack else None):
            raise InvariantError(f"event {event.id} supersedes what did not hold")
        if event.kind != "undo":
            stack.append(event)
            continue
        stack.pop()
        if stack:
            stack[-1] = dataclasses.replace(stack[-1], extra=event.extra)
    return {
        key: Current(event=stack[-1].id, kind=stack[-1].kind, value=stack[-1].value, extra=stack[-1].extra)
        for key, stack in said.items()
        if stack
    }


# --- inside -----------------------------------------------------------------------------------------------------------


def _value(item: Item, submission: Submission, shown: Sequence[int]) -> str:
    """Return what is stored: the verdicts on the Group's own numbers, unsigned (the event says who and when)."""
    count = len(item.group.answers)
    if not submission.verdicts and submission.written is None:
        raise DataError("a submission needs a verdict or an answer of one's own")
    numbers = [*shown, count]
    plain = [dataclasses.replace(verdict, rater=None, time=None) for verdict in submission.verdicts]
    known = count + (submission.written is not None)
    checked = decode_verdicts(encode_verdicts(plain, name=item.id), known, name=item.id)
    value: dict[str, object] = {"verdicts": encode_verdicts([renumber(verdict, numbers) for verdict in checked])}
    if submission.written is not None:
        value["written"] = submission.written
    try:
        text = strict_json.dumps(value)
        text.encode()
    except ValueError as error:
        raise DataError(f"the verdict cannot be stored: {error}") from None
    return text


def _append(
    tx: Tx,
    project: Project,
    person: str,
    item: str,
    kind: Kind,
    said: Submission,
    *,
    value: str | None = None,
    shown: Sequence[int] = (),
    supersedes: str | None,
    extra: bool,
) -> Event:
    for text in (said.reason, said.client_time):
        check_text(text)
    if said.seconds is not None and not 0 <= said.seconds < float("inf"):
        raise DataError(f"seconds must be a number from 0 on, not {said.seconds}")
    row = {
        "id": tx.new_id(),
        "item": item,
        "person": person,
        "kind": kind,
        "value": value,
        "seconds": said.seconds,
        "client_time": said.client_time,
        "reason": said.reason,
        "supersedes": supersedes,
        "extra": extra,
        "at": tx.now,
    }
    stored = {**row, "project": project.id, "shown": strict_json.dumps(list(shown)) if shown else None}
    seq = tx.execute(insert(tables.event).values(**stored, version=VERSION).returning(tables.event.c.seq)).scalar_one()
    return Event(seq=seq, shown=tuple(shown), **row)  # type: ignore[arg-type]  # the row's own types


def _write_label(tx: Tx, project: Project, event: Event) -> None:
    label = tables.label
    key = {"item": event.item, "person": event.person}
    rest = {"event": event.seq, "kind": event.kind, "extra": event.extra}
    if not tx.insert_new(label, {**key, **rest, "project": project.id}):
        tx.execute(update(label).where(label.c.item == event.item, label.c.person == event.person).values(**rest))


def _current(tx: Tx, item: str, person: str) -> str | None:
    return tx.execute(_CURRENT, {"p_item": item, "p_person": person}).scalar()


def _last(tx: Tx, project: Project, person: str, wanted: str | None) -> Event:
    if wanted is None:
        found = recent(tx, project, person, limit=1)
        if not found:
            raise MissingError("there is nothing to take back")
        return found[0]
    table = tables.event
    mine = (table.c.id == wanted, table.c.project == project.id, table.c.person == person)
    event = _event(tx, *mine) if storable(wanted) else None
    if event is None or event.kind == "undo":
        raise MissingError(f"no event {wanted!r} of this person to take back")
    if _current(tx, event.item, person) != event.id:
        raise ConflictError(f"event {wanted!r} does not hold any more")
    return event


def _event(tx: Tx, *where: ColumnElement[bool]) -> Event | None:
    row = tx.execute(select(tables.event).where(*where)).first()
    return None if row is None else _of(row)


def _of(row: Row[Any]) -> Event:
    values = {field.name: getattr(row, field.name) for field in dataclasses.fields(Event)}
    shown = [] if row.shown is None else strict_json.loads(row.shown)
    assert isinstance(shown, list)
    return Event(**values | {"shown": tuple(shown)})
