"""Say which of four topics a message is about."""

from __future__ import annotations

from trimtab.environments.tasks._fixtures import fixture, truth
from trimtab.environments.text import OneTurn
from trimtab.records.types import Group


def classification(*, render_mode: str | None = None) -> OneTurn:
    """Name the topic of a message to a shop: billing, delivery, account or fault (32 of them, eight of each).

    1 for the right word alone, in any case, spaces, quotes and a full stop around it forgiven; else 0. So naming all
    four earns nothing.
    """
    return OneTurn(fixture("classification"), labelled, render_mode=render_mode)


def labelled(group: Group, text: str) -> float:
    """Return 1 if the answer is the Group's label, else 0."""
    return float(text.strip(" \t\r\n.\"'`*").casefold() == truth(group).casefold())
