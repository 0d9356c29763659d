"""Which constraints no answer can fulfil together, or no reader would understand together.

Three things are looked at: a table of kinds that exclude each other; what some of them make the answer say, held
against those that limit what it says; and whether the sentences and words that all of them need fit into the length.
The numbers are on the safe side: what could be answered only with some skill is a conflict, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

from trimtab.rewards.constraints._constraint import Constraint, Needs, Options, words

WORDS_PER_SENTENCE = 6
"""Words that a sentence, a bullet or a heading is given, where the number of words is limited."""
LONGEST_SENTENCE = 25
"""Words that a sentence can hold, where the number of sentences is limited."""

ONE_OF_EACH: tuple[tuple[str, frozenset[str]], ...] = (
    (
        "each of them decides how the whole answer is laid out",
        frozenset({
            "json_format", "number_paragraphs", "paragraph_first_word", "number_sections", "repeat_prompt",
            "two_responses",
        }),
    ),
    ("both decide on capitals", frozenset({"all_capitals", "all_lowercase", "capital_words"})),
    ("both decide how the answer ends", frozenset({"end_phrase", "postscript"})),
)  # fmt: skip
"""Kinds of which an answer has at most one, and why."""

APART: dict[str, tuple[str, frozenset[str]]] = {
    "two_responses": (
        "it would not be clear whether each of the two answers is meant, or both together",
        frozenset({"number_bullets", "one_of", "postscript", "title"}),
    ),
    "repeat_prompt": (
        "the prompt would have to be changed, or may hold some of its own",
        frozenset({"all_capitals", "all_lowercase", "number_bullets", "one_of"}),
    ),
    "end_phrase": ("the phrase would have to be changed", frozenset({"all_capitals", "all_lowercase"})),
    "paragraph_first_word": ("a title may be the first paragraph, or none", frozenset({"title"})),
    "number_paragraphs": ("a title may be a paragraph, or none", frozenset({"title"})),
}
"""For a kind, others that do not go with it, and why."""

WITH_JSON = frozenset({
    "keywords", "forbidden_words", "keyword_frequency", "letter_frequency", "number_words", "all_capitals",
    "all_lowercase", "capital_words",
})  # fmt: skip
"""The only kinds that go with ``json_format``: the others lay down text that is no JSON, or forbid its commas."""

LIMITS = frozenset({
    "forbidden_words", "keyword_frequency", "letter_frequency", "capital_words", "no_comma"
})  # fmt: skip
"""Kinds that a text, once it breaks them, goes on breaking however it is continued (unless the number is a floor)."""


def conflict(constraints: Sequence[tuple[Constraint, Options]]) -> str | None:
    """Return why some constraints cannot stand together, in a few words, or None when they can."""
    for (a, _), (b, _) in combinations(constraints, 2):
        reason = excluded(a.name, b.name)
        if reason:
            return f"{a.name} and {b.name}: {reason}"
    needs = [constraint.needs(**options) for constraint, options in constraints]
    return _said(constraints, needs) or _room(constraints, needs)


def excluded(a: str, b: str) -> str | None:
    """Return why two kinds never stand together, or None when that depends on their options."""
    if a == b:
        return "one of a kind is enough"
    for reason, kinds in ONE_OF_EACH:
        if {a, b} <= kinds:
            return reason
    for one, other in ((a, b), (b, a)):
        reason, kinds = APART.get(one, ("", frozenset()))
        if other in kinds:
            return reason
        if one == "json_format" and other not in WITH_JSON:
            return "that cannot be done in JSON, or not so that anybody would"
    return None


def _said(constraints: Sequence[tuple[Constraint, Options]], needs: Sequence[Needs]) -> str | None:
    """Find a limit that is broken by what the answer has to say."""
    text = "\n".join(need.text for need in needs)
    for constraint, options in constraints:
        relation = options.get("relation")
        if constraint.name not in LIMITS or relation == "at least":
            continue
        limit: dict[str, Any] = {**options, "relation": "at most"} if relation else dict(options)
        if not constraint.check(text, **limit):
            return f"{constraint.name}: the other constraints make the answer break it"
    return None


def _room(constraints: Sequence[tuple[Constraint, Options]], needs: Sequence[Needs]) -> str | None:
    """Find a length that is too small for what the answer has to hold."""
    for (constraint, options), own in zip(constraints, needs, strict=True):
        if constraint.name not in ("number_words", "number_sentences") or options["relation"] == "at least":
            continue
        others = [need for need in needs if need is not own]
        lines = 1 + sum(need.sentences for need in others)
        size = sum(need.words + len(words(need.text)) for need in others)
        if constraint.name == "number_words" and size + WORDS_PER_SENTENCE * lines > options["count"]:
            return f"number_words: {options['count']} are too few for the other constraints"
        if constraint.name == "number_sentences" and max(lines, size / LONGEST_SENTENCE) > options["count"]:
            return f"number_sentences: {options['count']} are too few for the other constraints"
    return None
