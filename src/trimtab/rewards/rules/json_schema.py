"""The answer is JSON that fits a schema."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator

from trimtab.errors import RewardError
from trimtab.records.strict_json import loads
from trimtab.rewards.rules._package import package
from trimtab.rewards.rules._text import final

_FENCED = re.compile(r"\A```(?:json)?[^\S\n]*\n(.*)\n[^\S\n]*```\Z", re.DOTALL | re.IGNORECASE)


def _validator(schema: dict[str, Any]) -> Any:
    """Return what checks values by a schema; raise ``ValueError`` for what is no schema. Nothing is fetched."""
    with package("jsonschema", "json_schema"):
        import jsonschema
        import referencing
    kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    try:
        kind.check_schema(schema)
    except jsonschema.SchemaError as error:
        raise ValueError(f"not a JSON schema: {error.message}") from None
    return kind(schema, registry=referencing.Registry())


def _is_schema(schema: dict[str, Any] | None) -> dict[str, Any] | None:
    if schema is not None:
        _validator(schema)
    return schema


Schema = Annotated[dict[str, Any] | None, AfterValidator(_is_schema)]


def json_schema(text: str, meta: Mapping[str, Any], *, fits: Schema = None) -> float:
    """1 when the answer is one JSON value, and nothing else, that fits the schema; else 0.

    The schema is ``meta["schema"]`` where a prompt has one of its own, else ``fits``. A single fence around the value
    is taken off; what counts is the last <answer> section, or what follows </think>. NaN, a field that stands twice and
    nesting too deep to read are not JSON. References to schemas elsewhere are not followed.

    Range: 0 to 1. An empty answer gets 0. Raises ``RewardError`` without a schema, and for one that cannot be used.
    Does not hold against empty content: ``{}`` fits every schema that has no ``required``, and ``""`` every string
    without ``minLength``; a schema for rewards needs both, and ``additionalProperties: false``.

    Source: JSON Schema 2020-12, unless the schema's ``$schema`` names another draft
    """
    asked = meta.get("schema", fits)
    if not isinstance(asked, dict):
        raise RewardError("the rule 'json_schema' needs a schema, an object: its option 'fits', or meta['schema']")
    try:
        validator = _validator(asked)
    except ValueError as error:
        raise RewardError(f"meta['schema'] is {error}") from None
    said = final(text).strip()
    fenced = _FENCED.match(said)
    try:
        value = loads(fenced[1] if fenced else said)
    except ValueError:
        return 0.0
    with package("jsonschema", "json_schema"):
        from referencing.exceptions import Unresolvable
    try:
        return float(validator.is_valid(value))
    except Unresolvable as error:
        raise RewardError(f"the schema refers to {error.ref!r}, which is not in it") from None
    except RecursionError:  # nested more deeply than can be checked
        return 0.0
