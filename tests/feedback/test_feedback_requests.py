"""The same request again, another under its key, and one that is still at work."""

from __future__ import annotations

import threading

import pytest
from feedback_parts import Clock, Make
from sqlalchemy import func, select

from trimtab.errors import DataError
from trimtab.feedback import events, queue, requests, tables
from trimtab.feedback.errors import ConflictError, KeyReusedError
from trimtab.feedback.events import Submission
from trimtab.feedback.requests import Reply
from trimtab.feedback.store import Store
from trimtab.records.types import Pair


def test_the_same_again_another_and_in_flight(kept: Store, make: Make, clock: Clock) -> None:
    project, (ada, ben) = make(items=0)
    done = []

    def work() -> object:
        done.append(1)
        return {"n": len(done)}

    for repeated in (False, True, True):
        with kept.write() as tx:
            reply = requests.once(tx, project, ada, "k", {"a": 1, "b": 2}, work)
        assert reply == Reply(value={"n": 1}, repeated=repeated)
    with kept.write() as tx:
        assert requests.once(tx, project, ada, "k", {"b": 2, "a": 1}, work).repeated  # the order of fields is nothing
        assert requests.once(tx, project, ben, "k", {"c": 3}, work).value == {"n": 2}  # a key is its person's
        with pytest.raises(KeyReusedError):
            requests.once(tx, project, ada, "k", {"a": 2}, work)

        assert requests.begin(tx, project, ada, "slow", {}) is None
    with kept.write() as tx:
        with pytest.raises(ConflictError, match="still at work"):
            requests.begin(tx, project, ada, "slow", {})
        with pytest.raises(KeyReusedError):
            requests.begin(tx, project, ada, "slow", {"other": 1})
    clock.now += requests.STALE_SECONDS
    with kept.write() as tx:
        assert requests.begin(tx, project, ada, "slow", {}) is None  # it was cut off: again
        requests.finish(tx, project, ada, "slow", [1])
        assert requests.begin(tx, project, ada, "slow", {}) == Reply(value=[1], repeated=True)
        assert requests.forget(tx, clock.now) == 2
        assert requests.once(tx, project, ada, "k", {"a": 2}, work).repeated is False
    assert len(done) == 3


def test_work_that_fails_leaves_no_key(kept: Store, make: Make) -> None:
    project, (ada, _) = make(items=0)

    def fails() -> object:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        kept.run(lambda tx: requests.once(tx, project, ada, "k", {}, fails))
    with kept.write() as tx:
        assert requests.once(tx, project, ada, "k", {}, lambda: 1) == Reply(value=1, repeated=False)
        for key in ("", "x" * 256, "a\nb"):
            with pytest.raises(DataError, match="idempotency key"):
                requests.begin(tx, project, ada, key, {})


def test_a_storm_of_retries_is_one_verdict(kept: Store, make: Make) -> None:
    """Eight threads send the same ten requests: each is done once, and all get its reply."""
    project, (ada, _) = make(items=10, overlap=1, prefetch=10)
    leases = kept.run(lambda tx: queue.claim(tx, project, ada))
    said = Submission(verdicts=(Pair(better=0, worse=1),))
    replies: dict[str, set[object]] = {lease.item: set() for lease in leases}
    start = threading.Barrier(8)

    def storm(turn: int) -> None:
        start.wait()
        for lease in leases[turn:] + leases[:turn]:
            reply = kept.run(
                lambda tx, item=lease.item: requests.once(  # type: ignore[misc]
                    tx, project, ada, item, item, lambda: events.submit(tx, project, ada, item, said).id
                )
            )
            replies[lease.item].add(reply.value)

    threads = [threading.Thread(target=storm, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(found) for found in replies.values()] == [1] * 10
    with kept.read() as tx:
        assert tx.execute(select(func.count()).select_from(tables.event)).scalar() == 10
