"""Taking a foreign row apart, field by field: what is taken is used, what is left goes to ``meta``.

Fields(row)            a row that remembers which of its fields were taken
FieldError(field, why)   a field that cannot be used; the reader adds file and line
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

from trimtab.errors import DataError, did_you_mean
from trimtab.records.transcripts import is_transcript, parse_transcript
from trimtab.records.types import Answer, Message, Role

ROLE_NAMES: Mapping[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "ipython": "tool",
}


CONVERSATIONS = ("messages", "conversations", "conversation")
QUESTIONS = ("instruction", "question", "query", "problem")
PROMPTS = ("prompt", *CONVERSATIONS, *QUESTIONS)


class FieldError(DataError):
    """A field cannot be used; ``field`` is its name (``None``: the row as a whole), ``reason`` why."""

    def __init__(self, field: str | None, reason: str) -> None:
        super().__init__(f"field {field!r}: {reason}" if field else reason)
        self.field = field
        self.reason = reason


def kind_of(value: object) -> str:
    """Return a JSON value's kind in words, for error sentences."""
    match value:
        case None:
            return "nothing (null)"
        case bool():
            return str(value).lower()
        case int() | float():
            return f"the number {value}"
        case str():
            return "text"
        case Mapping():
            return "an object"
        case _:
            return "a list"


def as_text(value: object, field: str) -> str:
    """Return ``value`` if it is text that can be written as UTF-8, else raise ``FieldError``."""
    if not isinstance(value, str):
        raise FieldError(field, f"expected text, found {kind_of(value)}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise FieldError(field, "half a surrogate pair: this text cannot be written as UTF-8") from None
    return value


def as_number(value: object, field: str) -> float:
    """Return ``value`` if it is a finite number (true/false is not one), else raise ``FieldError``."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise FieldError(field, f"expected a number, found {kind_of(value)}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise FieldError(field, "expected a finite number")
    return number


def as_object(value: object, field: str) -> Mapping[str, object]:
    """Return ``value`` if it is an object, else raise ``FieldError``."""
    if not isinstance(value, Mapping):
        raise FieldError(field, f"expected an object, found {kind_of(value)}")
    return value


def as_list(value: object, field: str) -> Sequence[object]:
    """Return ``value`` if it is a list, else raise ``FieldError``."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise FieldError(field, f"expected a list, found {kind_of(value)}")
    return value


class Fields:
    """A row that remembers which of its fields were taken.

    ``at`` is the path of a nested object (``"responses[2]"``), put before its field names in error sentences.
    A field that is null counts as absent. Used by one reader for one row and then thrown away.
    """

    def __init__(self, row: Mapping[str, object], *, at: str = "", default_id: str = "") -> None:
        self.row = row
        self._at = at
        self.default_id = default_id
        self._taken: set[str] = set()
        self._extras: dict[str, object] = {}

    def name(self, key: str) -> str:
        """Return the full name of a field, for error sentences."""
        return f"{self._at}.{key}" if self._at else key

    def has(self, *keys: str) -> bool:
        """Tell whether every one of these fields is there and not null."""
        return all(self.row.get(key) is not None for key in keys)

    def first(self, *keys: str) -> str | None:
        """Return the first of these fields that is there and not null."""
        for key in keys:  # a plain loop: this runs some ten times a row
            if self.row.get(key) is not None:
                return key
        return None

    def one_of(self, *keys: str) -> str:
        """Return the first of these fields that is there and not null; raise ``FieldError`` when none is."""
        found = self.first(*keys)
        if found is None:
            others = f" (nor is there {' or '.join(map(repr, keys[1:]))})" if len(keys) > 1 else ""
            near = difflib.get_close_matches(
                keys[0], [key for key in self.row if key not in self._taken], n=1, cutoff=0.8
            )
            meant = f"; is it {near[0]!r}?" if near and near[0] not in keys else ""
            raise FieldError(self.name(keys[0]), f"is {'null' if keys[0] in self.row else 'missing'}{others}{meant}")
        return found

    def take(self, key: str) -> object:
        """Return a field's value and note that it was used; raise ``FieldError`` when it is absent."""
        value = self.row.get(key)
        if value is None:
            self.one_of(key)  # raises with the fitting sentence
        self._taken.add(key)
        return value

    def put_back(self, key: str) -> None:
        """Let a field that was taken go to ``meta`` all the same, because not all of it found a place."""
        self._taken.discard(key)

    def text(self, *keys: str) -> str:
        """Take the first of these fields that is there, as text."""
        key = self.one_of(*keys)
        return as_text(self.take(key), self.name(key))

    def optional_text(self, *keys: str) -> str | None:
        """Take the first of these fields that is there, as text; ``None`` when none is."""
        return self.text(*keys) if self.first(*keys) else None

    def optional_number(self, *keys: str) -> float | None:
        """Take the first of these fields that is there, as a number; ``None`` when none is."""
        key = self.first(*keys)
        return None if key is None else as_number(self.take(key), self.name(key))

    def objects(self, key: str) -> list[Fields]:
        """Take a list of objects, each as ``Fields`` of its own."""
        values = as_list(self.take(key), self.name(key))
        return [
            Fields(as_object(value, self.name(f"{key}[{i}]")), at=self.name(f"{key}[{i}]"))
            for i, value in enumerate(values)
        ]

    def messages(self, key: str) -> tuple[Message, ...]:
        """Take a list of messages (or one), OpenAI's ``role/content`` or ShareGPT's ``from/value``.

        What a ``Message`` cannot hold (a name, a weight) goes to ``meta["message_fields"]``; tool calls and pictures
        are refused, because without them the conversation would mean something else.
        """
        value = self.take(key)
        if isinstance(value, str) or not isinstance(value, Mapping | Sequence):
            or_text = "" if key.startswith(("messages", "conversation")) else "text or "
            raise FieldError(self.name(key), f"expected {or_text}a list of messages, found {kind_of(value)}")
        items = [value] if isinstance(value, Mapping) else value
        found = [
            _message(as_object(item, f"{self.name(key)}[{i}]"), f"{self.name(key)}[{i}]")
            for i, item in enumerate(items)
        ]
        extras = {str(i): extra for i, (_, extra) in enumerate(found) if extra}
        if extras:
            self._extras[key] = extras
        return tuple(message for message, _ in found)

    def id(self) -> str:
        """Take the row's own id; a row without one is named after its file and line."""
        for key in ("id", "task_id", "uid", "uuid"):
            value = self.row.get(key)
            if isinstance(value, str | int) and not isinstance(value, bool) and value != "":
                self._taken.add(key)
                return as_text(str(value), self.name(key))
        return self.default_id

    def rest(self) -> dict[str, object]:
        """Return every field that was not taken and is not null: the Group's ``meta``."""
        left = {key: value for key, value in self.row.items() if key not in self._taken and value is not None}
        return left | ({"message_fields": self._extras} if self._extras else {})


def _message(item: Mapping[str, object], field: str) -> tuple[Message, dict[str, object]]:
    role_key, content_key = ("from", "value") if "from" in item else ("role", "content")
    if role_key not in item:
        raise FieldError(field, f"a message needs 'role' and 'content' (or 'from' and 'value'); found {names(item)}")
    name = as_text(item[role_key], f"{field}.{role_key}")
    if name.lower() not in ROLE_NAMES:
        raise FieldError(f"{field}.{role_key}", f"no role {name!r}{did_you_mean(name, ROLE_NAMES)}")
    for key in ("tool_calls", "function_call"):
        if item.get(key):
            raise FieldError(f"{field}.{key}", "a tool call beside the text cannot be kept; write it into the content")
    content = _content(item.get(content_key), f"{field}.{content_key}")
    extra = {k: v for k, v in item.items() if k not in (role_key, content_key) and v is not None}
    return Message(role=ROLE_NAMES[name.lower()], content=content), extra


def _content(value: object, field: str) -> str:
    """Return text, or the joined text parts of OpenAI's list form."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        return as_text(value, field)
    parts = []
    for i, part in enumerate(value):
        fields = as_object(part, f"{field}[{i}]")
        if fields.get("type") != "text":
            raise FieldError(f"{field}[{i}].type", f"only text parts can be used, found {fields.get('type')!r}")
        parts.append(as_text(fields.get("text"), f"{field}[{i}].text"))
    return "".join(parts)


def names(keys: Iterable[str]) -> str:
    """Return field names as a sorted, quoted list, or ``nothing``."""
    return ", ".join(repr(key) for key in sorted(keys)) or "nothing"


def answer_from(turns: Sequence[Message], field: str, *, model: str | None = None) -> Answer:
    """Return the Answer that these turns are: one assistant turn, or a longer rest that ends with one."""
    if not turns:
        raise FieldError(field, "holds no turns, so there is no answer")
    if turns[-1].role != "assistant":
        raise FieldError(field, f"ends with a turn of the {turns[-1].role}, so there is no answer")
    rest = tuple(turns) if len(turns) > 1 else ()
    return Answer(text=turns[-1].content, messages=rest, model=model)


def split_conversation(turns: Sequence[Message]) -> tuple[tuple[Message, ...], tuple[Message, ...]]:
    """Split a conversation before its first assistant turn: the prompt, and everything that follows."""
    first = next((i for i, turn in enumerate(turns) if turn.role == "assistant"), len(turns))
    return tuple(turns[:first]), tuple(turns[first:])


def take_prompt(fields: Fields, *, system: bool = True) -> tuple[Message, ...]:
    """Take a row's prompt, under whichever of the known names it stands.

    ``prompt`` (text, an HH-RLHF transcript, or messages), ``messages`` / ``conversations``, ``instruction`` with
    ``input`` and ``history``, ``question``, ``query``, ``problem``. With ``system``, a text field ``system`` becomes
    the first message. An empty text is an empty prompt.
    """
    key = fields.one_of(*PROMPTS)
    value = fields.row[key]
    turns: tuple[Message, ...]
    if key == "instruction":
        turns = tuple(_alpaca_turns(fields))
    elif isinstance(value, str) and key not in CONVERSATIONS:
        turns = _text_turns(fields.text(key))
    else:
        turns = fields.messages(key)
    if system and isinstance(fields.row.get("system"), str) and (said := fields.text("system")):
        turns = (Message(role="system", content=said), *turns)
    return turns


def _text_turns(text: str) -> tuple[Message, ...]:
    if is_transcript(text):
        turns = parse_transcript(text)
        return turns[:-1] if turns[-1].role == "assistant" and not turns[-1].content else turns
    return (Message(role="user", content=text),) if text else ()


def _alpaca_turns(fields: Fields) -> Iterator[Message]:
    if fields.has("history"):
        for i, exchange in enumerate(as_list(fields.take("history"), fields.name("history"))):
            at = fields.name(f"history[{i}]")
            both = as_list(exchange, at)
            if len(both) != 2:
                raise FieldError(at, f"expected a question and an answer, found {len(both)} items")
            yield Message(role="user", content=as_text(both[0], f"{at}[0]"))
            yield Message(role="assistant", content=as_text(both[1], f"{at}[1]"))
    parts = [fields.text("instruction"), fields.optional_text("input") or ""]
    content = "\n\n".join(part for part in parts if part)
    if content:
        yield Message(role="user", content=content)
