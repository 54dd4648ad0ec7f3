"""Tables of labels, a CSV or Parquet file: written, and read back to be joined."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from maskcls.errors import DataError
from maskcls.files import replacing, write_rows
from maskcls.runtime.packed import import_pyarrow
from maskcls.runtime.parts import Row

Item = TypeVar("Item")

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
"""What a spreadsheet takes for the start of a formula (OWASP, CSV Injection)."""


def write_table(
    out: Path,
    columns: Sequence[str],
    parts: Iterable[Sequence[Row]],
    *,
    escape_formulas: bool = False,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """The rows of all parts, whole or not at all: `.csv`, or `.parquet` with a row group per part.

    `metadata` goes into a Parquet file's schema.

    Raises:
        MissingExtraError: Parquet without pyarrow.
    """
    with replacing(out) as temporary:
        if out.suffix.lower() == ".parquet":
            _write_parquet(temporary, columns, parts, import_pyarrow(out), metadata)
            return
        # surrogateescape: a file name that is no UTF-8 is written as it lies on the disk.
        with temporary.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            all_rows = itertools.chain.from_iterable(parts)
            rows = ([str(row.get(name, "")) for name in columns] for row in all_rows)
            if escape_formulas:
                rows = (
                    [f"'{cell}" if cell.startswith(FORMULA_STARTS) else cell for cell in cells]
                    for cells in rows
                )
            write_rows(file, itertools.chain([columns], rows))


def read_columns(table: Path) -> list[str]:
    """The names of its columns.

    Raises:
        DataError: it cannot be read.
        MissingExtraError: Parquet without pyarrow.
    """
    if table.suffix.lower() != ".parquet":
        with table.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            return next(csv.reader(file), [])
    pyarrow = import_pyarrow(table)
    try:
        return list(pyarrow.parquet.read_schema(table).names)
    except pyarrow.ArrowException as error:
        raise DataError(f"{table}: cannot be read as Parquet: {error}") from None


def read_metadata(table: Path) -> dict[str, str]:
    """The `metadata` of a Parquet file that `write_table` wrote; nothing of one that cannot be
    read.

    Raises:
        MissingExtraError: without pyarrow.
    """
    pyarrow = import_pyarrow(table)
    try:
        metadata = pyarrow.parquet.read_schema(table).metadata or {}
        return {name.decode(): value.decode() for name, value in metadata.items()}
    except (OSError, ValueError, pyarrow.ArrowException):
        return {}


def read_rows(table: Path) -> Iterator[Row]:
    """What `write_table` wrote; empty cells are left out."""
    if table.suffix.lower() != ".parquet":
        with table.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            for row in csv.DictReader(file):
                yield {name: cell for name, cell in row.items() if cell}
        return
    with import_pyarrow(table).parquet.ParquetFile(table) as file:
        for batch in file.iter_batches():
            for row in batch.to_pylist():
                yield {name: cell for name, cell in row.items() if cell is not None}


def parts_of(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Lists of so many, the last of what is left."""
    rest = iter(items)
    while part := list(itertools.islice(rest, size)):
        yield part


def _write_parquet(
    path: Path,
    columns: Sequence[str],
    parts: Iterable[Sequence[Row]],
    pyarrow: Any,
    metadata: Mapping[str, str] | None,
) -> None:
    kinds = {"ImageID": pyarrow.string(), "ans": pyarrow.int64(), "error": pyarrow.string()}
    schema = pyarrow.schema(
        [(name, kinds.get(name, pyarrow.float64())) for name in columns], metadata=metadata
    )
    with pyarrow.parquet.ParquetWriter(path, schema) as writer:
        for part in parts:
            arrays = {name: [_text(row.get(name)) for row in part] for name in columns}
            writer.write_table(pyarrow.table(arrays, schema=schema))


def _text(value: object) -> object:
    """Parquet holds UTF-8 only: of a file name that is none, the odd bytes become `\\xe9`."""
    if not isinstance(value, str) or value.isascii():
        return value
    return value.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
