"""The answer is made of sections, each once and in order."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

Name = Annotated[str, Field(pattern=r"^\w[\w-]*$")]


def format(
    text: str,
    *,
    sections: Annotated[tuple[Name, ...], Field(min_length=1)] = ("think", "answer"),
    opened: bool = False,
    outside: bool = False,
) -> float:
    """1 when each of ``sections`` stands once, ``<name>...</name>``, in order, closed, with something in it; else 0.

    ``opened``: the prompt has written the first opening tag already. ``outside``: text may stand around the sections.
    Tags are as written, without attributes, and count wherever they stand; other tags are text like any other.

    Range: 0 to 1. An empty answer gets 0. A second section, one inside another, and text outside (unless allowed) give
    0, so a second try is not paid. It does not look at what is in a section: one dot passes; weigh it below the rule
    that judges the answer.

    Source: DeepSeek-AI 2025 (arXiv:2501.12948), section 2.2.2, format rewards
    """
    rest = f"<{sections[0]}>{text}" if opened else text
    tags = [tag for name in sections for tag in (f"<{name}>", f"</{name}>")]
    if any(rest.count(tag) != 1 for tag in tags):
        return 0.0
    between: list[str] = []
    for tag in tags:
        before, found, rest = rest.partition(tag)
        if not found:  # it stands too early
            return 0.0
        between.append(before)
    inside, around = between[1::2], [*between[::2], rest]
    return float(all(part.strip() for part in inside) and (outside or not any(part.strip() for part in around)))
