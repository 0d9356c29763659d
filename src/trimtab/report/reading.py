"""A health reading, and the few tools that all of them use."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import isfinite, nan
from typing import Literal

from trimtab.report.read import Row
from trimtab.stats.describe import Trend, trend

Level = Literal["ok", "watch", "bad"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One thing looked at: a short name, how it stands, the number, and what that means."""

    name: str
    level: Level
    value: str
    sentence: str


def column(rows: Sequence[Row], name: str) -> list[float]:
    """Return a metric's values, NaN where a step has none; empty when no step has it."""
    if not any(name in row for row in rows):
        return []
    return [row.get(name, nan) for row in rows]


def curve(rows: Sequence[Row], name: str) -> Trend | None:
    """Return where a metric starts, ends and heads, or ``None`` when it was never logged as a number."""
    found = trend(column(rows, name))
    return found if found.n else None


def rising(value: float, *, watch: float, bad: float) -> Level:
    """Return the level of a number that is worse the larger it is: above ``bad``, above ``watch``, or fine."""
    return "bad" if value > bad else "watch" if value > watch else "ok"


def short(value: float) -> str:
    """Return a number in three significant digits, without an exponent where that can be read."""
    if not isfinite(value):
        return "unknown"
    if value != 0 and not 1e-4 <= abs(value) < 1e5:
        return f"{value:.2e}"
    return f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}"


def percent(value: float) -> str:
    """Return a share as whole percent."""
    return f"{100 * value:.0f}%" if isfinite(value) else "unknown"


def worst(readings: Iterable[Reading]) -> Level:
    """Return the worst level among the readings; none at all is fine."""
    levels = {reading.level for reading in readings}
    return "bad" if "bad" in levels else "watch" if "watch" in levels else "ok"
