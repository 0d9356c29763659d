"""What can go wrong, in one tree.

    TrimtabError
    ├── UserError            something the user wrote or pointed at; exit code 2, one sentence, no traceback
    │   ├── ConfigError      a recipe, an override, a command-line value
    │   ├── DataError        a file, a line, a field
    │   ├── ModelError       a model, a tokenizer, an adapter that cannot be had
    │   └── RewardError      a scorer that failed; the Group that caused it is named
    └── InvariantError       a step-zero check or a promise of ours is broken; the run stops

``Waiting`` is not an error: a stage raises it to stop cleanly until somebody has done something (labels, say).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class TrimtabError(Exception):
    """Base of every error that Trimtab raises on purpose."""


class UserError(TrimtabError):
    """Something the user can put right; the message says where, what, and what was meant."""

    exit_code = 2


class ConfigError(UserError):
    """A recipe, an override or a command-line value does not fit."""


class DataError(UserError):
    """A data file, line or field cannot be used."""


class ModelError(UserError):
    """A model, tokenizer or adapter cannot be found, fetched or understood."""


class RewardError(UserError):
    """A scorer failed; it never becomes a reward of zero."""


class InvariantError(TrimtabError):
    """A step-zero invariant is broken: going on would train on wrong numbers."""

    exit_code = 3


class Waiting(TrimtabError):  # noqa: N818 - it is not an error
    """The run stops cleanly until something outside has happened; the same command goes on later."""

    exit_code = 0


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the nearest known word, else the list of known words (or nothing)."""
    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; known: {', '.join(names)}" if names else ""
