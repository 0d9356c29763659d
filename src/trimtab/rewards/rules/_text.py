"""What several rules read in an answer: its final part, its words, its sentences. All take time linear in the text."""

from __future__ import annotations

import re

from trimtab.errors import RewardError
from trimtab.rewards import checks

# Scripts without spaces between words: Chinese and Japanese. Each character counts as a word.
_RANGES = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
CJK_LETTER = re.compile(f"[{_RANGES}]")
_STOPS = str.maketrans({"。": ". ", "！": "! ", "？": "? "})
_BLANKS = re.compile(r"[^\S\n]+")


def final(text: str) -> str:
    """Return what the answer ends on: what follows the last ``</think>``, and of that the last ``<answer>`` section.

    Without tags that is the whole text; a thought that was never closed leaves nothing.
    """
    _, closed, rest = text.rpartition("</think>")
    if not closed and "<think>" in text:
        return ""
    _, opened, said = (rest if closed else text).rpartition("<answer>")
    return said.partition("</answer>")[0] if opened else said


def words(text: str) -> list[str]:
    """Return the words in lower case: runs of letters and digits; every Chinese or Japanese character is one."""
    return checks.words(CJK_LETTER.sub(r" \g<0> ", text))


def sentences(text: str) -> list[str]:
    """Split at the ends of sentences, Chinese ones too, and of lines; what has no word in it is none."""
    plain = _BLANKS.sub(" ", text.translate(_STOPS))  # the splitter would take quadratic time on a run of blanks
    return [sentence for sentence in checks.sentences(plain) if checks.words(sentence)]


def need(rule: str, truth: str) -> str:
    """Return the truth, or raise ``RewardError`` when there is nothing in it."""
    if not truth.strip():
        raise RewardError(f"the rule {rule!r} needs a truth, and it is empty")
    return truth
