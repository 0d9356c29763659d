"""Who changed what: rows that each hold the hash of the one before.

    hash_n = SHA-256(canonical JSON of [number, project, at, actor, action, subject, detail, origin, hash_(n-1)])

Verdicts are not written here (an event is never changed in the first place), but everything that decides what becomes
of them is: roles, tokens, settings, items, exclusions, exports. A changed, missing or moved row breaks the chain. Rows
cut off at the end leave a whole chain, so keep a ``Head`` elsewhere (an export's manifest has one) and give it to
``verify``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from sqlalchemy import Row, func, insert, select, text
from sqlalchemy.exc import DBAPIError

from trimtab.feedback import tables
from trimtab.feedback.store import Tx
from trimtab.records import strict_json

GENESIS = "0" * 64
COLUMNS = ("number", "project", "at", "actor", "action", "subject", "detail", "origin", "prev")
PAGE = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The chain's last row: how many there are, and its hash."""

    number: int = 0
    hash: str = GENESIS


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """What ``verify`` found: the head, or the number of the first row that is not what was written, and why."""

    head: Head
    broken: int | None = None
    reason: str = ""


def record(
    tx: Tx,
    *,
    actor: str,
    action: str,
    subject: str = "",
    project: str | None = None,
    detail: Mapping[str, object] | None = None,
    origin: str = "",
) -> None:
    """Add a row.

    ``actor`` is a person's id, or ``"system"``; ``action`` a verb and its object (``"role.set"``); ``origin`` where it
    came from (a hashed address), which the caller has to make.
    """
    if tx.dialect == "postgresql":  # one row after the other, though transactions run side by side
        tx.execute(text("SELECT pg_advisory_xact_lock(hashtext('trimtab.feedback.audit'))"))
    last = head(tx)
    row = {
        "number": last.number + 1,
        "project": project,
        "at": tx.now,
        "actor": actor,
        "action": action,
        "subject": subject,
        "detail": strict_json.dumps(detail or {}),
        "origin": origin,
        "prev": last.hash,
    }
    tx.execute(insert(tables.audit).values(**row, hash=_hash([row[name] for name in COLUMNS])))


def head(tx: Tx) -> Head:
    """Return the chain's head; of an empty chain it is 64 zeros."""
    found = tx.execute(
        select(tables.audit.c.number, tables.audit.c.hash).order_by(tables.audit.c.number.desc()).limit(1)
    ).first()
    return Head() if found is None else Head(number=found.number, hash=found.hash)


def verify(tx: Tx, since: Head | None = None) -> Verified:
    """Walk the chain from its first row and name the first that is broken.

    ``since`` is a head that was seen earlier: a chain that does not hold it has been cut or written anew.
    """
    last = Head()
    for row in _rows(tx):
        number = last.number + 1
        if row is None:
            return Verified(head=last, broken=number, reason="it is no text any more")
        if row.number != number:
            return Verified(head=last, broken=number, reason=f"it is missing: row {row.number} stands there")
        if row.prev != last.hash:
            return Verified(head=last, broken=number, reason="it does not follow from the row before")
        if row.hash != _hash([getattr(row, name) for name in COLUMNS]):
            return Verified(head=last, broken=number, reason="its hash is not that of its content")
        last = Head(number=number, hash=row.hash)
        if since is not None and since.number == number and since.hash != row.hash:
            return Verified(head=last, broken=number, reason="another row stood there: the chain was written anew")
    if since is not None and since.number > last.number:
        return Verified(head=last, broken=last.number + 1, reason=f"it is missing: there were {since.number} rows")
    return Verified(head=last)


def _hash(values: list[object]) -> str:
    return hashlib.sha256(strict_json.dumps(values).encode("utf-8", "surrogatepass")).hexdigest()


def _rows(tx: Tx) -> Iterator[Row[tuple[object, ...]] | None]:
    """Yield the rows by number; ``None`` stands for one whose bytes are no text, which SQLite refuses to read."""
    table = tables.audit
    count = tx.execute(select(func.count()).select_from(table)).scalar_one()
    page = select(table).order_by(table.c.number)
    for start in range(0, count, PAGE):
        try:
            yield from tx.execute(page.limit(PAGE).offset(start)).all()
        except DBAPIError:
            for one in range(start, min(start + PAGE, count)):
                try:
                    yield tx.execute(page.limit(1).offset(one)).one()
                except DBAPIError:
                    yield None
                    return
