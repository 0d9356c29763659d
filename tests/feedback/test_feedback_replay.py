"""Whatever people do, in whatever order: the view is what the events say, and nothing is asked of too many."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest
from feedback_parts import Clock, pair
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from sqlalchemy import func, select

from trimtab.feedback import events, ingest, people, projects, queue, requests, tables
from trimtab.feedback.errors import KeyReusedError, MissingError
from trimtab.feedback.events import Submission
from trimtab.feedback.store import Store, open_store
from trimtab.records.types import Pair

OVERLAP, PEOPLE, ITEMS, LEASE = 2, 4, 4, 100.0
who = st.integers(0, PEOPLE - 1)
which = st.integers(0, ITEMS - 1)


class Desk(RuleBasedStateMachine):
    """The model: what each person says of each item, as a stack; and which keys were used with what."""

    def __init__(self, kept: Store, clock: Clock) -> None:
        super().__init__()
        self.kept, self.clock = kept, clock
        self.said: dict[tuple[int, int], list[str]] = {}
        self.keys: dict[tuple[int, str], tuple[int, object]] = {}

    @initialize()
    def build(self) -> None:
        """A project of its own for each history; the store is shared."""
        with self.kept.write() as tx:
            count = tx.execute(select(func.count()).select_from(tables.project)).scalar()
            chosen = projects.Settings(overlap=OVERLAP, prefetch=2, lease_seconds=LEASE, random_share=0.5)
            self.project = projects.create_project(tx, f"history {count}", chosen)
            self.people = [people.add_person(tx, f"p-{count}-{i}", actor="system").id for i in range(PEOPLE)]
            for person in self.people:
                people.set_role(tx, self.project.id, person, "annotator", actor="system")
        ingest.add_groups(self.kept, self.project, (pair(i) for i in range(ITEMS)), actor="system")
        with self.kept.read() as tx:
            self.items = list(
                tx.execute(select(tables.item.c.id).where(tables.item.c.project == self.project.id)).scalars()
            )

    @rule(person=who)
    def claim(self, person: int) -> None:
        with self.kept.write() as tx:
            leases = queue.claim(tx, self.project, self.people[person])
        assert len(leases) == len({lease.item for lease in leases})
        for lease in leases:
            assert not self.said.get((self.items.index(lease.item), person))

    @rule(person=who, item=which, better=st.booleans())
    def submit(self, person: int, item: int, better: bool) -> None:
        verdict = Pair(better=int(better), worse=int(not better))
        with self.kept.write() as tx:
            event = events.submit(
                tx, self.project, self.people[person], self.items[item], Submission(verdicts=(verdict,))
            )
        self.said.setdefault((item, person), []).append(event.id)

    @rule(person=who, item=which)
    def skip(self, person: int, item: int) -> None:
        with self.kept.write() as tx:
            event = events.skip(tx, self.project, self.people[person], self.items[item], "no")
        self.said.setdefault((item, person), []).append(event.id)

    @rule(person=who, item=which)
    def undo(self, person: int, item: int) -> None:
        stack = self.said.get((item, person))
        if not stack:
            return
        with self.kept.write() as tx:
            events.undo(tx, self.project, self.people[person], stack[-1])
        stack.pop()

    @rule(person=who)
    def undo_last(self, person: int) -> None:
        mine = [stack for (_, who_), stack in self.said.items() if who_ == person and stack]
        if not mine:
            with pytest.raises(MissingError), self.kept.write() as tx:
                events.undo(tx, self.project, self.people[person])
            return
        last = max(mine, key=lambda stack: stack[-1])
        with self.kept.write() as tx:
            assert events.undo(tx, self.project, self.people[person]).supersedes == last[-1]
        last.pop()

    @rule(person=who, item=which, key=st.sampled_from("ab"))
    def send_with_key(self, person: int, item: int, key: str) -> None:
        """A request that may be a repetition, or another one under a used key."""
        said = Submission(verdicts=(Pair(better=0, worse=1),))
        used = self.keys.get((person, key))
        if used is not None and used[0] != item:
            with pytest.raises(KeyReusedError), self.kept.write() as tx:
                requests.once(tx, self.project, self.people[person], key, item, lambda: None)
            return
        with self.kept.write() as tx:
            reply = requests.once(
                tx,
                self.project,
                self.people[person],
                key,
                item,
                lambda: events.submit(tx, self.project, self.people[person], self.items[item], said).id,
            )
        if used is None:
            self.keys[person, key] = (item, reply.value)
            self.said.setdefault((item, person), []).append(str(reply.value))
        assert reply.repeated == (used is not None)
        assert reply.value == self.keys[person, key][1]

    @rule(seconds=st.sampled_from([LEASE / 2, LEASE]))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule(person=who)
    def leave(self, person: int) -> None:
        with self.kept.write() as tx:
            queue.release(tx, self.project, self.people[person])

    @invariant()
    def the_view_is_what_the_events_say(self) -> None:
        with self.kept.read() as tx:
            view = events.view(tx, self.project)
            assert events.replay(events.all_events(tx, self.project)) == view
            slots = tx.execute(select(tables.slot).where(tables.slot.c.project == self.project.id)).all()
        model = {(self.items[i], self.people[p]): stack[-1] for (i, p), stack in self.said.items() if stack}
        assert {key: current.event for key, current in view.items()} == model
        filled = {(slot.item, slot.person) for slot in slots if slot.done}
        verdicts = {key for key, current in view.items() if current.kind == "verdict"}
        assert filled == {key for key in verdicts if not view[key].extra}
        held = [(slot.item, slot.person) for slot in slots if slot.person is not None]
        assert len(held) == len(set(held))
        assert len(slots) == OVERLAP * ITEMS


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_any_history(kind: str, request: pytest.FixtureRequest) -> None:
    """On one store for all histories, each in a project of its own: making stores would take most of the time."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        if kind == "sqlite":
            url = str(Path(folder) / "f.sqlite")
            shutil.copy(request.getfixturevalue("empty_sqlite"), url)
        else:
            url = request.getfixturevalue("postgresql")
        with open_store(url, clock=clock) as kept:
            run_state_machine_as_test(
                lambda: Desk(kept, clock),
                settings=settings(
                    max_examples=15,
                    stateful_step_count=25,
                    deadline=None,
                    database=None,
                    suppress_health_check=list(HealthCheck),
                ),
            )
