"""Say in one sentence what a short text says."""

from __future__ import annotations

from trimtab.environments.tasks._fixtures import fixture, word_overlap
from trimtab.environments.text import OneTurn, Reward


def summarisation(reward: Reward = word_overlap, *, render_mode: str | None = None) -> OneTurn:
    """Summarise three sentences in one (20 texts).

    The default reward counts words in common with one summary; since it asks for precision too, copying the whole text
    does not pay. Hand in a reward model or a judge for anything serious.
    """
    return OneTurn(fixture("summarisation"), reward, render_mode=render_mode)
