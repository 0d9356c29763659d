"""List the names in a sentence."""

from __future__ import annotations

from trimtab.environments.tasks._fixtures import fixture, truth
from trimtab.environments.text import OneTurn
from trimtab.records.types import Group


def entities(*, render_mode: str | None = None) -> OneTurn:
    """List persons, places and organisations, a line each (24 sentences, three of them without a name).

    The reward is the F1 of the lines, see ``named``.
    """
    return OneTurn(fixture("entities"), named, render_mode=render_mode)


def named(group: Group, text: str) -> float:
    """Return the harmonic mean of precision and recall of the lines ``kind: NAME``, in [0, 1].

        F1 = 2 common / (lines of the answer + lines of the truth)

    Case, order and space do not count, nor do repeated lines. Any other line counts as a wrong one, so that talk costs
    something. Where there is no name, ``none`` alone is right.
    """
    ours, theirs = (
        {" ".join(line.replace(":", ": ").casefold().split()) for line in side.splitlines() if line.strip()}
        for side in (text, truth(group))
    )
    return 2 * len(ours & theirs) / max(len(ours) + len(theirs), 1)
