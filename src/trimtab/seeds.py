"""Randomness by name: every random number comes from (seed, purpose, step ...), never from what ran before.

So a run that was killed and resumed draws the same numbers as one that was not, without saving generator states.
"""

from __future__ import annotations

import hashlib


def derive(seed: int, *words: str | int) -> int:
    """Return a 63-bit seed for a purpose: ``derive(0, "rollout", step, answer)``."""
    text = "/".join([str(seed), *map(str, words)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
