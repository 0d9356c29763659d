"""Translate a short sentence."""

from __future__ import annotations

from trimtab.environments.tasks._fixtures import fixture, word_overlap
from trimtab.environments.text import OneTurn, Reward


def translation(reward: Reward = word_overlap, *, render_mode: str | None = None) -> OneTurn:
    """Translate from English into German or French (12 sentences each; ``meta["to"]`` names the language).

    The default reward only counts words in common with one translation. For anything serious hand in another: the rule
    ``chrf`` through ``by_scorer``, or a judge.
    """
    return OneTurn(fixture("translation"), reward, render_mode=render_mode)
