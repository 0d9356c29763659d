"""Who gets what, for how long, and from which slice."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable

import pytest
from feedback_parts import Clock, Make, pair
from sqlalchemy import select

from trimtab.errors import ConfigError
from trimtab.feedback import events, ingest, projects, queue, tables
from trimtab.feedback.events import Submission
from trimtab.feedback.projects import Settings
from trimtab.feedback.store import Store
from trimtab.records.types import Pair

SAID = Submission(verdicts=(Pair(better=0, worse=1),))


def names(leases: tuple[queue.Lease, ...]) -> set[str]:
    return {lease.item for lease in leases}


def test_leases_are_held_renewed_lost_and_given_back(kept: Store, make: Make, clock: Clock) -> None:
    project, (ada, ben) = make(items=2, overlap=1, prefetch=2, lease_seconds=100.0, random_share=0.0)
    with kept.write() as tx:
        mine = queue.claim(tx, project, ada)
        assert {lease.until for lease in mine} == {clock.now + 100.0}
        assert queue.claim(tx, project, ada) == mine
        assert queue.claim(tx, project, ben) == ()
    clock.now += 99.0
    with kept.write() as tx:
        kept_one = queue.heartbeat(tx, project, ada, [mine[0].item])
        assert [(lease.item, lease.until) for lease in kept_one] == [(mine[0].item, clock.now + 100.0)]
    clock.now += 1.0  # the second ran out to the second
    with kept.write() as tx:
        stolen = queue.claim(tx, project, ben)
        assert names(stolen) == {mine[1].item}
        assert names(queue.heartbeat(tx, project, ada)) == {mine[0].item}
        assert names(queue.claim(tx, project, ada)) == {mine[0].item}
    clock.now += 1000.0  # everything ran out; nobody has come for it, so a sign of life brings it back
    with kept.write() as tx:
        assert queue.progress(tx, project).leased == 0
        assert names(queue.heartbeat(tx, project, ada)) == {mine[0].item}
        assert queue.progress(tx, project).leased == 1
        assert queue.release(tx, project, ada) == 1
        assert names(queue.claim(tx, project, ben)) == {lease.item for lease in mine}


def test_a_verdict_after_the_lease_was_lost(kept: Store, make: Make, clock: Clock) -> None:
    """It fills an open place; where there is none it is kept as extra, and the overlap stays what it was."""
    project, (ada, ben, eve) = make(items=1, members=3, overlap=2, lease_seconds=10.0)
    with kept.write() as tx:
        (lease,) = queue.claim(tx, project, ada)
        clock.now += 10.0
        tx.now = clock.now
        assert len(queue.claim(tx, project, ben)) == 1
        assert len(queue.claim(tx, project, eve)) == 1
        late = events.submit(tx, project, ada, lease.item, SAID)
        assert late.extra
        assert not events.submit(tx, project, ben, lease.item, SAID).extra
        queue.release(tx, project, eve)
        changed = events.submit(tx, project, ada, lease.item, SAID)
        assert not changed.extra  # a place has become open since
        assert events.submit(tx, project, eve, lease.item, SAID).extra
        assert queue.progress(tx, project).done == 2
        assert len(events.view(tx, project)) == 3


def test_the_prefetch_limit_counts_what_is_held(kept: Store, make: Make) -> None:
    project, (ada, _) = make(items=9, prefetch=3)
    with kept.write() as tx:
        assert len(queue.claim(tx, project, ada, want=1)) == 1
        assert len(queue.claim(tx, project, ada, want=0)) == 1
        assert len(queue.claim(tx, project, ada, want=99)) == 3
        mine = queue.claim(tx, project, ada)
        events.submit(tx, project, ada, mine[0].item, SAID)
        after = queue.claim(tx, project, ada)
        assert len(after) == 3
        assert names(mine[1:]) < names(after)


def test_priority_then_a_shuffle(kept: Store, make: Make) -> None:
    project, (ada, ben) = make(items=0, overlap=2, prefetch=20, random_share=0.0)
    for priority, numbers in ((0.0, range(6)), (5.0, range(6, 9))):
        ingest.add_groups(kept, project, map(pair, numbers), priority=priority, actor="system")
    with kept.write() as tx:
        order = dict(tx.execute(select(tables.item.c.id, tables.item.c.body)).all())
        number = {item: next(i for i in range(9) if f"SECRET-{i}" in body) for item, body in order.items()}
        first = [number[lease.item] for lease in sorted(queue.claim(tx, project, ada, want=3), key=lambda x: x.item)]
        assert sorted(first) == [6, 7, 8]
        back = {item: i for i, item in ((number[item], item) for item in number)}
        assert queue.reprioritise(tx, project, {item: 9.0 for item, i in back.items() if i == 4}) == 1
        (top,) = queue.claim(tx, project, ben, want=1)
        assert number[top.item] == 4
    with kept.write() as tx:
        places = tx.execute(select(tables.slot.c.item).order_by(tables.slot.c.place)).scalars().all()
        assert [number[item] for item in places] != sorted(number[item] for item in places)


@pytest.mark.parametrize(("random_share", "gold_share"), [(0.2, 0.0), (0.25, 0.1), (0.0, 0.5), (1.0, 0.0)])
def test_each_person_gets_the_shares_to_within_one(random_share: float, gold_share: float) -> None:
    settings = Settings(random_share=random_share, gold_share=gold_share)
    share = {"random": random_share, "gold": gold_share, "active": 1 - random_share - gold_share}
    given = dict.fromkeys(share, 0)
    for count in range(1, 200):
        given[queue.turn(settings, given)[0]] += 1
        assert all(abs(given[name] - share[name] * count) <= 1 for name in share), (count, given)


def test_the_random_share_of_a_real_queue(kept: Store, make: Make) -> None:
    """A fifth for everybody, counted on what they were given; where a slice is empty the others fill in."""
    project, raters = make(items=60, members=2, overlap=1, prefetch=4, random_share=0.2)
    with kept.read() as tx:
        there = Counter(tx.execute(select(tables.item.c.slice)).scalars())
    assert 3 <= there["random"] <= 24  # 12 expected, 3 standard deviations of a fair draw
    got: dict[str, list[str]] = {rater: [] for rater in raters}
    for _ in range(40):
        for rater in raters:
            with kept.write() as tx:
                leases = queue.claim(tx, project, rater, want=1)
                for lease in leases:
                    got[rater].append(lease.slice)
                    events.submit(tx, project, rater, lease.item, SAID)
    assert sum(map(len, got.values())) == 60
    for rater in raters:
        early = got[rater][:10] if there["random"] >= 6 else []
        assert not early or early.count("random") == 2
    with kept.read() as tx:
        assert queue.progress(tx, project) == queue.Progress(items=60, finished=60, slots=60, done=60, leased=0)
        assert queue.progress(tx, project).open == 0


def test_gold_comes_at_its_rate_and_is_not_progress(kept: Store, make: Make) -> None:
    project, (ada, _) = make(items=8, overlap=1, prefetch=1, gold_share=0.25, random_share=0.0)
    answer = (Pair(better=0, worse=1),)
    golden = [pair(i, verdicts=answer) for i in range(100, 103)]
    assert ingest.add_groups(kept, project, golden, gold=True, overlap=50, actor="system").added == 3
    slices = []
    for _ in range(8):
        with kept.write() as tx:
            (lease,) = queue.claim(tx, project, ada)
            slices.append(lease.slice)
            events.submit(tx, project, ada, lease.item, SAID)
    assert slices.count("gold") == 2
    with kept.read() as tx:
        assert (queue.progress(tx, project).slots, queue.progress(tx, project).done) == (8, 6)
        assert len(list(ingest.groups(tx, project))) == 6
        assert len(list(ingest.groups(tx, project, gold=True))) == 8


def test_settings_that_make_no_sense_are_refused(kept: Store, make: Make) -> None:
    for wrong in ({"overlap": 0}, {"prefetch": 0}, {"lease_seconds": 0.0}, {"random_share": 1.1}, {"gold_share": -0.1}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            Settings(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="together"):
        Settings(random_share=0.6, gold_share=0.6)
    project, _ = make(items=0)
    with kept.write() as tx:
        changed = projects.change_settings(tx, project, actor="system", prefetch=7, desk={"guideline": "Be fair."})
        assert projects.get_project(tx, project.name) == changed
        assert changed.settings.desk == {"guideline": "Be fair."}
        with pytest.raises(ConfigError, match="did you mean 'overlap'"):
            projects.change_settings(tx, project, actor="system", overlapp=2)


def test_fifty_people_at_once(kept: Store, make: Make) -> None:
    """400 items for two people each: nobody waits for ever, nothing is asked of a third, nobody is asked twice.

    A watcher looks at committed states all the while: never more than two live leases and verdicts on an item.
    """
    crowd, items, overlap = 50, 400, 2
    project, raters = make(items=items, members=crowd, overlap=overlap, prefetch=3)
    failed, over, finished = list[BaseException](), list[str](), threading.Event()

    def work(rater: str) -> None:
        judged = set[str]()
        while leases := kept.run(lambda tx: queue.claim(tx, project, rater)):
            assert len(leases) == len(names(leases)) <= 3
            assert not judged & names(leases), "asked twice"
            for lease in leases[:2]:
                event = kept.run(lambda tx, item=lease.item: events.submit(tx, project, rater, item, SAID))  # type: ignore[misc]
                assert not event.extra, "the lease was somebody else's"
                judged.add(lease.item)

    def watch() -> None:
        taken = tables.slot.c.done | (tables.slot.c.until > 0)
        query = select(tables.slot.c.item, tables.slot.c.person).where(taken)
        while not finished.wait(0.05):
            with kept.read() as tx:
                rows = tx.execute(query).all()
            over.extend(item for item, count in Counter(row.item for row in rows).items() if count > overlap)
            assert len(set(rows)) == len(rows)

    def run(act: Callable[[], None]) -> None:
        try:
            act()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(lambda r=rater: work(r),)) for rater in raters]
    watcher = threading.Thread(target=run, args=(watch,))
    for thread in [watcher, *threads]:
        thread.start()
    for thread in threads:
        thread.join()
    finished.set()
    watcher.join()
    assert (failed, over) == ([], [])
    with kept.read() as tx:
        assert queue.progress(tx, project).finished == items
        said = list(events.all_events(tx, project))
        assert len(said) == len({(event.item, event.person) for event in said}) == items * overlap
        assert set(Counter(event.item for event in said).values()) == {overlap}
        assert events.replay(said) == events.view(tx, project)
