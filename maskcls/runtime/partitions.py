"""Partitions of a job that many machines share: shards as Parquet files of one folder.

The folder holds Parquet files alone, as readers of such folders expect it, and each file appears
whole: what is known of how it was made stands within it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from maskcls.errors import DataError
from maskcls.provenance import Provenance, from_values, to_values
from maskcls.runtime.parts import Row
from maskcls.runtime.tables import read_metadata, write_table

KEY, PLACES = "maskcls", "maskcls_places"
"""Of the schema's metadata."""


def partition_path(folder: Path, number: int) -> Path:
    """Of a partition, counted from 1."""
    return folder / f"part-{number:05d}.parquet"


def partition_files(folder: Path) -> list[Path]:
    """The finished partitions in the folder, in order.

    Raises:
        DataError: there is none.
    """
    files = sorted(folder.glob("part-*.parquet"))
    if not files:
        raise DataError(f"{folder}: no partition in it, such as {partition_path(folder, 1).name}")
    return files


def write_partition(
    path: Path,
    columns: Sequence[str],
    parts: Sequence[Sequence[Row]],
    made: Provenance,
    places_sha256: str,
) -> None:
    """Whole or not at all; a row group per part."""
    metadata = {KEY: json.dumps(to_values(made)), PLACES: places_sha256}
    write_table(path, columns, parts, metadata=metadata)


def read_places(path: Path) -> str | None:
    """Where the pictures of a partition lay: `places_digest`. None where it does not say."""
    return read_metadata(path).get(PLACES)


def read_partition(path: Path) -> Provenance | None:
    """How a partition was made; None of a file that is none."""
    if path.suffix.lower() != ".parquet":
        return None
    try:
        return from_values(json.loads(read_metadata(path)[KEY]))
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
