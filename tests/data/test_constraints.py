from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from constraint_writer import fulfils, write
from trimtab.data.constraints import constrained, draw
from trimtab.errors import ConfigError, DataError
from trimtab.records.codec import write_groups
from trimtab.records.read import read_groups
from trimtab.records.types import Answer, Group, Message, Pair
from trimtab.rewards.constraints import CONSTRAINTS, conflict


def asking(text: str, name: str = "a") -> Group:
    return Group(id=name, prompt=(Message(role="user", content=text),))


RAIN = asking("Write a note about rain, for my aunt.")


def test_what_is_asked_stands_in_the_last_turn_and_in_meta() -> None:
    before = (
        Message(role="system", content="Be kind."),
        Message(role="user", content="Hi"),
        Message(role="assistant", content="Hello."),
    )
    answers = (Answer(text="Rain."), Answer(text="No."))
    group = replace(
        RAIN,
        prompt=(*before, *RAIN.prompt),
        answers=answers,
        verdicts=(Pair(better=0, worse=1),),
        meta={"topic": "rain"},
    )
    found = draw(group, 1, Random(0), kinds=["no_comma"])
    assert found.id == "a"
    assert found.prompt[:3] == before
    assert found.prompt[3].role == "user"
    first, empty, *said = found.prompt[3].content.split("\n")
    assert (first, empty) == (RAIN.prompt[0].content, "")
    assert len(said) == 1
    assert said[0].removeprefix("- ") in CONSTRAINTS["no_comma"].wordings
    assert found.meta == {"topic": "rain", "constraints": [{"kind": "no_comma"}]}
    assert not found.answers  # they answered another prompt
    assert not found.verdicts


@pytest.mark.parametrize("count", [1, 3, 5, 8])
def test_draws_are_compatible_of_different_kinds_and_can_be_fulfilled(count: int) -> None:
    counted: Counter[str] = Counter()
    for seed in range(60):
        chosen = draw(RAIN, count, Random(seed)).meta["constraints"]
        kinds = [item["kind"] for item in chosen]
        counted.update(kinds)
        assert len(kinds) == len(set(kinds)) == count
        assert conflict(chosen) is None
        assert fulfils(write(chosen), chosen), (chosen, write(chosen))
    assert "one_of" not in counted
    if count == 5:  # of 8 none can be JSON: too few kinds go with it
        assert len(counted) == len(CONSTRAINTS) - 1  # every other kind turns up


def test_real_prompts_get_constraints_that_can_be_fulfilled() -> None:
    groups = read_groups("quickstart/prompts").groups
    found = constrained(groups, (3, 5), 0)
    assert [group.id for group in found] == [group.id for group in groups]
    assert {len(group.meta["constraints"]) for group in found} == {3, 4, 5}
    for group in found:
        chosen = group.meta["constraints"]
        assert fulfils(write(chosen), chosen), (chosen, write(chosen))


def test_the_seed_decides_and_the_neighbours_do_not() -> None:
    groups = [asking(f"Say {i}", name=str(i)) for i in range(10)]
    found = constrained(groups, 3, 7)
    assert found == constrained(groups, 3, 7)
    assert found[4:] == constrained(groups[4:], 3, 7)
    assert found != constrained(groups, 3, 8)
    assert draw(RAIN, 3, Random(1)) == draw(RAIN, 3, Random(1))
    assert len({str(group.meta["constraints"]) for group in found}) > 5


def test_it_can_be_written_and_read_again(tmp_path: Path) -> None:
    found = constrained([asking(f"Say {i}", name=str(i)) for i in range(20)], 4, 0)
    write_groups(tmp_path / "groups.jsonl", found)
    assert list(read_groups(str(tmp_path / "groups.jsonl")).groups) == found


def test_words_of_the_prompt_are_not_drawn() -> None:
    prompt = "Is it very important to really take the water of the village without a reason, often or just perhaps?"
    for seed in range(200):
        kinds = ["keywords", "forbidden_words", "keyword_frequency"]
        for item in draw(asking(prompt), 3, Random(seed), kinds=kinds).meta["constraints"]:
            terms = [
                *item.get("keywords", []),
                *item.get("forbidden", []),
                *([item.get("keyword")] * ("keyword" in item)),
            ]
            assert terms
            assert not set(terms) & set(prompt.rstrip("?").replace(",", "").split())


def test_a_long_prompt_is_not_asked_to_be_repeated() -> None:
    short = draw(asking("word " * 60), 1, Random(0), kinds=["repeat_prompt"])
    assert short.meta["constraints"][0]["prompt"] == "word " * 60
    with pytest.raises(DataError, match="group 'a': no 1 constraints that go together could be drawn from 1 kinds"):
        draw(asking("word " * 61), 1, Random(0), kinds=["repeat_prompt"])


@pytest.mark.parametrize(
    ("group", "reason"),
    [
        (Group(id="x"), "group 'x': constraints are added to a prompt that ends with the user's turn"),
        (
            Group(id="x", prompt=(Message(role="user", content="Hi"), Message(role="assistant", content="Hello"))),
            "group 'x': constraints are added to a prompt that ends with the user's turn",
        ),
        (draw(RAIN, 1, Random(0)), "group 'a': its meta has 'constraints' already"),
    ],
)
def test_a_group_that_cannot_take_constraints_is_named(group: Group, reason: str) -> None:
    with pytest.raises(DataError) as error:
        draw(group, 1, Random(0))
    assert reason in str(error.value)


def test_wrong_settings_are_named() -> None:
    with pytest.raises(ConfigError, match="no constraint of the kind 'no_coma'; did you mean 'no_comma'"):
        draw(RAIN, 1, Random(0), kinds=["no_coma"])
    with pytest.raises(ConfigError, match="0 constraints a prompt: there must be at least 1"):
        draw(RAIN, 0, Random(0))
    with pytest.raises(ConfigError, match="5 to 3 constraints a prompt"):
        constrained([RAIN], (5, 3), 0)
    with pytest.raises(DataError, match="no 2 constraints that go together could be drawn from 2 kinds"):
        draw(RAIN, 2, Random(0), kinds=["all_capitals", "all_lowercase"])
    with pytest.raises(DataError, match="no 2 constraints that go together could be drawn from 1 kinds"):
        draw(RAIN, 2, Random(0), kinds=["title", "title"])
