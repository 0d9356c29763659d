"""Opening, refusing, and what a transaction is."""

from __future__ import annotations

import re
import sqlite3
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from feedback_parts import Clock, Make, pair
from sqlalchemy import func, insert, select, text, update
from sqlalchemy.exc import DBAPIError

from trimtab.errors import InvariantError
from trimtab.feedback import events, ingest, migrations, tables
from trimtab.feedback.errors import StoreError
from trimtab.feedback.events import Submission
from trimtab.feedback.store import Ids, Store, Tx, open_store, sqlite_note
from trimtab.records.types import Group, Pair


def test_migrations_and_metadata_agree(kept: Store) -> None:
    with kept.read() as tx:
        assert compare_metadata(MigrationContext.configure(tx.connection), tables.metadata) == []
    head = ScriptDirectory(str(Path(migrations.__file__).parent)).get_current_head()
    assert head == tables.REVISION


def test_what_is_written_is_there_for_readers_and_what_failed_is_not(kept: Store) -> None:
    row = {"name": "p", "seed": 1, "settings": "{}", "created": 0.0}
    with kept.write() as tx:
        tx.execute(insert(tables.project).values(id="a", **row))
        with kept.read() as other:
            assert other.execute(select(func.count()).select_from(tables.project)).scalar() == 0

    def fails(tx: Tx) -> None:
        tx.execute(insert(tables.project).values(id="b", **row | {"name": "q"}))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        kept.run(fails)
    with kept.read() as tx:
        assert tx.execute(select(tables.project.c.id)).scalars().all() == ["a"]


def test_a_reader_sees_one_snapshot_and_cannot_write(kept: Store, make: Make) -> None:
    with kept.read() as tx:
        before = tx.execute(select(func.count()).select_from(tables.project)).scalar()
        make(items=0)
        assert tx.execute(select(func.count()).select_from(tables.project)).scalar() == before == 0
    with pytest.raises(DBAPIError, match=r"read-?only"), kept.read() as tx:
        tx.execute(update(tables.project).values(name="x"))


@pytest.mark.parametrize("table", ["event", "audit"])
@pytest.mark.parametrize("act", ["UPDATE {} SET at = 0", "DELETE FROM {}"])
def test_events_and_audit_are_append_only(kept: Store, make: Make, table: str, act: str) -> None:
    project, (ada, _) = make(items=1)
    with kept.write() as tx:
        item = tx.execute(select(tables.item.c.id)).scalar_one()
        events.skip(tx, project, ada, item, "no")
    with pytest.raises(DBAPIError, match="append-only"), kept.write() as tx:
        tx.execute(text(act.format(table)))


def test_a_collision_is_tried_again(kept: Store) -> None:
    """Two transactions take two rows in opposite orders: PostgreSQL ends one, and ``run`` starts it again.

    On SQLite the second waits for the first, and nothing collides.
    """
    row = {"seed": 1, "settings": "{}", "created": 0.0}
    with kept.write() as tx:
        tx.execute(insert(tables.project), [{"id": name, "name": name, **row} for name in "ab"])
    meet, tries = threading.Barrier(2), list[str]()

    def work(tx: Tx, mine: str, other: str) -> None:
        tries.append(mine)
        tx.execute(update(tables.project).where(tables.project.c.id == mine).values(seed=tables.project.c.seed + 1))
        if tx.dialect == "postgresql" and len(tries) <= 2:
            meet.wait()
        tx.execute(update(tables.project).where(tables.project.c.id == other).values(seed=tables.project.c.seed + 1))

    threads = [threading.Thread(target=lambda o=order: kept.run(lambda tx: work(tx, *o))) for order in ("ab", "ba")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with kept.read() as tx:
        assert tx.execute(select(tables.project.c.seed)).scalars().all() == [3, 3]
    assert len(tries) == (3 if kept.dialect == "postgresql" else 2)


def test_ids_rise_also_when_the_clock_steps_back() -> None:
    ids = Ids()
    made = [ids.next(now) for now in (5.0, 5.0, 1.0, 5.0, 5.001)]
    assert made == sorted(set(made))
    assert all(re.fullmatch(r"[0-9A-HJKMNP-TV-Z]{26}", name) for name in made)


# --- SQLite's own -----------------------------------------------------------------------------------------------------


def test_the_file_is_durable_private_and_has_one_writer(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "with %41 and ?" / "f.sqlite"
    with open_store(str(path)) as kept:
        with kept.write() as tx:
            found = {name: tx.connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in
                     ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")}  # fmt: skip
            assert found == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 5000}
        with kept.write(), pytest.raises(InvariantError, match="wait for itself"), kept.write():
            pass
        with pytest.raises(StoreError, match="in use by another process"):
            open_store(path)
        program = f"from trimtab.feedback.store import open_store; open_store({str(path)!r})"
        other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
        assert "StoreError" in other.stderr
        assert "in use by another process" in other.stderr
        with open_store(path, read_only=True) as beside, beside.read() as tx:
            assert tx.execute(select(tables.person)).all() == []
        with (
            open_store(path, read_only=True) as beside,
            pytest.raises(StoreError, match="reading only"),
            beside.write(),
        ):
            pass
        for file in path.parent.iterdir():
            assert stat.S_IMODE(file.stat().st_mode) == 0o600
    open_store(path).close()
    open_store(f"sqlite:///{tmp_path}/plain.sqlite").close()
    assert (tmp_path / "plain.sqlite").is_file()


def test_readers_see_what_is_committed_while_a_write_is_open(empty_sqlite: Path, tmp_path: Path) -> None:
    """The log is folded in by the writer alone: a reader that closes last leaves it where it is."""
    path = tmp_path / "f.sqlite"
    kept = open_store(path)
    reader = open_store(path, read_only=True)
    with kept.write() as tx:
        tx.execute(insert(tables.person).values(id="a", name="ada", kind="human", admin=False, failures=0,
                                                locked_until=0.0, created=0.0))  # fmt: skip
        with reader.read() as other:
            assert other.execute(select(tables.person)).all() == []
    assert path.with_name("f.sqlite-wal").stat().st_size > 0
    with reader.read() as tx:
        assert len(tx.execute(select(tables.person)).all()) == 1
    reader.close()
    assert path.with_name("f.sqlite-wal").stat().st_size > 0
    kept.close()
    assert not path.with_name("f.sqlite-wal").exists()


@pytest.mark.parametrize(
    ("place", "said"),
    [
        (":memory:", "is not a file"),
        ("", "is not a file"),
        ("sqlite:///x?mode=ro", "takes no options"),
        ("mysql://u:secret@h/d", "mysql: a store is a path"),
        ("oops://", "a store is a path|not a database URL"),
        ("postgresql://user:secret@127.0.0.1:1/none", "cannot be reached"),
    ],
)
def test_what_is_no_store_is_refused(place: str, said: str) -> None:
    with pytest.raises(StoreError, match=said) as caught:
        open_store(place)
    assert "secret" not in str(caught.value)


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.sqlite"
    path.write_text("this is no database, but long enough to be looked at")
    with pytest.raises(StoreError, match="not a database"):
        open_store(path)
    assert path.read_text().startswith("this is no database")
    other = tmp_path / "other.sqlite"
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE mine (x)")
    connection.close()
    with pytest.raises(StoreError, match=r"other tables \(mine\)"):
        open_store(other)
    with pytest.raises(StoreError, match="no such file"):
        open_store(tmp_path / "none.sqlite", read_only=True)


def test_a_newer_store_is_refused(empty_sqlite: Path, tmp_path: Path) -> None:
    path = tmp_path / "newer.sqlite"
    path.write_bytes(empty_sqlite.read_bytes())
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'r9999'")
    connection.close()
    with pytest.raises(StoreError, match="newer Trimtab"):
        open_store(path)


def test_the_note_on_old_versions() -> None:
    assert "WAL-reset" in (sqlite_note((3, 40, 1)) or "")
    assert sqlite_note((3, 51, 3)) is None
    assert sqlite_note((3, 53, 0)) is None


def test_no_torch_is_loaded() -> None:
    rooms = "store, queue, events, ingest, people, audit, requests, exclusions"
    program = f"import sys; from trimtab.feedback import {rooms}; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert "sqlalchemy" in found
    assert not {"torch", "transformers", "numpy", "fastapi", "alembic"} & set(found)


def test_two_projects_never_see_each_other(kept: Store, make: Make, clock: Clock) -> None:
    """The same Groups, people in both rooms: nothing of one is ever reached through the other."""
    from trimtab.feedback import exclusions, items, people, queue, requests
    from trimtab.feedback.errors import MissingError

    one, (ada, _) = make(items=4, overlap=1)
    two, (ben, _) = make(items=4, overlap=1)
    said = Submission(verdicts=(Pair(better=0, worse=1),))
    with kept.write() as tx:
        for person in (ada, ben):
            for project in (one, two):
                people.set_role(tx, project.id, person, "annotator", actor="system")
        own = {
            p.id: set(tx.execute(select(tables.item.c.id).where(tables.item.c.project == p.id)).scalars())
            for p in (one, two)
        }
    with kept.write() as tx:
        mine = {lease.item for lease in queue.claim(tx, one, ada)}
        assert mine
        assert mine <= own[one.id]
        assert {lease.item for lease in queue.claim(tx, two, ada)} <= own[two.id]
        assert queue.heartbeat(tx, two, ada, sorted(mine)) == ()
        event = events.submit(tx, one, ada, min(mine), said)
        requests.once(tx, one, ada, "key", {}, lambda: 1)
        assert requests.once(tx, two, ada, "key", {"other": 1}, lambda: 2).value == 2
    foreign = sorted(mine - {event.item})[0]
    with kept.write() as tx:
        for act in (
            lambda: events.submit(tx, two, ada, foreign, said),
            lambda: events.skip(tx, two, ada, foreign, "no"),
            lambda: events.undo(tx, two, ada, event.id),
            lambda: events.undo(tx, two, ada),
            lambda: items.get_item(tx, two, foreign),
            lambda: exclusions.exclude(tx, two, "event", event.id, rule="r", reason="", actor=ada),
            lambda: exclusions.exclude(tx, two, "person", ada, rule="r", reason="", actor=ada),
            lambda: exclusions.exclude(tx, two, "item", foreign, rule="r", reason="", actor=ada),
        ):
            with pytest.raises(MissingError):
                act()
        assert queue.reprioritise(tx, two, {foreign: 9.0}) == 0
        assert events.recent(tx, two, ada) == []
        assert list(events.all_events(tx, two)) == []
        assert events.view(tx, two) == {}
        assert list(ingest.groups(tx, two)) == []
        assert queue.progress(tx, two).done == 0
        assert len(list(ingest.groups(tx, one))) == queue.progress(tx, one).done == 1
        assert queue.release(tx, two, ada) == 3
        assert len(queue.heartbeat(tx, one, ada)) == len(mine) - 1
    assert ingest.add_groups(kept, two, [pair(99)], actor="system").added == 1
    assert ingest.add_groups(kept, one, [pair(99)], actor="system").added == 1


def test_the_page_runs_as_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[2] / "docs" / "feedback.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    found: dict[str, list[Group]] = {}
    exec(program, found)
    raters = {verdict.rater for group in found["groups"] for verdict in group.verdicts}
    assert "human:ada" in raters
    assert len(found["groups"]) == 3
