"""Constraints on how an answer begins, ends, is wrapped or is put together."""

from __future__ import annotations

from random import Random

from trimtab.rewards.constraints._constraint import (
    MARKUP,
    QUOTES,
    Constraint,
    Needs,
    Options,
    Term,
    flat,
    has_words,
    plain,
    sentences,
    words,
)  # fmt: skip

DIVIDER = "******"
LONGEST_REPEATED = 60
"""Words of the longest prompt that a draw asks to repeat."""

ENDINGS = (
    "And that is the whole story.",
    "Now it is your turn.",
    "What would you add?",
    "In short, take your time.",
    "More on this another day.",
    "Is there anything else that I can do for you?",
)


def postscript(text: str, *, marker: Term) -> bool:
    """A line begins with the marker ("P.S."), with words after it and words on the lines before.

    Case, markup before the marker and its last full stop do not matter. What follows it is the postscript, however
    many lines it has.

    Source: IFEval (arXiv:2311.07911), detectable_content:postscript
    """
    rows, wanted = text.splitlines(), plain(marker).rstrip(".")
    first = next((i for i, row in enumerate(rows) if has_words(row)), len(rows))
    for i in range(len(rows) - 1, first, -1):
        row = plain(rows[i].strip()).lstrip(MARKUP)
        rest = row.removeprefix(wanted)
        if row.startswith(wanted) and not rest[:1].isalnum() and any(map(has_words, (rest, *rows[i + 1 :]))):
            return True
    return False


def two_responses(text: str) -> bool:
    """The text is two answers with a line of six asterisks between; both have words, and not the same ones.

    Source: IFEval (arXiv:2311.07911), combination:two_responses
    """
    parts: list[list[str]] = [[]]
    for row in text.splitlines():
        if row.strip() == DIVIDER:
            parts.append([])
        else:
            parts[-1].append(row)
    said = [words("\n".join(part)) for part in parts]
    return len(said) == 2 and all(said) and said[0] != said[1]


def repeat_prompt(text: str, *, prompt: Term) -> bool:
    """The text begins with the prompt, word for word and mark for mark, and goes on with words of its own.

    Case, white space, and quotation marks or markup at the very beginning do not matter.

    Source: IFEval (arXiv:2311.07911), combination:repeat_prompt
    """
    said, wanted = (plain(flat(part)).lstrip(MARKUP) for part in (text, prompt))
    rest = said.removeprefix(wanted)
    return said.startswith(wanted) and not (wanted[-1].isalnum() and rest[:1].isalnum()) and has_words(rest)


def end_phrase(text: str, *, phrase: Term) -> bool:
    """The text ends with the phrase, mark for mark, and has words before it.

    Case, white space, and quotation marks at the very end do not matter.

    Source: IFEval (arXiv:2311.07911), startend:end_checker
    """
    said, wanted = (plain(flat(part)).rstrip(QUOTES) for part in (text, phrase))
    before = said.removesuffix(wanted)
    return said.endswith(wanted) and not (wanted[0].isalnum() and before[-1:].isalnum()) and has_words(before)


def quotation(text: str) -> bool:
    """The whole text stands in double quotation marks, straight or curly; white space around it does not matter.

    Source: IFEval (arXiv:2311.07911), startend:quotation
    """
    inside = text.strip()
    return len(inside) > 1 and (inside[0], inside[-1]) in (('"', '"'), ("“", "”"))


def _draw_repeat(rng: Random, prompt: str) -> Options | None:
    return {"prompt": prompt} if 0 < len(words(prompt)) <= LONGEST_REPEATED else None


KINDS = (
    Constraint(
        check=postscript,
        draw=lambda rng, prompt: {"marker": rng.choice(("P.S.", "P.P.S."))},
        needs=lambda *, marker: Needs(text=marker, sentences=3),
        wordings=(
            "Close with a postscript on a new line that begins with {marker}",
            "At the end, on a line of its own, add a postscript marked {marker}",
            "After your answer, begin a new line with {marker} and add something to it.",
        ),
    ),
    Constraint(
        check=two_responses,
        needs=lambda: Needs(sentences=2),
        wordings=(
            f"Give two different answers, with a line of six asterisks ({DIVIDER}) between them.",
            f"I want a choice of two answers that differ. Part them by a line that reads {DIVIDER}",
            f"Answer twice, not in the same words; between the two stands {DIVIDER} on its own line.",
        ),
    ),
    Constraint(
        check=repeat_prompt,
        draw=_draw_repeat,
        needs=lambda *, prompt: Needs(text=prompt, sentences=len(sentences(prompt)) + 1),
        wordings=(
            'First repeat my request word for word, namely "{prompt}", and only then answer it.',
            'Begin with the exact words "{prompt}" and let your answer follow.',
            'Before you answer, say the request again without changing it: "{prompt}"',
        ),
    ),
    Constraint(
        check=end_phrase,
        draw=lambda rng, prompt: {"phrase": rng.choice(ENDINGS)},
        needs=lambda *, phrase: Needs(text=phrase, sentences=len(sentences(phrase)) + 1),
        wordings=(
            'The last words of your answer should be "{phrase}", with nothing after them.',
            'End on exactly this: "{phrase}"',
            'Finish with the phrase "{phrase}" and add nothing to it.',
        ),
    ),
    Constraint(
        check=quotation,
        wordings=(
            "Put your whole answer in double quotation marks.",
            "Your answer begins and ends with a double quotation mark.",
            'Wrap everything that you write in "double quotes".',
        ),
    ),
)
