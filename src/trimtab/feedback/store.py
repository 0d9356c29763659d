"""Opening the store, and its transactions.

    store = open_store("feedback.sqlite")                    # or "sqlite:///...", or "postgresql+psycopg://..."
    with store.write() as tx:                                # one at a time on SQLite; durable when the block ends
        tx.execute(...)
    with store.read() as tx: ...                             # one snapshot; many at a time
    store.run(work)                                          # work(tx), again where PostgreSQL asks for it

On SQLite there is one connection that writes, behind a lock, and it alone checkpoints; readers cannot write. A commit
has reached the disk (WAL, synchronous=FULL) before the block ends. A lock on ``FILE.lock`` keeps other writing
processes out and goes with the process, however it ends.
"""

from __future__ import annotations

import os
import random
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, CursorResult, Engine, Executable, Table, create_engine, event, make_url, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError
from sqlalchemy.pool import QueuePool
from ulid import ULID

from trimtab.errors import InvariantError
from trimtab.feedback.errors import StoreError
from trimtab.feedback.migrations import bring_up_to_date

T = TypeVar("T")
Clock = Callable[[], float]

BUSY_MS = 5_000
READERS = 8
TRIES = 8
AGAIN = frozenset({"40001", "40P01"})  # serialization failure, deadlock: PostgreSQL asks for another try
WAL_RESET_FIXED = (3, 51, 3)


class Tx:
    """One transaction: it runs statements, says what time it is, and makes ids.

    ``now`` (seconds since 1970) is read once, when the transaction begins. ``store.write`` commits it.
    """

    __slots__ = ("_ids", "connection", "now")

    def __init__(self, connection: Connection, now: float, ids: Ids) -> None:
        self.connection = connection
        self.now = now
        self._ids = ids

    @property
    def dialect(self) -> str:
        """``"sqlite"`` or ``"postgresql"``."""
        return self.connection.dialect.name

    def execute(
        self, statement: Executable, rows: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None
    ) -> CursorResult[Any]:
        """Run a statement, once or for each of many rows."""
        return self.connection.execute(statement, rows)

    def new_id(self) -> str:
        """Return a ULID that is later than all that this process made before."""
        return self._ids.next(self.now)

    def insert_new(self, table: Table, values: Mapping[str, Any]) -> bool:
        """Insert a row unless one with its key is there; say whether it was inserted."""
        insert = postgresql.insert if self.dialect == "postgresql" else sqlite.insert
        statement = insert(table).values(**values).on_conflict_do_nothing()
        return self.execute(statement.execution_options(preserve_rowcount=True)).rowcount == 1


class Ids:
    """ULIDs in rising order, also within a millisecond and when the clock steps back; none follows from another."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last = 0

    def next(self, now: float) -> str:
        """Return the next one at ``now`` (seconds since 1970)."""
        fresh = int(now * 1000) << 80 | secrets.randbits(79)
        with self._lock:
            self._last = max(fresh, self._last + 1 + secrets.randbits(60))
            return str(ULID.from_int(self._last))


class Store:
    """An open store. Threads may share it; ``close`` it, or use it as a context manager."""

    def __init__(self, *, writer: Engine | None, readers: Engine, clock: Clock, lock: int | None = None) -> None:
        self._writer = writer
        self._readers = readers
        self._clock = clock
        self._lock_file = lock
        self._ids = Ids()
        self._turn = threading.Lock() if readers.dialect.name == "sqlite" else None
        self._owner: int | None = None

    @property
    def dialect(self) -> str:
        """``"sqlite"`` or ``"postgresql"``."""
        return self._readers.dialect.name

    @contextmanager
    def write(self) -> Iterator[Tx]:
        """Open a transaction that commits when the block ends, and leaves no trace when it raises.

        On SQLite others wait meanwhile, so do nothing slow inside. PostgreSQL may refuse a commit that collides with
        another; ``run`` then tries again, this cannot. Raises ``StoreError`` for a store opened ``read_only``.
        """
        if self._writer is None:
            raise StoreError("this store was opened for reading only")
        if self._turn is None:
            with self._writer.begin() as connection:
                yield Tx(connection, self._clock(), self._ids)
            return
        if self._owner == threading.get_ident():
            raise InvariantError("a write transaction inside a write transaction would wait for itself")
        with self._turn:
            self._owner = threading.get_ident()
            try:
                with self._writer.begin() as connection:
                    yield Tx(connection, self._clock(), self._ids)
            finally:
                self._owner = None

    @contextmanager
    def read(self) -> Iterator[Tx]:
        """Open a transaction that sees one snapshot and cannot write."""
        with self._readers.connect() as connection, connection.begin():
            yield Tx(connection, self._clock(), self._ids)

    def run(self, work: Callable[[Tx], T]) -> T:
        """Return ``work(tx)``, committed; where two transactions collided it is run again from the start."""
        for tried in range(TRIES):
            try:
                with self.write() as tx:
                    return work(tx)
            except DBAPIError as error:
                if tried + 1 == TRIES or getattr(error.orig, "sqlstate", None) not in AGAIN:
                    raise
            time.sleep(0.005 * 2**tried * random.random())
        raise AssertionError("unreachable")

    def close(self) -> None:
        """Close all connections; on SQLite the writer goes last and folds its log into the file."""
        self._readers.dispose()
        if self._writer is not None:
            self._writer.dispose()
        if self._lock_file is not None:
            os.close(self._lock_file)
            self._lock_file = None

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_store(url: str | Path, *, clock: Clock = time.time, read_only: bool = False) -> Store:
    """Open a store, and make it or bring it up to date first where needed.

    ``url`` is a path, ``sqlite:///PATH`` or ``postgresql+psycopg://...``; ``clock`` returns seconds since 1970.
    ``read_only`` opens beside a process that writes. Raises ``StoreError`` where the file is in use, is no store of
    ours or was made by a newer Trimtab.
    """
    kind, place = _where(url)
    if kind == "postgresql":
        return _open_postgresql(place, clock, read_only)
    path = Path(place)
    if read_only and not path.is_file():
        raise StoreError(f"{path}: there is no such file")
    lock = None if read_only else _lock(path)
    store = Store(
        writer=None if read_only else _sqlite_engine(path, write=True),
        readers=_sqlite_engine(path, write=False),
        clock=clock,
        lock=lock,
    )
    return _ready(store, str(path))


def sqlite_note(version: tuple[int, ...] = sqlite3.sqlite_version_info) -> str | None:
    """Return what ``trimtab doctor`` should say of this SQLite, or nothing when there is nothing to say.

    Versions before 3.51.3 can spoil a file in WAL mode when two connections write or checkpoint at the same moment.
    """
    if version >= WAL_RESET_FIXED:
        return None
    return (
        f"SQLite {'.'.join(map(str, version))} has the WAL-reset race (fixed in 3.51.3). The feedback store avoids it: "
        "one connection alone writes and checkpoints. So open its file with nothing else that writes"
    )


def storable(text: str) -> bool:
    """Say whether a database can hold this text: it has no NUL character and no half of a surrogate pair."""
    return "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text)


# --- opening ----------------------------------------------------------------------------------------------------------


def _where(url: str | Path) -> tuple[str, str]:
    if isinstance(url, Path) or "://" not in url:
        if not str(url) or str(url) == ":memory:":
            raise StoreError(f"{str(url)!r} is not a file: what people say must outlive the process")
        return "sqlite", str(url)
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise StoreError(f"{url.split('://')[0]}://...: not a database URL") from None
    backend = parsed.get_backend_name()
    if backend == "sqlite":
        if parsed.query:
            raise StoreError("sqlite:///PATH takes no options")
        return _where(parsed.database or "")
    if backend == "postgresql":
        return backend, parsed.set(drivername="postgresql+psycopg").render_as_string(hide_password=False)
    raise StoreError(f"{backend}: a store is a path, sqlite:///PATH or postgresql+psycopg://...")


def _lock(path: Path) -> int:
    import fcntl

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = _private(path.with_name(f"{path.name}.lock"))
    except OSError as error:
        raise StoreError(f"{path}: cannot be opened ({error.strerror})") from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise StoreError(
            f"{path} is in use by another process: one process writes at a time (a PostgreSQL URL lets several)"
        ) from None
    os.close(_private(path))  # SQLite gives its log the rights that the file has
    return handle


def _private(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _sqlite_engine(path: Path, *, write: bool) -> Engine:
    mode = "rwc" if write else "ro"

    def connect() -> sqlite3.Connection:
        connection = sqlite3.connect(
            f"{path.resolve().as_uri()}?mode={mode}", uri=True, check_same_thread=False, isolation_level=None
        )
        pragmas = ["foreign_keys=ON", f"busy_timeout={BUSY_MS}", "trusted_schema=OFF"]
        pragmas += ["journal_mode=WAL", "synchronous=FULL"] if write else ["query_only=ON"]
        for pragma in pragmas:
            connection.execute(f"PRAGMA {pragma}")
        return connection

    engine = create_engine(
        "sqlite://",
        creator=connect,
        poolclass=QueuePool,
        pool_size=1 if write else READERS,
        max_overflow=0 if write else READERS,
    )
    begin = "BEGIN IMMEDIATE" if write else "BEGIN"

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql(begin)

    return engine


def _open_postgresql(url: str, clock: Clock, read_only: bool) -> Store:
    try:
        engine = create_engine(url, pool_pre_ping=True, pool_size=READERS, max_overflow=2 * READERS)
    except ModuleNotFoundError as error:
        raise StoreError(f"PostgreSQL needs {error.name}: pip install 'psycopg[binary]'") from None

    @event.listens_for(engine, "connect")
    def _durable(connection: Any, _: object) -> None:
        if connection.execute("SHOW synchronous_commit").fetchone()[0] == "off":
            connection.execute("SET synchronous_commit TO on")
        connection.commit()

    readers = engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
    store = Store(writer=None if read_only else engine, readers=readers, clock=clock)
    return _ready(store, make_url(url).render_as_string())


def _ready(store: Store, place: str) -> Store:
    """Return the store once it is up to date; close it again if that cannot be."""
    try:
        if store._writer is None:
            with store.read() as tx:
                bring_up_to_date(tx.connection, place, may_write=False)
        else:
            with store.write() as tx:
                if tx.dialect == "postgresql":  # two processes may start at once
                    tx.execute(text("SELECT pg_advisory_xact_lock(hashtext('trimtab.feedback'))"))
                elif tx.connection.exec_driver_sql("PRAGMA journal_mode").scalar() != "wal":
                    raise StoreError(f"{place}: SQLite's write-ahead log does not work here (a network drive?)")
                bring_up_to_date(tx.connection, place, may_write=True)
    except DBAPIError as error:
        store.close()
        what = "cannot be reached or opened" if isinstance(error, OperationalError) else "is not a feedback store"
        raise StoreError(f"{place}: {what} ({str(error.orig).strip().splitlines()[0]})") from None
    except BaseException:
        store.close()
        raise
    return store
