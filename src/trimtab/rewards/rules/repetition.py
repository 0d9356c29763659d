"""What an answer loses for saying the same again."""

from __future__ import annotations

from trimtab.rewards.checks import repeated_ngrams
from trimtab.rewards.rules._options import Size
from trimtab.rewards.rules._text import words


def repetition(text: str, *, n: Size = 3) -> float:
    """Minus the share of runs of ``n`` words that stood earlier in the answer: -(1 - distinct / all).

    Case and punctuation do not count; every Chinese or Japanese character is a word.

    Range: -1 to 0; 0 says that nothing is repeated. An answer of fewer than ``n`` words gets 0, so this rule alone pays
    for silence. It finds loops, and a list of the same phrases. The same said in other words, and a single "word" such
    as "hahahaha", pass; a small ``n`` punishes every long text, since common words come again.
    """
    return -repeated_ngrams(" ".join(words(text)), n)
