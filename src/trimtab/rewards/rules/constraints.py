"""The share of the prompt's constraints that an answer fulfils."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trimtab.errors import RewardError
from trimtab.rewards.constraints import failed


def constraints(text: str, meta: Mapping[str, Any], *, strict: bool = False, loose: bool = False) -> float:
    """The share of the constraints in ``meta["constraints"]`` that the answer fulfils, 0 to 1.

    ``strict``: 1 when it fulfils all of them, else 0. ``loose``: IFEval's loose reading of each: a first or last line
    and asterisks are forgiven. An answer without words fulfils none. What the kinds ask is in ``rewards/constraints``.

    Range: 0 to 1. Raises ``RewardError`` when there is no ``meta["constraints"]``, when it is no list or an empty one,
    and for a kind or an option that does not exist.

    Source: Zhou et al. 2023 (arXiv:2311.07911), strict and loose accuracy by instruction and by prompt.
    """
    asked = meta.get("constraints")
    if not isinstance(asked, list | tuple) or not asked:
        there = "there is none" if asked is None or asked in ([], ()) else f"got {asked!r:.60}"
        raise RewardError(
            f"the rule 'constraints' reads meta['constraints'], a list such as [{{'kind': 'no_comma'}}]; {there}"
        )
    missed = len(failed(text, asked, loose=loose))
    return float(not missed) if strict else (len(asked) - missed) / len(asked)
