"""The answer matches a regular expression, or does not."""

from __future__ import annotations

from typing import Literal

import regex as engine

from trimtab.errors import RewardError
from trimtab.rewards.rules._options import Pattern

SECONDS = 5.0


def regex(text: str, *, pattern: Pattern, should: Literal["match", "not_match"] = "match") -> float:
    r"""1 when ``pattern`` is found anywhere in the answer (``should: match``), or nowhere (``not_match``); else 0.

    The syntax is that of Python's ``re`` and of the package ``regex``; flags stand in it, as in ``(?i)yes``. Anchor it
    (``\A...\Z``) to mean the whole answer: an unanchored one is satisfied by an answer that lists every possibility,
    and ``not_match`` by an empty one.

    Range: 0 to 1. Raises ``RewardError`` when the search takes more than five seconds: such a pattern tries
    exponentially many ways.
    """
    try:
        found = engine.search(pattern, text, timeout=SECONDS) is not None
    except TimeoutError:
        raise RewardError(f"the pattern {pattern!r} takes more than {SECONDS:g} seconds on an answer") from None
    return float(found == (should == "match"))
