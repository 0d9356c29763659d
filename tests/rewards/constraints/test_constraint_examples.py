"""Every kind of constraint against answers judged by hand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from trimtab.rewards.constraints import CONSTRAINTS, holds

Examples = dict[str, list[tuple[dict[str, Any], list[str], list[str]]]]

# kind: (options, answers that fulfil it, answers that do not)
EXAMPLES: Examples = {
    "keywords": [
        (
            {"keywords": ["water", "Paper"]},
            ["Paper drinks water.", "WATER and *paper*", "water_paper", "paper/water"],
            ["Water only", "Waters and papers", "underwater paper"],
        ),
        ({"keywords": ["ice cream"]}, ["Ice\n cream!"], ["ice-cream", "ice or cream"]),
        ({"keywords": ["don't"]}, ["I don’t."], ["I do not."]),
        ({"keywords": ["C++"]}, ["Use C++, please."], ["Use C, please.", "C++x"]),
    ],
    "forbidden_words": [
        ({"forbidden": ["very", "of course"]}, ["Every course of it", "no"], ["VERY good", "Of  course.", "**very**"]),
    ],
    "keyword_frequency": [
        ({"keyword": "often", "relation": "at least", "count": 2}, ["Often, often", "often Often often"], ["often"]),
        ({"keyword": "often", "relation": "at most", "count": 1}, ["often", "never", "soften often"], ["often often"]),
        ({"keyword": "often", "relation": "exactly", "count": 2}, ["often and often"], ["often", "often often often"]),
        ({"keyword": "often", "relation": "exactly", "count": 0}, ["never"], ["often"]),
    ],
    "letter_frequency": [
        ({"letter": "a", "relation": "at least", "count": 3}, ["Banana", "AAA"], ["pan", "áááá"]),
        ({"letter": "Z", "relation": "at most", "count": 1}, ["zoo", "Zoo", "no"], ["Zz"]),
        ({"letter": "e", "relation": "exactly", "count": 2}, ["Even"], ["even eve"]),
    ],
    "one_of": [
        (
            {"choices": ["yes", "no", "yes and no"]},
            ["Yes.", "I say no, no!", "Well: yes and\nno"],
            ["maybe", "yes or no", "yes. And yes and no.", "yesterday"],
        ),
    ],
    "number_words": [
        (
            {"relation": "at least", "count": 3},
            ["one two three", "a well-known man", "1 2 3"],
            ["don't stop", "one — two", "* * *\nhi"],
        ),
        ({"relation": "at most", "count": 2}, ["don't stop", "hi"], ["a well-known"]),
        ({"relation": "exactly", "count": 2}, ["one two"], ["one", "one two three"]),
    ],
    "number_sentences": [
        (
            {"relation": "exactly", "count": 2},
            ["One. Two!", "One\nTwo", "One?\n***\nTwo", "3.5 is one. This is two", 'He said "no." Then he left.'],
            ["One.", "One. Two. Three.", "Use e.g. this. Or that."],
        ),
        ({"relation": "at least", "count": 2}, ["# Heading\ntext", "Wait... what"], ["one; two"]),
        ({"relation": "at most", "count": 1}, ["one, two"], ["- one\n- two"]),
    ],
    "number_paragraphs": [
        (
            {"count": 2},
            ["one\n\ntwo", "one\none\n \n\n\ntwo\n", "\n\none\n\n***\n\ntwo", "one\n---\ntwo", "one\r\n\r\ntwo"],
            ["one\ntwo", "one\n\ntwo\n\nthree", "one"],
        ),
    ],
    "paragraph_first_word": [
        (
            {"count": 2, "paragraph": 2, "word": "Later"},
            ["one\n\nlater, two", 'one\n\n"Later" on', "one\n\n* LATER"],
            ["Later\n\none", "one\n\nlatermost", "one\n\ntwo\n\nLater", "Later", "one\n\nmuch later"],
        ),
        ({"count": 1, "paragraph": 2, "word": "no"}, [], ["no", "yes\n\nno"]),
        ({"count": 1, "paragraph": 1, "word": "in short"}, ["In short: no"], ["In brief"]),
    ],
    "number_placeholders": [
        (
            {"count": 2},
            ["[name] lives in [the town]", "[name] and [name]", "[[a]] [b]"],
            ["[name]", "[name] [ ]", "[name] [here](http://x)", "[na\nme] [b]", "[a [b] c"],
        ),
    ],
    "number_highlights": [
        (
            {"count": 2},
            ["*one* and **two words**", "***a*** *b*", "* bullet with *a* and *b*"],
            ["*one*", "* one *two*", "*a\nb* *c*", "2 * 3 * 4 * 5", "** ** *a*", "*-* *a*"],
        ),
    ],
    "number_bullets": [
        (
            {"count": 2},
            ["* one\n* two", "Here:\n- one\n  + two", "• one\n• two\n1. three"],
            ["* one", "* one\n* two\n* three", "* one\n* ", "*one\n*two", "1. one\n2. two", "**a** b\n* c"],
        ),
    ],
    "number_sections": [
        (
            {"splitter": "Section", "count": 2},
            [
                "Section 1\none\nSection 2\ntwo",
                "Hello.\n## SECTION 1: one\n\n**Section 2**\ntwo",
                '"section  1 one\nsection 2. two"',
            ],
            [
                "Section 1\nSection 2\ntwo",
                "Section 2\na\nSection 1\nb",
                "Section 1\na\nSection 2\nb\nSection 3\nc",
                "Section 1 one, Section 2 two",
                "Section 1\na\nSection 20\nb",
                "Section 1\na\nSection 2\n***",
                "Section 1\na\nSection 1\na\nSection 2\nb",
            ],
        ),
    ],
    "title": [
        (
            {},
            ["<<Rain>>\nIt falls.", "It falls. <<On rain>>", "<<<Rain>>> falls"],
            ["<<Rain>>", "<< >> It falls.", "<Rain> It falls.", "<<Ra\nin>> falls", "<<a>> <<b>>"],
        ),
    ],
    "json_format": [
        (
            {},
            ['{"a": 1}', ' ["rain"]\n', '```json\n{"a": "b"}\n```', '```\n[1, 2]\n```', '{"a": 1, "a": 2}'],
            [
                "{}", "[]", "```json\n{}\n```", '"rain"', "12", "true", "{'a': 1}", '{"a": NaN}', '{"a": 1,}',
                'Here: {"a": 1}', '```json\n{"a": 1}', "[" * 100_000 + "1", "[1" * 5000, "[" + "1" * 5000 + "]",
            ],
        ),
    ],
    "postscript": [
        (
            {"marker": "P.S."},
            ["Hello.\nP.S. Write soon.", "Hi\n\n**P.S.** Bye", "Hi\np.s: bye", "Hi\nP.S.\nbye", "Hi\nP.S. a\nP.S."],
            ["P.S. Hello.", "Hello. P.S. Bye.", "Hello.\nP.S.", "Hello.\nP.P.S. Bye", "***\nP.S. Bye", "Hi\np.south"],
        ),
        ({"marker": "P.P.S."}, ["Hi\nP.S. a\nP.P.S. b"], ["Hi\nP.S. b"]),
    ],
    "two_responses": [
        (
            {},
            ["one\n******\ntwo", "one\n\n ****** \n\ntwo words"],
            [
                "one\n******\none", "One!\n******\none.", "one\n******\n", "******\none", "one\n*****\ntwo",
                "one ****** two", "one\n******\ntwo\n******\nthree", "one\n*******\ntwo",
            ],
        ),
    ],
    "repeat_prompt": [
        (
            {"prompt": "What is rain?\nSay it."},
            [
                "What is rain? Say it. It is water.", '"what is rain?\n\nSay it." Water.',
                "**WHAT IS RAIN? SAY IT.** Water",
            ],
            ["What is rain? Say it.", "What is rain? It is water.", "Well: What is rain? Say it. Water", "Water."],
        ),
        ({"prompt": "Say hi"}, ["Say hi: hi"], ["Say history lessons", "Say hi!"]),
    ],
    "end_phrase": [
        (
            {"phrase": "Any questions?"},
            ["It rains. Any questions?", 'It rains. "Any\nquestions?"  ', "No. ANY QUESTIONS?"],
            ["Any questions?", "It rains. Any questions", "It rains. Any questions? No.", "So many questions?",
             "It rains. Many questions?", "Botany questions?"],
        ),
        ({"phrase": 'He said "no"'}, ['Then he said "no"', "Then he said \"no"], ["Then he said no", 'He said "no"']),
    ],
    "quotation": [
        ({}, ['"It rains."', ' "a" and "b"\n', "“It rains.”"],
         ['It "rains"', '"It rains.', "'It rains.'", "“It rains.\""]),
    ],
    "capital_words": [
        ({"relation": "at least", "count": 2}, ["NASA and COVID-19", "OH NO"], ["I saw A man", "NASA", "Nasa And"]),
        ({"relation": "at most", "count": 1}, ["I saw NASA", "none"], ["OH NO"]),
        ({"relation": "exactly", "count": 1}, ["OH dear"], ["oh dear", "OH NO"]),
    ],
    "all_capitals": [({}, ["IT RAINS.", "A1", "ÄÖ"], ["It RAINS", "IT RAINs", "123", "下雨"])],
    "all_lowercase": [({}, ["it rains.", "a1", "äö"], ["it Rains", "123", "下雨"])],
    "no_comma": [({}, ["It rains; it pours."], ["It rains, it pours.", "1,000 drops", "下，雨", "a、b", "a، b"])],
}  # fmt: skip


def cases(which: int) -> Iterator[object]:
    for kind, rows in EXAMPLES.items():
        for row in rows:
            for text in row[which]:
                yield pytest.param({"kind": kind, **row[0]}, text, id=f"{kind}-{text[:30]!r}")


def test_every_kind_has_examples_of_both() -> None:
    assert set(EXAMPLES) == set(CONSTRAINTS)
    for rows in EXAMPLES.values():
        assert any(good for _, good, _ in rows)
        assert any(bad for _, _, bad in rows)


@pytest.mark.parametrize(("constraint", "text"), list(cases(1)))
def test_holds(constraint: dict[str, Any], text: str) -> None:
    assert holds(text, constraint)


@pytest.mark.parametrize(("constraint", "text"), list(cases(2)))
def test_does_not_hold(constraint: dict[str, Any], text: str) -> None:
    assert not holds(text, constraint)
