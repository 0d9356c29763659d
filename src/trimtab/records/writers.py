"""Groups as files: whole, or in TRL's dataset formats, conversational form: what its trainers load unchanged.

    write_whole               nothing is lost   our own rows, one a Group
    write_prompt_completion   SFT               {"prompt": [messages], "completion": [messages]}
    write_preference          DPO, reward model {"prompt": [messages], "chosen": [messages], "rejected": [messages]}
    write_unpaired            KTO               {"prompt": [messages], "completion": [messages], "label": true}

A Group that gives no row is named in ``Written.left_out``; when none gives any, nothing is written and DataError says
so. ``WRITERS`` has them by the name of the format that reads them back. The fields are those of TRL's "Dataset formats
and types".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from trimtab.errors import DataError
from trimtab.records.codec import write_groups
from trimtab.records.output import write_rows
from trimtab.records.types import Answer, Edit, Group, Message, Pair, Thumb, pairs

Row = Mapping[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """How many rows were written, and which Groups gave none: (id, reason)."""

    rows: int
    left_out: tuple[tuple[str, str], ...]


def write_whole(path: str | Path, groups: Iterable[Group]) -> Written:
    """Write each Group with everything that is known of it."""
    return Written(rows=write_groups(path, groups), left_out=())


def write_prompt_completion(path: str | Path, groups: Iterable[Group]) -> Written:
    """Write one row for every answer; a Group without a prompt (plain text) or an answer gives none."""
    return _write(path, groups, _completions, "has no answer")


def write_preference(path: str | Path, groups: Iterable[Group]) -> Written:
    """Write one row for every strict preference: each pair, all pairs of each ranking, each edit over its original.

    Ties give no row: this format has no word for them.
    """
    return _write(path, groups, _preferences, "has no strict preference")


def write_unpaired(path: str | Path, groups: Iterable[Group]) -> Written:
    """Write one row for every thumb, and two for a pair that was called both good or both bad."""
    return _write(path, groups, _thumbs, "has no thumb")


def _write(path: str | Path, groups: Iterable[Group], rows_of: Callable[[Group], list[Row]], why: str) -> Written:
    left_out: list[tuple[str, str]] = []

    def rows() -> Iterator[Row]:
        any_row = False
        for group in groups:
            found = rows_of(group) if group.prompt else []
            any_row = any_row or bool(found)
            if not found:
                left_out.append((group.id, why if group.prompt else "has no prompt"))
            yield from found
        if left_out and not any_row:
            of = f"group {left_out[0][0]!r} {left_out[0][1]}" + (", nor any other" if len(left_out) > 1 else "")
            raise DataError(f"{path}: nothing to write: {of}")

    count = write_rows(path, rows())
    return Written(rows=count, left_out=tuple(left_out))


def _completions(group: Group) -> list[Row]:
    prompt = _messages(group.prompt)
    return [{"prompt": prompt, "completion": _turns(answer)} for answer in group.answers]


def _preferences(group: Group) -> list[Row]:
    prompt, answers = _messages(group.prompt), group.answers
    sides = [(_turns(answers[pair.better]), _turns(answers[pair.worse])) for pair in pairs(group)]
    sides += [
        (_messages((Message(role="assistant", content=edit.text),)), _turns(answers[edit.answer]))
        for edit in group.verdicts
        if isinstance(edit, Edit) and edit.text != answers[edit.answer].text
    ]
    return [{"prompt": prompt, "chosen": better, "rejected": worse} for better, worse in sides]


def _thumbs(group: Group) -> list[Row]:
    labels: list[tuple[int, bool]] = []
    for verdict in group.verdicts:
        if isinstance(verdict, Thumb):
            labels.append((verdict.answer, verdict.up))
        elif isinstance(verdict, Pair) and verdict.tie in ("both_good", "both_bad"):
            labels += [(index, verdict.tie == "both_good") for index in (verdict.better, verdict.worse)]
    prompt = _messages(group.prompt)
    return [{"prompt": prompt, "completion": _turns(group.answers[i]), "label": up} for i, up in labels]


def _messages(messages: tuple[Message, ...]) -> list[Row]:
    return [{"role": message.role, "content": message.content} for message in messages]


def _turns(answer: Answer) -> list[Row]:
    return _messages(answer.messages or (Message(role="assistant", content=answer.text),))


Writer = Callable[[str | Path, Iterable[Group]], Written]
WRITERS: Mapping[str, Writer] = {
    "group": write_whole,
    "prompt_completion": write_prompt_completion,
    "preference": write_preference,
    "thumbs": write_unpaired,
}
