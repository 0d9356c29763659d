"""The rows of a bake-off: one JSON line a (method, seed), appended to a file that may be committed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trimtab.bakeoff.identity import SHOWN, Identity, differences
from trimtab.errors import DataError

Row = dict[str, Any]
NEEDED = frozenset({"method", "seed", "key", "code", "asked"})


def read_rows(path: Path) -> list[Row]:
    """All rows of a file; none when there is no such file. Half a last line is no row: somebody was killed."""
    return [row for _, row in _lines(path)]


def append(path: Path, row: Row) -> None:
    """Add a row at once, so that a kill leaves the old file or the new one; the lines before it stay as they are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    lines = [*(line for line, _ in _lines(path)), json.dumps(row)]
    partial.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    partial.replace(path)


def rows_of(
    identities: Mapping[str, Identity], seeds: Sequence[int] | None, rows: Sequence[Row], *, any_code: bool = False
) -> list[Row]:
    """The rows of this very bake-off: methods in their order, each one's by seed; of two alike the last.

    ``seeds``: ``None`` for all. ``any_code``: rows of the same settings and inputs count whatever code made them; of
    two, this code's.
    """
    place = {name: place for place, name in enumerate(identities)}
    mine: dict[tuple[int, int], Row] = {}
    for row in rows:
        name, seed = row["method"], row["seed"]
        if name not in place or (seeds is not None and seed not in seeds) or row["key"] != identities[name].key:
            continue
        same = row["code"] == identities[name].code
        before = mine.get((place[name], seed))
        if same or (any_code and (before is None or before["code"] != identities[name].code)):
            mine[place[name], seed] = row
    return [mine[which] for which in sorted(mine)]


def left_out(identities: Mapping[str, Identity], rows: Sequence[Row], used: Sequence[Row]) -> dict[str, list[str]]:
    """Rows of the same methods that are not this bake-off's: why, and which (``dpo 0``)."""
    kept = {(row["method"], row["seed"], row["key"], row["code"]) for row in used}
    found: dict[str, list[str]] = {}
    for row in rows:
        name, seed = row["method"], row["seed"]
        if name in identities and (name, seed, row["key"], row["code"]) not in kept:
            found.setdefault(_reason(identities[name], row), []).append(f"{name} {seed}")
    return {reason: list(dict.fromkeys(names)) for reason, names in found.items()}


def _reason(identity: Identity, row: Row) -> str:
    """Why a row is not counted."""
    said = list(differences(row["asked"], identity.asked))
    if not said and row["code"] != identity.code:
        return f"made by other code ({row.get('revision', row['code'])})"
    if not said:
        return "of a seed that is not asked for"
    return ", ".join(said[:SHOWN]) + (f" and {len(said) - SHOWN} more" if len(said) > SHOWN else "")


def _lines(path: Path) -> list[tuple[str, Row]]:
    """Every whole line with its row."""
    lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
    found: list[tuple[str, Row]] = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            if number == len(lines):
                break
            row = None
        if not isinstance(row, dict) or not row.keys() >= NEEDED:
            raise DataError(f"{path}, line {number}: not a row of a bake-off")
        found.append((line, row))
    return found
