"""Constraints on parts that an answer has to hold: placeholders, highlights, bullets, sections, a title, JSON."""

from __future__ import annotations

import json
import re
from typing import NoReturn

from trimtab.rewards.constraints._constraint import MARKUP, Constraint, Count, Needs, Term, has_words

_PLACEHOLDER = re.compile(r"\[([^\[\]\n]+)\](?!\()")
_HIGHLIGHT = re.compile(r"(\*\*?)(?=\S)([^*\n]*[^*\s])\1")
_BULLET = re.compile(r"\s*[-*+•]\s+(\S.*)")
_TITLE = re.compile(r"<<([^<>\n]+)>>")


def number_placeholders(text: str, *, count: Count) -> bool:
    """The text has at least ``count`` placeholders: words in square brackets on one line, ``[name]``.

    A link, ``[name](...)``, is none; the same placeholder counts each time.

    Source: IFEval (arXiv:2311.07911), detectable_content:number_placeholders
    """
    return sum(has_words(inside) for inside in _PLACEHOLDER.findall(text)) >= count


def number_highlights(text: str, *, count: Count) -> bool:
    """The text has at least ``count`` parts set off by asterisks on one line, ``*so*`` or ``**so**``, with a word each.

    No space may follow the first asterisk or precede the last, so a bullet's asterisk opens nothing.

    Source: IFEval (arXiv:2311.07911), detectable_format:number_highlighted_sections
    """
    return sum(has_words(inside) for _, inside in _HIGHLIGHT.findall(text)) >= count


def number_bullets(text: str, *, count: Count) -> bool:
    """The text has exactly ``count`` bullets: lines that begin with ``*``, ``-``, ``+`` or ``•``, a space, and words.

    Indented bullets count too; numbered items do not.

    Source: IFEval (arXiv:2311.07911), detectable_format:number_bullet_lists
    """
    found = (_BULLET.match(line) for line in text.splitlines())
    return sum(bullet is not None and has_words(bullet[1]) for bullet in found) == count


def number_sections(text: str, *, splitter: Term, count: Count) -> bool:
    """The text has exactly the sections 1 to ``count``, in this order, each under its heading and with words.

    A heading is a line that begins with the splitter and a number ("Section 1"), in whatever case, after ``#``, ``*``
    or nothing. The section's words may stand on the heading's line, too.

    Source: IFEval (arXiv:2311.07911), detectable_format:multiple_sections, which counts the headings only
    """
    heading = re.compile(rf"{re.escape(splitter)}\s+([0-9]{{1,3}})(?![0-9])(.*)", re.IGNORECASE)
    numbers: list[int] = []
    filled: set[int] = set()
    for line in text.splitlines():
        found = heading.match(line.lstrip(MARKUP + "\t"))
        if found:
            numbers.append(int(found[1]))
        if numbers and has_words(found[2] if found else line):
            filled.add(len(numbers))
    return numbers == list(range(1, count + 1)) and len(filled) == count


def title(text: str) -> bool:
    """The text has a title in double angle brackets on one line, ``<<The title>>``, with a word in it and words beside.

    Source: IFEval (arXiv:2311.07911), detectable_format:title
    """
    return any(map(has_words, _TITLE.findall(text))) and has_words(_TITLE.sub(" ", text))


def json_format(text: str) -> bool:
    """The whole text is one JSON object or list with a word in it; a Markdown fence may stand around it.

    NaN is no JSON, and ``{}``, ``"text"`` and ``12`` are no answers: anybody can quote a sentence.

    Source: IFEval (arXiv:2311.07911), detectable_format:json_format, which takes any value
    """
    rows = text.strip().splitlines()
    if len(rows) > 2 and rows[0].strip().lower() in ("```json", "```") and rows[-1].strip() == "```":
        text = "\n".join(rows[1:-1])
    try:
        value = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):  # the latter: nested too deeply to be read
        return False
    return isinstance(value, dict | list) and has_words(text)


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


KINDS = (
    Constraint(
        check=number_placeholders,
        draw=lambda rng, prompt: {"count": rng.randint(2, 4)},
        needs=lambda *, count: Needs(words=count),
        wordings=(
            "Leave at least {count:placeholder} in square brackets, such as [name].",
            "Put in no fewer than {count:placeholder} for me to fill in, each in square brackets like [date].",
            "At least {count:gap} should be left open as words in square brackets, for example [place].",
        ),
    ),
    Constraint(
        check=number_highlights,
        draw=lambda rng, prompt: {"count": rng.randint(2, 4)},
        needs=lambda *, count: Needs(words=count),
        wordings=(
            "Set off at least {count:part} of your answer with asterisks, *like this*.",
            "Mark no fewer than {count:phrase} with asterisks on both sides, as in *these words*.",
            "Emphasise at least {count:passage} by Markdown asterisks (*so*).",
        ),
    ),
    Constraint(
        check=number_bullets,
        draw=lambda rng, prompt: {"count": rng.randint(2, 5)},
        needs=lambda *, count: Needs(sentences=count),
        wordings=(
            'Include exactly {count:bullet}, each on a line that begins with "* ".',
            "Give {count:bullet point}, no more and no fewer; a star and a space begin each line.",
            'Your answer should hold {count:bullet} exactly, written as lines that start with "- ".',
        ),
    ),
    Constraint(
        check=number_sections,
        draw=lambda rng, prompt: {"splitter": rng.choice(("Section", "Part", "Step")), "count": rng.randint(2, 4)},
        needs=lambda *, splitter, count: Needs(
            text=" ".join(f"{splitter} {number + 1}" for number in range(count)), sentences=2 * count
        ),
        wordings=(
            'Divide your answer into {count:section} under the headings "{splitter} 1", "{splitter} 2" and so on.',
            'Write {count:section}. Each begins on a new line with "{splitter}" and its number, counted from 1.',
            'There must be exactly {count:section}, headed "{splitter} 1" and onwards, each heading on its own line.',
        ),
    ),
    Constraint(
        check=title,
        needs=lambda: Needs(sentences=1, words=1),
        wordings=(
            "Give your answer a title in double angle brackets, like <<A title>>.",
            "Above or within the text there must be a title of the form <<Words of the title>>.",
            "Name your answer: put its title between << and >>.",
        ),
    ),
    Constraint(
        check=json_format,
        needs=lambda: Needs(sentences=1),
        wordings=(
            "Reply with one JSON object or list and nothing around it.",
            "The whole answer has to be valid JSON: an object or a list.",
            "Write everything as a single JSON object; a Markdown code fence around it is all right.",
        ),
    ),
)
