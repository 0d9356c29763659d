"""Who is asked what next.

An item asked of k people has k slots. A slot is free, leased to one person for a while, or done. A claim is one
statement that finds a slot and takes it, so two people never get the same one; (item, person) is unique, so nobody gets
an item twice. Signs of life (``heartbeat``, and every claim) renew a person's leases; one that ran out can be taken by
somebody else, and until then still belongs to the person.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Executable, bindparam, case, exists, func, select, update

from trimtab.feedback import people, tables
from trimtab.feedback.items import SLICES, Slice
from trimtab.feedback.projects import Project, Settings
from trimtab.feedback.store import Tx


def _take_statement() -> Executable:
    """The first open slot of a slice that this person may have: found and taken in one statement."""
    slot, label = tables.slot, tables.label
    free, own = slot.alias("free"), slot.alias("own")
    held = select(own.c.item).where(own.c.person == bindparam("p_person"), own.c.done.is_(False))
    said = exists().where(label.c.item == free.c.item, label.c.person == bindparam("p_person"))
    first = (
        select(free.c.id)
        .where(
            free.c.project == bindparam("p_project"),
            free.c.slice == bindparam("p_slice"),
            free.c.done.is_(False),
            free.c.until <= bindparam("p_now"),
            free.c.item.not_in(held),
            ~said,
        )
        .order_by(free.c.turn, free.c.place, free.c.id)
        .limit(1)
        .with_for_update(skip_locked=True, of=free)
    )
    taken = update(slot).where(slot.c.id == first.scalar_subquery())
    return taken.values(person=bindparam("p_person"), until=bindparam("p_until")).returning(slot.c.item)


def _fill_statement() -> Executable:
    """Any open slot of an item."""
    slot, free = tables.slot, tables.slot.alias("free")
    some = (
        select(free.c.id)
        .where(free.c.item == bindparam("p_item"), free.c.done.is_(False), free.c.until <= bindparam("p_now"))
        .order_by(free.c.number)
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    taken = update(slot).where(slot.c.id == some.scalar_subquery())
    return taken.values(person=bindparam("p_person"), done=bindparam("p_done"), until=bindparam("p_until"))


# built once: SQLAlchemy takes longer to put these together than a database to run them
_TAKE, _FILL = _take_statement(), _fill_statement()
_KEEP = (
    update(tables.slot)
    .where(tables.slot.c.item == bindparam("p_item"), tables.slot.c.person == bindparam("p_person"))
    .values(done=bindparam("p_done"), until=bindparam("p_until"))
)
_RENEW = (
    update(tables.slot)
    .where(
        tables.slot.c.project == bindparam("p_project"),
        tables.slot.c.person == bindparam("p_person"),
        tables.slot.c.done.is_(False),
    )
    .values(until=bindparam("p_until"))
    .returning(tables.slot.c.turn, tables.slot.c.place, tables.slot.c.id, tables.slot.c.item, tables.slot.c.slice)
)
_GIVEN = select(tables.ration.c.slice, tables.ration.c.given).where(
    tables.ration.c.project == bindparam("p_project"), tables.ration.c.person == bindparam("p_person")
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """An item that a person holds until a moment (seconds since 1970), and the slice it came from."""

    item: str
    until: float
    slice: Slice


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a project is; gold is not counted. ``slots = done + leased + open``; an extra verdict fills none."""

    items: int
    finished: int
    slots: int
    done: int
    leased: int

    @property
    def open(self) -> int:
        """Slots that somebody could claim now."""
        return self.slots - self.done - self.leased


def claim(tx: Tx, project: Project, person: str, *, want: int | None = None) -> tuple[Lease, ...]:
    """Return the items that a person is to judge: those they hold, and new ones up to ``want``.

    ``want`` is at most the project's ``prefetch``, and that by default. What is held comes first and is renewed before
    anything is counted. New ones come from the slice that is furthest behind its share for this person, by priority
    and then in a shuffled order; where a slice has nothing, from the next. Never again an item that they judged or
    skipped. Nothing left gives fewer, or none. Raises ``DeniedError`` for whoever may not judge here.
    """
    people.enter(tx, project.id, person)
    held = list(_renew(tx, project, person, None))
    limit = project.settings.prefetch if want is None else min(want, project.settings.prefetch)
    if len(held) < limit:
        given = _given(tx, project, person)
        before = dict(given)
        while len(held) < limit:
            lease = _next(tx, project, person, given)
            if lease is None:
                break
            given[lease.slice] += 1
            held.append(lease)
        _store_given(tx, project, person, before, given)
    return tuple(held)


def heartbeat(tx: Tx, project: Project, person: str, items: Sequence[str] | None = None) -> tuple[Lease, ...]:
    """Renew a person's leases (of some items) and return those that they still have; missing ones are lost."""
    return _renew(tx, project, person, items)


def release(tx: Tx, project: Project, person: str) -> int:
    """Give all of a person's leases back, when they leave; return how many there were."""
    slot = tables.slot
    mine = (slot.c.project == project.id, slot.c.person == person, slot.c.done.is_(False))
    return tx.execute(update(slot).where(*mine).values(person=None, until=0.0)).rowcount


def reprioritise(tx: Tx, project: Project, priorities: Mapping[str, float]) -> int:
    """Give items of the active slice other priorities (higher comes earlier); return how many were changed.

    The random slice keeps its order: it is there to stay a fair sample.
    """
    item, slot = tables.item, tables.slot
    changed = 0
    for name, priority in priorities.items():
        active = (item.c.project == project.id, item.c.id == name, item.c.slice == "active")
        if tx.execute(update(item).where(*active).values(priority=float(priority))).rowcount:
            tx.execute(update(slot).where(slot.c.item == name).values(turn=-float(priority)))
            changed += 1
    return changed


def turn(settings: Settings, given: Mapping[Slice, int]) -> list[Slice]:
    """Return the slices, the one furthest behind its share of the next item first."""
    share = {"random": settings.random_share, "gold": settings.gold_share}
    share["active"] = 1 - sum(share.values())
    count = sum(given.values()) + 1
    return sorted(SLICES, key=lambda name: given[name] - share[name] * count)


def progress(tx: Tx, project: Project) -> Progress:
    """Count a project's items and slots."""
    slot = tables.slot
    done = func.sum(case((slot.c.done, 1), else_=0))
    leased = func.sum(case((slot.c.done, 0), (slot.c.until > tx.now, 1), else_=0))
    each = (
        select(func.count().label("slots"), done.label("done"), leased.label("leased"))
        .where(slot.c.project == project.id, slot.c.slice != "gold")
        .group_by(slot.c.item)
        .subquery()
    )
    finished = func.sum(case((each.c.slots == each.c.done, 1), else_=0))
    total = [
        func.coalesce(column, 0) for column in (finished, *(func.sum(each.c[n]) for n in ("slots", "done", "leased")))
    ]
    row = tx.execute(select(func.count(), *total).select_from(each)).one()
    items, finished_items, slots, done_slots, leased_slots = (int(value) for value in row)
    return Progress(items=items, finished=finished_items, slots=slots, done=done_slots, leased=leased_slots)


# --- seats: what a verdict, a skip and an undo do to slots (called by events) -----------------------------------------


def sit(tx: Tx, item: str, person: str, *, until: float | None = None) -> bool:
    """Take a person's own slot, or any open one: for good, or (``until``) on lease. Say whether there was one."""
    taken = {"p_done": until is None, "p_until": until or 0.0}
    if tx.execute(_KEEP, {"p_item": item, "p_person": person, **taken}).rowcount:
        return True
    values = {"p_item": item, "p_person": person, "p_now": tx.now, **taken}
    return tx.execute(_FILL, values).rowcount == 1


def stand(tx: Tx, item: str, person: str) -> None:
    """Give a person's slot back to the queue."""
    slot = tables.slot
    own = (slot.c.item == item, slot.c.person == person)
    tx.execute(update(slot).where(*own).values(person=None, until=0.0, done=False))


# --- inside -----------------------------------------------------------------------------------------------------------


def _renew(tx: Tx, project: Project, person: str, items: Sequence[str] | None) -> tuple[Lease, ...]:
    until = tx.now + project.settings.lease_seconds
    query = _RENEW if items is None else _RENEW.where(tables.slot.c.item.in_(items))
    kept = tx.execute(query, {"p_project": project.id, "p_person": person, "p_until": until}).all()
    rows = sorted(kept, key=lambda row: (row.turn, row.place, row.id))
    return tuple(Lease(item=row.item, until=until, slice=row.slice) for row in rows)


def _next(tx: Tx, project: Project, person: str, given: Mapping[Slice, int]) -> Lease | None:
    for name in turn(project.settings, given):
        lease = _take(tx, project, person, name)
        if lease is not None:
            return lease
    return None


def _take(tx: Tx, project: Project, person: str, name: Slice) -> Lease | None:
    until = tx.now + project.settings.lease_seconds
    values = {"p_project": project.id, "p_person": person, "p_slice": name, "p_now": tx.now, "p_until": until}
    item = tx.execute(_TAKE, values).scalar()
    return None if item is None else Lease(item=item, until=until, slice=name)


def _given(tx: Tx, project: Project, person: str) -> dict[Slice, int]:
    rows = tx.execute(_GIVEN, {"p_project": project.id, "p_person": person})
    return dict.fromkeys(SLICES, 0) | {row.slice: row.given for row in rows}


def _store_given(
    tx: Tx, project: Project, person: str, before: Mapping[Slice, int], after: Mapping[Slice, int]
) -> None:
    table = tables.ration
    for name in SLICES:
        if after[name] == before[name]:
            continue
        key = {"project": project.id, "person": person, "slice": name}
        if not tx.insert_new(table, {**key, "given": after[name]}):
            where = [table.c[column] == value for column, value in key.items()]
            tx.execute(update(table).where(*where).values(given=after[name]))
