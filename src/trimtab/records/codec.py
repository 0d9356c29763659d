"""Our own format: one JSON object is one Group, written and read back without loss.

    {"id": "g1",
     "prompt": [{"role": "user", "content": "Hi"}],
     "answers": [{"text": "Hello", "model": "m1", "finish": "stop"}, {"text": "Go away"}],
     "verdicts": [{"kind": "pair", "better": 0, "worse": 1, "rater": "human:rater-07"}],
     "meta": {"topic": "greetings"}}

Fields that are ``None`` or empty are left out (``answers`` never is); null means absent; unknown fields are refused by
name. ``meta`` holds whatever JSON can. Parquet has the same columns, but ``meta`` as JSON text and a score's ``values``
as a list of ``attribute`` and ``value``, because a column's type is fixed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from trimtab.errors import DataError, did_you_mean
from trimtab.records import strict_json
from trimtab.records.fields import FieldError, as_list, as_number, as_object, as_text, kind_of
from trimtab.records.output import write_rows
from trimtab.records.types import ROLES, Answer, Edit, Group, Message, Pair, Ranking, Score, Thumb, Verdict

if TYPE_CHECKING:
    import pyarrow

T = TypeVar("T")
KINDS: Mapping[str, type[Verdict]] = {"pair": Pair, "ranking": Ranking, "score": Score, "thumb": Thumb, "edit": Edit}
GROUP_KEYS = ("id", "prompt", "answers", "verdicts", "meta")


def encode_group(group: Group) -> dict[str, object]:
    """Return a Group as a JSON object; raise ``DataError`` for a ``meta`` or a number that JSON cannot hold."""
    row: dict[str, object] = {"id": group.id}
    if group.prompt:
        row["prompt"] = [_encode_message(message) for message in group.prompt]
    row["answers"] = [_encode_answer(answer) for answer in group.answers]
    if group.verdicts:
        row["verdicts"] = [_encode_verdict(verdict) for verdict in group.verdicts]
    if group.meta:
        row["meta"] = _plain_meta(group.meta, f"group {group.id!r}: meta")
    return row


def decode_group(row: Mapping[str, object], *, default_id: str | None = None) -> Group:
    """Return the Group that a JSON object is.

    ``default_id`` names a row without an ``id``. Raises ``FieldError`` for an unknown, missing or wrong field.
    """
    _known(row, GROUP_KEYS, "")
    if row.get("id") is None and default_id is not None:
        row = {**row, "id": default_id}
    return Group(
        id=as_text(_needed(row, "id", ""), "id"),
        prompt=_decode_all(row.get("prompt"), "prompt", _decode_message),
        answers=_decode_all(row.get("answers"), "answers", _decode_answer),
        verdicts=_decode_all(row.get("verdicts"), "verdicts", _decode_verdict),
        meta=_decode_meta(row.get("meta")),
    )


def write_groups(path: str | Path, groups: Iterable[Group]) -> int:
    """Write Groups to ``.jsonl``, ``.jsonl.gz`` or ``.parquet`` and return how many there were.

    The file appears whole or not at all; the same Groups give the same bytes.
    """
    if Path(path).suffix == ".parquet":
        return write_rows(path, _parquet_rows(groups), _parquet_schema())
    return write_rows(path, _checked_rows(groups))


# --- encoding ---------------------------------------------------------------------------------------------------------


def _encode_message(message: Message) -> dict[str, object]:
    return {"role": message.role, "content": message.content}


def _encode_answer(answer: Answer) -> dict[str, object]:
    row: dict[str, object] = {"text": answer.text}
    if answer.messages:
        row["messages"] = [_encode_message(message) for message in answer.messages]
    named = {"model": answer.model, "finish": answer.finish, "logprob": answer.logprob}
    return row | {key: value for key, value in named.items() if value is not None}


def _encode_verdict(verdict: Verdict) -> dict[str, object]:
    kind = next(name for name, cls in KINDS.items() if isinstance(verdict, cls))
    values = {field.name: getattr(verdict, field.name) for field in dataclasses.fields(verdict)}
    if isinstance(verdict, Ranking):
        values["order"] = [list(tier) for tier in verdict.order]
    elif isinstance(verdict, Score):
        values["values"] = dict(verdict.values)
    return {"kind": kind} | {name: value for name, value in values.items() if value is not None}


def _plain_meta(value: object, at: str) -> object:
    """Return ``value`` if JSON gives it back as it was (a tuple becomes a list)."""
    match value:
        case None | bool() | int() | float() | str():
            return value
        case Mapping():
            if not all(isinstance(key, str) for key in value):
                raise DataError(f"{at}: an object's keys must be text")
            return {key: _plain_meta(item, f"{at}.{key}") for key, item in value.items()}
        case list() | tuple():
            return [_plain_meta(item, f"{at}[{i}]") for i, item in enumerate(value)]
        case _:
            raise DataError(f"{at}: {type(value).__name__} values cannot be written as JSON")


def _checked_rows(groups: Iterable[Group]) -> Iterator[Mapping[str, object]]:
    for group in groups:
        row = encode_group(group)
        try:
            strict_json.dumps(row).encode()
        except ValueError as error:  # NaN, infinity, half a surrogate pair
            raise DataError(f"group {group.id!r} cannot be written: {error}") from None
        yield row


def _parquet_rows(groups: Iterable[Group]) -> Iterator[Mapping[str, object]]:
    for row, group in _with_rows(groups):
        verdicts = [
            {**_encode_verdict(v), "values": [{"attribute": k, "value": x} for k, x in v.values.items()]}
            if isinstance(v, Score)
            else _encode_verdict(v)
            for v in group.verdicts
        ]
        yield {**row, "verdicts": verdicts, "meta": strict_json.dumps(row["meta"]) if "meta" in row else None}


def _with_rows(groups: Iterable[Group]) -> Iterator[tuple[Mapping[str, object], Group]]:
    for group in groups:
        for row in _checked_rows([group]):
            yield row, group


def _parquet_schema() -> pyarrow.Schema:
    import pyarrow as pa

    text, number, index = pa.string(), pa.float64(), pa.int64()
    message = pa.struct({"role": text, "content": text})
    answer = pa.struct(
        {"text": text, "messages": pa.list_(message), "model": text, "finish": text, "logprob": number},
    )
    verdict = pa.struct(
        dict.fromkeys(("kind", "rater", "time", "reason", "tie", "text"), text)
        | dict.fromkeys(("seconds", "strength", "probability"), number)
        | dict.fromkeys(("better", "worse", "answer"), index)
        | {"up": pa.bool_(), "order": pa.list_(pa.list_(index))}
        | {"values": pa.list_(pa.struct({"attribute": text, "value": number}))}
    )
    return pa.schema(
        {
            "id": text,
            "prompt": pa.list_(message),
            "answers": pa.list_(answer),
            "verdicts": pa.list_(verdict),
            "meta": text,
        }
    )


# --- decoding ---------------------------------------------------------------------------------------------------------


def _at(at: str, key: str) -> str:
    return f"{at}.{key}" if at else key


def _known(row: Mapping[str, object], keys: Iterable[str], at: str) -> None:
    known = list(keys)
    for key, value in row.items():
        if key not in known and value is not None:
            raise FieldError(_at(at, key), f"is not known here{did_you_mean(key, known)}")


def _needed(row: Mapping[str, object], key: str, at: str) -> object:
    if row.get(key) is None:
        raise FieldError(_at(at, key), "is null" if key in row else "is missing")
    return row[key]


def _decode_all(value: object, field: str, decode: Callable[[Mapping[str, object], str], T]) -> tuple[T, ...]:
    items = () if value is None else as_list(value, field)
    return tuple(decode(as_object(item, f"{field}[{i}]"), f"{field}[{i}]") for i, item in enumerate(items))


def _decode_message(row: Mapping[str, object], at: str) -> Message:
    _known(row, ("role", "content"), at)
    role = as_text(_needed(row, "role", at), f"{at}.role")
    for known in ROLES:
        if role == known:
            return Message(role=known, content=as_text(_needed(row, "content", at), f"{at}.content"))
    raise FieldError(f"{at}.role", f"no role {role!r}{did_you_mean(role, ROLES)}")


def _decode_answer(row: Mapping[str, object], at: str) -> Answer:
    return Answer(**_decode_fields(row, Answer, at, {}))


def _decode_verdict(row: Mapping[str, object], at: str) -> Verdict:
    kind = as_text(_needed(row, "kind", at), f"{at}.kind")
    if kind not in KINDS:
        raise FieldError(f"{at}.kind", f"no verdict {kind!r}{did_you_mean(kind, KINDS)}")
    cls = KINDS[kind]
    verdict: Verdict = cls(**_decode_fields(row, cls, at, {"kind": kind}))
    if isinstance(verdict, Pair) and verdict.better == verdict.worse:
        raise FieldError(at, f"a pair of answer {verdict.better} with itself")
    return verdict


def _decode_fields(row: Mapping[str, object], cls: type, at: str, besides: Mapping[str, str]) -> dict[str, Any]:
    """Decode an object's fields by their names, as the dataclass ``cls`` wants them."""
    fields = dataclasses.fields(cls)
    _known(row, [*besides, *(field.name for field in fields)], at)
    found: dict[str, Any] = {}
    for field in fields:
        if row.get(field.name) is not None:
            found[field.name] = _DECODERS[field.name](row[field.name], _at(at, field.name))
        elif field.default is dataclasses.MISSING:
            _needed(row, field.name, at)
    return found


def _index(value: object, field: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise FieldError(field, f"expected an answer's number, found {kind_of(value)}")
    return value


def _flag(value: object, field: str) -> bool:
    if not isinstance(value, bool):
        raise FieldError(field, f"expected true or false, found {kind_of(value)}")
    return value


def _share(value: object, field: str) -> float:
    number = as_number(value, field)
    if not 0 <= number <= 1:
        raise FieldError(field, f"expected a probability from 0 to 1, found {number}")
    return number


def _choice(*choices: str) -> Callable[[object, str], str]:
    def decode(value: object, field: str) -> str:
        text = as_text(value, field)
        if text not in choices:
            raise FieldError(field, f"{text!r} is not one of {', '.join(choices)}")
        return text

    return decode


def _order(value: object, field: str) -> tuple[tuple[int, ...], ...]:
    tiers = tuple(
        tuple(_index(index, f"{field}[{i}]") for index in as_list(tier, f"{field}[{i}]"))
        for i, tier in enumerate(as_list(value, field))
    )
    ranked = [index for tier in tiers for index in tier]
    if len(set(ranked)) < len(ranked):
        raise FieldError(field, "ranks an answer twice")
    return tiers


def _values(value: object, field: str) -> dict[str, float]:
    """Decode ``{attribute: number}``, or Parquet's list of ``{"attribute": ..., "value": ...}``."""
    if not isinstance(value, Mapping):
        listed = [as_object(item, f"{field}[{i}]") for i, item in enumerate(as_list(value, field))]
        value = {
            as_text(_needed(item, "attribute", f"{field}[{i}]"), f"{field}[{i}].attribute"): item.get("value")
            for i, item in enumerate(listed)
        }
    return {name: as_number(number, f"{field}.{name}") for name, number in value.items() if number is not None}


def _decode_meta(value: object) -> Mapping[str, object]:
    if isinstance(value, str):
        try:
            value = strict_json.loads(value)
        except ValueError as error:
            raise FieldError("meta", str(error)) from None
    return {} if value is None else as_object(value, "meta")


_DECODERS: Mapping[str, Callable[[object, str], object]] = {
    "text": as_text,
    "messages": lambda value, field: _decode_all(value, field, _decode_message),
    "model": as_text,
    "finish": _choice("stop", "length"),
    "logprob": as_number,
    "rater": as_text,
    "time": as_text,
    "seconds": as_number,
    "reason": as_text,
    "better": _index,
    "worse": _index,
    "strength": as_number,
    "probability": _share,
    "tie": _choice("tie", "both_good", "both_bad"),
    "order": _order,
    "answer": _index,
    "values": _values,
    "up": _flag,
}
