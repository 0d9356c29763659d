"""Sums, made up by seed and difficulty, checked exactly."""

from __future__ import annotations

import re
from decimal import Decimal

import numpy as np

from trimtab.environments.tasks._fixtures import truth
from trimtab.environments.text import OneTurn
from trimtab.errors import ConfigError
from trimtab.records.types import Group, Message

DIFFICULTIES = (1, 2, 3)
_NUMBER = re.compile(r"(?<!\d)[-−]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?")


def arithmetic(*, difficulty: int = 1, render_mode: str | None = None) -> OneTurn:
    """Add, take away, multiply: 1 if the last number of the answer is the right one, else 0.

        1    a + b, one digit each          2    a + b or a - b, up to 99          3    a * b + c or a * b - c

    The last number, so that an answer may show its working. Negative results occur from 2 on.
    """
    _known(difficulty)
    return OneTurn(lambda rng: make_sum(rng, difficulty=difficulty), right, render_mode=render_mode)


def sums(count: int, *, difficulty: int = 1, seed: int = 0) -> tuple[Group, ...]:
    """Return a fixed set of prompts, for a file; the same one may occur twice."""
    _known(difficulty)
    rng = np.random.default_rng(seed)
    return tuple(make_sum(rng, difficulty=difficulty) for _ in range(count))


def make_sum(rng: np.random.Generator, *, difficulty: int) -> Group:
    """Make up one prompt and its truth."""
    sign = 1 if difficulty == 1 else int(rng.choice([1, -1]))
    mark = "+" if sign > 0 else "-"
    if difficulty == 3:
        a, b, c = (int(number) for number in rng.integers(2, [13, 13, 100]))
        asked, result = f"{a} * {b} {mark} {c}", a * b + sign * c
    else:
        a, b = (int(number) for number in rng.integers(0, 10 if difficulty == 1 else 100, size=2))
        asked, result = f"{a} {mark} {b}", a + sign * b
    return Group(
        id=f"arithmetic-{difficulty}: {asked}",
        prompt=(Message(role="user", content=f"What is {asked}? Answer with the number."),),
        meta={"truth": str(result), "difficulty": difficulty},
    )


def right(group: Group, text: str) -> float:
    """Return 1 if the last number of an answer is the Group's truth, else 0."""
    return float(last_number(text) == Decimal(truth(group)))


def last_number(text: str) -> Decimal | None:
    """Return the last number in a text: ``1,234.50``, ``-7`` (also with a minus sign U+2212); None if there is none."""
    found = _NUMBER.findall(text)
    return Decimal(found[-1].replace(",", "").replace("−", "-")) if found else None


def _known(difficulty: int) -> None:
    if difficulty not in DIFFICULTIES:
        raise ConfigError(f"arithmetic: difficulty is 1, 2 or 3, not {difficulty!r}")
