"""ROUGE against the truth."""

from __future__ import annotations

from collections import Counter
from typing import Literal

from trimtab.errors import RewardError
from trimtab.rewards.rules._package import package
from trimtab.rewards.rules._text import need, words


def rouge(text: str, truth: str, *, variant: Literal["1", "2", "L"] = "L") -> float:
    """F1 of the words (``1``), pairs of words (``2``) or longest common subsequence (``L``) that both have.

        shared = sum of min(count in answer, count in truth)  or  |LCS|
        F1 = 2 shared / (n-grams of the answer + n-grams of the truth)

    Case and punctuation do not count, endings do (no stemming); every Chinese or Japanese character is a word.

    Range: 0 to 1. An answer without words gets 0. Raises ``RewardError`` for a truth that has no n-gram. Neither
    repetition (counts are clipped) nor length pays, since precision is half of it. Copying the text to summarise does
    where the truth is taken from it, and ``1`` does not see the order of words.

    Source: Lin 2004 (ACL workshop, W04-1013), no arXiv number
    """
    with package("rapidfuzz", "rouge"):
        from rapidfuzz.distance import LCSseq
    mine, theirs = words(text), words(need("rouge", truth))
    if variant == "L":
        shared, total = LCSseq.similarity(mine, theirs), len(mine) + len(theirs)
    else:
        a, b = (Counter(zip(*(side[i:] for i in range(int(variant))), strict=False)) for side in (mine, theirs))
        shared, total = (a & b).total(), a.total() + b.total()
    if len(theirs) < (2 if variant == "2" else 1):
        raise RewardError(f"the rule 'rouge' finds no n-gram of {variant} in the truth {truth!r}")
    return 2 * shared / total
