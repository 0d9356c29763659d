"""How the tables came to be, step by step (Alembic). ``bring_up_to_date`` runs what a store has not seen yet.

A new step: a file in ``versions/`` that changes the tables, the same change in ``tables.py``, and its name there as
``REVISION``; a test says where the two differ.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection, inspect, text

from trimtab.feedback.errors import StoreError
from trimtab.feedback.tables import REVISION

if TYPE_CHECKING:
    from alembic.config import Config  # at run time only where a step is missing

_TURN = threading.Lock()  # Alembic's context is one for the whole process


def bring_up_to_date(connection: Connection, place: str, *, may_write: bool) -> None:
    """Run the missing steps in the connection's transaction; all of them happen or none.

    Raises ``StoreError`` where the database holds something else, or was made by a newer Trimtab.
    """
    found = revision_of(connection, place)
    if found == REVISION:
        return
    if found is not None and found not in _known():
        raise StoreError(f"{place} was made by a newer Trimtab (its tables are at {found!r}): upgrade this one")
    if not may_write:
        raise StoreError(f"{place} is not up to date: open it for writing once")
    from alembic import command

    with _TURN:
        config = _config()
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def revision_of(connection: Connection, place: str) -> str | None:
    """Return the last step that a store has seen, or nothing for an empty database."""
    names = inspect(connection).get_table_names()
    if "alembic_version" not in names:
        if names:
            raise StoreError(f"{place} holds other tables ({', '.join(sorted(names)[:3])}): give a database of its own")
        return None
    found: str | None = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    if "event" not in names:
        raise StoreError(f"{place} is another program's database: give a database of its own")
    return found


def _known() -> set[str]:
    from alembic.script import ScriptDirectory

    return {step.revision for step in ScriptDirectory.from_config(_config()).walk_revisions()}


def _config() -> Config:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    return config
