"""JSON as the standard has it: no NaN, no field twice in one object, UTF-8 text as it is."""

from __future__ import annotations

import json
from typing import NoReturn


def _no_constants(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _no_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):  # JSON would silently keep the last
        keys = [key for key, _ in pairs]
        raise ValueError(f"the field {next(key for key in keys if keys.count(key) > 1)!r} stands there twice")
    return found


DECODER = json.JSONDecoder(object_pairs_hook=_no_repeats, parse_constant=_no_constants)


def loads(text: str) -> object:
    """Return the value that ``text`` holds; raise ``ValueError`` with a reason fit for an error sentence."""
    try:
        value: object = DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at column {error.colno}") from None
    except RecursionError:
        raise ValueError("not usable JSON: nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"not usable JSON: {error}") from None
    return value


def dumps(value: object) -> str:
    """Return ``value`` as one line of JSON; raise ``ValueError`` or ``TypeError`` for what JSON cannot hold."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
