"""Groups to tokens, with every Group that does not fit counted and named."""

from __future__ import annotations

from collections.abc import Sequence

from trimtab.data.judged import Bad
from trimtab.errors import DataError
from trimtab.model.chat import Chat
from trimtab.records.types import Group
from trimtab.tensors.tree import TokenGroup
from trimtab.train.run import Run


def encode(
    groups: Sequence[Group], chat: Chat, *, max_length: int, run: Run, what: str, bad: Bad = "skip"
) -> tuple[list[Group], list[TokenGroup]]:
    """Tokenise Groups; those whose prompt and longest answer exceed ``max_length`` tokens are left out and reported.

    Nothing is truncated. Raises DataError when nothing is left, and, naming the Group, for a conversation that the
    model's chat template cannot write; with ``bad="stop"`` for the first Group that is too long, too.
    """
    kept: list[Group] = []
    tokens: list[TokenGroup] = []
    too_long: list[str] = []
    for group in groups:
        try:
            item = chat.group(group)
        except DataError as error:
            raise DataError(f"group {group.id!r} of the {what}: {error}") from None
        longest = len(item.prompt) + max((len(a) for a in item.answers), default=0)
        if longest > max_length and bad == "stop":
            raise DataError(
                f"group {group.id!r} of the {what}: {longest} tokens, and max_length={max_length} "
                "(bad: skip goes on without it)"
            )
        if longest > max_length:
            too_long.append(group.id)
        else:
            kept.append(group)
            tokens.append(item)
    if too_long and kept:
        run.note(
            f"{len(too_long)} of {len(groups)} {what} are longer than {max_length} tokens and were left out "
            f"(the first: {too_long[0]}); raise max_length to keep them"
        )
    if not groups:
        raise DataError(f"there are no {what} to train on")
    if not kept:
        raise DataError(f"no {what} left to train on: all {len(groups)} are longer than max_length={max_length} tokens")
    return kept, tokens
