"""Constraints on how many words, sentences and paragraphs an answer has."""

from __future__ import annotations

from random import Random

from trimtab.rewards.constraints._constraint import (
    Constraint,
    Count,
    Needs,
    Options,
    Relation,
    Term,
    compare,
    paragraphs,
    sentences,
    words,
)  # fmt: skip

OPENINGS = ("Also", "Finally", "First", "However", "Instead", "Later", "Now", "Perhaps", "Still", "Today")


def number_words(text: str, *, relation: Relation, count: Count) -> bool:
    """The text has at least, at most or exactly ``count`` words: runs of letters and digits, apostrophes inside kept.

    "well-known" is two words, "don't" is one; marks alone are none.

    Source: IFEval (arXiv:2311.07911), length_constraints:number_words
    """
    return compare(len(words(text)), relation, count)


def number_sentences(text: str, *, relation: Relation, count: Count) -> bool:
    """The text has at least, at most or exactly ``count`` sentences.

    A sentence ends at a line's end and at a full stop, exclamation or question mark before white space, and has a
    word. So a heading or a list's item is a sentence, and "e.g. this" is two.

    Source: IFEval (arXiv:2311.07911), length_constraints:number_sentences
    """
    return compare(len(sentences(text)), relation, count)


def number_paragraphs(text: str, *, count: Count) -> bool:
    """The text has exactly ``count`` paragraphs: runs of lines with words, parted by empty lines or lines of marks.

    Source: IFEval (arXiv:2311.07911), length_constraints:number_paragraphs
    """
    return len(paragraphs(text)) == count


def paragraph_first_word(text: str, *, count: Count, paragraph: Count, word: Term) -> bool:
    """The text has exactly ``count`` paragraphs, and number ``paragraph`` begins with a word (or phrase), in any case.

    Marks before the word (a quotation mark, a bullet) do not count. Without such a paragraph it fails.

    Source: IFEval (arXiv:2311.07911), length_constraints:nth_paragraph_first_word
    """
    found, wanted = paragraphs(text), words(word)
    return len(found) == count >= paragraph and words(found[paragraph - 1])[: len(wanted)] == wanted


def _draw_words(rng: Random, prompt: str) -> Options:
    if rng.random() < 0.5:
        return {"relation": "at least", "count": rng.randrange(20, 121, 10)}
    return {"relation": "at most", "count": rng.randrange(40, 151, 10)}


def _draw_sentences(rng: Random, prompt: str) -> Options:
    if rng.random() < 0.5:
        return {"relation": "at least", "count": rng.randint(2, 8)}
    return {"relation": rng.choice(("at most", "exactly")), "count": rng.randint(2, 10)}


def _draw_first_word(rng: Random, prompt: str) -> Options:
    count = rng.randint(2, 4)
    return {"count": count, "paragraph": rng.randint(1, count), "word": rng.choice(OPENINGS)}


KINDS = (
    Constraint(
        check=number_words,
        draw=_draw_words,
        needs=lambda *, relation, count: Needs(words=0 if relation == "at most" else count),
        wordings=(
            "Write {relation} {count:word}.",
            "Your answer should have {relation} {count:word}.",
            "Spend {relation} {count:word} on your answer.",
        ),
    ),
    Constraint(
        check=number_sentences,
        draw=_draw_sentences,
        needs=lambda *, relation, count: Needs(sentences=0 if relation == "at most" else count),
        wordings=(
            "Answer in {relation} {count:sentence}; a line of its own counts as one.",
            "Your answer should come to {relation} {count:sentence}, headings and list items included.",
            "Use {relation} {count:sentence}, where every line on its own is one too.",
        ),
    ),
    Constraint(
        check=number_paragraphs,
        draw=lambda rng, prompt: {"count": rng.randint(2, 5)},
        needs=lambda *, count: Needs(sentences=count),
        wordings=(
            "Write exactly {count:paragraph}, with an empty line between one and the next.",
            "Divide your answer by empty lines into {count:paragraph}, no more and no fewer.",
            "There should be exactly {count:paragraph} in your answer, parted by empty lines.",
        ),
    ),
    Constraint(
        check=paragraph_first_word,
        draw=_draw_first_word,
        needs=lambda *, count, paragraph, word: Needs(text=word, sentences=count),
        wordings=(
            'Write exactly {count:paragraph}, parted by empty lines; paragraph {paragraph} begins with "{word}".',
            'Of your {count:paragraph}, with empty lines between, let number {paragraph} open with the word "{word}".',
            "Your answer has {count:paragraph} and empty lines only between them. Start paragraph {paragraph} with "
            '"{word}".',
        ),
    ),
)
