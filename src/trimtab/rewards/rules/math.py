"""The answer is mathematically equal to the truth: LaTeX, roots, unknowns, sets."""

from __future__ import annotations

import re
import threading
from functools import lru_cache
from typing import Any

from trimtab.errors import RewardError
from trimtab.rewards.rules._marked import boxed, marked
from trimtab.rewards.rules._number import plain, whole
from trimtab.rewards.rules._package import package
from trimtab.rewards.rules._text import final, need

MAX_LENGTH = 200
SECONDS = 5
# What could take forever to compute: factorials, sums, powers of powers, powers of many digits.
_ENDLESS = re.compile(r"!|\\(?:sum|prod|int|binom|lim)|\^\{[^}]*\^|\^\{?[-+]?\d{3}|\*\*|\d{50}|(?:\{[^{}]*){9}")


def math(text: str, truth: str) -> float:
    r"""1 when the expression that the answer gives equals the truth by ``math-verify``, else 0.

    Of what follows </think>, or stands in the last <answer> section, one expression counts: what the last
    ``\boxed{...}`` holds, else what follows the last ``####``, else what follows the last "answer is", else all of it.
    Where both are plain numbers they are compared as rule ``number`` does. Expressions of more than 200 characters,
    factorials, sums, integrals and towers of powers are not computed; as an answer they get 0.

    Range: 0 to 1. An empty answer gets 0. Raises ``RewardError`` for a truth that cannot be read, and when a comparison
    takes more than five seconds (in the main thread: elsewhere nothing can stop it). Holds against several answers:
    ``\boxed{5, 6}`` is a set, and no 5. Does not hold against restating the question where that is the truth
    (``\boxed{2^{10}}`` equals 1024): the rule asks for equality, and not for a computed result.

    Source: the package math-verify
    """
    with package("math-verify", "math"):
        from math_verify import verify
        from math_verify.errors import TimeoutException
    asked, said = _expression(plain(need("math", truth))), _expression(plain(final(text)))
    if (right := whole(asked)) is not None and (mine := whole(said)) is not None:
        return float(mine.equals(right, 1e-12))
    if not (gold := _parsed(asked)):
        raise RewardError(f"the rule 'math' cannot read the truth {truth!r}")
    try:
        return float(verify(list(gold), list(_parsed(said)), timeout_seconds=_limit(), raise_on_error=True))
    except TimeoutException:
        raise RewardError(f"comparing {said!r} with {asked!r} takes more than {SECONDS} seconds") from None


def _expression(text: str) -> str:
    said = boxed(text)
    return (said if said is not None else next(marked(text), text)).strip().strip("$").strip()


@lru_cache(maxsize=1024)
def _parsed(text: str) -> tuple[Any, ...]:
    if not text or len(text) > MAX_LENGTH or _ENDLESS.search("".join(text.split())):
        return ()
    from math_verify import LatexExtractionConfig, parse

    latex = (LatexExtractionConfig(),)
    return tuple(parse(f"${text}$", latex, fallback_mode="no_fallback", parsing_timeout=_limit()))


def _limit() -> int | None:
    return SECONDS if threading.current_thread() is threading.main_thread() else None
