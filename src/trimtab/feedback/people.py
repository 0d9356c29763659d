"""People and services: passwords, sessions, tokens, roles.

Roles rise: viewer < annotator < manager < owner. ``service`` stands apart: a program that sends and judges, but sees no
page. An admin is owner of every project. Passwords are argon2id; the secret of a session or token is shown once and
stored as SHA-256, found again by its visible prefix and compared in constant time.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from sqlalchemy import ColumnElement, Row, Table, bindparam, func, insert, select, update

from trimtab.errors import ConfigError
from trimtab.feedback import audit, tables
from trimtab.feedback.errors import ConflictError, CredentialsError, DeniedError, LockedOutError, MissingError
from trimtab.feedback.store import Store, Tx, storable

if TYPE_CHECKING:
    from pwdlib import PasswordHash

Role = Literal["viewer", "annotator", "manager", "owner", "service"]
LADDER = ("viewer", "annotator", "manager", "owner")
ROLES = (*LADDER, "service")
Kind = Literal["human", "service"]

FREE_TRIES = 5  # wrong passwords before the first lock
LOCK_SECONDS, LONGEST_LOCK = 30.0, 900.0  # it doubles with each further one
SESSION_SECONDS = 14 * 86_400.0
SHORTEST_PASSWORD = 8
WRONG = "wrong name or password"

_ENTER = (
    select(tables.member.c.role)
    .where(tables.member.c.project == bindparam("p_project"), tables.member.c.person == bindparam("p_person"))
    .with_for_update(key_share=True)
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """Somebody, or a program (``kind="service"``); ``rater`` is how their verdicts are signed."""

    id: str
    name: str
    kind: Kind = "human"
    admin: bool = False

    @property
    def rater(self) -> str:
        """``human:NAME`` or ``service:NAME``."""
        return f"{self.kind}:{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Issued:
    """A new session or token: ``secret`` is shown once and stored nowhere; ``prefix`` names it from now on."""

    id: str
    prefix: str
    secret: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Who a session or token speaks for, and in which project alone (``None``: in all of theirs)."""

    person: Person
    project: str | None = None


# --- persons ----------------------------------------------------------------------------------------------------------


def first_run(tx: Tx, name: str = "owner") -> str | None:
    """Make the first person, an admin, and return the random password; nothing where somebody is there already."""
    if tx.execute(select(tables.person.c.id).limit(1)).first() is not None:
        return None
    password = secrets.token_urlsafe(12)
    add_person(tx, name, password=password, admin=True, actor="system")
    return password


def add_person(
    tx: Tx, name: str, *, password: str | None = None, kind: Kind = "human", admin: bool = False, actor: str
) -> Person:
    """Add a person or a service; without a password nobody logs in as them (tokens still work).

    Hashing takes about a tenth of a second, and on SQLite other writers wait: a page should not do it for many at once.
    """
    name = name.strip()
    if not name or not name.isprintable():
        raise ConfigError("a name needs at least one letter, and no control characters")
    person = Person(id=tx.new_id(), name=name, kind=kind, admin=admin)
    row = {"id": person.id, "name": name, "kind": kind, "admin": admin, "failures": 0, "locked_until": 0.0}
    hashed = None if password is None else _hash(password)
    if not tx.insert_new(tables.person, {**row, "password": hashed, "created": tx.now}):
        raise ConflictError(f"there is somebody called {name!r} already")
    audit.record(tx, actor=actor, action="person.add", subject=name, detail={"kind": kind, "admin": admin})
    return person


def get_person(tx: Tx, name: str) -> Person:
    """Return a person by name or id; those who were disabled are found too."""
    table = tables.person
    query = select(table).where((table.c.name == name) | (table.c.id == name))
    row = tx.execute(query).first() if storable(name) else None
    if row is None:
        raise MissingError(f"nobody is called {name!r}")
    return _person(row)


def set_password(tx: Tx, person: str, password: str, *, actor: str) -> None:
    """Give a person another password; all their sessions end."""
    hashed = _hash(password)
    _change(tx, person, password=hashed, failures=0, locked_until=0.0)
    _end_sessions(tx, person)
    audit.record(tx, actor=actor, action="person.password", subject=person)


def set_disabled(tx: Tx, person: str, disabled: bool, *, actor: str) -> None:
    """Lock a person out for good, or let them in again; what they said stays."""
    _change(tx, person, disabled=tx.now if disabled else None)
    if disabled:
        _end_sessions(tx, person)
    audit.record(tx, actor=actor, action="person.disable" if disabled else "person.enable", subject=person)


# --- roles ------------------------------------------------------------------------------------------------------------


def set_role(tx: Tx, project: str, person: str, role: Role | None, *, actor: str) -> None:
    """Give a person a role in a project, or (``None``) take it away."""
    if role is not None and role not in ROLES:
        raise ConfigError(f"{role!r} is not one of {', '.join(ROLES)}")
    get_person(tx, person)
    key = (tables.member.c.project == project) & (tables.member.c.person == person)
    row = {"project": project, "person": person, "role": role, "created": tx.now}
    if role is None:
        tx.execute(tables.member.delete().where(key))
    elif not tx.insert_new(tables.member, row):
        tx.execute(update(tables.member).where(key).values(role=role))
    audit.record(tx, actor=actor, action="role.set", subject=person, project=project, detail={"role": role})


def role_of(tx: Tx, project: str, person: str) -> Role | None:
    """Return a person's role in a project, if they have one there."""
    own = select(tables.member.c.role).where(tables.member.c.project == project, tables.member.c.person == person)
    row = tx.execute(
        select(tables.person.c.admin, own.scalar_subquery().label("role")).where(tables.person.c.id == person)
    ).first()
    if row is None:
        return None
    role: Role | None = "owner" if row.admin else row.role
    return role


def allows(role: Role | None, needed: Role) -> bool:
    """Say whether a role may do what needs another: higher ones may do what lower ones may.

    ``service`` may what a service may, and so may managers and owners; it never stands for a person's role.
    """
    if role is None:
        return False
    if needed == "service":
        return role in ("service", "manager", "owner")
    return role in LADDER and LADDER.index(role) >= LADDER.index(needed)


def require(tx: Tx, project: str, person: str, needed: Role) -> Role:
    """Return the person's role; raise ``DeniedError`` when it is not enough (having none and no project look alike)."""
    role = role_of(tx, project, person)
    if role is None or not allows(role, needed):
        raise DeniedError(f"this needs the role {needed!r} in the project")
    return role


def require_access(tx: Tx, access: Access, project: str, needed: Role) -> Role:
    """Return the role that a session or token has in a project; a token for one project is nothing in another."""
    if access.project is not None and access.project != project:
        raise DeniedError(f"this needs the role {needed!r} in the project")
    return require(tx, project, access.person.id, needed)


def enter(tx: Tx, project: str, person: str) -> None:
    """Hold a member's row until the transaction ends, so that what one person does happens one after the other.

    Raises ``DeniedError`` for whoever may not judge here: viewers, strangers, and admins who are no members.
    """
    role = tx.execute(_ENTER, {"p_project": project, "p_person": person}).scalar()
    if role is None or role == "viewer":
        raise DeniedError("only members of the project who may judge are asked something")


# --- passwords and sessions -------------------------------------------------------------------------------------------


def log_in(store: Store, name: str, password: str, *, seconds: float = SESSION_SECONDS) -> Issued:
    """Open a session for a name and a password.

    A try is counted and committed before the password is looked at, so that many at once gain nothing; from the sixth
    wrong one on the account is locked for 30 seconds, then 60, up to 15 minutes. Raises ``CredentialsError`` or
    ``LockedOutError``. An unknown name costs as much time as a wrong password.
    """
    stored = store.run(lambda tx: _count_try(tx, name))
    good = _verify(password, stored.password if stored is not None else None)
    if stored is None or not good:
        raise CredentialsError(WRONG)

    def admit(tx: Tx) -> Issued:
        _change(tx, stored.id, failures=0, locked_until=0.0)
        return _issue(tx, tables.session, "tts", {"person": stored.id, "expires": tx.now + seconds})

    return store.run(admit)


def session_access(tx: Tx, secret: str) -> Access:
    """Return who a session's secret belongs to; raise ``CredentialsError`` where it is unknown, over or ended."""
    row = _find(tx, tables.session, secret)
    return Access(person=_person(row))


def log_out(tx: Tx, secret: str) -> None:
    """End a session; an unknown one is ended already."""
    digest = _digest(secret)
    tx.execute(update(tables.session).where(tables.session.c.digest == digest).values(revoked=tx.now))


# --- tokens -----------------------------------------------------------------------------------------------------------


def create_token(
    tx: Tx, person: str, name: str, *, project: str | None = None, seconds: float | None = None, actor: str
) -> Issued:
    """Make an API token that speaks for a person, in one project or in all of theirs, for some time or for good."""
    get_person(tx, person)
    if not name.isprintable():
        raise ConfigError("a token's name has no control characters")
    expires = None if seconds is None else tx.now + seconds
    row = {"person": person, "project": project, "name": name, "expires": expires}
    issued = _issue(tx, tables.token, "ttk", row)
    detail = {"name": name, "person": person, "seconds": seconds}
    audit.record(tx, actor=actor, action="token.create", subject=issued.prefix, project=project, detail=detail)
    return issued


def token_access(tx: Tx, secret: str) -> Access:
    """Return who a token speaks for; raise ``CredentialsError`` where it is unknown, over or revoked."""
    row = _find(tx, tables.token, secret)
    return Access(person=_person(row), project=row.project)


def revoke_token(tx: Tx, prefix: str, *, actor: str) -> None:
    """Revoke a token by its visible prefix."""
    table = tables.token
    query = update(table).where(table.c.prefix == prefix).values(revoked=tx.now)
    if not storable(prefix) or not tx.execute(query).rowcount:
        raise MissingError(f"no token {prefix!r}")
    audit.record(tx, actor=actor, action="token.revoke", subject=prefix)


# --- inside -----------------------------------------------------------------------------------------------------------


@functools.cache
def _hasher() -> PasswordHash:
    from pwdlib import PasswordHash

    return PasswordHash.recommended()


@functools.cache
def _nobody() -> str:
    return _hasher().hash(secrets.token_urlsafe(12))


def _hash(password: str) -> str:
    if len(password) < SHORTEST_PASSWORD:
        raise ConfigError(f"a password needs at least {SHORTEST_PASSWORD} characters")
    return _hasher().hash(password)


def _verify(password: str, hashed: str | None) -> bool:
    """Compare, and take as long where there is nothing to compare with."""
    return _hasher().verify(password, hashed or _nobody()) and hashed is not None


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def _person(row: Row[Any]) -> Person:
    return Person(id=row.id, name=row.name, kind=row.kind, admin=row.admin)


def _change(tx: Tx, person: str, **values: object) -> None:
    if not tx.execute(update(tables.person).where(tables.person.c.id == person).values(**values)).rowcount:
        raise MissingError(f"no person {person!r}")


def _end_sessions(tx: Tx, person: str) -> None:
    open_ones = (tables.session.c.person == person) & tables.session.c.revoked.is_(None)
    tx.execute(update(tables.session).where(open_ones).values(revoked=tx.now))


def _count_try(tx: Tx, name: str) -> Row[Any] | None:
    """Count a try as failed until it succeeds, and return the person's row."""
    table = tables.person
    query = select(table).where(table.c.name == name.strip()).with_for_update(key_share=True)
    row = tx.execute(query).first() if storable(name) else None
    if row is None or row.disabled is not None:
        return None
    if row.locked_until > tx.now:
        raise LockedOutError(row.locked_until - tx.now)
    failures = row.failures + 1
    lock = (
        0.0 if failures <= FREE_TRIES else min(LOCK_SECONDS * 2.0 ** min(failures - FREE_TRIES - 1, 20), LONGEST_LOCK)
    )
    _change(tx, row.id, failures=failures, locked_until=tx.now + lock if lock else 0.0)
    return row


def _issue(tx: Tx, table: Table, mark: str, values: Mapping[str, object]) -> Issued:
    """Make a secret ``mark_PREFIX_REST`` and store its hash."""
    prefix = f"{mark}_{secrets.token_hex(5)}"
    secret = f"{prefix}_{secrets.token_urlsafe(32)}"
    issued = Issued(id=tx.new_id(), prefix=prefix, secret=secret)
    tx.execute(
        insert(table).values(id=issued.id, prefix=prefix, digest=_digest(secret), created=tx.now, **values),
    )
    return issued


def _find(tx: Tx, table: Table, secret: str) -> Row[Any]:
    """Return the row of a secret, joined with its person."""
    prefix = "_".join(secret.split("_", 2)[:2])
    open_now: list[ColumnElement[bool]] = [
        table.c.revoked.is_(None),
        func.coalesce(table.c.expires, tx.now + 1) > tx.now,
        tables.person.c.disabled.is_(None),
    ]
    extra = [table.c.project] if "project" in table.c else []
    query = select(tables.person, table.c.digest, *extra).join(tables.person, tables.person.c.id == table.c.person)
    row = tx.execute(query.where(table.c.prefix == prefix, *open_now)).first() if storable(secret) else None
    same = hmac.compare_digest(row.digest if row is not None else "", _digest(secret))
    if row is None or not same:
        raise CredentialsError("this session or token is not known, over, or ended")
    return row
