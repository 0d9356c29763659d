"""Sentence BLEU against the truth."""

from __future__ import annotations

from typing import Literal

from trimtab.rewards.rules._package import package
from trimtab.rewards.rules._text import need


def bleu(
    text: str,
    truth: str,
    *,
    tokenize: Literal["13a", "intl", "zh", "char"] = "13a",
    lowercase: bool = False,
) -> float:
    """Sentence BLEU by ``sacrebleu`` / 100: n-gram precisions up to 4, geometric mean, times the brevity penalty.

    Precisions of 0 are smoothed (exp), and n-grams longer than the answer are left out of the mean. ``tokenize``: 13a
    for languages with spaces, zh for Chinese, char for others without.

    Range: 0 to 1. An empty answer gets 0. Raises ``RewardError`` for an empty truth. Repetition does not pay (counts
    are clipped), nor does a short safe piece (brevity). It is made for corpora: of one short sentence it is noisy, and
    a right answer in other words gets little. ``chrf`` is smoother.

    Source: Papineni et al. 2002 (ACL), no arXiv number; Post 2018 (arXiv:1804.08771) for the tokenizers
    """
    with package("sacrebleu", "bleu"):
        from sacrebleu import sentence_bleu
    found = sentence_bleu(text, [need("bleu", truth)], tokenize=tokenize, lowercase=lowercase)
    return min(1.0, found.score / 100)  # the product of rounded precisions can exceed 100 by a hair
