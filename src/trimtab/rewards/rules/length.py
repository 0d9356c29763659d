"""The answer's length is in a window."""

from __future__ import annotations

from typing import Literal

from trimtab.errors import ConfigError
from trimtab.rewards.rules._options import Count, NotNegative
from trimtab.rewards.rules._text import sentences, words


def length(
    text: str,
    *,
    least: Count = 0,
    most: Count | None = None,
    unit: Literal["words", "characters", "sentences"] = "words",
    fall: NotNegative | None = None,
) -> float:
    """1 for a length from ``least`` to ``most``; outside it falls linearly to 0.

        n < least:  max(0, 1 - (least - n) / fall)          n > most:  max(0, 1 - (n - most) / fall)

    ``fall`` is how far outside 0 is reached; 0 makes it a step. Without it, it is the limit itself: 0 is reached at no
    length and at twice ``most``. Words are runs of letters and digits, and each Chinese or Japanese character;
    characters are code points between the first and the last that is no space; a sentence has a word in it.

    Range: 0 to 1. An empty answer has length 0, and gets 1 without ``least``. Raises ``ConfigError`` when ``most`` is
    below ``least``. It looks at nothing but length: padding and half sentences fill a window as well as anything.
    """
    if most is not None and most < least:
        raise ConfigError(f"length: most={most} is below least={least}")
    n = len(text.strip() if unit == "characters" else words(text) if unit == "words" else sentences(text))
    outside = least - n if n < least else n - most if most is not None and n > most else 0
    width = fall if fall is not None else least if n < least else most
    if not outside:
        return 1.0
    return max(0.0, 1 - outside / width) if width else 0.0
