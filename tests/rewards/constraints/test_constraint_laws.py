"""What every kind of constraint must obey, and that those which may stand together can be fulfilled together."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from itertools import combinations, product
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from constraint_writer import fulfils, write
from trimtab.errors import RewardError
from trimtab.rewards.constraints import CONSTRAINTS, ask, conflict, failed, holds
from trimtab.rewards.constraints.conflicts import APART, LIMITS, ONE_OF_EACH, WITH_JSON, excluded

PROMPT = "Write a short note about rain"
KINDS = list(CONSTRAINTS)
LENGTH = 100_000


def drawn(kind: str, seed: int) -> dict[str, Any]:
    options = CONSTRAINTS[kind].draw(Random(seed), PROMPT)
    assert options is not None
    return {"kind": kind, **options}


def strings(constraint: dict[str, Any]) -> list[str]:
    """Every number and text among the options."""
    values = [value for option, value in constraint.items() if option != "kind"]
    return [str(item) for value in values for item in (value if isinstance(value, list) else [value])]


# --- every kind -------------------------------------------------------------------------------------------------------


def test_the_kinds_are_those_of_ifeval_but_for_the_language() -> None:
    assert len(KINDS) == 24


@pytest.mark.parametrize("kind", KINDS)
def test_a_checker_says_where_it_comes_from(kind: str) -> None:
    said = CONSTRAINTS[kind].check.__doc__ or ""
    assert "Source: IFEval (arXiv:2311.07911), " in said


@pytest.mark.parametrize("kind", KINDS)
def test_draws_are_valid_vary_with_the_seed_and_survive_json(kind: str) -> None:
    found = [drawn(kind, seed) for seed in range(30)]
    assert found == [drawn(kind, seed) for seed in range(30)]
    for constraint in found:
        assert json.loads(json.dumps(constraint)) == constraint
        holds("A word.", constraint)
    fixed = kind in ("one_of", "repeat_prompt") or not CONSTRAINTS[kind].options
    assert (len({json.dumps(constraint) for constraint in found}) > 1) != fixed


@pytest.mark.parametrize("kind", KINDS)
def test_asking_names_every_option_in_several_wordings(kind: str) -> None:
    for seed in range(10):
        constraint = drawn(kind, seed)
        sentences = [ask(constraint, wording) for wording in range(len(CONSTRAINTS[kind].wordings))]
        assert len(set(sentences)) >= 3
        for sentence in sentences:
            shown = [text for text in strings(constraint) if text != "exactly"]  # "3 paragraphs" may say it by itself
            assert all(text in sentence for text in shown)
            assert "{" not in sentence
        assert ask(constraint, 3) == sentences[3 % len(sentences)]


def test_one_is_not_asked_for_in_the_plural() -> None:
    constraint = {"kind": "number_words", "relation": "at least", "count": 1}
    assert ask(constraint) == "Write at least 1 word."
    assert ask(constraint | {"count": 2}) == "Write at least 2 words."
    assert ask({"kind": "keywords", "keywords": ["a", "b", "c"]}) == 'Work "a", "b" and "c" into your answer.'


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_written_for_it_passes_and_a_spoilt_one_fails(kind: str) -> None:
    for seed in range(30):
        constraint = drawn(kind, seed)
        answer = write([constraint])
        assert holds(answer, constraint)
        assert holds(answer, constraint)  # asked again it says the same
        assert not holds(SPOIL[kind](answer, constraint), constraint)


def too_many_or_none(piece: str) -> Callable[[str, dict[str, Any]], str]:
    """Spoil a number: more pieces than it allows, or an answer without any."""

    def spoil(answer: str, options: dict[str, Any]) -> str:
        more = piece.format(**options) * (options["count"] + 1)
        return "1 2" if options["relation"] == "at least" else answer + more

    return spoil


SPOIL: dict[str, Callable[[str, dict[str, Any]], str]] = {
    "keywords": lambda text, o: text.replace(o["keywords"][-1], "mud"),
    "forbidden_words": lambda text, o: f"{text} {o['forbidden'][-1].title()}!",
    "keyword_frequency": too_many_or_none(" {keyword}"),
    "letter_frequency": too_many_or_none("{letter}"),
    "one_of": lambda text, o: f"{text} {o['choices'][1]}",
    "number_words": lambda text, o: "Mud" if o["relation"] == "at least" else text + " mud" * o["count"],
    "number_sentences": lambda text, o: "Mud." if o["relation"] == "at least" else text + " Mud." * o["count"],
    "number_paragraphs": lambda text, o: f"{text}\n\nMud.",
    "paragraph_first_word": lambda text, o: text.replace(o["word"], "Mud"),
    "number_placeholders": lambda text, o: text.replace("[", "(", 1),
    "number_highlights": lambda text, o: text.replace("*", "", 1),
    "number_bullets": lambda text, o: f"{text}\n- mud",
    "number_sections": lambda text, o: f"{text}\n{o['splitter']} {o['count'] + 1}\nMud.",
    "title": lambda text, o: text.replace(">>", ">"),
    "json_format": lambda text, o: f"{text}.",
    "postscript": lambda text, o: text.replace(o["marker"], "Mud:"),
    "two_responses": lambda text, o: text.replace("******", "***"),
    "repeat_prompt": lambda text, o: f"Well. {text}",
    "end_phrase": lambda text, o: f"{text} Mud.",
    "quotation": lambda text, o: text[:-1],
    "capital_words": too_many_or_none(" MUD"),
    "all_capitals": lambda text, o: f"{text}m",
    "all_lowercase": lambda text, o: f"{text}M",
    "no_comma": lambda text, o: f"{text}, mud",
}


@settings(max_examples=50, deadline=None)
@given(st.text(alphabet=" \n\t\r*#-_.,;!?\"'“”[](){}<>:`…«»\u2003\u200b", max_size=60))
def test_an_answer_without_words_holds_nothing(text: str) -> None:
    for kind in KINDS:
        constraint = drawn(kind, 1)
        assert not holds(text, constraint)
        assert not holds(text, constraint, loose=True)


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=80))
def test_any_text_can_be_judged_and_the_loose_reading_only_adds(text: str) -> None:
    for kind in KINDS:
        constraint = drawn(kind, 0)
        assert holds(text, constraint, loose=True) >= holds(text, constraint)


@pytest.mark.parametrize(
    "piece", ["a", " ", "\n", "*", "a. ", "* [a\n"], ids=["letters", "spaces", "lines", "stars", "sentences", "rows"]
)
def test_a_hostile_answer_of_100_000_characters_is_judged_in_seconds(piece: str) -> None:
    text = f"a{piece * (LENGTH // len(piece))}a"
    for kind in KINDS:
        constraint = drawn(kind, 0)
        began = time.perf_counter()
        holds(text, constraint)
        assert time.perf_counter() - began < 10, kind  # one second at most in practice; minutes where it is quadratic


# --- reading them, and loosely ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("constraint", "reason"),
    [
        ({"kind": "no_coma"}, "no constraint of the kind 'no_coma'; did you mean 'no_comma'?"),
        ({"id": "no_comma"}, "a constraint is an object with a 'kind', not {'id': 'no_comma'}"),
        ("no_comma", "a constraint is an object with a 'kind', not 'no_comma'"),
        ({"kind": "number_bullets"}, "constraint 'number_bullets': the option 'count' is missing"),
        ({"kind": "number_bullets", "count": None}, "constraint 'number_bullets': the option 'count' is missing"),
        ({"kind": "no_comma", "count": 1}, "constraint 'no_comma': no option 'count'"),
        (
            {"kind": "number_bullets", "count": 1, "cuont": 2},
            "constraint 'number_bullets': no option 'cuont'; did you mean 'count'?",
        ),
        ({"kind": "number_bullets", "count": 0}, "'number_bullets': count=0: input should be greater than or equal to"),
        ({"kind": "number_bullets", "count": "3"}, "'number_bullets': count='3': input should be a valid integer"),
        ({"kind": "number_bullets", "count": True}, "'number_bullets': count=True: input should be a valid integer"),
        ({"kind": "keywords", "keywords": "rain"}, "'keywords': keywords='rain': "),
        ({"kind": "keywords", "keywords": []}, "'keywords': keywords=[]: "),
        ({"kind": "keywords", "keywords": ["rain", "--"]}, "'keywords': keywords='--': there is no word in it"),
        (
            {"kind": "letter_frequency", "letter": "ab", "relation": "at most", "count": 0},
            "'letter_frequency': letter='ab': it should be one letter",
        ),
        (
            {"kind": "number_words", "relation": "less than", "count": 3},
            "'number_words': relation='less than': input should be 'at least', 'at most' or 'exactly'",
        ),
    ],
)
def test_a_constraint_that_cannot_be_read_is_named(constraint: Any, reason: str) -> None:
    for use in (lambda: holds("A word.", constraint), lambda: ask(constraint), lambda: conflict([constraint])):
        with pytest.raises(RewardError) as error:
            use()
        assert reason in str(error.value)


def test_an_option_that_is_none_is_not_given() -> None:
    # tables with a column for every option fill the others with nulls
    assert holds("* one", {"kind": "number_bullets", "count": 1, "letter": None})


def test_the_loose_reading_by_hand() -> None:
    end = {"kind": "end_phrase", "phrase": "Any questions?"}
    quoted = {"kind": "quotation"}
    short = {"kind": "number_words", "relation": "at most", "count": 2}
    for constraint, text in [
        (end, "It rains. **Any questions?**"),  # asterisks
        (end, "It rains. Any questions?\nSincerely, me"),  # the last line
        (quoted, 'Sure:\n"It rains."'),  # the first line
        (quoted, 'Sure:\n\n"It rains."\n\nI hope that helps.'),  # both
        (quoted, 'Sure:\n**"It rains."**\nBye'),  # all of it
    ]:
        assert not holds(text, constraint)
        assert holds(text, constraint, loose=True)
    assert not holds('Well.\nSure:\n"It rains."', quoted, loose=True)  # two lines too many
    assert not holds("one two three\n***\none two three", short, loose=True)  # nothing but marks is no answer


def test_failed_names_those_that_do_not_hold_in_their_order() -> None:
    asked = [{"kind": "no_comma"}, {"kind": "all_lowercase"}, {"kind": "title"}]
    assert failed("it rains", asked) == (asked[2],)
    assert failed("It rains, <<A>>", asked) == (asked[0], asked[1])
    assert failed(" ", asked) == tuple(asked)


# --- conflicts --------------------------------------------------------------------------------------------------------


def test_the_tables_name_kinds_that_exist() -> None:
    named = {kind for _, kinds in (*ONE_OF_EACH, *APART.values()) for kind in kinds}
    assert named | set(APART) | WITH_JSON | LIMITS <= set(KINDS)


def test_every_pair_that_may_stand_together_can_be_fulfilled() -> None:
    together = 0
    for a, b in combinations(KINDS, 2):
        pairs = [[drawn(a, seed), drawn(b, seed + 100)] for seed in range(8)]
        fine = [pair for pair in pairs if conflict(pair) is None]
        assert bool(fine) != bool(excluded(a, b)), (a, b)
        together += bool(fine)
        for pair in fine:
            assert fulfils(write(pair), pair), (pair, write(pair))
    assert together > 200  # of 276


IMPOSSIBLE = [
    ({"kind": "all_capitals"}, {"kind": "all_lowercase"}),
    ({"kind": "capital_words", "relation": "at least", "count": 1}, {"kind": "all_lowercase"}),
    ({"kind": "json_format"}, {"kind": "quotation"}),
    ({"kind": "json_format"}, {"kind": "two_responses"}),
    ({"kind": "json_format"}, {"kind": "number_bullets", "count": 1}),
    ({"kind": "json_format"}, {"kind": "end_phrase", "phrase": "b"}),
    ({"kind": "number_paragraphs", "count": 1}, {"kind": "number_paragraphs", "count": 2}),
    (
        {"kind": "number_paragraphs", "count": 2},
        {"kind": "paragraph_first_word", "count": 1, "paragraph": 1, "word": "b"},
    ),
]
PIECES = ("b", "BB ", '"', '"b"', "[", "]", "\n", "\n\n", "\n******\n", "\n* b\n")


@pytest.mark.parametrize(("a", "b"), IMPOSSIBLE)
def test_no_short_text_fulfils_two_that_contradict_each_other(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert excluded(a["kind"], b["kind"])
    texts = {"".join(parts) for length in range(4) for parts in product(PIECES, repeat=length)}
    with_a = [text for text in texts if holds(text, a)]
    assert with_a
    assert any(holds(text, b) for text in texts)
    assert not any(holds(text, b) for text in with_a)


@pytest.mark.parametrize(
    ("constraints", "reason"),
    [
        (
            [{"kind": "keywords", "keywords": ["rain"]}, {"kind": "forbidden_words", "forbidden": ["Rain"]}],
            "forbidden_words: the other constraints make the answer break it",
        ),
        (
            [
                {"kind": "keywords", "keywords": ["rain"]},
                {"kind": "keyword_frequency", "keyword": "rain", "relation": "exactly", "count": 2},
            ],
            "keyword_frequency: the other",
        ),
        (
            [
                {"kind": "keywords", "keywords": ["zigzag"]},
                {"kind": "letter_frequency", "letter": "z", "relation": "at most", "count": 1},
            ],
            "letter_frequency: the other",
        ),
        ([{"kind": "end_phrase", "phrase": "No, no."}, {"kind": "no_comma"}], "no_comma: the other"),
        ([{"kind": "repeat_prompt", "prompt": "Well, hi"}, {"kind": "no_comma"}], "no_comma: the other"),
        (
            # 4 bullets and a sentence before them: 5 x 6 words
            [{"kind": "number_bullets", "count": 4}, {"kind": "number_words", "relation": "at most", "count": 29}],
            "number_words: 29 are too few for the other constraints",
        ),
        (
            [{"kind": "number_bullets", "count": 4}, {"kind": "number_sentences", "relation": "at most", "count": 4}],
            "number_sentences: 4 are too few for the other constraints",
        ),
        (
            # 4 sentences of 25 words
            [
                {"kind": "number_words", "relation": "at least", "count": 101},
                {"kind": "number_sentences", "relation": "exactly", "count": 4},
            ],
            "number_sentences: 4 are too few for the other constraints",
        ),
        ([{"kind": "no_comma"}, {"kind": "no_comma"}], "no_comma and no_comma: one of a kind is enough"),
        ([{"kind": "json_format"}, {"kind": "no_comma"}], "json_format and no_comma: that cannot be done in JSON"),
    ],
)
def test_a_conflict_says_why_and_goes_when_the_numbers_or_words_change(
    constraints: list[dict[str, Any]], reason: str
) -> None:
    found = conflict(constraints)
    assert found is not None
    assert found.startswith(reason)
    assert conflict(constraints[::-1]) is not None
    assert conflict(constraints[:1]) is None


def test_one_more_or_another_word_makes_room() -> None:
    bullets = {"kind": "number_bullets", "count": 4}
    assert conflict([bullets, {"kind": "number_words", "relation": "at most", "count": 30}]) is None
    assert conflict([bullets, {"kind": "number_sentences", "relation": "at most", "count": 5}]) is None
    words, sentences = ({"kind": f"number_{what}", "relation": "at least"} for what in ("words", "sentences"))
    assert conflict([words | {"count": 100}, sentences | {"relation": "exactly", "count": 4}]) is None
    assert conflict([words | {"count": 1000}, sentences | {"count": 4}]) is None
    assert (
        conflict([{"kind": "end_phrase", "phrase": "No, no."}, {"kind": "forbidden_words", "forbidden": ["n"]}]) is None
    )
    rain = {"kind": "keyword_frequency", "keyword": "rain", "relation": "at least", "count": 2}
    assert conflict([{"kind": "keywords", "keywords": ["rain"]}, rain]) is None
