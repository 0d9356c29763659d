"""What can be learned from is kept, the rest is counted and named, and ``bad: stop`` stops at it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from trimtab.data.judged import Check, read_judged, stop_at_first, usable, with_labels, with_orders, with_pairs
from trimtab.errors import DataError
from trimtab.records.types import Answer, Group, Pair, Ranking, Score, Thumb, Verdict
from trimtab.train.run import Run


def group(*verdicts: Verdict, answers: tuple[str, ...] = ("one", "two", "three"), name: str = "g") -> Group:
    return Group(id=name, answers=tuple(Answer(text=text) for text in answers), verdicts=verdicts)


def kept(check: Check, given: Group) -> tuple[Verdict, ...]:
    found = usable([given], check)
    return found.groups[0].verdicts if found.groups else ()


def troubles(check: Check, given: Group) -> dict[str, int]:
    return dict(usable([given], check).counts())


# --- pairs ------------------------------------------------------------------------------------------------------------


def test_pairs_of_rankings_are_pairs() -> None:
    given = group(Pair(better=2, worse=0, strength=2.0, rater="r"), Ranking(order=((1,), (0, 2)), rater="s"))
    assert kept(with_pairs, given) == (
        Pair(better=2, worse=0, strength=2.0, rater="r"),
        Pair(better=1, worse=0, rater="s"),
        Pair(better=1, worse=2, rater="s"),
    )
    assert troubles(with_pairs, given) == {"tie": 1}


@pytest.mark.parametrize(
    ("said", "answers", "trouble", "words"),
    [
        (Pair(better=0, worse=1), ("one", " \n"), "empty", "holds an empty answer"),
        (Pair(better=0, worse=1), ("", "two"), "empty", "holds an empty answer"),
        (Pair(better=0, worse=1), ("same", " same\n"), "identical", "prefers an answer to one of the same text"),
        (Pair(better=0, worse=1, strength=math.nan), ("one", "two"), "not finite", "holds a number that is NaN"),
        (Pair(better=0, worse=1, probability=math.inf), ("one", "two"), "not finite", "holds a number that is NaN"),
        (Pair(better=0, worse=1, probability=1.5), ("one", "two"), "out of range", "holds a number outside 0 to 1"),
        (Pair(better=0, worse=1, tie="both_bad"), ("one", "two"), "tie", "holds a tie"),
        (Score(answer=0, values={"score": 1.0}), ("one", "two"), "unjudged", "holds no strict preference"),
    ],
)
def test_a_row_that_teaches_no_preference(said: Verdict, answers: tuple[str, ...], trouble: str, words: str) -> None:
    found = usable([group(said, answers=answers)], with_pairs)
    assert found.groups == ()
    assert found.gone == found.rows == 1
    assert found.counts() == {trouble: 1}
    with pytest.raises(DataError, match=rf"^group 'g': {words}.* \(bad: skip goes on without it\)$"):
        stop_at_first(found.left_out)


def test_what_is_wrong_with_one_answer_costs_only_what_was_said_of_it() -> None:
    """2 > 0 > 1 where 0 is empty: 2 > 1 is left, and the answers that it names."""
    given = group(Ranking(order=((2,), (0,), (1,))), answers=("", "low", "high"))
    found = usable([given], with_pairs)
    assert [answer.text for answer in found.groups[0].answers] == ["low", "high"]
    assert found.groups[0].verdicts == (Pair(better=1, worse=0),)
    assert found.counts() == {"empty": 1}  # rows, not verdicts
    assert found.gone == 0
    with pytest.raises(DataError, match="holds an empty answer"):
        stop_at_first(found.left_out)


def test_a_tie_beside_a_preference_is_no_reason_to_stop() -> None:
    found = usable([group(Pair(better=0, worse=1), Pair(better=0, worse=2, tie="tie"))], with_pairs)
    assert found.counts() == {"tie": 1}
    stop_at_first(found.left_out)


def test_a_pair_names_the_likelier_answer_first() -> None:
    """Whoever reads pairs then need not look at the label to know which answer is the better one."""
    given = group(
        Pair(better=0, worse=1, probability=0.2, strength=2.0, rater="j"), Pair(better=1, worse=2, probability=0.5)
    )
    assert kept(with_pairs, given) == (
        Pair(better=1, worse=0, probability=0.8, strength=2.0, rater="j"),
        Pair(better=1, worse=2, probability=0.5),
    )


# --- orders -----------------------------------------------------------------------------------------------------------


def test_orders_of_pairs_and_rankings() -> None:
    given = group(Pair(better=2, worse=0), Ranking(order=((1,), (0, 2)), rater="s"), Ranking(order=((0, 1),)))
    assert kept(with_orders, given) == (
        Ranking(order=((2,), (0,))),
        Ranking(order=((1,), (0, 2)), rater="s"),
    )
    assert troubles(with_orders, given) == {"tie": 1}


@pytest.mark.parametrize(("chance", "order"), [(0.8, ((0,), (1,))), (0.2, ((1,), (0,)))])
def test_of_a_soft_label_the_likelier_side_wins(chance: float, order: tuple[tuple[int, ...], ...]) -> None:
    given = group(Pair(better=0, worse=1, probability=chance), answers=("one", "two"))
    assert kept(with_orders, given) == (Ranking(order=order),)


def test_an_even_soft_label_is_a_tie() -> None:
    assert troubles(with_orders, group(Pair(better=0, worse=1, probability=0.5))) == {"tie": 1}


def test_scores_imply_an_order_by_the_attribute_that_speaks_of_the_whole() -> None:
    numbers = ((3.0, 1.0), (1.0, 5.0), (3.0, 2.0))
    given = group(*(Score(answer=i, values={"overall": a, "wit": b}) for i, (a, b) in enumerate(numbers)))
    assert kept(with_orders, given) == (Ranking(order=((0, 2), (1,))),)


def test_scores_of_one_attribute_imply_an_order_and_of_two_unknown_ones_none() -> None:
    one = [Score(answer=i, values={"wit": float(i)}) for i in range(3)]
    two = [Score(answer=i, values={"wit": float(i), "tact": 1.0}) for i in range(3)]
    assert kept(with_orders, group(*one)) == (Ranking(order=((2,), (1,), (0,))),)
    assert troubles(with_orders, group(*two)) == {"unjudged": 1}


def test_a_raters_scores_do_not_repeat_their_own_ranking() -> None:
    scores = [Score(answer=i, values={"overall": float(i)}, rater=rater) for rater in ("a", "b") for i in range(2)]
    given = group(Ranking(order=((0,), (1,)), rater="a"), *scores, answers=("one", "two"))
    assert kept(with_orders, given) == (
        Ranking(order=((0,), (1,)), rater="a"),
        Ranking(order=((1,), (0,)), rater="b"),
    )


def test_a_ranking_loses_empty_answers_and_texts_that_come_twice() -> None:
    given = group(Ranking(order=((3,), (0,), (1, 2))), answers=("same", "same ", "low", "", "unranked"))
    found = usable([given], with_orders)
    assert [answer.text for answer in found.groups[0].answers] == ["same", "low"]
    assert found.groups[0].verdicts == (Ranking(order=((0,), (1,))),)
    assert found.counts() == {"empty": 1, "identical": 1, "tie": 1}


def test_scores_that_are_not_finite_imply_nothing() -> None:
    given = group(*(Score(answer=i, values={"score": x}) for i, x in enumerate((1.0, math.nan, 3.0))))
    assert [answer.text for answer in usable([given], with_orders).groups[0].answers] == ["one", "three"]
    assert troubles(with_orders, given) == {"not finite": 1}


# --- labels -----------------------------------------------------------------------------------------------------------


def test_labels_of_wanted_attributes_and_thumbs() -> None:
    given = group(
        Score(answer=0, values={"wit": 2.0, "tact": 3.0}, rater="a"),
        Thumb(answer=2, up=False, rater="b"),
        Pair(better=0, worse=1),
    )
    assert kept(with_labels(), given) == (
        Score(answer=0, values={"wit": 2.0, "tact": 3.0}, rater="a"),
        Score(answer=1, values={"thumb": 0.0}, rater="b"),  # the answer between them has no label and is gone
    )
    assert kept(with_labels(("wit",)), given) == (Score(answer=0, values={"wit": 2.0}, rater="a"),)
    assert troubles(with_labels(("charm",)), given) == {"unjudged": 1}


def test_labels_lose_what_is_not_finite_or_no_chance() -> None:
    given = group(Score(answer=0, values={"a": math.nan, "b": 0.5}), Score(answer=1, values={"a": 2.0, "b": 1.0}))
    assert kept(with_labels(), given) == (
        Score(answer=0, values={"b": 0.5}),
        Score(answer=1, values={"a": 2.0, "b": 1.0}),
    )
    assert troubles(with_labels(), given) == {"not finite": 1}
    assert kept(with_labels(chances=True), given)[1] == Score(answer=1, values={"b": 1.0})
    assert troubles(with_labels(chances=True), given) == {"not finite": 1, "out of range": 1}


def test_a_label_of_an_empty_answer_is_left_out() -> None:
    assert troubles(with_labels(), group(Score(answer=0, values={"a": 1.0}), answers=("  ",))) == {"empty": 1}


# --- files ------------------------------------------------------------------------------------------------------------

GOOD = {"prompt": "Why?", "chosen": "Because", "rejected": "No"}


def write(path: Path, *rows: dict[str, Any] | str) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def run_in(folder: Path) -> Run:
    return Run(name="reward", folder=folder)


def test_every_bad_row_is_counted_with_its_line(tmp_path: Path) -> None:
    source = write(
        tmp_path / "p.jsonl",
        GOOD,
        {**GOOD, "rejected": " "},
        {**GOOD, "strength": math.nan},  # Python writes NaN, which is no JSON
        {**GOOD, "rejected": "Because"},
        {**GOOD, "tie": True},
        {**GOOD, "rejected": ""},
        '{"prompt": "Why?", "chosen": "Because", "rejected": "No", "probability": 1e999}',
    )
    run = run_in(tmp_path)
    found = read_judged(source, with_pairs, run=run)
    assert [place.rsplit(", ", 1)[1] for place in found.places] == ["line 1"]
    assert (found.rows, found.gone) == (7, 6)
    assert found.counts() == {"refused": 2, "empty": 2, "identical": 1, "tie": 1}
    nan = "not usable JSON: NaN is not a JSON number"
    assert run.notes == [
        f"{source}: 2 of 7 rows cannot be read (the first: {source}, line 3: {nan})",
        f"{source}: 2 of 7 rows hold an empty answer (the first: {source}, line 2)",
        f"{source}: 1 of 7 rows prefer an answer to one of the same text (the first: {source}, line 4)",
        f"{source}: 1 of 7 rows hold a tie (the first: {source}, line 5)",
        f"{source}: 6 of 7 rows were left out",
    ]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({**GOOD, "rejected": " "}, "line 2: holds an empty answer"),
        ({**GOOD, "rejected": "Because"}, "line 2: prefers an answer to one of the same text"),
        ({**GOOD, "tie": True}, "line 2: holds a tie"),
        ({**GOOD, "strength": math.inf}, "line 2: not usable JSON: Infinity is not a JSON number"),
        ({**GOOD, "strength": "NaN"}, "line 2, field 'strength': expected a number, found text"),
        ({"prompt": "Why?", "chosen": "Because"}, "line 2"),
    ],
)
def test_stop_names_the_line(tmp_path: Path, row: dict[str, Any], said: str) -> None:
    source = write(tmp_path / "p.jsonl", GOOD, row)
    with pytest.raises(DataError) as caught:
        read_judged(source, with_pairs, run=run_in(tmp_path), bad="stop")
    assert str(caught.value).startswith(f"{source}, {said}")
    assert len(read_judged(source, with_pairs, run=run_in(tmp_path)).groups) == 1


def test_nothing_left_is_an_error_that_says_why(tmp_path: Path) -> None:
    source = write(tmp_path / "p.jsonl", {**GOOD, "tie": True})
    with pytest.raises(DataError) as caught:
        read_judged(source, with_pairs, run=run_in(tmp_path))
    assert str(caught.value) == (
        f"{source}: no strict preference in it that could be learned from; the first row: {source}, line 1: holds a tie"
    )


def test_a_clean_file_gives_no_note(tmp_path: Path) -> None:
    run = run_in(tmp_path)
    found = read_judged(write(tmp_path / "p.jsonl", GOOD, GOOD), with_pairs, run=run, bad="stop")
    assert (len(found.groups), found.left_out, run.notes) == (2, (), [])


def test_nan_in_parquet_is_refused_with_its_row(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "p.parquet"
    rows = {"prompt": ["Why?"] * 3, "response": ["So", "No", "Oh"], "helpfulness": [1.0, math.nan, 3.0]}
    pq.write_table(pa.table(rows), path)
    run = run_in(tmp_path)
    found = read_judged(str(path), with_labels(), run=run, what="label")
    assert len(found.groups) == 2
    assert f"{path}, row 2, field 'helpfulness': expected a finite number" in run.notes[0]


@pytest.mark.parametrize(
    ("name", "check", "rows", "seen"),
    [
        ("pandalm_human/train.jsonl.gz", with_pairs, 717, {"refused", "empty", "tie"}),
        ("oasst_en100/kwise_train.jsonl.gz", with_orders, 168, set()),
        ("usr_topical_chat/train.jsonl.gz", with_labels(), 49, set()),
        ("usr_topical_chat/train.jsonl.gz", with_orders, 49, {"identical", "tie"}),
        ("squality_ratings/train.jsonl.gz", with_labels(("overall",)), 80, set()),
    ],
)
def test_real_data(name: str, check: Check, rows: int, seen: set[str], shared_data: Path, tmp_path: Path) -> None:
    found = read_judged(str(shared_data / name), check, run=run_in(tmp_path), what="verdict")
    assert found.rows == rows
    assert set(found.counts()) == seen
    assert len(found.groups) > 0.9 * rows
