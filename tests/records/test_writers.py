"""TRL's formats, by hand and there and back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trimtab.records.read import read_groups
from trimtab.records.types import Answer, Edit, Group, Message, Pair, Ranking, Thumb
from trimtab.records.writers import Written, write_preference, write_prompt_completion, write_unpaired

HI = Message(role="user", content="Hi")
PROMPT = [{"role": "user", "content": "Hi"}]
ANSWERS = (Answer(text="a"), Answer(text="b"), Answer(text="c"))


def says(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_prompt_and_completion(tmp_path: Path) -> None:
    turns = (Message(role="assistant", content="x"), HI, Message(role="assistant", content="y"))
    groups = [
        Group(id="two", prompt=(HI,), answers=(Answer(text="a"), Answer(text="y", messages=turns))),
        Group(id="text", answers=(Answer(text="once"),)),
        Group(id="prompt", prompt=(HI,)),
    ]
    assert write_prompt_completion(tmp_path / "f.jsonl", groups) == Written(
        rows=2, left_out=(("text", "has no prompt"), ("prompt", "has no answer"))
    )
    assert rows(tmp_path / "f.jsonl") == [
        {"prompt": PROMPT, "completion": says("a")},
        {"prompt": PROMPT, "completion": says("x") + PROMPT + says("y")},
    ]


def test_preferences_come_from_pairs_rankings_and_edits(tmp_path: Path) -> None:
    verdicts = (
        Pair(better=1, worse=0),
        Pair(better=0, worse=1, tie="tie"),
        Ranking(order=((2,), (0, 1))),
        Edit(answer=0, text="A"),
        Edit(answer=1, text="b"),
    )
    groups = [
        Group(id="g", prompt=(HI,), answers=ANSWERS, verdicts=verdicts),
        Group(id="tie", prompt=(HI,), answers=ANSWERS, verdicts=verdicts[1:2]),
    ]
    written = write_preference(tmp_path / "f.jsonl", groups)
    assert written == Written(rows=4, left_out=(("tie", "has no strict preference"),))
    found = [(row["chosen"][0]["content"], row["rejected"][0]["content"]) for row in rows(tmp_path / "f.jsonl")]
    assert found == [("b", "a"), ("c", "a"), ("c", "b"), ("A", "a")]
    assert rows(tmp_path / "f.jsonl")[0] == {"prompt": PROMPT, "chosen": says("b"), "rejected": says("a")}


def test_thumbs_and_pairs_both_good_or_both_bad(tmp_path: Path) -> None:
    verdicts = (
        Thumb(answer=2, up=True),
        Pair(better=0, worse=1, tie="both_bad"),
        Pair(better=0, worse=1, tie="both_good"),
        Pair(better=0, worse=1, tie="tie"),
        Pair(better=0, worse=1),
    )
    groups = [Group(id="g", prompt=(HI,), answers=ANSWERS, verdicts=verdicts), Group(id="none", prompt=(HI,))]
    written = write_unpaired(tmp_path / "f.jsonl", groups)
    assert written == Written(rows=5, left_out=(("none", "has no thumb"),))
    found = [(row["completion"][0]["content"], row["label"]) for row in rows(tmp_path / "f.jsonl")]
    assert found == [("c", True), ("a", False), ("b", False), ("a", True), ("b", True)]


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".parquet"])
def test_what_is_written_reads_back(suffix: str, tmp_path: Path) -> None:
    pair = Group(id="f:1", prompt=(HI,), answers=ANSWERS[:2], verdicts=(Pair(better=0, worse=1),))
    thumb = Group(id="f:1", prompt=(HI,), answers=ANSWERS[:1], verdicts=(Thumb(answer=0, up=False),))
    demonstration = Group(id="f:1", prompt=(HI,), answers=ANSWERS[:1])
    for write, group in (
        (write_preference, pair),
        (write_unpaired, thumb),
        (write_prompt_completion, demonstration),
    ):
        path = tmp_path / f"f{suffix}"
        write(path, [group])
        assert read_groups(path).groups == (group,)
