"""Sentence chrF against the truth."""

from __future__ import annotations

from trimtab.rewards.rules._options import Count
from trimtab.rewards.rules._package import package
from trimtab.rewards.rules._text import need


def chrf(text: str, truth: str, *, word_order: Count = 0) -> float:
    """Sentence chrF by ``sacrebleu`` / 100: F2 of character n-grams up to 6; ``word_order: 2`` is chrF++.

    Spaces do not count. Needs no tokenizer, so it fits any language.

    Range: 0 to 1. An empty answer gets 0. Raises ``RewardError`` for an empty truth. Recall counts twice as much as
    precision: an answer that holds the truth and then goes on loses less than one that leaves something out, so weigh
    it together with ``length``.

    Source: Popović 2015 (WMT, W15-3049), no arXiv number; chrF++: Popović 2017 (W17-4770)
    """
    with package("sacrebleu", "chrf"):
        from sacrebleu import sentence_chrf
    found = sentence_chrf(text, [need("chrf", truth)], word_order=word_order)
    return min(1.0, found.score / 100)
