"""What is stored of a verdict, and what holds after changes, skips and undo."""

from __future__ import annotations

import json
from collections import Counter
from itertools import permutations

import pytest
from feedback_parts import Clock, Make, pair
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select

from trimtab.errors import DataError, InvariantError
from trimtab.feedback import events, ingest, items, people, projects, queue, tables
from trimtab.feedback.errors import ConflictError, DeniedError, MissingError
from trimtab.feedback.events import Submission, replay, view
from trimtab.feedback.store import Store
from trimtab.records.types import Answer, Edit, Pair, Ranking, Score, Thumb, Verdict

FIRST = Submission(verdicts=(Pair(better=0, worse=1, strength=2.0),))
SECOND = Submission(verdicts=(Pair(better=1, worse=0),))


def only_item(kept: Store, project: projects.Project) -> str:
    with kept.read() as tx:
        return str(tx.execute(select(tables.item.c.id).where(tables.item.c.project == project.id)).scalar_one())


def stored(event: events.Event) -> dict[str, object]:
    return dict(json.loads(event.value or ""))


indices = st.integers(0, 3)
verdicts = st.one_of(
    st.tuples(indices, indices, st.sampled_from([None, "tie", "both_good", "both_bad"]))
    .filter(lambda found: found[0] != found[1])
    .map(lambda found: Pair(better=found[0], worse=found[1], tie=found[2], strength=1.0)),
    st.permutations(range(4)).map(lambda order: Ranking(order=((order[0],), (order[1], order[2]), (order[3],)))),
    st.tuples(indices, st.floats(1, 5)).map(lambda found: Score(answer=found[0], values={"helpful": found[1]})),
    st.tuples(indices, st.booleans()).map(lambda found: Thumb(answer=found[0], up=found[1])),
    indices.map(lambda index: Edit(answer=index, text="better so")),
)


@given(verdicts, st.permutations(range(4)))
def test_renumbering_there_and_back_changes_nothing(verdict: Verdict, shown: list[int]) -> None:
    back = [shown.index(index) for index in range(4)]
    assert items.renumber(items.renumber(verdict, shown), back) == verdict
    assert items.decode_verdicts(items.encode_verdicts([verdict]), 4) == (verdict,)


def test_positions_are_fair_and_each_persons_own() -> None:
    counted = Counter(items.positions(7, f"item-{i % 100}", f"person-{i // 100}", 3) for i in range(3000))
    assert set(counted) == set(permutations(range(3)))
    chi_squared = sum((count - 500) ** 2 / 500 for count in counted.values())
    assert chi_squared < 20.5  # 5 degrees of freedom, p = 0.001
    assert items.positions(7, "a", "b", 4) == items.positions(7, "a", "b", 4)
    assert len({items.positions(seed, "a", "b", 4) for seed in range(40)}) > 10


def test_a_verdict_is_stored_on_the_groups_own_numbers(kept: Store, make: Make) -> None:
    project, raters = make(items=1, members=8, overlap=8)
    item = only_item(kept, project)
    seen = set()
    for rater in raters:
        with kept.write() as tx:
            shown = items.get_item(tx, project, item).positions(project, rater)
            said = Submission(verdicts=FIRST.verdicts, seconds=2.5, client_time="2027-01-01T10:00", reason="clear")
            event = events.submit(tx, project, rater, item, said)
        seen.add(shown)
        assert event.shown == shown
        assert (event.seconds, event.client_time, event.reason) == (2.5, "2027-01-01T10:00", "clear")
        left = {"kind": "pair", "better": shown[0], "worse": shown[1], "strength": 2.0}
        assert stored(event) == {"verdicts": [left]}
    assert seen == {(0, 1), (1, 0)}


def test_several_verdicts_and_an_own_answer_are_one_act(kept: Store, make: Make) -> None:
    project, (ada, ben) = make(items=1, overlap=2)
    item = only_item(kept, project)
    with kept.write() as tx:
        shown = items.get_item(tx, project, item).positions(project, ada)
        said = Submission(written="Mine.", verdicts=(Ranking(order=((2,), (0,), (1,))), Thumb(answer=1, up=False)))
        events.submit(tx, project, ada, item, said)
        events.submit(tx, project, ben, item, Submission(written="Another."))
    with kept.read() as tx:
        (group,) = ingest.groups(tx, project)
    raters = [answer.model for answer in group.answers[2:]]
    assert [answer.text for answer in group.answers[2:]] == ["Mine.", "Another."]
    ranking, thumb = group.verdicts
    assert isinstance(ranking, Ranking)
    assert ranking.order == ((2,), (shown[0],), (shown[1],))
    assert isinstance(thumb, Thumb)
    assert thumb.answer == shown[1]
    assert {ranking.rater, thumb.rater} == {raters[0]}
    assert str(raters[0]).startswith("human:rater-")


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (Submission(), "needs a verdict"),
        (Submission(verdicts=(Pair(better=0, worse=2),)), "names answer 2, but there are 2 answers"),
        (Submission(verdicts=(Thumb(answer=-1, up=True),)), "names answer -1"),
        (Submission(verdicts=(Pair(better=1, worse=1),)), "with itself"),
        (Submission(verdicts=(Ranking(order=((0, 0), (1,))),)), "ranks an answer twice"),
        (Submission(verdicts=(Pair(better=0, worse=1, probability=3.0),)), "a probability from 0 to 1"),
        (Submission(verdicts=(Score(answer=0, values={"a": float("nan")}),)), "number|JSON"),
        (Submission(written="\ud800"), "cannot be stored"),
        (Submission(verdicts=FIRST.verdicts, reason="a\0b"), "NUL"),
        (Submission(verdicts=FIRST.verdicts, client_time="\udfff"), "half a surrogate"),
        (Submission(verdicts=FIRST.verdicts, seconds=float("nan")), "seconds must be"),
        (Submission(verdicts=FIRST.verdicts, seconds=-1.0), "seconds must be"),
    ],
)
def test_what_does_not_fit_is_refused_and_leaves_no_trace(
    kept: Store, make: Make, said: Submission, reason: str
) -> None:
    project, (ada, _) = make(items=1)
    item = only_item(kept, project)
    with pytest.raises(DataError, match=reason):
        kept.run(lambda tx: events.submit(tx, project, ada, item, said))
    with kept.read() as tx:
        assert list(events.all_events(tx, project)) == []
        assert queue.progress(tx, project).done == 0


def test_whoever_signs_for_somebody_else_signs_for_themselves(kept: Store, make: Make) -> None:
    project, (ada, _) = make(items=1)
    item = only_item(kept, project)
    forged = Submission(verdicts=(Thumb(answer=0, up=True, rater="human:ben", time="1999-01-01"),))
    with kept.write() as tx:
        events.submit(tx, project, ada, item, forged)
        (group,) = ingest.groups(tx, project)
    (thumb,) = group.verdicts
    assert thumb.rater == "human:rater-1-0"
    assert thumb.time == "2027-01-15T08:00:00.000+00:00"


def test_a_change_supersedes_and_undo_brings_back(kept: Store, make: Make) -> None:
    project, (ada, ben) = make(items=1, overlap=1)
    item = only_item(kept, project)
    key = (item, ada)
    with kept.write() as tx:
        assert [lease.item for lease in queue.claim(tx, project, ada)] == [item]
        first = events.submit(tx, project, ada, item, FIRST)
        second = events.submit(tx, project, ada, item, SECOND)
        assert (first.supersedes, second.supersedes) == (None, first.id)
        assert view(tx, project)[key].event == second.id
        assert queue.progress(tx, project).done == 1

        back = events.undo(tx, project, ada)
        assert (back.kind, back.supersedes) == ("undo", second.id)
        assert view(tx, project)[key].event == first.id
        assert queue.progress(tx, project).done == 1
        with pytest.raises(ConflictError, match="does not hold"):
            events.undo(tx, project, ada, second.id)
        with pytest.raises(MissingError, match="to take back"):
            events.undo(tx, project, ben, first.id)
        with pytest.raises(MissingError, match="to take back"):
            events.undo(tx, project, ada, back.id)

        events.undo(tx, project, ada, first.id)
        assert view(tx, project) == {}
        now = queue.progress(tx, project)
        assert (now.done, now.leased) == (0, 1)
        assert [lease.item for lease in queue.claim(tx, project, ada)] == [item]
        with pytest.raises(MissingError, match="nothing to take back"):
            events.undo(tx, project, ada)
        third = events.submit(tx, project, ada, item, SECOND)
        assert third.supersedes is None
        said = list(events.all_events(tx, project))
        assert [event.kind for event in said] == ["verdict", "verdict", "undo", "undo", "verdict"]
        assert replay(said) == view(tx, project)


def test_a_skip_frees_the_place_and_never_comes_back(kept: Store, make: Make) -> None:
    project, (ada, ben) = make(items=1, overlap=1)
    item = only_item(kept, project)
    with kept.write() as tx:
        queue.claim(tx, project, ada)
        assert queue.claim(tx, project, ben) == ()
        events.skip(tx, project, ada, item, "not my field", seconds=1.0)
        assert queue.claim(tx, project, ada) == ()
        assert [lease.item for lease in queue.claim(tx, project, ben)] == [item]
        assert list(ingest.groups(tx, project)) == []
        events.submit(tx, project, ben, item, FIRST)

        # a mind changed after the place went to somebody else: kept, beyond the overlap
        changed = events.submit(tx, project, ada, item, SECOND)
        assert changed.extra
        assert len(next(iter(ingest.groups(tx, project))).verdicts) == 2
        assert len(next(iter(ingest.groups(tx, project, extra=False))).verdicts) == 1
        events.undo(tx, project, ada)
        assert view(tx, project)[item, ada].kind == "skip"
        assert replay(events.all_events(tx, project)) == view(tx, project)


def test_undo_of_a_skip_gives_the_item_back_where_a_place_is_open(kept: Store, make: Make) -> None:
    project, (ada, ben) = make(items=1, overlap=1)
    item = only_item(kept, project)
    with kept.write() as tx:
        events.skip(tx, project, ada, item, "slip")
        events.undo(tx, project, ada)
        assert [lease.item for lease in queue.claim(tx, project, ada)] == [item]
        events.skip(tx, project, ada, item, "slip")
        queue.claim(tx, project, ben)
        events.undo(tx, project, ada)
        assert queue.claim(tx, project, ada) == ()


def test_a_verdict_that_comes_back_finds_its_place_taken(kept: Store, make: Make) -> None:
    project, (ada, ben) = make(items=1, overlap=1)
    item = only_item(kept, project)
    with kept.write() as tx:
        assert not events.submit(tx, project, ada, item, FIRST).extra
        events.skip(tx, project, ada, item, "on second thoughts")
        events.submit(tx, project, ben, item, FIRST)
        assert events.undo(tx, project, ada).extra
        assert view(tx, project)[item, ada].extra
        assert replay(events.all_events(tx, project)) == view(tx, project)
        assert queue.progress(tx, project).done == 1


def test_recent_is_the_undo_stack(kept: Store, make: Make) -> None:
    project, (ada, _) = make(items=12, overlap=1, prefetch=12)
    with kept.write() as tx:
        leases = queue.claim(tx, project, ada)
        made = [events.submit(tx, project, ada, lease.item, FIRST).id for lease in leases]
        assert [event.id for event in events.recent(tx, project, ada)] == made[:1:-1]
        for expected in reversed(made):
            assert events.undo(tx, project, ada).supersedes == expected


def test_only_members_who_may_judge(kept: Store, make: Make) -> None:
    project, (ada, ben) = make(items=1)
    item = only_item(kept, project)
    with kept.write() as tx:
        people.set_role(tx, project.id, ada, "viewer", actor="system")
        people.set_role(tx, project.id, ben, None, actor="system")
        for person in (ada, ben):
            for act in (
                lambda p=person: events.submit(tx, project, p, item, FIRST),
                lambda p=person: events.skip(tx, project, p, item, ""),
                lambda p=person: events.undo(tx, project, p),
                lambda p=person: queue.claim(tx, project, p),
            ):
                with pytest.raises(DeniedError):
                    act()


def test_an_impossible_history_is_refused(kept: Store, make: Make) -> None:
    project, (ada, _) = make(items=1)
    item = only_item(kept, project)
    with kept.write() as tx:
        events.submit(tx, project, ada, item, FIRST)
        events.submit(tx, project, ada, item, SECOND)
        said = list(events.all_events(tx, project))
    with pytest.raises(InvariantError):
        replay(said[1:])
    with pytest.raises(InvariantError):
        replay(reversed(said))


def test_events_come_in_pages(kept: Store, make: Make, monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    project, (ada, _) = make(items=7, prefetch=7)
    monkeypatch.setattr(events, "PAGE", 3)
    with kept.write() as tx:
        made = [events.submit(tx, project, ada, lease.item, FIRST).seq for lease in queue.claim(tx, project, ada)]
    with kept.read() as tx:
        assert [event.seq for event in events.all_events(tx, project)] == made
        assert [event.seq for event in events.all_events(tx, project, after=made[2])] == made[3:]


def test_an_answer_shows_nothing_of_its_writer() -> None:
    group = pair(1, answers=(Answer(text="a", model="SECRET", finish="length", logprob=-2.0), Answer(text="b")))
    item = items.Item(id="i", ask="pair", slice="random", priority=0.0, overlap=1, group=group)
    project = projects.Project(id="p", name="p", seed=3, settings=projects.Settings())
    shown = item.shown(project, "ada")
    assert "SECRET" not in repr(shown)
    assert {answer.text for answer in shown.answers} == {"a", "b"}
    assert all((answer.model, answer.finish, answer.logprob) == (None, None, None) for answer in shown.answers)
