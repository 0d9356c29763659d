"""The answer is the truth, word for word."""

from __future__ import annotations

import re
import unicodedata
from typing import Literal

from trimtab.rewards.rules._text import final, need

Ignored = Literal["case", "punctuation", "spaces", "articles"]
_ARTICLE = re.compile(r"\b(?:a|an|the)\b", re.IGNORECASE)
_CARRIES_MEANING = "#%&@/\\"  # C#, 5 %, R&D
_IN_NUMBERS = "-.,:"


def exact_match(text: str, truth: str, *, ignore: tuple[Ignored, ...] = ("case", "punctuation", "spaces")) -> float:
    """1 when the answer, made plain, equals the truth, made plain; else 0.

    What counts is the last <answer> section, or what follows </think>, or the whole text. ``ignore``: *case*;
    *punctuation*, but not #%&@/ and none of -.,: right before a digit (-5, 3.5); *spaces*: a run counts as one, those
    at the ends as none; *articles*: a, an, the. Composed and decomposed letters are always the same.

    Range: 0 to 1. An empty answer gets 0. Raises ``RewardError`` for a truth in which nothing is left to compare.
    Holds against lists, repetition and hedging, since the whole answer must be the truth; with few possible answers
    (yes or no) guessing pays, and "The answer is Paris" is not "Paris".

    Source: Rajpurkar et al. 2016 (arXiv:1606.05250), section 6.1, which also ignores articles
    """
    need("exact_match", plain := plainly(truth, ignore))
    return float(plainly(final(text), ignore) == plain)


def plainly(text: str, ignore: tuple[Ignored, ...]) -> str:
    """Return the text without what is ignored."""
    text = unicodedata.normalize("NFC", text)
    if "case" in ignore:
        text = unicodedata.normalize("NFC", text.casefold())
    if "punctuation" in ignore:
        text = "".join(c for c, d in zip(text, [*text[1:], ""], strict=True) if not _drops(c, d)) if text else ""
    if "articles" in ignore:
        text = _ARTICLE.sub(" ", text)
    return " ".join(text.split()) if "spaces" in ignore else text


def _drops(character: str, after: str) -> bool:
    """Tell whether a character is punctuation that says nothing, by what stands after it."""
    if character in _CARRIES_MEANING or (character in _IN_NUMBERS and after.isdecimal()):
        return False
    return unicodedata.category(character).startswith("P")
