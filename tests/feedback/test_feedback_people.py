"""Passwords, lockout, sessions, tokens, roles."""

from __future__ import annotations

import itertools

import pytest
from feedback_parts import Clock, Make
from sqlalchemy import select

from trimtab.errors import ConfigError
from trimtab.feedback import audit, events, exclusions, items, people, projects, tables
from trimtab.feedback.errors import ConflictError, CredentialsError, DeniedError, LockedOutError, MissingError
from trimtab.feedback.store import Store

PASSWORD = "correct horse"


def test_the_first_run_gives_one_password_once(kept: Store) -> None:
    with kept.write() as tx:
        password = people.first_run(tx)
        assert password is not None
        assert len(password) >= 16
        assert people.first_run(tx) is None
        stored = tx.execute(select(tables.person.c.password)).scalar_one()
    assert stored.startswith("$argon2id$")
    assert password not in stored
    issued = people.log_in(kept, "owner", password)
    with kept.read() as tx:
        access = people.session_access(tx, issued.secret)
        assert access.person.admin
        assert access.person.rater == "human:owner"


def test_sessions_begin_run_out_and_end(kept: Store, clock: Clock) -> None:
    with kept.write() as tx:
        ada = people.add_person(tx, "ada", password=PASSWORD, actor="system")
    issued = people.log_in(kept, "ada", PASSWORD, seconds=100.0)
    other = people.log_in(kept, " ada ", PASSWORD)
    with kept.read() as tx:
        assert people.session_access(tx, issued.secret).person == ada
        for wrong in (issued.secret[:-1], issued.prefix, "", "tts__", "a_b_c", issued.secret + "é"):
            with pytest.raises(CredentialsError):
                people.session_access(tx, wrong)
        with pytest.raises(CredentialsError):
            people.token_access(tx, issued.secret)
        row = tx.execute(select(tables.session).where(tables.session.c.id == issued.id)).one()
        assert issued.secret.startswith(issued.prefix + "_")
        assert issued.secret not in repr(row)
        assert "secret" not in repr(issued)
    clock.now += 100.0
    with kept.write() as tx:
        with pytest.raises(CredentialsError):
            people.session_access(tx, issued.secret)
        people.log_out(tx, other.secret)
        with pytest.raises(CredentialsError):
            people.session_access(tx, other.secret)


def test_wrong_passwords_lock_longer_and_longer(kept: Store, clock: Clock) -> None:
    with kept.write() as tx:
        people.add_person(tx, "ada", password=PASSWORD, actor="system")
        people.add_person(tx, "robot", kind="service", actor="system")
    for name in ("nobody", "robot"):
        with pytest.raises(CredentialsError, match="wrong name or password"):
            people.log_in(kept, name, PASSWORD)
    for _ in range(6):
        with pytest.raises(CredentialsError, match="wrong name or password"):
            people.log_in(kept, "ada", "guess")
    with pytest.raises(LockedOutError) as locked:
        people.log_in(kept, "ada", PASSWORD)
    assert locked.value.retry_after == 30.0
    clock.now += 30.0
    with pytest.raises(CredentialsError):
        people.log_in(kept, "ada", "guess")
    with pytest.raises(LockedOutError) as locked:
        people.log_in(kept, "ada", PASSWORD)
    assert locked.value.retry_after == 60.0
    clock.now += 60.0
    people.log_in(kept, "ada", PASSWORD)
    with pytest.raises(CredentialsError):
        people.log_in(kept, "ada", "guess")
    people.log_in(kept, "ada", PASSWORD)  # the count began again


def test_a_new_password_or_a_closed_door_ends_sessions(kept: Store) -> None:
    with kept.write() as tx:
        ada = people.add_person(tx, "ada", password=PASSWORD, actor="system")
        token = people.create_token(tx, ada.id, "laptop", actor=ada.id)
    first = people.log_in(kept, "ada", PASSWORD)
    with kept.write() as tx:
        people.set_password(tx, ada.id, "another good one", actor=ada.id)
    second = people.log_in(kept, "ada", "another good one")
    with kept.write() as tx:
        with pytest.raises(CredentialsError):
            people.session_access(tx, first.secret)
        people.session_access(tx, second.secret)
        people.set_disabled(tx, ada.id, True, actor="system")
        for look, secret in ((people.session_access, second.secret), (people.token_access, token.secret)):
            with pytest.raises(CredentialsError):
                look(tx, secret)
    with pytest.raises(CredentialsError):
        people.log_in(kept, "ada", "another good one")
    with kept.write() as tx:
        people.set_disabled(tx, ada.id, False, actor="system")
        assert people.token_access(tx, token.secret).person == ada


def test_tokens_speak_for_a_person_in_one_project(kept: Store, make: Make, clock: Clock) -> None:
    one, (ada, _) = make(items=0)
    two, _ = make(items=0)
    with kept.write() as tx:
        people.set_role(tx, two.id, ada, "owner", actor="system")
        token = people.create_token(tx, ada, "script", project=one.id, seconds=50.0, actor=ada)
        access = people.token_access(tx, token.secret)
        assert people.require_access(tx, access, one.id, "annotator") == "annotator"
        with pytest.raises(DeniedError):
            people.require_access(tx, access, one.id, "manager")
        with pytest.raises(DeniedError):
            people.require_access(tx, access, two.id, "viewer")
        lasting = people.create_token(tx, ada, "all", actor=ada)
        assert people.require_access(tx, people.token_access(tx, lasting.secret), two.id, "owner") == "owner"
        people.revoke_token(tx, lasting.prefix, actor=ada)
        with pytest.raises(CredentialsError):
            people.token_access(tx, lasting.secret)
        with pytest.raises(MissingError):
            people.revoke_token(tx, "ttk_none", actor=ada)
    clock.now += 50.0
    with kept.read() as tx, pytest.raises(CredentialsError):
        people.token_access(tx, token.secret)


ALLOWED = {
    "viewer": {"viewer"},
    "annotator": {"viewer", "annotator"},
    "manager": {"viewer", "annotator", "manager", "service"},
    "owner": {"viewer", "annotator", "manager", "owner", "service"},
    "service": {"service"},
    None: set(),
}


def test_the_table_of_roles() -> None:
    for role, needed in itertools.product(ALLOWED, people.ROLES):
        assert people.allows(role, needed) == (needed in ALLOWED[role]), (role, needed)  # type: ignore[arg-type]


def test_roles_are_given_changed_and_taken(kept: Store, make: Make) -> None:
    project, (ada, _) = make(items=0)
    with kept.write() as tx:
        assert people.role_of(tx, project.id, ada) == "annotator"
        people.set_role(tx, project.id, ada, "manager", actor="system")
        assert people.require(tx, project.id, ada, "annotator") == "manager"
        people.set_role(tx, project.id, ada, None, actor="system")
        assert people.role_of(tx, project.id, ada) is None
        assert people.role_of(tx, project.id, "nobody") is None
        boss = people.add_person(tx, "boss", admin=True, actor="system")
        assert people.role_of(tx, project.id, boss.id) == "owner"
        assert [found.name for found in projects.list_projects(tx, boss.id)] == [project.name]
        assert projects.list_projects(tx, ada) == []
        with pytest.raises(ConfigError, match="not one of"):
            people.set_role(tx, project.id, ada, "king", actor="system")  # type: ignore[arg-type]
        with pytest.raises(MissingError):
            people.set_role(tx, project.id, "nobody", "viewer", actor="system")
        actions = tx.execute(select(tables.audit.c.action).order_by(tables.audit.c.number)).scalars().all()
        assert actions.count("role.set") == 4
        assert audit.verify(tx).broken is None


def test_names_and_passwords_that_will_not_do(kept: Store) -> None:
    with kept.write() as tx:
        people.add_person(tx, "ada", actor="system")
        with pytest.raises(ConflictError, match="called 'ada'"):
            people.add_person(tx, "ada", actor="system")
        with pytest.raises(ConfigError, match="at least 8"):
            people.add_person(tx, "ben", password="short", actor="system")
        for name in ("", "  ", "a\nb", "a\0b"):
            with pytest.raises(ConfigError, match="a name needs"):
                people.add_person(tx, name, actor="system")
        with pytest.raises(MissingError):
            people.get_person(tx, "nobody")
        with pytest.raises(MissingError):
            people.set_password(tx, "nobody", PASSWORD, actor="system")
        projects.create_project(tx, "p")
        with pytest.raises(ConflictError, match="a project 'p'"):
            projects.create_project(tx, "p")
        for name in (" ", "a\0"):
            with pytest.raises(ConfigError, match="needs at least one letter"):
                projects.create_project(tx, name)
        with pytest.raises(MissingError):
            projects.get_project(tx, "q")


@pytest.mark.parametrize("odd", ["a\0b", "\ud800"])
def test_what_no_database_can_hold_is_simply_not_there(kept: Store, make: Make, odd: str) -> None:
    project, (ada, _) = make(items=0)
    with kept.write() as tx:
        for look in (
            lambda: people.get_person(tx, odd),
            lambda: projects.get_project(tx, odd),
            lambda: items.get_item(tx, project, odd),
            lambda: events.undo(tx, project, ada, odd),
            lambda: exclusions.exclude(tx, project, "item", odd, rule="r", reason="", actor=ada),
            lambda: exclusions.lift(tx, project, odd, actor=ada),
            lambda: people.revoke_token(tx, odd, actor=ada),
        ):
            with pytest.raises(MissingError):
                look()
        for look in (people.session_access, people.token_access):
            with pytest.raises(CredentialsError):
                look(tx, odd)
    with pytest.raises(CredentialsError):
        people.log_in(kept, odd, PASSWORD)
