"""Constraints on capitals and commas."""

from __future__ import annotations

import re

from trimtab.rewards.constraints._constraint import Constraint, Needs, Relation, Tally, compare

COMMAS = ",，、،"
_LETTERS = re.compile(r"[^\W\d_]{2,}")


def capital_words(text: str, *, relation: Relation, count: Tally) -> bool:
    """At least, at most or exactly ``count`` words are all capitals: runs of two letters or more, none of them small.

    So "I" and "A" do not count, and "COVID-19" does.

    Source: IFEval (arXiv:2311.07911), change_case:capital_word_frequency, which counts single letters too
    """
    return compare(sum(word.isupper() for word in _LETTERS.findall(text)), relation, count)


def all_capitals(text: str) -> bool:
    """No letter is small, and there is a capital; a text in a script without capitals fails.

    Source: IFEval (arXiv:2311.07911), change_case:english_capital
    """
    return text.isupper()


def all_lowercase(text: str) -> bool:
    """No letter is a capital, and there is a small one; a text in a script without capitals fails.

    Source: IFEval (arXiv:2311.07911), change_case:english_lowercase
    """
    return text.islower()


def no_comma(text: str) -> bool:
    """There is no comma, not even a full-width, ideographic or Arabic one, nor one inside a number.

    Source: IFEval (arXiv:2311.07911), punctuation:no_comma
    """
    return not any(comma in text for comma in COMMAS)


KINDS = (
    Constraint(
        check=capital_words,
        draw=lambda rng, prompt: {"relation": rng.choice(("at least", "at most")), "count": rng.randint(2, 6)},
        needs=lambda *, relation, count: Needs(words=0 if relation == "at most" else count),
        wordings=(
            "Write {relation} {count:word} in capital letters throughout.",
            "Let {relation} {count:word} of two letters or more be all CAPITALS.",
            "In your answer, {relation} {count:word} should be set wholly in capitals.",
        ),
    ),
    Constraint(
        check=all_capitals,
        wordings=(
            "Write in capital letters only.",
            "Every letter of your answer has to be a capital.",
            "Use no small letters at all.",
        ),
    ),
    Constraint(
        check=all_lowercase,
        wordings=(
            "Write in small letters only, even at the start of a sentence.",
            "There must be no capital letter anywhere in your answer.",
            "Keep your whole answer in lower case.",
        ),
    ),
    Constraint(
        check=no_comma,
        wordings=(
            "Do not use a single comma.",
            "Your answer must get by without commas.",
            "Leave out all commas.",
        ),
    ),
)
