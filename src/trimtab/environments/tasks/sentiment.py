"""Go on with a text; what counts is the tone."""

from __future__ import annotations

from trimtab.environments.tasks._fixtures import fixture
from trimtab.environments.text import OneTurn, Reward


def sentiment(reward: Reward, *, render_mode: str | None = None) -> OneTurn:
    """Continue the start of a sentence that could turn out well or badly (30 of them).

    ``reward(group, text)`` is yours: it decides on the tone that is wanted. The start alone is ``meta["prefix"]``.
    """
    return OneTurn(fixture("sentiment"), reward, render_mode=render_mode)
