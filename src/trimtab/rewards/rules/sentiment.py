"""How positive or negative the answer's words are."""

from __future__ import annotations

import textwrap
from functools import cache, lru_cache
from typing import Any

from trimtab.rewards.rules._package import package
from trimtab.rewards.rules._text import sentences

PIECE = 250


def sentiment(text: str) -> float:
    """The mean of VADER's compound score over the answer's sentences: -1 most negative, 1 most positive.

    A sentence of more than 250 characters is read in pieces of that length, since VADER's time grows with the square.
    Of one sentence it is the compound score itself. English only; a sentence in another language counts 0.

    Range: -1 to 1. An empty answer gets 0. Does not hold against a policy: "love love love" and a row of hearts score
    near 1 whatever was asked, because VADER adds up the words of a list. Use it with ``repetition`` and a KL penalty.

    Source: Hutto and Gilbert 2014, VADER (ICWSM), no arXiv number; its authors advise the mean over sentences
    """
    pieces = [piece for sentence in sentences(text) or [text] for piece in _pieces(sentence)]
    return sum(map(_compound, pieces)) / len(pieces) if pieces else 0.0


def _pieces(sentence: str) -> list[str]:
    return textwrap.wrap(sentence, PIECE, break_on_hyphens=False) if len(sentence) > PIECE else [sentence]


@lru_cache(maxsize=4096)
def _compound(piece: str) -> float:
    return float(_analyzer().polarity_scores(piece)["compound"])


@cache
def _analyzer() -> Any:
    with package("vaderSentiment", "sentiment"):
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    return SentimentIntensityAnalyzer()
