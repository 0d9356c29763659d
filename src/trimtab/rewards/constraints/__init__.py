"""Constraints on an answer that a few lines of code can check, after IFEval; a table, with a row for each kind.

    {"kind": "number_words", "relation": "at most", "count": 80}      a constraint, as ``meta["constraints"]`` holds it

A kind is a pure function of the answer's text that tells whether the constraint holds; its keyword-only parameters are
the options. Its row adds sentences that ask for it, and a way to draw options (``_constraint.Constraint``). The kinds
are those of IFEval but for the language of the answer. Where a checker there can be pleased by accident or by a trick,
ours asks for more, and its docstring says so; scores on IFEval's own data therefore do not compare with published ones.

**An answer without words holds nothing.** Otherwise an empty answer would have no comma, no forbidden word and at most
80 words. What any single word fulfils ("at most") it still fulfils: pay for something else beside.

Source: Zhou et al. 2023, "Instruction-Following Evaluation for Large Language Models" (arXiv:2311.07911)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pydantic

from trimtab.errors import RewardError, did_you_mean
from trimtab.rewards.constraints import characters, conflicts, content, frame, keywords, length
from trimtab.rewards.constraints._constraint import Constraint, has_words

CONSTRAINTS: Mapping[str, Constraint] = {
    kind.name: kind for file in (keywords, length, content, frame, characters) for kind in file.KINDS
}
"""Every kind by its name."""


def holds(text: str, constraint: Mapping[str, Any], *, loose: bool = False) -> bool:
    """Tell whether an answer fulfils a constraint; one without words never does.

    ``loose``: IFEval's loose reading: it is enough when the answer fulfils it without its first line, its last line or
    both (an opener, a closer), with or without its asterisks (Markdown). This pays an answer for a part of it.

    Raises ``RewardError`` for a kind that does not exist, and for options that are missing, unknown or no good.
    """
    kind, options = read(constraint)
    return any(kind.check(part, **options) for part in (_variants(text) if loose else (text,)) if has_words(part))


def failed(
    text: str, constraints: Sequence[Mapping[str, Any]], *, loose: bool = False
) -> tuple[Mapping[str, Any], ...]:
    """Return the constraints that an answer does not fulfil, in their order; errors as in ``holds``."""
    return tuple(constraint for constraint in constraints if not holds(text, constraint, loose=loose))


def ask(constraint: Mapping[str, Any], seed: int = 0) -> str:
    """Put a constraint into a sentence or two; the seed chooses among several wordings. Errors as in ``holds``."""
    kind, options = read(constraint)
    return kind.ask(options, seed)


def conflict(constraints: Sequence[Mapping[str, Any]]) -> str | None:
    """Return why some constraints cannot stand together, or None when they can; errors as in ``holds``."""
    return conflicts.conflict([read(constraint) for constraint in constraints])


def read(constraint: object) -> tuple[Constraint, dict[str, Any]]:
    """Return a constraint's kind and its checked options; an option that is None counts as not given.

    Raises ``RewardError`` in one sentence.
    """
    if not isinstance(constraint, Mapping) or not isinstance(constraint.get("kind"), str):
        raise RewardError(f"a constraint is an object with a 'kind', not {_short(constraint)}")
    name = constraint["kind"]
    if name not in CONSTRAINTS:
        raise RewardError(f"no constraint of the kind {name!r}{did_you_mean(name, CONSTRAINTS)}")
    given = {option: value for option, value in constraint.items() if option != "kind" and value is not None}
    kind = CONSTRAINTS[name]
    try:
        checked = kind.schema(**given)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        option = str(first["loc"][0])
        if first["type"] == "missing":
            raise RewardError(f"constraint {name!r}: the option {option!r} is missing") from None
        if first["type"] == "extra_forbidden":
            raise RewardError(
                f"constraint {name!r}: no option {option!r}{did_you_mean(option, kind.options)}"
            ) from None
        message = first["msg"].removeprefix("Value error, ")
        shown = _short(first["input"])
        raise RewardError(f"constraint {name!r}: {option}={shown}: {message[0].lower()}{message[1:]}") from None
    return kind, {option: getattr(checked, option) for option in kind.options}


def _variants(text: str) -> tuple[str, ...]:
    """The answer; without its first line, its last, both; and all four without asterisks."""
    rows = text.split("\n")
    parts = [text, *("\n".join(some).strip() for some in (rows[1:], rows[:-1], rows[1:-1]))]
    return tuple(dict.fromkeys([*parts, *(part.replace("*", "") for part in parts)]))


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
