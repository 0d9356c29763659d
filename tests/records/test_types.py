"""Records refuse what cannot be, and say which answers a verdict speaks of."""

from __future__ import annotations

import pytest

from trimtab.errors import DataError
from trimtab.records.types import (
    Answer,
    Edit,
    Group,
    Message,
    Pair,
    Ranking,
    Score,
    Thumb,
    answers_named,
    best_answers,
    pairs,
    spread,
)

ANSWERS = tuple(Answer(text=text) for text in "abcd")


def test_roles_and_finish_reasons_are_checked() -> None:
    with pytest.raises(DataError, match=r"^role 'bot' is not one of system, user, assistant, tool$"):
        Message(role="bot", content="x")  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"^finish 'eos' is not 'stop' or 'length'$"):
        Answer(text="x", finish="eos")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("verdict", "named"),
    [
        (Pair(better=2, worse=0), (2, 0)),
        (Ranking(order=((3,), (0, 1))), (3, 0, 1)),
        (Score(answer=1, values={}), (1,)),
        (Thumb(answer=2, up=True), (2,)),
        (Edit(answer=3, text="x"), (3,)),
    ],
)
def test_verdicts_name_their_answers(verdict: Pair | Ranking | Score | Thumb | Edit, named: tuple[int, ...]) -> None:
    assert answers_named(verdict) == named
    assert Group(id="g", answers=ANSWERS, verdicts=(verdict,)).with_answers(ANSWERS[:1]).verdicts == ()
    with pytest.raises(DataError, match=r"names answer \d, but there are 0 answers"):
        Group(id="g", verdicts=(verdict,))


def test_a_negative_answer_is_not_the_last_one() -> None:
    with pytest.raises(DataError, match="thumb names answer -1"):
        Group(id="g", answers=ANSWERS, verdicts=(Thumb(answer=-1, up=True),))


def test_rankings_imply_every_pair_between_their_tiers() -> None:
    verdicts = (
        Ranking(order=((2,), (0, 1), (3,)), rater="human:1"),
        Pair(better=1, worse=0, tie="tie"),
        Pair(better=1, worse=0, strength=2.0),
        Thumb(answer=0, up=True),
    )
    found = pairs(Group(id="g", answers=ANSWERS, verdicts=verdicts))
    assert [(pair.better, pair.worse) for pair in found] == [(2, 0), (2, 1), (2, 3), (0, 3), (1, 3), (1, 0)]
    assert {pair.rater for pair in found[:5]} == {"human:1"}
    assert found[5] == verdicts[2]


@pytest.mark.parametrize(
    ("verdicts", "best"),
    [
        ((), [0, 1, 2]),
        ((Pair(better=2, worse=0),), [2]),
        ((Pair(better=2, worse=0), Pair(better=1, worse=2)), [1]),
        ((Pair(better=0, worse=1), Pair(better=1, worse=0)), [0, 1]),  # a circle
        ((Pair(better=0, worse=1, tie="tie"),), [0, 1, 2]),
        ((Ranking(order=((1, 2), (0,))),), [1, 2]),
        ((Pair(better=0, worse=1), Pair(better=1, worse=0), Pair(better=1, worse=0)), [1]),  # two votes against one
        ((Pair(better=0, worse=1, probability=0.3),), [1]),  # a soft label for the other side
        ((Pair(better=0, worse=1, probability=0.5),), [0, 1, 2]),
        ((Ranking(order=((0,), (1,), (2,))), Ranking(order=((1,), (0,), (2,)))), [0, 1]),  # they part at the top only
        ((Thumb(answer=0, up=True), Thumb(answer=1, up=False)), [0, 2]),
        ((Thumb(answer=0, up=False), Thumb(answer=0, up=True), Thumb(answer=0, up=False)), [1, 2]),
        ((Thumb(answer=0, up=False), Thumb(answer=0, up=True)), [0, 1, 2]),
        ((Pair(better=2, worse=0), Thumb(answer=2, up=False)), []),  # it won, and was disliked
    ],
)
def test_best_answers(verdicts: tuple[Pair | Ranking | Thumb, ...], best: list[int]) -> None:
    answers = tuple(Answer(text=text) for text in "abc")
    assert best_answers(Group(id="g", prompt=(), answers=answers, verdicts=verdicts)) == best


@pytest.mark.parametrize(
    ("count", "limit", "taken"),
    [
        (6, 3, [0, 2, 4]),
        (5, 3, [0, 1, 3]),
        (3, 3, [0, 1, 2]),
        (2, 9, [0, 1]),
        (4, 3, [0, 1, 2]),
        (0, 3, []),
        (3, 0, []),
    ],
)
def test_spread_takes_groups_from_everywhere(count: int, limit: int, taken: list[int]) -> None:
    groups = [Group(id=str(i), prompt=()) for i in range(count)]
    assert [int(group.id) for group in spread(groups, limit)] == taken
