from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.records.types import Finish
from trimtab.rewards.checks import (
    CHECKS,
    does_not_loop,
    finishes,
    no_ai_talk,
    no_filler,
    plain_text,
    repeated_ngrams,
    sentences,
    within_60_words,
    words,
)

GOOD = "Boil it for eight minutes, then cool it under the tap. If you like yours softer, take it out at six."


def test_a_good_answer_passes_every_check() -> None:
    assert [name for name, check in CHECKS.items() if not check(GOOD, "stop")] == []


def test_an_answer_without_words_only_fails_to_finish() -> None:
    for empty in ("", "  \n", "..."):
        assert [name for name, check in CHECKS.items() if not check(empty, None)] == ["finishes"]


@pytest.mark.parametrize(
    ("text", "finish", "good"),
    [
        ("Yes.", "stop", True),
        ("Yes.", None, True),
        ("Is it?  ", None, True),
        ('He said "go."', None, True),
        ("(Most do.)", None, True),
        ("It goes on…", None, True),
        ("Yes.", "length", False),
        ("Yes. And then you", None, False),
        ("Yes. And then you", "stop", False),
        ("Three things:", "stop", False),
    ],
)
def test_finishes(text: str, finish: Finish | None, good: bool) -> None:
    assert finishes(text, finish) is good


@pytest.mark.parametrize(
    "text",
    [
        "Great question! Eight minutes.",
        "That's a really good question. Eight minutes.",
        "Sure! Eight minutes.",
        "Sure, here you are. Eight minutes.",
        "Certainly, eight minutes.",
        "Of course! Eight minutes.",
        "I'd be happy to help you with that. Eight minutes.",
        "As an AI, I cook no eggs. Eight minutes.",
        "Here's a short text you can send: Happy birthday, Rose.",
        "Here are some tips: boil it.",
        "Eggs, what a lovely topic. Eight minutes.",
        "Eggs are such a fun thing to wonder about. Eight minutes.",
        "Thanks for asking. Eight minutes.",
        "Eight minutes, and I am so glad that you asked.",
        "Eight minutes! Enjoy!",
        "Eight minutes. I hope this helps.",
        "Eight minutes. Let me know if you need more.",
        "Eight minutes. Feel free to ask again.",
        "Eight minutes. If you have any other questions, write.",
    ],
)
def test_filler_is_found(text: str) -> None:
    assert not no_filler(text)


@pytest.mark.parametrize(
    "text",
    [
        "Surely not, since eggs crack.",
        "That is not such a good idea, since eggs crack.",
        "I'd be glad to join you on Saturday. See you at eight.",
        "Thank you for your message. I am away until Monday.",
        "Happy birthday, Rose! May your year be kind.",
        "Let me know if you can come on Sunday. I will bring the cake.",
        "It was such a cold day.",
    ],
)
def test_what_only_looks_like_filler_passes(text: str) -> None:
    assert no_filler(text)


@pytest.mark.parametrize(
    "text",
    [
        "# Eggs\nBoil them.",
        "Boil:\n- eggs\n- water",
        "* eggs",
        "First this.\n1. Boil.",
        "Do this. 1. Boil. 2. Cool.",
        "Do this: 1) boil, 2) cool.",
        "**Boil** them.",
        "Type `boil` and wait.",
        "| egg | minutes |",
        "See [eggs](https://example.org).",
        "Eggs. Water: cold. Time: eight. Salt: none.",
    ],
)
def test_markup_and_lists_are_found(text: str) -> None:
    assert not plain_text(text)


@pytest.mark.parametrize(
    "text",
    [
        "12. Seven and five make that.",
        "It fell by 3 - 4 points in 1969. Then it rose.",
        "Remember: eggs crack. Also: pans burn.",
        "Roses are red,\nviolets are blue.",
        "Leave at 10:30, not 11:15.",
        "A well-known fact is that 2 * 3 * 4 is 24.",
    ],
)
def test_prose_passes(text: str) -> None:
    assert plain_text(text)


def test_sixty_words_are_the_most() -> None:
    assert within_60_words("egg " * 60)
    assert not within_60_words("egg " * 61)


def test_a_sentence_said_twice_is_a_loop() -> None:
    assert not does_not_loop("Boil it well. Then cool it down a bit. Boil it well!")
    assert does_not_loop("Yes. Boil it well. Yes.")  # one word is too short to count


def test_repeated_runs_are_a_loop_from_a_tenth_on() -> None:
    # 12 words, 10 runs of three, one of them ("in the pan") there before: 10 % passes; a word less makes it 1 in 9.
    at_limit = "in the pan we boil an egg and stir in the pan"
    assert repeated_ngrams(at_limit, 3) == pytest.approx(0.1)
    assert does_not_loop(at_limit)
    assert repeated_ngrams(at_limit.replace("and ", ""), 3) == pytest.approx(1 / 9)
    assert not does_not_loop(at_limit.replace("and ", ""))
    assert not does_not_loop("no " * 20)


def test_repeated_ngrams_by_hand() -> None:
    # a b a b a: runs of two are ab ba ab ba, two distinct of four.
    assert repeated_ngrams("a b a b a", 2) == 0.5
    assert repeated_ngrams("A b. a B?", 2) == pytest.approx(1 / 3)
    assert repeated_ngrams("a", 2) == 0.0


@pytest.mark.parametrize(
    "text",
    [
        "As an AI language model, I cook no eggs.",
        "As an AI, I cannot taste.",
        "I'm just an AI and I cannot taste.",
        "I am a large language model.",
        "I'm a virtual assistant, so no.",
        "My training data ends there.",
        "I was trained on many recipes.",
        "I don't have personal opinions on eggs.",
    ],
)
def test_talk_of_being_an_ai_is_found(text: str) -> None:
    assert not no_ai_talk(text)


@pytest.mark.parametrize(
    "text",
    [
        "As an AI researcher you would say so.",
        "You might train a language model on recipes.",
        "I was trained as a cook.",
        "A chatbot cannot taste.",
    ],
)
def test_talk_about_ai_passes(text: str) -> None:
    assert no_ai_talk(text)


def test_words_and_sentences_by_hand() -> None:
    assert words("It's 3.5 km, isn’t it?") == ["it's", "3", "5", "km", "isn’t", "it"]
    assert sentences('Yes. "Go!" he said (really.) Then 3.5 km… Done') == [
        "Yes.",
        '"Go!"',
        "he said (really.)",
        "Then 3.5 km…",
        "Done",
    ]
    assert sentences(" one\n\n two ") == ["one", "two"]
    assert sentences("  ") == [""]


@given(st.text(max_size=200))
def test_sentences_keep_every_word(text: str) -> None:
    assert [word for sentence in sentences(text) for word in words(sentence)] == words(text)


@given(st.text(max_size=200), st.sampled_from(["stop", "length", None]))
def test_checks_answer_yes_or_no_to_any_text(text: str, finish: Finish | None) -> None:
    assert {type(check(text, finish)) for check in CHECKS.values()} == {bool}


def test_a_long_run_of_spaces_takes_no_time() -> None:
    began = time.monotonic()
    assert sentences("a." + " " * 200_000 + "b" + "\n" * 100_000 + "c") == ["a.", "b", "c"]
    assert all(isinstance(check(" " * 100_000 + "x", "stop"), bool) for check in CHECKS.values())
    assert time.monotonic() - began < 5  # quadratic time would be minutes
