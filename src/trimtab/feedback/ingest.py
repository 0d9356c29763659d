"""Groups in, Groups with verdicts out.

add_groups(store, project, iter_groups("answers.jsonl"), ask="pair", actor=ada.id)
with store.read() as tx:
    write_groups("out.jsonl", groups(tx, project))
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Row, insert, select

from trimtab.errors import ConfigError, DataError, did_you_mean
from trimtab.feedback import audit, tables
from trimtab.feedback.exclusions import excluded
from trimtab.feedback.items import (
    ANSWERS_NEEDED,
    Ask,
    Slice,
    decode_verdicts,
    dump_group,
    encode_verdicts,
    item_of,
    renumber,
)
from trimtab.feedback.projects import Project
from trimtab.feedback.store import Store, Tx
from trimtab.records import strict_json
from trimtab.records.types import Answer, Group, Verdict
from trimtab.seeds import derive

BATCH = 100  # Groups a transaction: whoever votes meanwhile waits no longer than that
PAGE = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Ingested:
    """How many items were added, and which Groups were not: those there already, and those refused, with reasons."""

    added: int
    duplicates: tuple[str, ...] = ()
    refused: tuple[tuple[str, str], ...] = ()


def add_groups(
    store: Store,
    project: Project,
    groups: Iterable[Group],
    *,
    ask: Ask = "pair",
    overlap: int | None = None,
    priority: float = 0.0,
    gold: bool = False,
    actor: str,
) -> Ingested:
    """Put Groups into a project's queue, in transactions of ``BATCH``.

    ``overlap`` people (default: the project's) are asked ``ask``. A Group whose prompt and answers (in any order, up to
    white space) were asked the same before is a duplicate. Verdicts that a Group has stay with it and are given back by
    ``groups``; with ``gold`` they are the right ones that people are held against, and not given back. Models' names,
    ids and meta stay with the item and are never shown.
    """
    if ask not in ANSWERS_NEEDED:
        raise ConfigError(f"no question {ask!r}{did_you_mean(ask, ANSWERS_NEEDED)}")
    overlap = project.settings.overlap if overlap is None else overlap
    if overlap < 1:
        raise ConfigError(f"overlap must be at least 1, not {overlap}")
    added, duplicates, refused = 0, list[str](), list[tuple[str, str]]()
    waiting = iter(groups)
    while batch := list(itertools.islice(waiting, BATCH)):
        ready: list[dict[str, Any]] = []
        for group in batch:
            try:
                ready.append(_row(project, group, ask=ask, gold=gold))
            except DataError as error:
                refused.append((group.id, str(error)))
        common = {"overlap": overlap, "priority": priority}
        new = store.run(lambda tx, ready=ready, common=common: _insert(tx, project, ready, common))  # type: ignore[misc]
        added += len(new)
        duplicates += [row["group"] for index, row in enumerate(ready) if index not in new]
    report = Ingested(added=added, duplicates=tuple(duplicates), refused=tuple(refused))
    detail = {"ask": ask, "gold": gold, "added": added, "duplicates": len(duplicates), "refused": len(refused)}
    store.run(lambda tx: audit.record(tx, actor=actor, action="items.add", project=project.id, detail=detail))
    return report


def groups(tx: Tx, project: Project, *, judged: bool = True, gold: bool = False, extra: bool = True) -> Iterator[Group]:
    """Yield a project's items as Groups with what holds of what was said, in the order they came in.

    Verdicts are signed ``human:NAME`` (``service:NAME``), an item's own come first, the rest in the order they were
    said. A person's own answer is added to the answers, with the same name as its model. What is excluded, skipped or
    taken back is left out. ``judged`` leaves out Groups without a verdict or answer from here; ``gold`` takes the gold
    items too; without ``extra``, verdicts beyond an item's overlap are left out. The same store gives the same Groups,
    a page at a time.
    """
    table, last = tables.item, ""
    only = [] if gold else [table.c.slice != "gold"]
    while True:
        page = select(table).where(table.c.project == project.id, table.c.id > last, *only).order_by(table.c.id)
        rows = tx.execute(page.limit(PAGE)).all()
        if not rows:
            return
        said = _said(tx, project, rows[0].id, rows[-1].id, extra=extra)
        for row in rows:
            if row.id in said or not judged:
                yield _with(item_of(row).group, said.get(row.id, []))
        last = rows[-1].id


def content_digest(group: Group, ask: Ask) -> str:
    """SHA-256 of what a person would be asked: normalised prompt, answers in any order, and the question."""
    prompt = [(message.role, _plain(message.content)) for message in group.prompt]
    answers = sorted(
        [(_plain(answer.text), [(turn.role, _plain(turn.content)) for turn in answer.messages])]
        for answer in group.answers
    )
    text = strict_json.dumps([ask, prompt, answers])
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


# --- in ---------------------------------------------------------------------------------------------------------------


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())


def _row(project: Project, group: Group, *, ask: Ask, gold: bool) -> dict[str, Any]:
    """Return what is stored of a Group; raise ``DataError`` where it cannot be asked."""
    least, most = ANSWERS_NEEDED[ask]
    count = len(group.answers)
    if count < least or (most is not None and count > most):
        wanted = f"{least}" if least == most else f"at least {least}"
        raise DataError(f"{count} answers; the question {ask!r} needs {wanted}")
    if gold and not group.verdicts:
        raise DataError("no verdict, and a gold item needs the right one")
    digest = content_digest(group, ask)
    chance = derive(project.seed, "slice", digest) / 2**63
    slice_: Slice = "gold" if gold else "random" if chance < project.settings.random_share else "active"
    return {
        "group": group.id,
        "digest": digest,
        "ask": ask,
        "body": dump_group(dataclasses.replace(group, verdicts=()) if gold else group),
        "slice": slice_,
        "gold": strict_json.dumps(encode_verdicts(group.verdicts)) if gold else None,
        "place": derive(project.seed, "place", digest),
    }


def _insert(tx: Tx, project: Project, ready: list[dict[str, Any]], common: dict[str, Any]) -> set[int]:
    """Insert the items that are not there yet, with their slots, and return which of ``ready`` they are."""
    tx.execute(select(tables.project.c.id).where(tables.project.c.id == project.id).with_for_update(key_share=True))
    digests = [row["digest"] for row in ready]
    table = tables.item
    there = set(
        tx.execute(select(table.c.digest).where(table.c.project == project.id, table.c.digest.in_(digests))).scalars()
    )
    new: set[int] = set()
    items: list[dict[str, Any]] = []
    slots: list[dict[str, Any]] = []
    for index, row in enumerate(ready):
        if row["digest"] in there:
            continue
        there.add(row["digest"])
        new.add(index)
        item = {"id": tx.new_id(), "project": project.id, "created": tx.now, **common}
        items.append(item | {name: row[name] for name in ("digest", "ask", "body", "slice", "gold")})
        turn = 0.0 if row["slice"] == "random" else -common["priority"]
        slots += [
            {
                "project": project.id,
                "item": item["id"],
                "number": number,
                "slice": row["slice"],
                "turn": turn,
                "place": row["place"],
                "until": 0.0,
                "done": False,
            }
            for number in range(common["overlap"])
        ]
    if items:
        tx.execute(insert(table), items)
        tx.execute(insert(tables.slot), slots)
    return new


# --- out --------------------------------------------------------------------------------------------------------------


def _said(tx: Tx, project: Project, first: str, last: str, *, extra: bool) -> dict[str, list[Row[Any]]]:
    """Return what holds of the items from ``first`` to ``last``, by item, in the order it was said."""
    label, event, person = tables.label, tables.event, tables.person
    query = (
        select(event, person.c.name, person.c.kind.label("rater_kind"))
        .join(label, label.c.event == event.c.seq)
        .join(person, person.c.id == event.c.person)
        .where(label.c.project == project.id, label.c.item.between(first, last), label.c.kind == "verdict")
        .where(~excluded(project))
        .order_by(event.c.seq)
    )
    if not extra:
        query = query.where(label.c.extra.is_(False))
    found: dict[str, list[Row[Any]]] = {}
    for row in tx.execute(query):
        found.setdefault(row.item, []).append(row)
    return found


def _with(group: Group, said: list[Row[Any]]) -> Group:
    answers, verdicts = list(group.answers), list(group.verdicts)
    count = len(answers)
    for row in said:
        value = strict_json.loads(row.value)
        assert isinstance(value, dict)
        rater = f"{row.rater_kind}:{row.name}"
        numbers = [*range(count), len(answers)]
        verdicts += [
            _signed(renumber(verdict, numbers), rater, row) for verdict in decode_verdicts(value["verdicts"], count + 1)
        ]
        if "written" in value:
            answers.append(Answer(text=value["written"], model=rater))
    return dataclasses.replace(group, answers=tuple(answers), verdicts=tuple(verdicts))


def _signed(verdict: Verdict, rater: str, row: Row[Any]) -> Verdict:
    return dataclasses.replace(
        verdict,
        rater=rater,
        time=datetime.fromtimestamp(row.at, UTC).isoformat(timespec="milliseconds"),
        seconds=row.seconds if verdict.seconds is None else verdict.seconds,
        reason=row.reason if verdict.reason is None else verdict.reason,
    )
