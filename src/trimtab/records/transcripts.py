"""HH-RLHF transcripts: a conversation as one text, each turn after a blank line and ``Human:`` or ``Assistant:``."""

from __future__ import annotations

import re

from trimtab.records.types import Message

_TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")


def is_transcript(text: str) -> bool:
    """Tell whether a text begins with a ``Human:`` turn after a blank line, as HH-RLHF's do."""
    return text.startswith("\n\nHuman:")


def parse_transcript(text: str) -> tuple[Message, ...]:
    """Return the turns of a transcript, without the white space that sets them apart.

    ``"\\n\\nHuman: Hi\\n\\nAssistant: Hello"`` is a user turn ``Hi`` and an assistant turn ``Hello``.
    """
    _, *pieces = _TURN.split(text)
    return tuple(
        Message(role="user" if name == "Human" else "assistant", content=content.strip())
        for name, content in zip(pieces[::2], pieces[1::2], strict=True)
    )
