"""The chain: any byte of any column, a row gone, a row moved, the end cut off."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from sqlalchemy import select, text

from trimtab.feedback import audit, tables
from trimtab.feedback.store import Store, open_store

COLUMNS = [column.name for column in tables.audit.c]


def fill(kept: Store, rows: int = 5) -> audit.Head:
    with kept.write() as tx:
        for i in range(rows):
            audit.record(
                tx, actor="ada", action="role.set", subject=f"ben {i}", project="p" * 26,
                detail={"role": "owner", "é": i}, origin="deadbeef",
            )  # fmt: skip
        return audit.head(tx)


def test_a_chain_holds_and_grows(kept: Store) -> None:
    with kept.read() as tx:
        assert audit.verify(tx) == audit.Verified(head=audit.Head())
    early = fill(kept)
    late = fill(kept, 3)
    with kept.read() as tx:
        assert audit.verify(tx, since=early) == audit.Verified(head=late)
        assert late.number == 8
        rows = tx.execute(select(tables.audit).order_by(tables.audit.c.number)).all()
    assert [row.prev for row in rows] == ["0" * 64, *(row.hash for row in rows[:-1])]


def test_the_hash_is_what_the_page_says(kept: Store) -> None:
    import hashlib
    import json

    with kept.write() as tx:
        audit.record(tx, actor="a", action="b", subject="c", detail={"d": 1}, origin="e")
        row = tx.execute(select(tables.audit)).one()
    said = json.dumps([1, None, 1_800_000_000.0, "a", "b", "c", '{"d": 1}', "e", "0" * 64])
    assert row.hash == hashlib.sha256(said.encode()).hexdigest()


@pytest.mark.parametrize("column", COLUMNS)
def test_a_tampered_column_is_found(kept: Store, column: str) -> None:
    fill(kept)
    broken = {"number": 3}.get(column, 3)
    new = {"number": "77", "at": "at + 0.001", "project": "NULL"}.get(column, f"'x' || substr({column}, 2)")
    disarm = {
        "sqlite": "DROP TRIGGER audit_no_update",
        "postgresql": "ALTER TABLE audit DISABLE TRIGGER audit_append_only",
    }
    with kept.write() as tx:
        tx.execute(text(disarm[kept.dialect]))
        tx.execute(text(f"UPDATE audit SET {column} = {new} WHERE number = 3"))
    try:
        with kept.read() as tx:
            found = audit.verify(tx)
    finally:
        if kept.dialect == "postgresql":
            with kept.write() as tx:
                tx.execute(text("ALTER TABLE audit ENABLE TRIGGER audit_append_only"))
    assert found.broken == broken
    assert found.head.number == 2


def test_each_single_byte_of_a_row_is_found(empty_sqlite: Path, tmp_path: Path) -> None:
    """Every byte of the stored row's text columns, turned into one that is text and into one that is not."""
    path = tmp_path / "f.sqlite"
    path.write_bytes(empty_sqlite.read_bytes())
    with open_store(path) as kept:
        fill(kept, 3)
    raw = sqlite3.connect(path, isolation_level=None)
    raw.execute("DROP TRIGGER audit_no_update")
    texts = ["project", "actor", "action", "subject", "detail", "origin", "prev", "hash"]
    kept = open_store(path, read_only=True)
    count = 0
    for column in texts:
        (whole,) = raw.execute(f"SELECT CAST({column} AS BLOB) FROM audit WHERE number = 2").fetchone()
        for place in range(0, len(whole), 7):
            for byte in (whole[place] ^ 1, 0xFF):
                changed = whole[:place] + bytes([byte]) + whole[place + 1 :]
                raw.execute(f"UPDATE audit SET {column} = CAST(? AS TEXT) WHERE number = 2", (changed,))
                with kept.read() as tx:
                    assert audit.verify(tx).broken == 2, (column, place, byte)
                count += 1
        raw.execute(f"UPDATE audit SET {column} = CAST(? AS TEXT) WHERE number = 2", (whole,))
    with kept.read() as tx:
        assert audit.verify(tx).broken is None
    raw.close()
    kept.close()
    assert count > 50


def test_rows_that_are_gone_or_cut_off(empty_sqlite: Path, tmp_path: Path) -> None:
    path = tmp_path / "f.sqlite"
    path.write_bytes(empty_sqlite.read_bytes())
    with open_store(path) as kept:
        head = fill(kept)
        with kept.write() as tx:
            tx.execute(text("DROP TRIGGER audit_no_delete"))
            tx.execute(text("DELETE FROM audit WHERE number = 5"))
        with kept.read() as tx:
            assert audit.verify(tx).broken is None  # a shorter chain is a whole one ...
            assert audit.verify(tx, since=head).broken == 5  # ... but not to whom has seen the longer
        with kept.write() as tx:
            audit.record(tx, actor="eve", action="hide")
        with kept.read() as tx:
            assert audit.verify(tx, since=head).broken == 5
        with kept.write() as tx:
            tx.execute(text("DELETE FROM audit WHERE number = 2"))
        with kept.read() as tx:
            found = audit.verify(tx)
            assert found.broken == 2
            assert "row 3 stands there" in found.reason
