"""What an answer marks as its result: the last box, what follows ####, what follows "the answer is"."""

from __future__ import annotations

import re
from collections.abc import Iterator

REACH = 300  # characters after a cue
_HASHES = re.compile(r"####[^\S\n]*+(?=[-+\\$£€¥(]*+[0-9.])")
_CUE = re.compile(
    r"""\banswer\b(?:[^\n.:=?!]{0,80}?\b(?:is|be|equals)\b | [^\S\n]?[:=])
      | 答案?(?:\s?[:=]|是|为|為|等于|等於|应是|应为)""",
    re.IGNORECASE | re.VERBOSE,
)
_SENTENCE = re.compile(r"[.!?](?=\s|\Z)|[。;\n]")


def boxed(text: str) -> str | None:
    r"""Return what the last ``\boxed{...}`` or ``\fbox{...}`` holds; None when there is none, or it is not closed."""
    starts = [found.end() for found in re.finditer(r"\\f?box(?:ed)? ?\{", text)]
    if not starts:
        return None
    depth = 1
    for found in re.finditer(r"\\.|[{}]", text[starts[-1] :], re.DOTALL):
        depth += {"{": 1, "}": -1}.get(found[0], 0)
        if not depth:
            return text[starts[-1] :][: found.start()]
    return None


def marked(text: str) -> Iterator[str]:
    """Yield what follows the last ``####`` before a number, on its line; then what each cue says, the last first.

    A cue is "answer is", "answer:", 答案是 and the like; it says the rest of its sentence
    past the last "="; where nothing follows on its line, the next.
    """
    hashes = list(_HASHES.finditer(text))
    if hashes:
        yield text[hashes[-1].end() :].partition("\n")[0]
    for cue in reversed(list(_CUE.finditer(text))):
        rest = text[cue.end() : cue.end() + REACH].lstrip(" \t\n:*")
        said = _SENTENCE.split(rest, maxsplit=1)[0]
        yield said.rpartition("=")[2]
