"""What preference methods learn from a judged prompt: by hand on small Groups, and laws on random ones. No model."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trimtab.data.judged import usable
from trimtab.records.types import Answer, Group, Message, Pair, Ranking, Score, Thumb, Verdict
from trimtab.registry import PREFERENCE_LOSSES
from trimtab.stages._items import KINDS, Item, Kind, _stranger, liked, make_item, order
from trimtab.stages._preference import Objective, Preference
from trimtab.tensors.tree import TokenGroup


def group(*verdicts: Verdict, answers: int = 4) -> Group:
    """Answer i says i."""
    prompt = (Message(role="user", content="Why?"),)
    return Group(
        id="g", prompt=prompt, answers=tuple(Answer(text=str(i)) for i in range(answers)), verdicts=verdicts
    )  # fmt: skip


def tokens(group: Group) -> TokenGroup:
    """Answer i is the token 100 + i, i + 1 times."""
    said = [int(answer.text) for answer in group.answers]
    return TokenGroup(prompt=(7,), answers=tuple((100 + i,) * (i + 1) for i in said))


def item(kind: Kind, group: Group) -> Item | None:
    """What the stage makes of a Group: what its check leaves of it, as tokens, as an item."""
    found = usable([group], KINDS[kind][0]).groups
    return make_item(kind, found[0], tokens(found[0])) if found else None


def answers(item: Item | None) -> list[int]:
    """Which answers of the Group are left."""
    return [tokens[0] - 100 for tokens in item.tokens.answers] if item else []


def pair(better: int, worse: int, **more: float) -> Pair:
    return Pair(better=better, worse=worse, **more)  # type: ignore[arg-type]


def thumb(answer: int, up: bool) -> Thumb:
    return Thumb(answer=answer, up=up)


# --- liked ------------------------------------------------------------------------------------------------------------


def test_most_thumbs_decide() -> None:
    votes = [thumb(0, True), thumb(0, True), thumb(0, False), thumb(1, False), thumb(2, True), thumb(2, False)]
    assert liked(group(*votes)) == {0: True, 1: False}  # 2 was voted on evenly, 3 never


def test_thumbs_decide_over_pairs() -> None:
    assert liked(group(pair(0, 1), thumb(0, False), thumb(2, True))) == {0: False, 2: True}
    assert liked(group(pair(0, 1), thumb(2, True), thumb(2, False))) == {}


def test_without_thumbs_winners_were_liked_and_losers_were_not() -> None:
    assert liked(group(pair(0, 1))) == {0: True, 1: False}
    assert liked(group(Ranking(order=((2,), (0, 3), (1,))))) == {1: False, 2: True}  # the middle won and lost
    assert liked(group(pair(0, 1), pair(1, 0))) == {}
    assert liked(group(pair(0, 1), pair(1, 0), pair(1, 0))) == {0: False, 1: True}  # two votes against one
    assert liked(group(Pair(better=0, worse=1, tie="tie"))) == {}


def test_of_a_soft_label_the_likelier_answer_was_liked() -> None:
    for chance, first in ((0.9, True), (0.2, False)):
        found = item("answer", group(pair(0, 1, probability=chance)))
        assert found is not None
        assert found.liked == ((0, first), (1, not first))
    assert item("answer", group(pair(0, 1, probability=0.5))) is None


# --- order ------------------------------------------------------------------------------------------------------------


def test_an_order_counts_those_below_less_those_above() -> None:
    assert order(group(Ranking(order=((2,), (0,), (1,))))) == (0.0, -2.0, 2.0, 0.0)
    assert order(group(Ranking(order=((1,), (0, 2))))) == (-1.0, 2.0, -1.0, 0.0)
    assert order(group(pair(0, 1), pair(0, 2), pair(1, 2), Ranking(order=((0, 1),)))) == (2.0, 0.0, -2.0, 0.0)


def test_tied_answers_stay_in_the_list() -> None:
    found = item("list", group(Ranking(order=((3,), (0, 2)))))
    assert answers(found) == [0, 2, 3]
    assert found is not None
    assert found.scores == (-1.0, -1.0, 2.0)


def test_scores_count_when_nothing_was_compared() -> None:
    scores = (Score(answer=2, values={"help": 2.0, "overall": 4.0}), Score(answer=1, values={"overall": 5.0}))
    found = item("list", group(*scores))
    assert answers(found) == [1, 2]
    assert found is not None
    assert found.scores == (1.0, -1.0)
    found = item("list", group(*scores, pair(0, 3)))
    assert answers(found) == [0, 3]


def test_an_order_in_which_all_are_equal_says_nothing() -> None:
    same = [Score(answer=i, values={"overall": 1.0}) for i in range(2)]
    for verdicts in (same, [pair(0, 1), pair(1, 0)], [thumb(0, True), thumb(1, False)]):  # thumbs are no order
        assert item("list", group(*verdicts)) is None


# --- items ------------------------------------------------------------------------------------------------------------


def test_unjudged_answers_are_left_out() -> None:
    found = item("pair", group(pair(3, 1), Pair(better=0, worse=2, tie="tie")))
    assert answers(found) == [1, 3]
    assert found is not None
    assert found.pairs == ((1, 0, 1.0),)
    assert found.size == 1
    assert answers(item("answer", group(thumb(2, True)))) == [2]


def test_a_pairs_probability_is_its_label() -> None:
    found = item("pair", group(pair(0, 1, probability=0.0), pair(1, 2, probability=0.7), pair(2, 0)))
    assert found is not None
    assert found.pairs == ((1, 0, 1.0), (1, 2, 0.7), (2, 0, 1.0))  # the likelier side is the better one
    assert found.size == 3


@pytest.mark.parametrize("kind", list(KINDS))
def test_nothing_said_is_no_item(kind: Kind) -> None:
    assert item(kind, group()) is None
    assert item(kind, group(Pair(better=0, worse=1, tie="both_bad"))) is None


places = st.integers(0, 5)
two = st.tuples(places, places).filter(lambda x: x[0] != x[1])
verdicts = st.one_of(
    two.map(lambda x: pair(*x)),
    two.map(lambda x: Pair(better=x[0], worse=x[1], tie="tie")),
    st.permutations(range(6)).flatmap(
        lambda x: st.integers(2, 6).map(lambda n: Ranking(order=tuple((i,) for i in x[:n])))
    ),
    st.tuples(places, st.booleans()).map(lambda x: thumb(*x)),
)


@given(said=st.lists(verdicts, max_size=6))
def test_an_item_speaks_of_the_same_answers_as_its_group(said: list[Verdict]) -> None:
    """Whatever was said: every answer kept was judged, and the item's indices lead to the answers that were meant."""
    compared = [(p.better, p.worse) for p in said if isinstance(p, Pair) and not p.tie]
    for ranking in (v for v in said if isinstance(v, Ranking)):
        ranked = [i for (i,) in ranking.order]
        compared += [(a, b) for n, a in enumerate(ranked) for b in ranked[n + 1 :]]
    judged = sorted({i for pair in compared for i in pair})

    found = item("pair", group(*said, answers=6))
    kept = answers(found)
    assert kept == judged
    assert sorted((kept[b], kept[w]) for b, w, _ in (found.pairs if found else ())) == sorted(compared)

    found = item("answer", group(*said, answers=6))
    kept = answers(found)
    assert {kept[i]: up for i, up in (found.liked if found else ())} == liked(group(*said, answers=6))
    assert kept == sorted(liked(group(*said, answers=6)))  # what says nothing is not computed

    found = item("list", group(*said, answers=6))
    kept = answers(found)
    wins = {i: sum(a == i for a, _ in compared) - sum(b == i for _, b in compared) for i in judged}
    assert dict(zip(kept, found.scores if found else (), strict=True)) == (wins if len(set(wins.values())) > 1 else {})


# --- weights and strangers --------------------------------------------------------------------------------------------


def task(method: str, items: list[Item], micro_tokens: int) -> Preference:
    objective = Objective(PREFERENCE_LOSSES[method], {})
    return Preference(
        None, None, objective, items, batch=len(items), micro_tokens=micro_tokens, seed=0  # type: ignore[arg-type]
    )  # fmt: skip


def items_of(kind: Kind, *groups: Group) -> list[Item]:
    return [found for group in groups if (found := item(kind, group)) is not None]


@pytest.mark.parametrize("micro_tokens", [1, 4096])
def test_every_prompt_counts_the_same_and_every_thumb(micro_tokens: int) -> None:
    """One pair and six (a ranking of four): 1/2, and 1/12 each. One thumb and three: 1/4 each."""
    ranking = group(Ranking(order=((0,), (1,), (2,), (3,))))

    def weights(method: str, items: list[Item]) -> list[float]:
        micros = task(method, items, micro_tokens).micros(items, torch.zeros(()))
        assert len(micros) == (len(items) if micro_tokens == 1 else 1)
        return [float(weight) for micro in micros for weight in micro.weight]

    assert weights("dpo", items_of("pair", group(pair(0, 1)), ranking)) == pytest.approx([1 / 2, *[1 / 12] * 6])
    three = group(thumb(0, True), thumb(1, True), thumb(3, False))
    assert weights("kto", items_of("answer", group(thumb(2, False)), three)) == pytest.approx([1 / 4] * 4)
    assert weights("rrhf", items_of("list", group(pair(0, 1)), ranking)) == pytest.approx([1 / 2, 1 / 2])


def test_lists_of_different_lengths_are_padded() -> None:
    items = items_of("list", group(pair(1, 0)), group(Ranking(order=((3,), (0,), (1,)))))
    (micro,) = task("rrhf", items, 4096).micros(items, torch.zeros(()))
    assert micro.mask.tolist() == [[True, True, False], [True, True, True]]
    assert micro.index.tolist() == [[0, 1, 0], [2, 3, 4]]
    assert micro.label.tolist() == [[-1.0, 1.0, 0.0], [0.0, -2.0, 2.0]]
    assert sorted(micro.ordered.tolist()) == [[1, 0], [2, 3], [4, 2], [4, 3]]


def test_who_was_put_before_whom() -> None:
    assert [found.ordered for found in items_of("pair", group(pair(3, 1), pair(1, 3), pair(3, 1)))] == [
        [(1, 0), (0, 1), (1, 0)]
    ]
    (one, both) = items_of("answer", group(thumb(2, True)), group(thumb(1, False), thumb(2, True), thumb(3, True)))
    assert (one.ordered, both.ordered) == ([], [(1, 0), (2, 0)])
    (tied,) = items_of("list", group(Ranking(order=((3,), (0, 2)))))
    assert tied.ordered == [(2, 0), (2, 1)]


def test_the_stranger_is_the_first_judged_answer_of_the_next_other_prompt() -> None:
    def of(prompt: int, first: int) -> Item:
        return Item(tokens=TokenGroup(prompt=(prompt,), answers=((first,), (9,))))

    items = [of(1, 10), of(1, 11), of(2, 20), of(1, 12)]
    first = [_stranger(items, i, 8).answers for i in range(4)]
    assert first == [((20,),), ((20,),), ((12,),), ((20,),)]  # the last goes on at the first
