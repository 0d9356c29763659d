"""The tables, as SQLAlchemy metadata; ``migrations/`` makes them, and a test holds the two together.

Ids are ULIDs, moments are seconds since 1970 by the store's clock, JSON is text. Every row that belongs to a project
names it. Rows of ``event`` and ``audit`` are never updated or deleted: triggers refuse it. ``label`` is derived from
``event`` and may be thrown away and made again.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

REVISION = "r0001"  # the newest migration: a store that is there already needs no look at the others

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

Counter = BigInteger().with_variant(Integer, "sqlite")  # SQLite counts by itself only in an INTEGER PRIMARY KEY


def _id(name: str = "id") -> Column[str]:
    return Column(name, String(26), primary_key=True)


def _to(table: str, name: str | None = None, *, key: bool = False, nullable: bool = False) -> Column[str]:
    return Column(name or table, String(26), ForeignKey(f"{table}.id"), primary_key=key, nullable=nullable)


def _moment(name: str, *, nullable: bool = False) -> Column[float]:
    return Column(name, Double, nullable=nullable)


project = Table(
    "project",
    metadata,
    _id(),
    Column("name", Text, nullable=False, unique=True),
    Column("seed", BigInteger, nullable=False),  # secret: positions and slices follow from it
    Column("settings", Text, nullable=False),
    _moment("created"),
)

person = Table(
    "person",
    metadata,
    _id(),
    Column("name", Text, nullable=False, unique=True),
    Column("kind", Text, nullable=False),  # human | service
    Column("password", Text),  # argon2id; nobody logs in without
    Column("admin", Boolean, nullable=False),  # owner of every project
    Column("failures", Integer, nullable=False),
    _moment("locked_until"),
    _moment("created"),
    _moment("disabled", nullable=True),
)

member = Table(
    "member",
    metadata,
    _to("project", key=True),
    _to("person", key=True),
    Column("role", Text, nullable=False),
    _moment("created"),
)

ration = Table(  # how many items of each slice a person was given
    "ration",
    metadata,
    _to("project", key=True),
    _to("person", key=True),
    Column("slice", Text, primary_key=True),
    Column("given", Integer, nullable=False),
)

token = Table(
    "token",
    metadata,
    _id(),
    _to("person"),
    _to("project", nullable=True),  # null: all projects of the person
    Column("name", Text, nullable=False),
    Column("prefix", Text, nullable=False, unique=True),
    Column("digest", String(64), nullable=False),
    _moment("created"),
    _moment("expires", nullable=True),
    _moment("revoked", nullable=True),
)

session = Table(
    "session",
    metadata,
    _id(),
    _to("person"),
    Column("prefix", Text, nullable=False, unique=True),
    Column("digest", String(64), nullable=False),
    _moment("created"),
    _moment("expires"),
    _moment("revoked", nullable=True),
)

item = Table(
    "item",
    metadata,
    _id(),
    _to("project"),
    Column("digest", String(64), nullable=False),
    Column("ask", Text, nullable=False),
    Column("body", Text, nullable=False),  # the Group, in the codec's JSON
    Column("slice", Text, nullable=False),
    Column("priority", Double, nullable=False),
    Column("overlap", Integer, nullable=False),
    Column("gold", Text),  # the verdicts that are known to be right
    _moment("created"),
    UniqueConstraint("project", "digest"),
    Index(None, "project", "id"),
)

slot = Table(  # one of an item's k places; free (until 0), leased (until later), or done
    "slot",
    metadata,
    Column("id", Counter, primary_key=True),
    _to("project"),
    _to("item"),
    Column("number", Integer, nullable=False),
    Column("slice", Text, nullable=False),
    Column("turn", Double, nullable=False),  # minus the priority: indices run upwards
    Column("place", BigInteger, nullable=False),  # a seeded shuffle among equals
    _to("person", nullable=True),
    _moment("until"),
    Column("done", Boolean, nullable=False),
    UniqueConstraint("item", "number"),
    UniqueConstraint("item", "person"),
    Index(None, "project", "slice", "done", "turn", "place"),
    Index(None, "person", "done"),
)

event = Table(
    "event",
    metadata,
    Column("seq", Counter, primary_key=True),
    Column("id", String(26), nullable=False, unique=True),
    _to("project"),
    _to("item"),
    _to("person"),
    Column("kind", Text, nullable=False),  # verdict | skip | undo
    Column("value", Text),  # {"verdicts": [...], "written": ...}, answers numbered as in the item's Group
    Column("shown", Text),  # [1, 0]: what stood first was the Group's answer 1
    Column("seconds", Double),
    Column("client_time", Text),
    Column("reason", Text),
    _to("event", "supersedes", nullable=True),
    Column("extra", Boolean, nullable=False),  # it came when all k places were taken
    _moment("at"),
    Column("version", Integer, nullable=False),  # of what `value` means
    Index(None, "project", "seq"),
    Index(None, "item", "person", "seq"),
    sqlite_autoincrement=True,
)

label = Table(
    "label",
    metadata,
    _to("item", key=True),
    _to("person", key=True),
    _to("project"),
    Column("event", Counter, ForeignKey("event.seq"), nullable=False),
    Column("kind", Text, nullable=False),  # verdict | skip
    Column("extra", Boolean, nullable=False),
    Index(None, "project", "person", "event"),
)

request = Table(
    "request",
    metadata,
    _to("project", key=True),
    _to("person", key=True),
    Column("key", Text, primary_key=True),
    Column("digest", String(64), nullable=False),
    Column("reply", Text),  # null while it is in flight
    _moment("at"),
)

audit = Table(
    "audit",
    metadata,
    Column("number", BigInteger, primary_key=True, autoincrement=False),  # 1, 2, 3 ... without a gap
    Column("project", String(26)),  # no reference: the row outlives what it speaks of
    _moment("at"),
    Column("actor", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("detail", Text, nullable=False),
    Column("origin", Text, nullable=False),
    Column("prev", String(64), nullable=False),
    Column("hash", String(64), nullable=False),
)

exclusion = Table(  # a decision not to count something; it can be lifted, and nothing is deleted
    "exclusion",
    metadata,
    _id(),
    _to("project"),
    _to("item", nullable=True),
    _to("person", nullable=True),
    _to("event", nullable=True),
    Column("rule", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("actor", Text, nullable=False),
    _moment("at"),
    _moment("lifted", nullable=True),
    Index(None, "project", "lifted"),
)
