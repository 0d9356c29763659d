"""Writing row files whole or not at all: a temporary name beside the target, then a rename."""

from __future__ import annotations

import gzip
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from trimtab.errors import DataError
from trimtab.records.strict_json import dumps

if TYPE_CHECKING:
    import pyarrow

WRITABLE = (".jsonl", ".jsonl.gz", ".parquet")
BATCH_ROWS = 1024


@contextmanager
def publish(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file that takes the name ``path`` when the block ends well, and vanishes when it does not."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror or error})") from None
    finally:
        temporary.unlink(missing_ok=True)


def write_rows(path: str | Path, rows: Iterable[Mapping[str, object]], schema: pyarrow.Schema | None = None) -> int:
    """Write rows to ``.jsonl``, ``.jsonl.gz`` or ``.parquet`` and return how many there were.

    The same rows give the same bytes. Parquet without a ``schema`` infers the columns from all rows at once.
    """
    path = Path(path)
    if not path.name.endswith(WRITABLE):
        raise DataError(f"{path}: cannot tell what kind of file to write; known endings: {', '.join(WRITABLE)}")
    with publish(path) as handle:
        if path.suffix == ".parquet":
            return _write_parquet(handle, rows, schema)
        if path.suffix == ".gz":
            with gzip.GzipFile(filename="", mode="wb", fileobj=handle, mtime=0) as packed:
                return _write_lines(packed, rows)
        return _write_lines(handle, rows)


def _write_lines(handle: BinaryIO | gzip.GzipFile, rows: Iterable[Mapping[str, object]]) -> int:
    count = 0
    for row in rows:
        handle.write(dumps(row).encode() + b"\n")
        count += 1
    return count


def _write_parquet(handle: BinaryIO, rows: Iterable[Mapping[str, object]], schema: pyarrow.Schema | None) -> int:
    import pyarrow
    import pyarrow.parquet

    if schema is None:
        table = pyarrow.Table.from_pylist([dict(row) for row in rows])
        pyarrow.parquet.write_table(table, handle)
        return int(table.num_rows)
    count = 0
    with pyarrow.parquet.ParquetWriter(handle, schema) as writer:
        for batch in _batched(rows):
            writer.write_table(pyarrow.Table.from_pylist(list(batch), schema=schema))
            count += len(batch)
    return count


def _batched(rows: Iterable[Mapping[str, object]]) -> Iterator[tuple[Mapping[str, object], ...]]:
    waiting = iter(rows)
    while batch := tuple(itertools.islice(waiting, BATCH_ROWS)):
        yield batch
