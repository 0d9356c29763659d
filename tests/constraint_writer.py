"""Writes an answer that fulfils given constraints, or finds that it cannot: a proof that they go together.

It knows every kind's reading, and nothing of the conflict table. What it writes is no prose: filler words in sentences.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle
from typing import Any

from trimtab.rewards.constraints import holds
from trimtab.rewards.constraints._constraint import sentences, words

FILLER = [
    "sun",
    "dawn",
    "dust",
    "moon",
    "fern",
    "hill",
    "lake",
    "road",
    "stone",
    "tide",
    "wind",
    "bird",
    "cloud",
    "frost",
    "grove",
    "leaf",
    "maple",
    "north",
    "ocean",
    "pine",
    "quartz",
    "river",
    "spray",
    "trail",
    "umber",
    "vale",
    "willow",
    "box",
    "yarn",
    "zinc",
    "jade",
    "kelp",
    "oak",
    "gold",
]

Constraint = Mapping[str, Any]


def write(constraints: Sequence[Constraint]) -> str:
    """An answer that should fulfil all of them; whether it does is for ``holds`` to say."""
    asked = {str(item["kind"]): item for item in constraints}
    filler = cycle(_allowed(asked))
    must = _pieces(asked, filler)
    if "json_format" in asked:
        must += [next(filler)] * max(0, _floor(asked, "number_words") - len(words(" ".join(must))))
        text = json.dumps({next(filler): " ".join(must)}, ensure_ascii=False)
    else:
        text = _prose(asked, must, filler)
    return text.upper() if "all_capitals" in asked else text.lower() if "all_lowercase" in asked else text


def fulfils(text: str, constraints: Sequence[Constraint]) -> bool:
    return all(holds(text, constraint) for constraint in constraints)


def _allowed(asked: Mapping[str, Constraint]) -> list[str]:
    """Filler words without a limited letter, and none that is limited itself."""
    letter = asked.get("letter_frequency", {"relation": "at least"})
    banned = set() if letter["relation"] == "at least" else {letter["letter"].lower()}
    return [word for word in FILLER if not banned & set(word)]


def _pieces(asked: Mapping[str, Constraint], filler: Iterator[str]) -> list[str]:
    """The words, placeholders and so on that have to stand somewhere."""
    found = [next(filler), next(filler), *asked.get("keywords", {"keywords": []})["keywords"]]
    if "one_of" in asked:
        found.append(asked["one_of"]["choices"][0])
    if "keyword_frequency" in asked:
        found += [asked["keyword_frequency"]["keyword"]] * _floor(asked, "keyword_frequency")
    if "letter_frequency" in asked:
        found += [asked["letter_frequency"]["letter"]] * _floor(asked, "letter_frequency")
    for kind, form in (("number_placeholders", "[{}]"), ("number_highlights", "*{}*")):
        found += [form.format(next(filler)) for _ in range(asked.get(kind, {"count": 0})["count"])]
    return found + [next(filler).upper() for _ in range(_floor(asked, "capital_words"))]


def _floor(asked: Mapping[str, Constraint], kind: str) -> int:
    """How many there must be at least."""
    item = asked.get(kind, {"relation": "at most"})
    return 0 if item["relation"] == "at most" else item["count"]


def _prose(asked: Mapping[str, Constraint], must: list[str], filler: Iterator[str]) -> str:
    def sentences_for(kind: str) -> list[str]:
        return [f"{next(filler)} {next(filler)}." for _ in range(asked.get(kind, {"count": 0})["count"])]

    layout = asked.get("number_paragraphs") or asked.get("paragraph_first_word") or {"count": 1}
    place, opening = layout.get("paragraph", 0), layout.get("word", "")
    others = [f"{next(filler)} {next(filler)}." for _ in range(layout["count"] - 1)]
    bullets, sections = sentences_for("number_bullets"), sentences_for("number_sections")
    single = " ".join(next(filler) for _ in range(3)) + "."  # the title, the second answer, the postscript

    def whole(lead: str) -> str:
        """The text around its first sentences."""
        rows = [asked["repeat_prompt"]["prompt"]] if "repeat_prompt" in asked else []
        rows += [lead, *([f"<<{single}>>"] if "title" in asked else []), *(f"* {row}" for row in bullets)]
        rows += [f"{asked['number_sections']['splitter']} {n}: {row}" for n, row in enumerate(sections, 1)]
        for number, row in enumerate(others, 2):
            rows += ["", f"{opening} {row}" if number == place else row]
        rows += ["******", single] if "two_responses" in asked else []
        rows += [f"{asked['postscript']['marker']} {single}"] if "postscript" in asked else []
        rows += [asked["end_phrase"]["phrase"]] if "end_phrase" in asked else []
        text = "\n".join(rows)
        return f'"{text}"' if "quotation" in asked else text

    lead = " ".join([opening, *must] if place == 1 else must)
    short = _floor(asked, "number_words") - len(words(whole(lead)))
    lead = " ".join([lead, *(next(filler) for _ in range(short))]) + "."
    while len(sentences(whole(lead))) < _floor(asked, "number_sentences"):
        lead += f" {next(filler)}."
    return whole(lead)
