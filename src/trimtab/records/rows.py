"""Raw rows, streamed: each an object with the file and line it stands on.

JSONL, text and Parquet are read piece by piece in constant memory; a ``.json`` list is read whole. A line that is no
row is a ``Refused`` in the stream, so that the caller decides whether to stop; a file that is broken as a whole (half a
gzip, no Parquet) raises ``DataError``.
"""

from __future__ import annotations

import datetime
import decimal
import gzip
import hashlib
import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from trimtab.errors import DataError, did_you_mean
from trimtab.records import strict_json
from trimtab.records.sources import SUFFIXES, Source, files, without_suffix

if TYPE_CHECKING:
    from datasets import Dataset

BATCH_ROWS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a row stands: lines count from 1; rows of Parquet and ``datasets`` do too, having no lines."""

    path: str
    line: int
    unit: Literal["line", "row"] = "line"

    def __str__(self) -> str:
        return f"{self.path}, {self.unit} {self.line}" if self.line else self.path


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One object from a file, not yet understood; ``name`` names it when it has no id of its own (``train:12``)."""

    place: Place
    name: str
    value: Mapping[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """A row that cannot be used: where it stands (line 0: the whole file), which field, and why."""

    path: str
    line: int
    field: str | None
    reason: str
    unit: Literal["line", "row"] = "line"

    @property
    def place(self) -> Place:
        """Where the row stands."""
        return Place(path=self.path, line=self.line, unit=self.unit)

    def __str__(self) -> str:
        return f"{self.place}, field {self.field!r}: {self.reason}" if self.field else f"{self.place}: {self.reason}"


def refuse(place: Place, field: str | None, reason: str) -> Refused:
    """Return the refusal of the row at ``place``."""
    return Refused(path=place.path, line=place.line, unit=place.unit, field=field, reason=reason)


def stream(source: Source) -> Iterator[Row | Refused]:
    """Yield a source's rows in order, and a ``Refused`` for each line or file that holds none."""
    if source.kind in ("saved", "hub"):
        yield from _dataset_rows(source)
        return
    for path in files(source):
        inside = path.relative_to(source.path) if source.kind == "folder" else Path(path.name)
        yield from _file_rows(path, without_suffix(inside))


def hub_digest(source: Source) -> str:
    """Return the SHA-256 of a hub data set's rows as canonical JSON lines, since its files are elsewhere."""
    found = hashlib.sha256()
    for item in _dataset_rows(source):
        if isinstance(item, Row):
            found.update(json.dumps(item.value, sort_keys=True).encode() + b"\n")
    return found.hexdigest()


def _file_rows(path: Path, stem: str) -> Iterator[Row | Refused]:
    kind = next((s for s in sorted(SUFFIXES, key=len, reverse=True) if path.name.lower().endswith(s)), "")
    match kind.removesuffix(".gz"):
        case ".jsonl" | ".ndjson":
            yield from _jsonl_rows(path, stem, _lines(path))
        case ".json":
            yield from _json_rows(path, stem)
        case ".txt":
            yield from _text_rows(path, stem)
        case ".parquet":
            yield from _parquet_rows(path, stem)
        case _:
            yield refuse(Place(path=str(path), line=0), None, f"not a data file; known endings: {', '.join(SUFFIXES)}")


def _lines(path: Path) -> Iterator[tuple[int, str | Refused]]:
    """Yield numbered lines without their ends; a line that is not UTF-8 is a ``Refused``."""
    number = 0
    try:
        with gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb") as handle:
            for number, raw in enumerate(handle, 1):
                try:
                    text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    place = Place(path=str(path), line=number)
                    yield number, refuse(place, None, f"not UTF-8 at byte {error.start + 1} of the line")
                else:
                    yield number, text.rstrip("\r\n")
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: broken gzip file after line {number} ({error})") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None


def _jsonl_rows(path: Path, stem: str, lines: Iterator[tuple[int, str | Refused]]) -> Iterator[Row | Refused]:
    for number, line in lines:
        if isinstance(line, Refused):
            yield line
        elif line.strip():
            yield _json_row(Place(path=str(path), line=number), stem, line)


def _json_row(place: Place, stem: str, line: str) -> Row | Refused:
    try:
        return _row(place, stem, strict_json.loads(line))
    except ValueError as error:
        return refuse(place, None, str(error))


def _row(place: Place, stem: str, value: object) -> Row | Refused:
    if not isinstance(value, dict):
        return refuse(place, None, f"expected an object, found {json.dumps(value)[:40]}")
    return Row(place=place, name=f"{stem}:{place.line}", value=value)


def _json_rows(path: Path, stem: str) -> Iterator[Row | Refused]:
    """Yield the objects of one list with the lines they begin on; a file of one object a line is read as JSONL."""
    lines = list(_lines(path))
    unreadable = next((line for _, line in lines if isinstance(line, Refused)), None)
    if unreadable:
        raise DataError(str(unreadable))
    text = "\n".join(line for _, line in lines if isinstance(line, str))
    if text.lstrip().startswith("["):
        yield from _list_rows(path, stem, text)
    else:
        yield from _jsonl_rows(path, stem, iter(lines))


def _list_rows(path: Path, stem: str, text: str) -> Iterator[Row | Refused]:
    """Decode a JSON list item by item, so that each keeps its line. Nothing after a broken item can be found again."""
    at, counted, line = _skip_space(text, text.index("[") + 1), 0, 1
    while text[at : at + 1] != "]":
        line, counted = line + text.count("\n", counted, at), at
        place = Place(path=str(path), line=line)
        try:
            value, at = strict_json.DECODER.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            reason = getattr(error, "msg", None) or str(error)
            raise DataError(f"{place}: not usable JSON: {reason}") from None
        yield _row(place, stem, value)
        at = _skip_space(text, at)
        if text[at : at + 1] == ",":
            at = _skip_space(text, at + 1)
        elif text[at : at + 1] != "]":
            raise DataError(f"{place}: expected ',' or ']' after this item of the list")
    if text[at + 1 :].strip():
        raise DataError(f"{path}: there is more after the end of the list")


def _skip_space(text: str, at: int) -> int:
    while text[at : at + 1].isspace():
        at += 1
    return at


def _text_rows(path: Path, stem: str) -> Iterator[Row | Refused]:
    """Yield one ``{"text": ...}`` per document; blank lines stand between documents, as in BERT's input files."""
    start, document = 0, list[str]()
    for number, line in _lines(path):
        if isinstance(line, Refused):
            yield line
        elif line.strip():
            start = start if document else number
            document.append(line)
        elif document:
            yield _document(path, stem, start, document)
            document = []
    if document:
        yield _document(path, stem, start, document)


def _document(path: Path, stem: str, start: int, lines: list[str]) -> Row:
    return Row(place=Place(path=str(path), line=start), name=f"{stem}:{start}", value={"text": "\n".join(lines)})


def _parquet_rows(path: Path, stem: str) -> Iterator[Row | Refused]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            for batch in table.iter_batches(batch_size=BATCH_ROWS):
                for value in batch.to_pylist():
                    number += 1
                    yield _plain_row(Place(path=str(path), line=number, unit="row"), stem, value)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read as Parquet after row {number} ({_one_line(error)})") from None


def _plain_row(place: Place, stem: str, value: Mapping[str, object]) -> Row | Refused:
    try:
        return Row(place=place, name=f"{stem}:{place.line}", value={key: _plain(item) for key, item in value.items()})
    except TypeError as error:
        return refuse(place, None, str(error))


def _plain(value: object) -> object:
    """Return an Arrow value as what JSON can hold: dates as ISO text, decimals as text."""
    match value:
        case None | bool() | int() | float() | str():
            return value
        case dict():
            return {str(key): _plain(item) for key, item in value.items()}
        case list() | tuple():
            return [_plain(item) for item in value]
        case datetime.datetime() | datetime.date() | datetime.time():
            return value.isoformat()
        case decimal.Decimal():
            return str(value)
        case _:
            raise TypeError(f"a column holds {type(value).__name__} values, which are no text, number, list or object")


def _dataset_rows(source: Source) -> Iterator[Row | Refused]:
    name = f"{source.name}:{source.split}" if source.split else source.name
    dataset = _saved_dataset(source) if source.kind == "saved" else _hub_dataset(source)
    stem = source.path.name if source.kind == "saved" else source.name
    for number, value in enumerate(dataset, 1):
        yield _plain_row(Place(path=name, line=number, unit="row"), stem, value)


def _saved_dataset(source: Source) -> Dataset:
    try:
        import datasets
    except ImportError as error:
        raise DataError(f"{source.name}: a saved data set needs the package 'datasets' ({error})") from None
    try:
        found = datasets.load_from_disk(str(source.path))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{source.name}: cannot be read as a saved data set ({_one_line(error)})") from None
    return _one_split(source, found)


def _hub_dataset(source: Source) -> Dataset:
    try:
        import datasets
        import httpx
    except ImportError as error:
        raise DataError(f"{source.name}: a data set on the hub needs the package 'datasets' ({error})") from None
    try:
        found = datasets.load_dataset(source.name, split=source.split)
    except (OSError, ValueError, RuntimeError, httpx.HTTPError) as error:
        raise DataError(
            f"{source.name!r} is no file or folder here, and no data set could be fetched from the hub under that name "
            f"({_one_line(error)})"
        ) from None
    return _one_split(source, found)


def _one_split(source: Source, found: Dataset | dict[str, Dataset]) -> Dataset:
    if not isinstance(found, dict):
        return found.with_format(None)
    if source.split is None and len(found) == 1:
        return next(iter(found.values())).with_format(None)
    if source.split is not None and source.split in found:
        return found[source.split].with_format(None)
    if source.split is None:
        raise DataError(
            f"{source.name} has the splits {', '.join(found)}: say which, as in {source.name}:{next(iter(found))}"
        )
    raise DataError(f"{source.name} has no split {source.split!r}{did_you_mean(source.split, found)}")


def _one_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
