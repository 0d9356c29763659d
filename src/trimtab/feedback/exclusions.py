"""Deciding not to count something: a stored decision with its rule and reason, that can be lifted. Nothing is deleted.

What an exclusion names is left out of ``ingest.groups``: one event, or all verdicts of a person or on an item.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import ColumnElement, and_, insert, or_, select, update

from trimtab.errors import ConfigError
from trimtab.feedback import audit, tables
from trimtab.feedback.errors import MissingError
from trimtab.feedback.items import check_text
from trimtab.feedback.projects import Project
from trimtab.feedback.store import Tx, storable

KINDS = ("event", "person", "item")


@dataclass(frozen=True, slots=True, kw_only=True)
class Exclusion:
    """What is not counted (``kind`` and its id), by which rule, why, since when, and (``lifted``) until when."""

    id: str
    kind: str
    subject: str
    rule: str
    reason: str
    actor: str
    at: float
    lifted: float | None = None


def exclude(tx: Tx, project: Project, kind: str, subject: str, *, rule: str, reason: str, actor: str) -> Exclusion:
    """Leave out an ``event``, a ``person``'s verdicts or those on an ``item``, by its id.

    Raises ``MissingError`` for what has nothing to do with the project.
    """
    if kind not in KINDS:
        raise ConfigError(f"{kind!r} is not one of {', '.join(KINDS)}")
    for word in (rule, reason):
        check_text(word)
    table = tables.item if kind == "item" else tables.event
    column = tables.event.c.person if kind == "person" else table.c.id
    query = select(column).where(table.c.project == project.id, column == subject).limit(1)
    if not storable(subject) or tx.execute(query).first() is None:
        raise MissingError(f"no {kind} {subject!r} in this project")
    made = Exclusion(id=tx.new_id(), kind=kind, subject=subject, rule=rule, reason=reason, actor=actor, at=tx.now)
    row = {"id": made.id, "project": project.id, kind: subject, "rule": rule, "reason": reason, "actor": actor}
    tx.execute(insert(tables.exclusion).values(**row, at=tx.now))
    detail = {"kind": kind, "rule": rule, "reason": reason}
    audit.record(tx, actor=actor, action="exclusion.add", subject=subject, project=project.id, detail=detail)
    return made


def lift(tx: Tx, project: Project, exclusion: str, *, actor: str) -> None:
    """Count it again."""
    table = tables.exclusion
    standing = (table.c.project == project.id, table.c.id == exclusion, table.c.lifted.is_(None))
    if not storable(exclusion) or not tx.execute(update(table).where(*standing).values(lifted=tx.now)).rowcount:
        raise MissingError(f"no exclusion {exclusion!r} stands in this project")
    audit.record(tx, actor=actor, action="exclusion.lift", subject=exclusion, project=project.id)


def list_exclusions(tx: Tx, project: Project, *, lifted: bool = True) -> list[Exclusion]:
    """Return the decisions of a project in the order they were taken; without ``lifted``, those that stand."""
    table = tables.exclusion
    query = select(table).where(table.c.project == project.id)
    rows = tx.execute((query if lifted else query.where(table.c.lifted.is_(None))).order_by(table.c.id))
    found: list[Exclusion] = []
    for row in rows:
        kind = next(name for name in KINDS if getattr(row, name) is not None)
        rest = {name: getattr(row, name) for name in ("id", "rule", "reason", "actor", "at", "lifted")}
        found.append(Exclusion(kind=kind, subject=getattr(row, kind), **rest))
    return found


def excluded(project: Project) -> ColumnElement[bool]:
    """Return the condition that a row of ``event`` is left out."""
    table, event = tables.exclusion, tables.event
    names = or_(table.c.event == event.c.id, table.c.person == event.c.person, table.c.item == event.c.item)
    standing = and_(table.c.project == project.id, table.c.lifted.is_(None), names)
    return select(table.c.id).where(standing).exists()
