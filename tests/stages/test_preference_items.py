"""What preference methods learn from a judged prompt: by hand on small Groups, and laws on random ones. No model."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trimtab.records.types import Answer, Group, Message, Pair, Ranking, Score, Thumb, Verdict
from trimtab.registry import PREFERENCE_LOSSES
from trimtab.stages._items import Item, Kind, _stranger, liked, make_item, order
from trimtab.stages._preference import Objective, Preference
from trimtab.tensors.tree import TokenGroup

KINDS: tuple[Kind, ...] = ("pair", "answer", "list")


def group(*verdicts: Verdict, answers: int = 4) -> Group:
    prompt = (Message(role="user", content="Why?"),)
    return Group(
        id="g", prompt=prompt, answers=tuple(Answer(text=str(i)) for i in range(answers)), verdicts=verdicts
    )  # fmt: skip


def tokens(answers: int = 4, prompt: int = 7, trained: bool = False) -> TokenGroup:
    """Answer i is one token 100 + i, and i more."""
    ids = tuple((100 + i,) * (i + 1) for i in range(answers))
    marks = tuple(tuple(t % 2 == 0 for t in range(len(answer))) for answer in ids)
    return TokenGroup(prompt=(prompt,), answers=ids, trained=marks if trained else None)


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
    assert liked(group(Pair(better=0, worse=1, tie="tie"))) == {}


# --- order ------------------------------------------------------------------------------------------------------------


def test_an_order_counts_those_below_less_those_above() -> None:
    assert order(group(Ranking(order=((2,), (0,), (1,))))) == {2: 2.0, 0: 0.0, 1: -2.0}
    assert order(group(Ranking(order=((1,), (0, 2))))) == {1: 2.0, 0: -1.0, 2: -1.0}
    assert order(group(pair(0, 1), pair(0, 2), pair(1, 2))) == {0: 2.0, 1: 0.0, 2: -2.0}
    assert order(group(Ranking(order=((0, 1),)), pair(2, 3))) == {0: 0.0, 1: 0.0, 2: 1.0, 3: -1.0}  # tied, yet ranked


def test_scores_count_when_nothing_was_compared() -> None:
    scores = (Score(answer=0, values={"help": 2.0, "style": 4.0}), Score(answer=1, values={"help": 5.0}))
    assert order(group(*scores)) == {0: 3.0, 1: 5.0}
    assert order(group(*scores, pair(0, 1))) == {0: 1.0, 1: -1.0}
    assert order(group(Score(answer=2, values={}))) == {}


# --- items ------------------------------------------------------------------------------------------------------------


def test_unjudged_answers_are_left_out() -> None:
    item = make_item("pair", group(pair(3, 1), Pair(better=0, worse=2, tie="tie")), tokens(trained=True))
    assert item is not None
    assert item.tokens.answers == ((101,) * 2, (103,) * 4)
    assert item.tokens.trained == ((True, False), (True, False, True, False))
    assert item.pairs == ((1, 0, 1.0),)
    assert item.size == 1


def test_a_pairs_probability_is_its_label() -> None:
    item = make_item("pair", group(pair(0, 1, probability=0.0), pair(1, 2, probability=0.7), pair(2, 0)), tokens())
    assert item is not None
    assert item.pairs == ((0, 1, 0.0), (1, 2, 0.7), (2, 0, 1.0))
    assert item.size == 3


def test_an_order_in_which_all_are_equal_says_nothing() -> None:
    assert (
        make_item("list", group(Score(answer=0, values={"x": 1.0}), Score(answer=1, values={"x": 1.0})), tokens())
        is None
    )
    assert make_item("list", group(pair(0, 1), pair(1, 0)), tokens()) is None
    assert make_item("list", group(thumb(0, True), thumb(1, False)), tokens()) is None  # thumbs are no order


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_said_is_no_item(kind: Kind) -> None:
    assert make_item(kind, group(), tokens()) is None
    assert make_item(kind, group(Pair(better=0, worse=1, tie="both_bad")), tokens()) is None


places = st.integers(0, 5)
two = st.tuples(places, places).filter(lambda x: x[0] != x[1])
verdicts = st.one_of(
    two.map(lambda x: pair(*x)),
    two.map(lambda x: Pair(better=x[0], worse=x[1], tie="tie")),
    st.permutations(range(6)).flatmap(
        lambda x: st.integers(2, 6).map(lambda n: Ranking(order=tuple((i,) for i in x[:n])))
    ),
    st.tuples(places, st.booleans()).map(lambda x: thumb(*x)),
    st.tuples(places, st.floats(-5, 5)).map(lambda x: Score(answer=x[0], values={"x": x[1]})),
)


@given(said=st.lists(verdicts, max_size=6))
def test_an_item_speaks_of_the_same_answers_as_its_group(said: list[Verdict]) -> None:
    """Whatever was said: every answer kept was judged, and the item's indices lead to the tokens that were meant."""
    given_, whole = group(*said, answers=6), tokens(6)
    compared = {(whole.answers[p.better], whole.answers[p.worse]) for p in said if isinstance(p, Pair) and not p.tie}
    for ranking in (v for v in said if isinstance(v, Ranking)):
        texts = [whole.answers[i] for (i,) in ranking.order]
        compared |= {(a, b) for i, a in enumerate(texts) for b in texts[i + 1 :]}

    item = make_item("pair", given_, whole)
    found = item.tokens.answers if item else ()
    assert {(found[b], found[w]) for b, w, _ in (item.pairs if item else ())} == compared
    assert {answer for pair in compared for answer in pair} == set(found)

    item = make_item("answer", given_, whole)
    assert (item is None) == (not liked(given_))
    if item:
        assert {item.tokens.answers[i]: up for i, up in item.liked} == {
            whole.answers[i]: up for i, up in liked(given_).items()
        }
        assert len(item.liked) == len(item.tokens.answers) == item.size

    item = make_item("list", given_, whole)
    scores = order(given_)
    assert (item is None) == (len(set(scores.values())) < 2)
    if item:
        assert dict(zip(item.tokens.answers, item.scores, strict=True)) == {
            whole.answers[i]: score for i, score in scores.items()
        }
        assert item.size == 1


# --- weights and strangers --------------------------------------------------------------------------------------------


def task(method: str, items: list[Item], micro_tokens: int) -> Preference:
    objective = Objective(PREFERENCE_LOSSES[method], {})
    return Preference(
        None, None, objective, items, batch=len(items), micro_tokens=micro_tokens, seed=0  # type: ignore[arg-type]
    )  # fmt: skip


def items_of(kind: Kind, *groups: Group) -> list[Item]:
    made = [make_item(kind, g, tokens()) for g in groups]
    return [item for item in made if item is not None]


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


def test_the_stranger_is_the_first_judged_answer_of_the_next_other_prompt() -> None:
    def item(prompt: int, first: int) -> Item:
        return Item(tokens=TokenGroup(prompt=(prompt,), answers=((first,), (9,))))

    items = [item(1, 10), item(1, 11), item(2, 20), item(1, 12)]
    assert [_stranger(items, i) for i in range(4)] == [(20,), (20,), (12,), (20,)]  # the last goes on at the first
