"""The feedback half: what people say of answers, kept so that no word is lost. No torch.

store = open_store("feedback.sqlite")              # store     one writer; or a PostgreSQL URL
with store.write() as tx: ...                      # tables    what is in it;  migrations/  how it got there
projects.create_project(tx, ...)                   # projects  rooms that never see each other
people.log_in(store, ...)                          # people    passwords, sessions, tokens, roles
ingest.add_groups(store, project, groups)          # ingest    Groups in, Groups with verdicts out
queue.claim(tx, project, person)                   # queue     who is asked what next
events.submit(tx, project, person, item, said)     # events    what they said, for good
requests.once(tx, ...)                             # requests  the same request twice is one
audit.record(tx, ...), audit.verify(tx)            # audit     who changed what, in a chain
"""

from __future__ import annotations

from importlib.util import find_spec

from trimtab.errors import ConfigError

EXTRA = ("sqlalchemy", "alembic", "pwdlib", "argon2", "ulid")

if _missing := [name for name in EXTRA if find_spec(name) is None]:
    raise ConfigError(f"collecting feedback needs {', '.join(_missing)}: pip install 'trimtab[feedback]'")
