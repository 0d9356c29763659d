"""Groups in and out: nothing twice, nothing shown, nothing lost, the same bytes again."""

from __future__ import annotations

import dataclasses
import tracemalloc
from pathlib import Path

import pytest
from feedback_parts import Make, pair
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import insert, select

from trimtab.errors import ConfigError
from trimtab.feedback import audit, events, exclusions, ingest, items, projects, queue, tables
from trimtab.feedback.errors import MissingError
from trimtab.feedback.events import Submission
from trimtab.feedback.ingest import add_groups, groups
from trimtab.feedback.store import Store
from trimtab.records.codec import write_groups
from trimtab.records.read import read_groups
from trimtab.records.types import Answer, Group, Message, Pair, Score, Thumb

SAID = Submission(verdicts=(Pair(better=0, worse=1, strength=1.0),), seconds=3.25, reason="shorter")


def judge_all(kept: Store, project: projects.Project, people_: list[str], said: Submission = SAID) -> int:
    count = 0
    for person in people_:
        with kept.write() as tx:
            while leases := queue.claim(tx, project, person):
                for lease in leases:
                    events.submit(tx, project, person, lease.item, said)
                    count += 1
    return count


def test_the_same_question_is_asked_once(kept: Store, make: Make) -> None:
    project, _ = make(items=3)
    swapped = pair(1)
    swapped = dataclasses.replace(swapped, id="swapped", answers=swapped.answers[::-1], meta={})
    spaced = dataclasses.replace(pair(2), id="spaced", prompt=(Message(role="user", content="  Question\n2? "),))
    twice = [pair(7), dataclasses.replace(pair(7), id="again")]
    found = add_groups(kept, project, [pair(0), swapped, spaced, *twice], actor="system")
    assert found == ingest.Ingested(added=1, duplicates=("SECRET-0", "swapped", "spaced", "again"))
    assert add_groups(kept, project, [pair(0)], ask="thumb", actor="system").added == 1
    with kept.read() as tx:
        assert queue.progress(tx, project).items == 5


def test_what_cannot_be_asked_is_named(kept: Store, make: Make) -> None:
    project, _ = make(items=0)
    three = pair(1, answers=tuple(Answer(text=str(i)) for i in range(3)))
    nan = pair(2, meta={"score": float("nan")})
    found = add_groups(kept, project, [three, nan, pair(3, answers=())], actor="system")
    assert found.added == 0
    assert [name for name, _ in found.refused] == ["SECRET-1", "SECRET-2", "SECRET-3"]
    assert "3 answers; the question 'pair' needs 2" in found.refused[0][1]
    assert "cannot be stored" in found.refused[1][1]
    assert add_groups(kept, project, [three], ask="ranking", actor="system").added == 1
    assert add_groups(kept, project, [pair(3, answers=())], ask="write", actor="system").added == 1
    gold = add_groups(kept, project, [pair(4)], gold=True, actor="system")
    assert "needs the right one" in gold.refused[0][1]
    with pytest.raises(ConfigError, match="did you mean 'pair'"):
        add_groups(kept, project, [], ask="pairs", actor="system")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="overlap"):
        add_groups(kept, project, [], overlap=0, actor="system")
    with kept.read() as tx:
        assert audit.verify(tx).broken is None
        details = tx.execute(select(tables.audit.c.detail).where(tables.audit.c.action == "items.add")).scalars()
        assert '"refused": 3' in next(iter(details))


words = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
roles = st.sampled_from(["system", "user", "assistant", "tool"])
messages = st.builds(Message, role=roles, content=words)
answers = st.builds(
    Answer, text=words, messages=st.lists(messages, max_size=2).map(tuple),
    model=st.just("SECRET-model"), logprob=st.floats(-9, 0),
)  # fmt: skip
any_group = st.builds(
    Group, id=st.just("SECRET-id"), prompt=st.lists(messages, max_size=3).map(tuple),
    answers=st.lists(answers, min_size=1, max_size=4).map(tuple),
    verdicts=st.just((Thumb(answer=0, up=True, rater="SECRET-rater", reason="SECRET-reason"),)),
    meta=st.just({"SECRET-key": "SECRET-value"}),
)  # fmt: skip


@given(any_group, st.text("abc", min_size=1))
def test_nobody_sees_who_wrote_what(group: Group, person: str) -> None:
    item = items.Item(id="01", ask="ranking", slice="gold", priority=1.5, overlap=2, group=group, gold=group.verdicts)
    project = projects.Project(id="p", name="p", seed=11, settings=projects.Settings())
    shown = item.shown(project, person)
    assert "SECRET" not in repr(shown)
    assert "gold" not in repr(shown).replace(repr(shown.prompt), "").replace(repr(shown.answers), "")
    order = item.positions(project, person)
    assert [(a.text, a.messages) for a in shown.answers] == [
        (group.answers[i].text, group.answers[i].messages) for i in order
    ]


@given(any_group)
def test_a_stored_group_is_the_group(group: Group) -> None:
    from trimtab.records import strict_json
    from trimtab.records.codec import decode_group

    assert decode_group(strict_json.loads(items.dump_group(group))) == group  # type: ignore[arg-type]


def test_out_twice_is_the_same_bytes_and_in_again_the_same_groups(
    kept: Store, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest, "PAGE", 3)
    monkeypatch.setattr(ingest, "BATCH", 4)
    project, raters = make(items=0, members=2, overlap=2)
    own = pair(5, verdicts=(Score(answer=1, values={"helpful": 4.0}, rater="judge:m@1"),))
    add_groups(kept, project, [*map(pair, range(5)), own, *map(pair, range(6, 9))], actor="system")
    assert judge_all(kept, project, raters) == 18
    paths = [tmp_path / f"{i}.jsonl" for i in range(3)]
    for path in paths[:2]:
        with kept.read() as tx:
            write_groups(path, groups(tx, project))
    assert paths[0].read_bytes() == paths[1].read_bytes()
    out = read_groups(paths[0]).groups
    assert [group.id for group in out] == [f"SECRET-{i}" for i in range(9)]
    assert out[0].answers == pair(0).answers
    assert out[0].meta == pair(0).meta
    assert {verdict.rater for verdict in out[0].verdicts} == {"human:rater-1-0", "human:rater-1-1"}
    assert all(verdict.seconds == 3.25 and verdict.reason == "shorter" for verdict in out[0].verdicts)
    assert [verdict.rater for verdict in out[5].verdicts] == ["judge:m@1", "human:rater-1-0", "human:rater-1-1"]

    other, _ = make(items=0)
    assert add_groups(kept, other, out, actor="system").added == 9
    with kept.read() as tx:
        assert list(groups(tx, other)) == []
        write_groups(paths[2], groups(tx, other, judged=False))
    assert paths[2].read_bytes() == paths[0].read_bytes()


def test_gold_answers_stay_inside(kept: Store, make: Make) -> None:
    project, _ = make(items=0)
    right = (Pair(better=1, worse=0, rater="human:expert"),)
    add_groups(kept, project, [pair(1, verdicts=right)], gold=True, actor="system")
    with kept.read() as tx:
        (name,) = tx.execute(select(tables.item.c.id)).scalars()
        item = items.get_item(tx, project, name)
        (out,) = groups(tx, project, judged=False, gold=True)
    assert (item.slice, item.gold) == ("gold", right)
    assert item.group.verdicts == out.verdicts == ()


def test_exclusions_leave_out_and_can_be_lifted(kept: Store, make: Make) -> None:
    project, (ada, ben) = make(items=2, overlap=2)
    judge_all(kept, project, [ada, ben])
    with kept.read() as tx:
        said = list(events.all_events(tx, project))

    def raters() -> list[int]:
        with kept.read() as tx:
            return [len(group.verdicts) for group in groups(tx, project)]

    assert raters() == [2, 2]
    for kind, subject, left in (
        ("event", said[0].id, 3),
        ("person", ada, 2),
        ("item", said[0].item, 2),
    ):
        with kept.write() as tx:
            made = exclusions.exclude(tx, project, kind, subject, rule="speed", reason="0.2 s", actor=ben)
        assert sum(raters()) == left
        with kept.write() as tx:
            assert exclusions.list_exclusions(tx, project, lifted=False) == [made]
            exclusions.lift(tx, project, made.id, actor=ben)
            with pytest.raises(MissingError):
                exclusions.lift(tx, project, made.id, actor=ben)
        assert raters() == [2, 2]
    with kept.read() as tx:
        kinds = [found.kind for found in exclusions.list_exclusions(tx, project)]
        assert exclusions.list_exclusions(tx, project, lifted=False) == []
        assert audit.verify(tx).broken is None
    assert kinds == ["event", "person", "item"]
    with pytest.raises(ConfigError, match="not one of"), kept.write() as tx:
        exclusions.exclude(tx, project, "mood", "x", rule="r", reason="", actor=ben)


def test_memory_does_not_grow_with_the_store(kept: Store, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve times as many items, much the same peak: two pages are all that is held."""
    monkeypatch.setattr(ingest, "PAGE", 100)
    project, _ = make(items=0)

    def fill(start: int, stop: int) -> None:
        with kept.write() as tx:
            body = items.dump_group(pair(0, meta={"filler": "x" * 500}))
            rows = [
                {"id": tx.new_id(), "project": project.id, "digest": f"{i:064d}", "ask": "pair", "body": body,
                 "slice": "random", "priority": 0.0, "overlap": 1, "created": 0.0}
                for i in range(start, stop)
            ]  # fmt: skip
            tx.execute(insert(tables.item), rows)

    def peak() -> tuple[int, int]:
        with kept.read() as tx:
            tracemalloc.start()
            count = sum(1 for _ in groups(tx, project, judged=False))
            _, high = tracemalloc.get_traced_memory()
            tracemalloc.stop()
        return count, high

    fill(0, 300)
    peak()  # SQLAlchemy's own caches fill up
    small, low = peak()
    fill(300, 3600)
    large, high = peak()
    assert (small, large) == (300, 3600)
    assert high < 3 * low  # what waits for the garbage collector varies
