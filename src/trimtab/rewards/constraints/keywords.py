"""Constraints on which words and letters stand in an answer, and how often."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Annotated

import pydantic

from trimtab.rewards.constraints._constraint import (
    Constraint,
    Letter,
    Needs,
    Options,
    Relation,
    Tally,
    Term,
    compare,
    found,
    words,
)  # fmt: skip

Terms = Annotated[Sequence[Term], pydantic.Field(min_length=1)]
Choices = Annotated[Sequence[Term], pydantic.Field(min_length=2)]

COMMON = (
    "above", "balance", "because", "begin", "between", "bright", "careful", "change", "clear", "common", "detail",
    "during", "early", "enough", "example", "familiar", "follow", "garden", "gentle", "history", "however", "important",
    "journey", "kitchen", "later", "letter", "little", "matter", "memory", "moment", "morning", "nature", "often",
    "paper", "people", "perhaps", "plain", "quiet", "reason", "recent", "second", "simple", "strong", "together",
    "useful", "village", "water", "window", "winter", "without", "world", "yellow",
)  # fmt: skip
"""Words that can be worked into an answer to almost anything."""

AVOIDED = (
    "actually", "also", "amazing", "basically", "certainly", "great", "important", "just", "many", "maybe", "often",
    "perfect", "really", "simply", "some", "something", "sure", "thing", "usually", "very",
)  # fmt: skip
"""Words that an answer to almost anything can do without."""

RARE_LETTERS = "bcfgjkmpqvwxyz"


def keywords(text: str, *, keywords: Terms) -> bool:
    """Every keyword stands in the text as a whole word (or phrase), in whatever case; markup may touch it.

    "colour" is not in "colours". A script that does not part words by spaces has no whole words here.

    Source: IFEval (arXiv:2311.07911), keywords:existence, which takes parts of words too
    """
    return all(found(text, keyword) for keyword in keywords)


def forbidden_words(text: str, *, forbidden: Terms) -> bool:
    """None of the words (or phrases) stands in the text as a whole word, in whatever case.

    Source: IFEval (arXiv:2311.07911), keywords:forbidden_words
    """
    return not found(text, *forbidden)


def keyword_frequency(text: str, *, keyword: Term, relation: Relation, count: Tally) -> bool:
    """The keyword stands in the text at least, at most or exactly ``count`` times, as a whole word, in whatever case.

    Source: IFEval (arXiv:2311.07911), keywords:frequency
    """
    return compare(len(found(text, keyword)), relation, count)


def letter_frequency(text: str, *, letter: Letter, relation: Relation, count: Tally) -> bool:
    """The letter stands in the text at least, at most or exactly ``count`` times; capitals count too, accents differ.

    Source: IFEval (arXiv:2311.07911), keywords:letter_frequency
    """
    return compare(text.lower().count(letter.lower()), relation, count)


def one_of(text: str, *, choices: Choices) -> bool:
    """Exactly one of the choices stands in the text, as whole words, in whatever case, as often as it likes.

    A choice that is part of a longer one ("yes", "yes and no") does not count inside it. Naming two of them fails,
    so listing all is no way out. It suits closed questions only, and is not drawn unless it is named.

    Source: IFEval (arXiv:2311.07911), detectable_format:constrained_response
    """
    return len(set(found(text, *choices))) == 1


def _fresh(rng: Random, pool: Sequence[str], prompt: str, count: int) -> list[str]:
    """Draw words that the prompt does not hold."""
    said = set(words(prompt))
    return rng.sample([word for word in pool if word not in said], count)


def _draw_frequency(rng: Random, prompt: str) -> Options:
    relation = rng.choice(("at least", "exactly"))
    return {"keyword": _fresh(rng, COMMON, prompt, 1)[0], "relation": relation, "count": rng.randint(2, 4)}


def _draw_letter(rng: Random, prompt: str) -> Options:
    if rng.random() < 0.5:
        return {"letter": rng.choice(RARE_LETTERS), "relation": "at most", "count": rng.randint(3, 8)}
    return {"letter": rng.choice("bcdfghlmpuwy"), "relation": "at least", "count": rng.randint(3, 10)}


def _needs_times(*, keyword: str, relation: Relation, count: int) -> Needs:
    return Needs(text="" if relation == "at most" else " ".join([keyword] * count))


def _needs_letters(*, letter: str, relation: Relation, count: int) -> Needs:
    return Needs() if relation == "at most" else Needs(text=letter * count, words=count)


KINDS = (
    Constraint(
        check=keywords,
        draw=lambda rng, prompt: {"keywords": _fresh(rng, COMMON, prompt, rng.randint(1, 3))},
        needs=lambda *, keywords: Needs(text=" ".join(keywords)),
        wordings=(
            "Work {keywords} into your answer.",
            "Your answer has to contain {keywords}.",
            "Use {keywords} somewhere in what you write.",
        ),
    ),
    Constraint(
        check=forbidden_words,
        draw=lambda rng, prompt: {"forbidden": _fresh(rng, AVOIDED, prompt, rng.randint(1, 3))},
        wordings=(
            "Do without {forbidden} in your answer.",
            "Leave {forbidden} out of your answer.",
            "Avoid {forbidden} altogether.",
        ),
    ),
    Constraint(
        check=keyword_frequency,
        draw=_draw_frequency,
        needs=_needs_times,
        wordings=(
            'Use the word "{keyword}" {relation} {count:time}.',
            '"{keyword}" should turn up {relation} {count:time} in your answer.',
            'I want to read the word "{keyword}" {relation} {count:time}.',
        ),
    ),
    Constraint(
        check=letter_frequency,
        draw=_draw_letter,
        needs=_needs_letters,
        wordings=(
            'The letter "{letter}", small or capital, should appear {relation} {count:time}.',
            'Let the letter "{letter}" occur {relation} {count:time} in all, capitals included.',
            'Across your whole answer, write the letter "{letter}" {relation} {count:time}.',
        ),
    ),
    Constraint(
        check=one_of,
        draw=lambda rng, prompt: {"choices": ["My answer is yes.", "My answer is no.", "My answer is maybe."]},
        needs=lambda *, choices: Needs(text=" ".join(choices)),
        anywhere=False,
        wordings=(
            "Say exactly one of these, and none of the others: {choices}.",
            "Your answer must hold one, and only one, of {choices}.",
            "Choose one of {choices} and write it as it stands here.",
        ),
    ),
)
