"""How an answer looks: length, headers, lists, bold; and the covariates that take this out of a rating."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from trimtab.errors import DataError
from trimtab.stats.battles import Floats

STYLE = ("characters", "headers", "list items", "bold")
"""What `style_counts` counts, in its order."""

_FENCE = re.compile(r"^(```|~~~).*?^\1\s*$", re.MULTILINE | re.DOTALL)
_HEADER = re.compile(r"^ {0,3}#{1,6}\s", re.MULTILINE)
_ITEM = re.compile(r"^\s*(?:[-*+]|\d{1,9}[.)])\s", re.MULTILINE)
_BOLD = re.compile(r"\*\*(?=\S).+?(?<=\S)\*\*|__(?=\S).+?(?<=\S)__", re.DOTALL)


def style_counts(texts: Sequence[str]) -> Floats:
    """Return characters, Markdown headers, list items and bold spans of each text, (N, 4).

    What stands in a code fence is counted in the length only: a comment in Python is no header.
    """
    found = np.zeros((len(texts), len(STYLE)))
    for row, text in enumerate(texts):
        prose = _FENCE.sub("", text)
        found[row] = (len(text), *(len(pattern.findall(prose)) for pattern in (_HEADER, _ITEM, _BOLD)))
    return found


def style_covariates(first: ArrayLike, second: ArrayLike) -> Floats:
    """Return (a - b) / (a + b + 1) for each feature of the two answers, scaled to root mean square 1, (N, C).

    Counts are (N, C) each. The Arena's code also takes the mean off. That is left out here: the mean depends on who is
    called first, and a rating must not. A feature that never differs stays zero.

    Errors: `DataError` for shapes that differ and for counts below zero.
    """
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 2:
        raise DataError(f"two tables of counts (N, C) are needed; got {a.shape} and {b.shape}")
    if np.any(a < 0) or np.any(b < 0):
        raise DataError("counts cannot be negative")
    gap = (a - b) / (a + b + 1)
    size = np.sqrt(np.mean(gap**2, axis=0)) if len(gap) else np.ones(gap.shape[1])
    found: Floats = gap / np.where(size > 0, size, 1.0)
    return found
