"""Encoding: what does not fit is counted and named, and nothing is cut."""

from __future__ import annotations

from pathlib import Path

import pytest

from trimtab.data.encode import encode
from trimtab.errors import DataError
from trimtab.model.chat import Chat
from trimtab.model.tiny import tiny_tokenizer
from trimtab.records.types import Answer, Group, Message
from trimtab.train.run import Run

# ChatML on bytes: a prompt of n bytes takes n + 19 tokens (START user LF, END LF, START assistant LF), an answer of m
# takes m + 1.
FRAME, END = 19, 1


def group(name: str, prompt: int, *answers: int) -> Group:
    return Group(
        id=name,
        prompt=(Message(role="user", content="p" * prompt),),
        answers=tuple(Answer(text="a" * n) for n in answers),
    )


@pytest.fixture
def chat() -> Chat:
    return Chat(tiny_tokenizer())


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(name="sft", folder=tmp_path)


def test_lengths_by_hand(chat: Chat) -> None:
    item = chat.group(group("g", 5, 7))
    assert (len(item.prompt), len(item.answers[0])) == (5 + FRAME, 7 + END)


def test_what_fits_is_kept_whole_and_in_order(chat: Chat, run: Run) -> None:
    groups = [group("a", 5, 4), group("b", 1, 1, 8), group("c", 9)]
    kept, tokens = encode(groups, chat, max_length=5 + FRAME + 4 + END, run=run, what="rows")
    assert kept == groups
    assert tokens == [chat.group(g) for g in groups]
    assert run.notes == []


def test_the_longest_answer_counts_to_the_token(chat: Chat, run: Run) -> None:
    groups = [group("short", 5, 4), group("long", 5, 1, 5), group("longer", 50, 1), group("fits", 5, 2, 4)]
    kept, tokens = encode(groups, chat, max_length=5 + FRAME + 4 + END, run=run, what="preferences")
    assert [g.id for g in kept] == ["short", "fits"]
    assert tokens == [chat.group(g) for g in kept]
    assert run.notes == [
        "2 of 4 preferences are longer than 29 tokens and were left out (the first: long); "
        "raise max_length to keep them"
    ]


def test_stop_names_the_first_that_is_too_long(chat: Chat, run: Run) -> None:
    groups = [group("short", 5, 4), group("long", 5, 1, 5)]
    with pytest.raises(DataError) as caught:
        encode(groups, chat, max_length=5 + FRAME + 4 + END, run=run, what="preferences", bad="stop")
    assert str(caught.value) == (
        "group 'long' of the preferences: 30 tokens, and max_length=29 (bad: skip goes on without it)"
    )


def test_nothing_left_is_an_error(chat: Chat, run: Run) -> None:
    with pytest.raises(DataError, match="no prompts left to train on: all 2 are longer than max_length=10 tokens"):
        encode([group("a", 1), group("b", 1)], chat, max_length=10, run=run, what="prompts")
    with pytest.raises(DataError, match="there are no prompts to train on"):
        encode([], chat, max_length=10, run=run, what="prompts")


def test_a_conversation_that_the_template_cannot_write_is_named(run: Run) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% if messages | length > 2 %}{{ raise_exception('no') }}{% endif %}{{ messages[-1].content }}<|im_end|>"
    )
    turns = (Message(role="assistant", content="x"),) * 2
    asked = Group(id="row 7", prompt=group("", 1).prompt, answers=(Answer(text="x", messages=turns),))
    with pytest.raises(DataError, match="group 'row 7' of the rows: the model's chat template"):
        encode([asked], Chat(tokenizer), max_length=99, run=run, what="rows")
