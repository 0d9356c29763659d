"""The same request twice is one request: idempotency keys, kept with the replies.

    reply = once(tx, project, person, key, body, lambda: ...)     # the work and its reply in one transaction
    begin(tx, ...) ... finish(tx, ...)                            # the same for work that spans several

A key belongs to a person in a project. It comes back with the same body: the stored reply. With another body:
``KeyReusedError``. While the first is still at work: ``ConflictError``. Work that fails leaves no key behind.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import delete, select, update

from trimtab.errors import DataError
from trimtab.feedback import tables
from trimtab.feedback.errors import ConflictError, KeyReusedError
from trimtab.feedback.projects import Project
from trimtab.feedback.store import Tx
from trimtab.records import strict_json

STALE_SECONDS = 60.0  # work that did not finish in this time was cut off: the key may be tried again
LONGEST_KEY = 255


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A reply (what JSON can hold), and whether it was stored by an earlier request."""

    value: object
    repeated: bool


def once(tx: Tx, project: Project, person: str, key: str, body: object, work: Callable[[], object]) -> Reply:
    """Return ``work()``, or what it returned when this key came before; both are in the caller's transaction."""
    stored = begin(tx, project, person, key, body)
    if stored is not None:
        return stored
    value = work()
    finish(tx, project, person, key, value)
    return Reply(value=value, repeated=False)


def begin(tx: Tx, project: Project, person: str, key: str, body: object) -> Reply | None:
    """Take a key, or return the reply that it got before."""
    if not 0 < len(key) <= LONGEST_KEY or not key.isprintable():
        raise DataError(f"an idempotency key has 1 to {LONGEST_KEY} printable characters")
    table = tables.request
    where = (table.c.project == project.id, table.c.person == person, table.c.key == key)
    digest = _digest(body)
    new = {"project": project.id, "person": person, "key": key, "digest": digest, "reply": None, "at": tx.now}
    if tx.insert_new(table, new):
        return None
    row = tx.execute(select(table).where(*where).with_for_update()).one()
    if row.digest != digest:
        raise KeyReusedError(f"the idempotency key {key!r} was used for another request")
    if row.reply is not None:
        return Reply(value=strict_json.loads(row.reply), repeated=True)
    if row.at > tx.now - STALE_SECONDS:
        raise ConflictError(f"the request with the idempotency key {key!r} is still at work")
    tx.execute(update(table).where(*where).values(at=tx.now))
    return None


def finish(tx: Tx, project: Project, person: str, key: str, value: object) -> None:
    """Store the reply of a key that ``begin`` took."""
    table = tables.request
    where = (table.c.project == project.id, table.c.person == person, table.c.key == key)
    tx.execute(update(table).where(*where).values(reply=strict_json.dumps(value)))


def forget(tx: Tx, before: float) -> int:
    """Drop the keys that were taken before a moment, and return how many: a key cannot be known for ever."""
    return tx.execute(delete(tables.request).where(tables.request.c.at < before)).rowcount


def _digest(body: object) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
