"""What the tests of this room share: time that stands still, and a Group with secrets in it."""

from __future__ import annotations

from collections.abc import Callable

from trimtab.feedback import projects
from trimtab.records.types import Answer, Group, Message

Make = Callable[..., tuple[projects.Project, list[str]]]


class Clock:
    """Time that stands still until a test moves it."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


def pair(number: int, **changes: object) -> Group:
    """A Group of two answers by two models, with a secret in everything that nobody may see."""
    fields: dict[str, object] = {
        "id": f"SECRET-{number}",
        "prompt": (Message(role="user", content=f"Question {number}?"),),
        "answers": (
            Answer(text=f"Left {number}.", model="SECRET-one", finish="stop", logprob=-1.5),
            Answer(text=f"Right {number}.", model="SECRET-two"),
        ),
        "meta": {"source": "SECRET-meta"},
    }
    return Group(**(fields | changes))  # type: ignore[arg-type]
