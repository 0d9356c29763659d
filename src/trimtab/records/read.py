"""Groups from any source in any known format, with every refused row counted and named.

reading = read_groups("data/train.jsonl.gz")
reading.groups, reading.refused, reading.format, reading.digest
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from trimtab.errors import DataError
from trimtab.records.fields import FieldError, Fields
from trimtab.records.formats import Format, detect, named
from trimtab.records.rows import Place, Refused, Row, hub_digest, refuse, stream
from trimtab.records.sources import Source, digest, resolve
from trimtab.records.types import Group


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What a source held.

    ``format`` is the format's name (several, where a folder's files differ, joined by ``+``); ``digest`` the SHA-256 of
    the file's bytes (``trimtab.records.sources.digest``); ``places`` says where each Group stood, in the order of
    ``groups``.
    """

    groups: tuple[Group, ...]
    refused: tuple[Refused, ...] = ()
    format: str = "group"
    digest: str = ""
    places: tuple[Place, ...] = ()


def read_groups(
    source: str | Path,
    *,
    format: str | None = None,
    limit: int | None = None,
    on_bad: Literal["stop", "skip"] = "stop",
) -> Reading:
    """Read a file, a folder, a saved ``datasets`` folder, ``quickstart/NAME`` or a hub id into Groups.

    ``SOURCE@LOW:HIGH`` is a share of its prompts (``trimtab.records.sources``).

    ``format`` names a format instead of detecting it; ``limit`` stops after that many Groups. A row that cannot be
    used raises ``DataError`` (``FILE, line N, field 'x': reason``) when ``on_bad`` is ``"stop"``, and is listed in
    ``refused`` when it is ``"skip"``. A source without a single row is an error either way.
    """
    found = resolve(source)
    refused: list[Refused] = []
    formats: set[str] = set()
    groups: list[Group] = []
    places: list[Place] = []
    if limit is None or limit > 0:
        for item in _read(found, None if format is None else named(format)):
            if isinstance(item, Refused):
                _stop(item) if on_bad == "stop" else refused.append(item)
                continue
            place, known, group = item
            places.append(place)
            formats.add(known.name)
            groups.append(group)
            if len(groups) == limit:
                break
        if not groups and not refused:
            where = "it" if found.share == (0.0, 1.0) else "this share of it"
            raise DataError(f"{source}: there are no rows in {where}")
    return Reading(
        groups=tuple(groups),
        refused=tuple(refused),
        format="+".join(sorted(formats)),
        digest=source_digest(source),
        places=tuple(places),
    )


def iter_groups(
    source: str | Path, *, format: str | None = None, on_refused: Callable[[Refused], None] | None = None
) -> Iterator[Group]:
    """Yield Groups one by one, in constant memory for JSONL, text and Parquet.

    ``on_refused`` is called with each row that cannot be used; without it the first such row raises ``DataError``.
    """
    for item in _read(resolve(source), None if format is None else named(format)):
        if not isinstance(item, Refused):
            yield item[2]
        elif on_refused is None:
            _stop(item)
        else:
            on_refused(item)


def source_digest(source: str | Path) -> str:
    """Return the digest that ``read_groups`` would report, without parsing a row."""
    found = resolve(source)
    return hub_digest(found) if found.kind == "hub" else digest(found)


def _stop(refused: Refused) -> None:
    raise DataError(str(refused))


def _read(source: Source, given: Format | None) -> Iterator[tuple[Place, Format, Group] | Refused]:
    """Yield each row's Group with its place and format. Each file's first usable row decides on the file's format."""
    path, current, shapes = None, given, set[tuple[tuple[str, type], ...]]()
    for row in stream(source):
        if isinstance(row, Refused):
            yield row
            continue
        if row.place.path != path:
            path, current, shapes = row.place.path, given, set()
        try:
            current = current or detect(row.value)
            group = current.read(Fields(row.value, default_id=row.name))
            shape = tuple((key, type(value)) for key, value in row.value.items())
            if given is None and shape not in shapes:
                _same_format(row, current)
                shapes.add(shape)
        except FieldError as error:
            yield refuse(row.place, error.field, error.reason)
        except DataError as error:
            yield refuse(row.place, None, str(error))
        else:
            if source.holds(group):
                yield row.place, current, group


def _same_format(row: Row, current: Format) -> None:
    """Refuse a row with the fields of another format than its file began with: what they say would end in ``meta``."""
    other = detect(row.value)
    if other is not current:
        began = f"the file began as {current.name!r}; name the format to insist on one"
        raise FieldError(None, f"looks like {other.name!r} ({other.fields}), but {began}")
