"""The first tables.

Revision: r0001, the first. Events and the audit are append-only: triggers hold that against our own mistakes. Whoever
makes one of these two tables anew in a later step (SQLite's way of changing a column) has to make its trigger anew.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "r0001"
down_revision = None
branch_labels = None
depends_on = None

APPEND_ONLY = ("event", "audit")


def upgrade() -> None:
    """Make the tables and the triggers."""
    _people()
    _access()
    _items()
    _said()
    _around()
    _append_only()


def downgrade() -> None:
    """Refuse: a step back from the first would throw away what people said."""
    raise NotImplementedError("there is nothing before the first step")


def _people() -> None:
    op.create_table(
        "project",
        sa.Column("id", sa.String(length=26), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.Column("settings", sa.Text(), nullable=False),
        sa.Column("created", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_project")),
        sa.UniqueConstraint("name", name=op.f("uq_project_name")),
    )
    op.create_table(
        "person",
        sa.Column("id", sa.String(length=26), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("password", sa.Text(), nullable=True),
        sa.Column("admin", sa.Boolean(), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("locked_until", sa.Double(), nullable=False),
        sa.Column("created", sa.Double(), nullable=False),
        sa.Column("disabled", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_person")),
        sa.UniqueConstraint("name", name=op.f("uq_person_name")),
    )
    op.create_table(
        "member",
        sa.Column("project", sa.String(length=26), nullable=False),
        sa.Column("person", sa.String(length=26), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("created", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["person"], ["person.id"], name=op.f("fk_member_person")),
        sa.ForeignKeyConstraint(["project"], ["project.id"], name=op.f("fk_member_project")),
        sa.PrimaryKeyConstraint("project", "person", name=op.f("pk_member")),
    )
    op.create_table(
        "ration",
        sa.Column("project", sa.String(length=26), nullable=False),
        sa.Column("person", sa.String(length=26), nullable=False),
        sa.Column("slice", sa.Text(), nullable=False),
        sa.Column("given", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["person"], ["person.id"], name=op.f("fk_ration_person")),
        sa.ForeignKeyConstraint(["project"], ["project.id"], name=op.f("fk_ration_project")),
        sa.PrimaryKeyConstraint("project", "person", "slice", name=op.f("pk_ration")),
    )


def _access() -> None:
    op.create_table(
        "token",
        sa.Column("id", sa.String(length=26), nullable=False),
        sa.Column("person", sa.String(length=26), nullable=False),
        sa.Column("project", sa.String(length=26), nullable=True),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("prefix", sa.Text(), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("created", sa.Double(), nullable=False),
        sa.Column("expires", sa.Double(), nullable=True),
        sa.Column("revoked", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(["person"], ["person.id"], name=op.f("fk_token_person")),
        sa.ForeignKeyConstraint(["project"], ["project.id"], name=op.f("fk_token_project")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_token")),
        sa.UniqueConstraint("prefix", name=op.f("uq_token_prefix")),
    )
    op.create_table(
        "session",
        sa.Column("id", sa.String(length=26), nullable=False),
        sa.Column("person", sa.String(length=26), nullable=False),
        sa.Column("prefix", sa.Text(), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("created", sa.Double(), nullable=False),
        sa.Column("expires", sa.Double(), nullable=False),
        sa.Column("revoked", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(["person"], ["person.id"], name=op.f("fk_session_person")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_session")),
        sa.UniqueConstraint("prefix", name=op.f("uq_session_prefix")),
    )
    op.create_table(
        "request",
        sa.Column("project", sa.String(length=26), nullable=False),
        sa.Column("person", sa.String(length=26), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("reply", sa.Text(), nullable=True),
        sa.Column("at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["person"], ["person.id"], name=op.f("fk_request_person")),
        sa.ForeignKeyConstraint(["project"], ["project.id"], name=op.f("fk_request_project")),
        sa.PrimaryKeyConstraint("project", "person", "key", name=op.f("pk_request")),
    )


def _items() -> None:
    op.create_table(
        "item",
        sa.Column("id", sa.String(length=26), nullable=False),
        sa.Column("project", sa.String(length=26), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("ask", sa.Text(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("slice", sa.Text(), nullable=False),
        sa.Column("priority", sa.Double(), nullable=False),
        sa.Column("overlap", sa.Integer(), nullable=False),
        sa.Column("gold", sa.Text(), nullable=True),
        sa.Column("created", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["project"], ["project.id"], name=op.f("fk_item_project")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_item")),
        sa.UniqueConstraint("project", "digest", name=op.f("uq_item_project_digest")),
    )
    op.create_index(op.f("ix_item_project_id"), "item", ["project", "id"], unique=False)
    op.create_table(
        "slot",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("project", sa.String(length=26), nullable=False),
        sa.Column("item", sa.String(length=26), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("slice", sa.Text(), nullable=False),
        sa.Column("turn", sa.Double(), nullable=False),
        sa.Column("place", sa.BigInteger(), nullable=False),
        sa.Column("person", sa.String(length=26), nullable=True),
        sa.Column("until", sa.Double(), nullable=False),
        sa.Column("done", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(["item"], ["item.id"], name=op.f("fk_slot_item")),
        sa.ForeignKeyConstraint(["person"], ["person.id"], name=op.f("fk_slot_person")),
        sa.ForeignKeyConstraint(["project"], ["project.id"], name=op.f("fk_slot_project")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_slot")),
        sa.UniqueConstraint("item", "number", name=op.f("uq_slot_item_number")),
        sa.UniqueConstraint("item", "person", name=op.f("uq_slot_item_person")),
    )
    op.create_index(op.f("ix_slot_person_done"), "slot", ["person", "done"], unique=False)
    op.create_index(
        op.f("ix_slot_project_slice_done_turn_place"),
        "slot",
        ["project", "slice", "done", "turn", "place"],
        unique=False,
    )


def _said() -> None:
    op.create_table(
        "event",
        sa.Column("seq", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("id", sa.String(length=26), nullable=False),
        sa.Column("project", sa.String(length=26), nullable=False),
        sa.Column("item", sa.String(length=26), nullable=False),
        sa.Column("person", sa.String(length=26), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("value", sa.Text(), nullable=True),
        sa.Column("shown", sa.Text(), nullable=True),
        sa.Column("seconds", sa.Double(), nullable=True),
        sa.Column("client_time", sa.Text(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("supersedes", sa.String(length=26), nullable=True),
        sa.Column("extra", sa.Boolean(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["item"], ["item.id"], name=op.f("fk_event_item")),
        sa.ForeignKeyConstraint(["person"], ["person.id"], name=op.f("fk_event_person")),
        sa.ForeignKeyConstraint(["project"], ["project.id"], name=op.f("fk_event_project")),
        sa.ForeignKeyConstraint(["supersedes"], ["event.id"], name=op.f("fk_event_supersedes")),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_event")),
        sa.UniqueConstraint("id", name=op.f("uq_event_id")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_event_item_person_seq"), "event", ["item", "person", "seq"], unique=False)
    op.create_index(op.f("ix_event_project_seq"), "event", ["project", "seq"], unique=False)
    op.create_table(
        "label",
        sa.Column("item", sa.String(length=26), nullable=False),
        sa.Column("person", sa.String(length=26), nullable=False),
        sa.Column("project", sa.String(length=26), nullable=False),
        sa.Column("event", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("extra", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(["event"], ["event.seq"], name=op.f("fk_label_event")),
        sa.ForeignKeyConstraint(["item"], ["item.id"], name=op.f("fk_label_item")),
        sa.ForeignKeyConstraint(["person"], ["person.id"], name=op.f("fk_label_person")),
        sa.ForeignKeyConstraint(["project"], ["project.id"], name=op.f("fk_label_project")),
        sa.PrimaryKeyConstraint("item", "person", name=op.f("pk_label")),
    )
    op.create_index(op.f("ix_label_project_person_event"), "label", ["project", "person", "event"], unique=False)


def _around() -> None:
    op.create_table(
        "exclusion",
        sa.Column("id", sa.String(length=26), nullable=False),
        sa.Column("project", sa.String(length=26), nullable=False),
        sa.Column("item", sa.String(length=26), nullable=True),
        sa.Column("person", sa.String(length=26), nullable=True),
        sa.Column("event", sa.String(length=26), nullable=True),
        sa.Column("rule", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("lifted", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(["event"], ["event.id"], name=op.f("fk_exclusion_event")),
        sa.ForeignKeyConstraint(["item"], ["item.id"], name=op.f("fk_exclusion_item")),
        sa.ForeignKeyConstraint(["person"], ["person.id"], name=op.f("fk_exclusion_person")),
        sa.ForeignKeyConstraint(["project"], ["project.id"], name=op.f("fk_exclusion_project")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_exclusion")),
    )
    op.create_index(op.f("ix_exclusion_project_lifted"), "exclusion", ["project", "lifted"], unique=False)
    op.create_table(
        "audit",
        sa.Column("number", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("project", sa.String(length=26), nullable=True),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("origin", sa.Text(), nullable=False),
        sa.Column("prev", sa.String(length=64), nullable=False),
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_audit")),
    )


def _append_only() -> None:
    if op.get_bind().dialect.name == "sqlite":
        for table in APPEND_ONLY:
            for act in ("update", "delete"):
                op.execute(
                    f"CREATE TRIGGER {table}_no_{act} BEFORE {act} ON {table} "
                    f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
                )
        return
    op.execute(
        "CREATE FUNCTION trimtab_append_only() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION '% is append-only', TG_TABLE_NAME; END $$"
    )
    for table in APPEND_ONLY:
        op.execute(
            f"CREATE TRIGGER {table}_append_only BEFORE UPDATE OR DELETE ON {table} "
            "FOR EACH ROW EXECUTE FUNCTION trimtab_append_only()"
        )
