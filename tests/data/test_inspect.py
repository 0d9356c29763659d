"""Inspection: every number by hand on a handful of Groups."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from trimtab.data.inspect import Inspection, Problem, Share, count_words, inspect, measure, render
from trimtab.records.read import Reading, read_groups
from trimtab.records.rows import Place, Refused
from trimtab.records.types import Answer, Group, Message, Pair, Ranking, Score


def user(text: str) -> tuple[Message, ...]:
    return (Message(role="user", content=text),)


def characters(group: Group) -> tuple[int, tuple[int, ...]]:
    return sum(len(m.content) for m in group.prompt), tuple(len(answer.text) for answer in group.answers)


GROUPS = (
    Group(
        id="a",
        prompt=user("pqrs"),
        answers=(Answer(text="long one"), Answer(text="short"), Answer(text="cut", finish="length")),
        verdicts=(
            Pair(better=0, worse=1, rater="human:1"),  # the longer wins
            Pair(better=1, worse=2, rater="human:2"),  # the longer, and the finished, wins
            Pair(better=2, worse=0, rater="human:2"),  # the shorter, and the cut one, wins
            Pair(better=0, worse=1, rater="human:1", tie="tie"),
        ),
    ),
    Group(
        id="b",
        prompt=(*user("pq"), Message(role="assistant", content="r"), *user("s")),
        answers=(Answer(text="same"), Answer(text="same"), Answer(text=" ")),
        verdicts=(Ranking(order=((0,), (1,))), Score(answer=2, values={"x": 1.0}, rater="judge:m")),
    ),
    Group(id="a", prompt=user("pqrs")),
)
PLACES = tuple(Place(path="f.jsonl", line=line) for line in (1, 2, 4))
REFUSED = (Refused(path="f.jsonl", line=3, field="text", reason="is missing"),)
READING = Reading(groups=GROUPS, refused=REFUSED, places=PLACES, format="ranked", digest="d" * 64)


@pytest.fixture
def found() -> Inspection:
    return inspect(READING, characters, window=11, max_answer=7)


def test_counts(found: Inspection) -> None:
    assert (found.format, found.groups, found.answers) == ("ranked", 3, 6)
    assert found.verdicts == {"pair": 4, "ranking": 1, "score": 1}
    assert found.raters == {"human:1": 2, "human:2": 2, "(not named)": 1, "judge:m": 1}
    assert found.turns == {1: 2, 3: 1}
    assert found.duplicates == 1
    assert found.repeated_ids == 1


def test_what_preferences_favour(found: Inspection) -> None:
    assert found.pairs.strict == 4  # three pairs and one that the ranking implies
    assert found.pairs.ties == 1
    assert found.pairs.identical == 1
    assert found.pairs.longer_wins == Share(hits=2, count=3)
    assert found.pairs.finished_wins == Share(hits=1, count=2)
    assert found.pairs.longer_wins.value == pytest.approx(2 / 3)
    assert Share(hits=0, count=0).value is None


def test_lengths(found: Inspection) -> None:
    assert found.unit == "tokens"
    assert found.prompt_lengths.quantiles == {0.0: 4, 0.25: 4, 0.5: 4, 0.75: 4, 0.95: 4, 1.0: 4}
    assert found.prompt_lengths.bins == ((4, 7, 3),)
    # sorted 1 3 4 4 5 8: nearest ranks ceil(6q) are 1, 2, 3, 5, 6, 6
    assert found.answer_lengths.quantiles == {0.0: 1, 0.25: 3, 0.5: 4, 0.75: 5, 0.95: 8, 1.0: 8}
    assert found.answer_lengths.bins == ((1, 1, 1), (2, 3, 1), (4, 7, 3), (8, 15, 1))


def test_rows_that_are_or_would_be_lost(found: Inspection) -> None:
    assert found.problems == (
        Problem(place="f.jsonl, line 3", kind="refused", reason="field 'text': is missing"),
        Problem(place="f.jsonl, line 1", kind="too long", reason="answer 0 has 8 tokens, an answer may have 7"),
        Problem(place="f.jsonl, line 2", kind="empty", reason="answer 2 is empty"),
    )
    tight = inspect(READING, characters, window=8, max_answer=None)
    assert [(problem.place, problem.reason) for problem in tight.problems if problem.kind == "too long"] == [
        ("f.jsonl, line 1", "the prompt and answer 0 have 12 tokens, the window 8"),
        ("f.jsonl, line 1", "the prompt and answer 1 have 9 tokens, the window 8"),
    ]
    prompts = inspect(Reading(groups=GROUPS[2:]), characters, window=3)
    assert prompts.problems == (
        Problem(place="group a", kind="too long", reason="the prompt has 4 tokens, the window 3"),
    )


def test_without_a_tokenizer_lengths_are_words_and_the_window_is_not_checked() -> None:
    found = inspect(READING, None, window=1, max_answer=1)
    assert found.unit == "words"
    assert (found.window, found.max_answer) == (None, None)
    assert {problem.kind for problem in found.problems} == {"refused", "empty"}
    assert found.answer_lengths.quantiles[1.0] == 2
    assert "lengths are words, and nothing was checked against a window" in text_of(found)


@pytest.mark.parametrize(
    ("text", "words"),
    [("It's 3.5 km, isn't it?", 8), ("我喜欢 Python 3", 5), ("カタカナ 한국", 6), ("", 0), ("… !", 0)],
)
def test_words(text: str, words: int) -> None:
    turns = (Message(role="assistant", content=text), *user("and"), Message(role="assistant", content="so"))
    group = Group(id="g", prompt=user(text), answers=(Answer(text=text), Answer(text="so", messages=turns)))
    assert count_words(group) == (words, (words, words + 2))


def test_plain_text_repeats_when_its_text_does() -> None:
    texts = tuple(Group(id=str(i), answers=(Answer(text=text),)) for i, text in enumerate(["x", "y", "x", "x"]))
    assert inspect(Reading(groups=texts), None).duplicates == 2


@given(st.lists(st.integers(0, 5000)))
def test_a_histogram_counts_everything_once(lengths: list[int]) -> None:
    found = measure(lengths)
    assert sum(count for _, _, count in found.bins) == len(lengths) == found.count
    for low, high, count in found.bins:
        assert count == sum(low <= length <= high for length in lengths)
    if lengths:
        assert found.quantiles[0.0] == min(lengths)
        assert found.quantiles[1.0] == max(lengths)
        assert list(found.quantiles.values()) == sorted(found.quantiles.values())


# --- for people -------------------------------------------------------------------------------------------------------


def text_of(found: Inspection) -> str:
    console = Console(width=100)
    with console.capture() as capture:
        console.print(render(found))
    return capture.get()


def test_the_text_says_it_all(found: Inspection) -> None:
    lines = [line.rstrip() for line in text_of(found).splitlines()]
    assert lines[0] == "format             ranked  (sha256 dddddddddddddddd)"
    assert "groups             3 with 6 answers" in lines
    assert "verdicts           pair: 4, ranking: 1, score: 1" in lines
    assert "preferences        4 strict, 1 ties, 1 between identical answers" in lines
    assert "the longer wins    66.7% of 3 pairs that differ in it" in lines
    assert "the finished wins  50.0% of 2 pairs that differ in it" in lines
    assert "  least 1  25% 3  median 4  75% 5  95% 8  most 8" in lines
    assert f"   4-7  {'█' * 40}  3" in lines
    assert f"     1  {'█' * 14:<40}  1" in lines
    assert "rows to look at: 1 empty, 1 refused, 1 too long" in lines
    assert "refused   f.jsonl, line 3  field 'text': is missing" in lines


def test_long_lists_are_cut_with_a_count() -> None:
    groups = tuple(
        Group(id=str(i), answers=(Answer(text=""),), verdicts=(Score(answer=0, values={}, rater=f"human:{i:02}"),))
        for i in range(15)
    )
    text = text_of(inspect(Reading(groups=groups), None))
    assert "human:11: 1, and 3 more" in " ".join(text.split())
    assert "... and 3 more" in text
    assert "no such pairs" not in text  # there are no pairs at all


def test_a_data_file_cannot_write_to_the_terminal() -> None:
    evil = "human:\x1b[31m[bold]\u202e"
    group = Group(id="g", answers=(Answer(text="a"),), verdicts=(Score(answer=0, values={}, rater=evil),))
    refused = Refused(path="f\x07.jsonl", line=1, field="\x1b]0;x", reason="\x9b2J")
    text = text_of(inspect(Reading(groups=(group,), refused=(refused,)), None))
    assert "human:\\x1b[31m[bold]\\u202e: 1" in text
    assert not any(character in text for character in "\x1b\x07\x9b\u202e")


def test_an_empty_reading_can_be_shown() -> None:
    found = inspect(Reading(groups=()), None)
    assert found.prompt_lengths.quantiles == {}
    assert "0 with 0 answers" in text_of(found)


def test_a_real_sample(shared_data: Path) -> None:
    reading = read_groups(shared_data / "pandalm_human" / "train.jsonl.gz", on_bad="skip")
    found = inspect(reading, None)
    assert found.pairs.strict + found.pairs.ties == found.verdicts["pair"]
    assert sum(problem.kind == "refused" for problem in found.problems) == 6
    assert sum(problem.kind == "empty" for problem in found.problems) == 49  # 28 + 21, as the file has them
    assert "rows to look at: 49 empty, 6 refused" in text_of(found)


def test_neither_records_nor_inspection_imports_torch_or_datasets() -> None:
    code = (
        "import sys, trimtab.records.read, trimtab.records.writers, trimtab.data.inspect;"
        "heavy = {'torch', 'transformers', 'datasets', 'pyarrow', 'numpy'} & set(sys.modules);"
        "sys.exit(', '.join(sorted(heavy)) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
