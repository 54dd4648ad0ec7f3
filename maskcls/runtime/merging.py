"""Joins what the shards of a job wrote into the file that one machine would have written."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from maskcls.errors import DataError
from maskcls.provenance import Provenance, ShardRecord, read_provenance, write_provenance
from maskcls.runtime.labelling import LabellingResult, nothing_to_read, part_size
from maskcls.runtime.partitions import partition_files, read_partition
from maskcls.runtime.parts import only_job, parts_path
from maskcls.runtime.tables import parts_of, read_columns, read_rows, write_table


@dataclass(frozen=True)
class _Part:
    path: Path
    made: Provenance
    shard: ShardRecord
    columns: list[str]  # without `error`


def merge(paths: Sequence[Path], out: Path) -> LabellingResult:
    """Joins the outputs of all shards, in any order, byte for byte as without shards.

    `paths`: their files, or the folder that `maskcls.runtime.cluster` has filled.

    Raises:
        DataError: a shard is missing or stands twice; they are of different lists, models or
            options; a file is no output of a shard, or has changed since; no picture in any of
            them could be read; or `out` is a folder, or being written by another job.
        MissingExtraError: Parquet without pyarrow.
    """
    if len(paths) == 1 and paths[0].is_dir():
        paths = partition_files(paths[0])
    parts = sorted((_open(path) for path in paths), key=lambda part: part.shard.number)
    if any(path.resolve() == out.resolve() for path in paths):
        raise DataError(f"{out}: is one of the shards; name another file for all of them")
    if any(path.suffix.lower() != out.suffix.lower() for path in paths):
        raise DataError(f"{out}: name it {paths[0].suffix}, as the shards are, all of them alike")
    for part in parts[1:]:
        _require_alike(parts[0], part)
    _require_all(parts)

    pictures = sum(part.made.pictures for part in parts)
    errors = [
        row["error"]
        for part in parts
        if part.made.errors
        for row in read_rows(part.path)
        if "error" in row
    ]
    if len(errors) == pictures:
        raise nothing_to_read(errors)
    counts = [part.made.seen_in_training for part in parts]
    total = sum(count or 0 for count in counts)
    seen = None if None in counts and not total else total
    columns = parts[0].columns + (["error"] if errors else [])
    rows = tqdm(
        itertools.chain.from_iterable(read_rows(part.path) for part in parts),
        total=pictures,
        desc="joining",
        unit="img",
        disable=None,
    )
    try:
        with only_job(out):
            write_table(out, columns, parts_of(rows, part_size(parts[0].shard.batch_size)))
            write_provenance(out, Provenance(pictures, len(errors), seen, parts[0].made.models))
    finally:
        with suppress(OSError):  # the lock's folder, unless a job's parts lie in it
            parts_path(out).rmdir()
    return LabellingResult(out, pictures, tuple(errors), seen)


def _open(path: Path) -> _Part:
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    made = read_partition(path) or read_provenance(path)
    if made is None:
        raise DataError(
            f"{path}: without its {path.name}.json, which a shard leaves beside its output, or "
            "changed since; bring both, or label the shard again"
        )
    if made.shard is None:
        raise DataError(f"{path}: was labelled without --shard; it is no part")
    return _Part(path, made, made.shard, [c for c in read_columns(path) if c != "error"])


def _require_alike(first: _Part, other: _Part) -> None:
    """
    Raises:
        DataError: they are of different jobs; says in what they differ.
    """
    kinds: dict[str, Callable[[_Part], object]] = {
        "numbers of shards": lambda part: part.shard.count,
        "lists of pictures": lambda part: part.shard.pictures_sha256,
        "models": lambda part: [(model.task, model.sha256) for model in part.made.models],
        "--batch-size": lambda part: part.shard.batch_size,
        "--escape-formulas": lambda part: part.shard.escape_formulas,
        "columns (--probabilities)": lambda part: part.columns,
    }
    for name, value in kinds.items():
        if value(first) != value(other):
            raise DataError(
                f"{first.path} and {other.path} have different {name}; label one of them again"
            )


def _require_all(parts: Sequence[_Part]) -> None:
    """
    Raises:
        DataError: a shard is missing or stands twice.
    """
    count = parts[0].shard.count
    by_number: dict[int, Path] = {}
    for part in parts:
        number = part.shard.number
        if number in by_number:
            raise DataError(
                f"{by_number[number]} and {part.path} are both shard {number}/{count}; give one"
            )
        by_number[number] = part.path
    missing = [f"{n}/{count}" for n in range(1, count + 1) if n not in by_number]
    if missing:
        shown = ", ".join(missing[:10]) + (", …" if len(missing) > 10 else "")
        raise DataError(f"missing: {shown}; label with --shard {missing[0]} and name its output")
