"""What the tasks share: reading their data, and how much two texts have in common."""

from __future__ import annotations

import re
from collections import Counter
from functools import cache
from pathlib import Path

from trimtab.errors import DataError
from trimtab.records.read import read_groups
from trimtab.records.types import Group


@cache
def fixture(name: str) -> tuple[Group, ...]:
    """Read a task's own Groups."""
    return read_groups(Path(__file__).with_name("data") / f"{name}.jsonl", format="group").groups


def truth(group: Group) -> str:
    """Return the right answer; raises ``DataError`` for a Group that does not say."""
    found = group.meta.get("truth")
    if not isinstance(found, str):
        raise DataError(f"group {group.id!r}: meta['truth'] must be the right answer, a text, not {found!r}")
    return found


def word_overlap(group: Group, text: str) -> float:
    """Return the harmonic mean of precision and recall of the words, against the Group's truth: in [0, 1].

        F1 = 2 common / (words of the answer + words of the truth)

    Every word counts as often as it occurs; case and punctuation do not count, nor does the order. It is ROUGE-1's F
    without stemming: good enough to see a task work. Two texts without words are alike.
    """
    ours, theirs = (Counter(re.findall(r"\w+", side.casefold())) for side in (text, truth(group)))
    total = ours.total() + theirs.total()
    return 2 * (ours & theirs).total() / total if total else 1.0
