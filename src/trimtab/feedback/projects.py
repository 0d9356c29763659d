"""Projects: rooms that never see each other, each with its settings.

Every function of this room that speaks of items, events or labels takes the ``Project`` and looks at its rows alone.
"""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Row, select, update

from trimtab.errors import ConfigError, did_you_mean
from trimtab.feedback import audit, tables
from trimtab.feedback.errors import ConflictError, MissingError
from trimtab.feedback.store import Tx, storable
from trimtab.records import strict_json


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a project asks.

    ``overlap`` people judge each item. A person holds up to ``prefetch`` items, each for ``lease_seconds`` after the
    last sign of life. ``random_share`` of the items are drawn at random and shown in a random order whatever their
    priority, and each person gets that share of them; ``gold_share`` of what a person gets has a known answer. ``desk``
    is whatever the page shows (guideline, attributes, reasons to skip): this room does not look into it.
    """

    overlap: int = 1
    prefetch: int = 3
    lease_seconds: float = 600.0
    random_share: float = 0.2
    gold_share: float = 0.0
    desk: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense."""
        for name, least in (("overlap", 1), ("prefetch", 1), ("lease_seconds", 1)):
            if not getattr(self, name) >= least:
                raise ConfigError(f"{name} must be at least {least}, not {getattr(self, name)}")
        for name in ("random_share", "gold_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} must be from 0 to 1, not {getattr(self, name)}")
        if self.random_share + self.gold_share > 1:
            raise ConfigError("random_share and gold_share are more than everything together")


@dataclass(frozen=True, slots=True, kw_only=True)
class Project:
    """A project; ``seed`` is secret, for whoever knows it can tell which answer stands first."""

    id: str
    name: str
    seed: int = field(repr=False)
    settings: Settings


def create_project(tx: Tx, name: str, settings: Settings | None = None, *, actor: str = "system") -> Project:
    """Make a project; raise ``ConflictError`` where the name is taken."""
    name = name.strip()
    if not name or not name.isprintable():
        raise ConfigError("a project's name needs at least one letter, and no control characters")
    project = Project(id=tx.new_id(), name=name, seed=secrets.randbits(62), settings=settings or Settings())
    row = {"id": project.id, "name": name, "seed": project.seed, "settings": _dump(project.settings), "created": tx.now}
    if not tx.insert_new(tables.project, row):
        raise ConflictError(f"there is a project {name!r} already")
    audit.record(tx, actor=actor, action="project.create", subject=name, project=project.id)
    return project


def get_project(tx: Tx, name: str) -> Project:
    """Return a project by its name or its id."""
    table = tables.project
    query = select(table).where((table.c.name == name) | (table.c.id == name))
    row = tx.execute(query).first() if storable(name) else None
    if row is None:
        raise MissingError(f"no project {name!r}")
    return _project(row)


def list_projects(tx: Tx, person: str | None = None) -> list[Project]:
    """Return all projects by name, or those that a person belongs to (an admin: all)."""
    query = select(tables.project).order_by(tables.project.c.name)
    if person is not None:
        everywhere = select(tables.person.c.admin).where(tables.person.c.id == person).scalar_subquery()
        inside = select(tables.member.c.project).where(tables.member.c.person == person)
        query = query.where(everywhere | tables.project.c.id.in_(inside))
    return [_project(row) for row in tx.execute(query)]


def change_settings(tx: Tx, project: Project, *, actor: str, **changes: Any) -> Project:
    """Change some settings and return the project with them.

    Items keep the overlap and the slice that they came with; the rest holds from the next claim on.
    """
    known = [option.name for option in dataclasses.fields(Settings)]
    for name in changes:
        if name not in known:
            raise ConfigError(f"no setting {name!r}{did_you_mean(name, known)}")
    changed = dataclasses.replace(
        project, settings=dataclasses.replace(get_project(tx, project.id).settings, **changes)
    )
    tx.execute(update(tables.project).where(tables.project.c.id == project.id).values(settings=_dump(changed.settings)))
    audit.record(tx, actor=actor, action="project.settings", subject=project.name, project=project.id, detail=changes)
    return changed


def _dump(settings: Settings) -> str:
    return strict_json.dumps(dataclasses.asdict(settings))


def _project(row: Row[Any]) -> Project:
    settings = strict_json.loads(row.settings)
    assert isinstance(settings, dict)
    return Project(id=row.id, name=row.name, seed=row.seed, settings=Settings(**settings))
