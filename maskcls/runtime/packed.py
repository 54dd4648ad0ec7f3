"""Pictures that lie many to a file: tar files as WebDataset writes them, and Parquet tables.

They are read from the front to the back, a few pictures in memory at a time, however large the
files are. A member that cannot be read becomes a picture with an error; a file that cannot be
opened at all is refused before the work begins.

- A tar file has the members with a picture's ending; `.json`, `.cls` and others are passed over.
  The output calls them `a.tar/1.jpg`.
- A Parquet table has a column of bytes, or of `{bytes, path}` as Hugging Face writes it. They are
  called what stands in `ImageID`, `path` or that `path`, or else `a.parquet/17`, by the row's
  number from 0. A table without such a column names files, in `ImageID` or `path`, relative to
  itself.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from maskcls.errors import DataError, MissingExtraError
from maskcls.images import excess, is_image_file
from maskcls.provenance import read_provenance
from maskcls.runtime.sources import (
    ID_COLUMNS,
    ListedPictures,
    Pictures,
    Source,
    list_pictures,
    picture_names,
    spelled_on_disk,
)

ROWS = 64
"""Of a Parquet table in memory at a time."""
CUT = "the tar file ends in the middle of it"
DAMAGED = "from this byte on the tar file is damaged and not read"
NO_END = "the tar file ends here without a mark of its end: what followed is missing"


class PackedFile(ABC):
    """One file of pictures. Small: the pictures stay in the file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.size = path.stat().st_size
        except OSError as error:
            raise DataError(f"{path}: {error.strerror or error}") from None
        self.count = self._count()

    @abstractmethod
    def _count(self) -> int:
        """How many pictures there are, from the file's index: no picture is read."""

    def names(self) -> Iterator[str]:
        """Those that do not come from the file's own name: another file may have them, too."""
        return iter(())

    @abstractmethod
    def read(self, start: int, stop: int) -> Iterator[Source]:
        """These pictures, with content or with an error."""


class TarPictures(PackedFile):
    """The pictures in a tar file. Where it is cut off or damaged, the last one says so.

    Raises:
        DataError: no tar file, a compressed one, or a name that stands twice.
    """

    def _count(self) -> int:
        try:
            return _count_distinct(self.path, (member.name for _, member, _ in self._members()))
        except tarfile.TarError:
            raise DataError(
                f"{self.path}: no tar file, or a compressed one (unpack it: pictures hardly shrink)"
            ) from None

    def read(self, start: int, stop: int) -> Iterator[Source]:
        for archive, member, error in itertools.islice(self._members(), start, stop):
            path = self.path / member.name
            content = None
            if not error and not member.isreg():
                error = "a link or device, which has no content of its own"
            elif not error and (too_large := excess(member.size)):
                error = too_large
            elif not error and (file := archive.extractfile(member)):
                content = file.read()
            error = error and f"{path}: {error}"
            yield Source(f"{self.path.name}/{member.name}", path, content, error)

    def _members(self) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo, str]]:
        """The pictures' entries, with what keeps them from being read."""
        with self.path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as archive:
            cut = picture = False
            with suppress(tarfile.ReadError):  # damaged, or behind an entry that is cut off
                while (member := archive.next()) is not None:
                    archive.members = []  # type: ignore[attr-defined]  # or it remembers all
                    cut = member.offset_data + member.size > self.size
                    name = Path(member.name)
                    picture = is_image_file(name) and not name.name.startswith(".")
                    if picture and not member.isdir():
                        yield archive, member, CUT if cut else ""
            # tarfile takes a damaged entry, or none at all, for the end; it is a block of zeros.
            file.seek(archive.offset)
            end = file.read(tarfile.BLOCKSIZE)
            if end.strip(b"\0"):
                yield archive, tarfile.TarInfo(f"@{archive.offset}"), DAMAGED
            elif len(end) < tarfile.BLOCKSIZE and not (cut and picture):  # or it is said already
                yield archive, tarfile.TarInfo(f"@{archive.offset}"), NO_END


class ParquetPictures(PackedFile):
    """The pictures in a Parquet table, or those that it names.

    Raises:
        DataError: no Parquet table, or no column with pictures or their names.
        MissingExtraError: without pyarrow.
    """

    def _count(self) -> int:
        pyarrow = import_pyarrow(self.path)
        try:
            with pyarrow.parquet.ParquetFile(self.path) as file:
                schema, rows = file.schema_arrow, file.metadata.num_rows
                self._names = next((name for name in ID_COLUMNS if name in schema.names), "")
                self._contents = next((f.name for f in schema if _holds_bytes(pyarrow, f.type)), "")
                if self._names or self._contents:
                    return int(rows)
        except (OSError, pyarrow.ArrowException) as error:
            raise self._unreadable(error) from None
        raise DataError(
            f"{self.path}: no column of bytes, and none named {' or '.join(ID_COLUMNS)}"
        )

    def names(self) -> Iterator[str]:
        pyarrow = import_pyarrow(self.path)
        column = self._names or f"{self._contents}.path"
        try:
            with pyarrow.parquet.ParquetFile(self.path) as file:
                for batch in file.iter_batches(columns=[column]):
                    yield from filter(None, map(self._given, batch.to_pylist()))
        except UnicodeDecodeError as error:
            raise DataError(f"{self.path}: {column} is not UTF-8 text ({error.reason})") from None
        except (OSError, pyarrow.ArrowException) as error:
            raise self._unreadable(error) from None

    def read(self, start: int, stop: int) -> Iterator[Source]:
        pyarrow = import_pyarrow(self.path)
        columns = [name for name in (self._names, self._contents) if name]
        with pyarrow.parquet.ParquetFile(self.path) as file:
            end = 0
            for group in range(file.num_row_groups):
                number, end = end, end + file.metadata.row_group(group).num_rows
                if end <= start or number >= stop:
                    continue
                try:
                    for batch in file.iter_batches(ROWS, row_groups=[group], columns=columns):
                        for row in batch.to_pylist():
                            if start <= number < stop:
                                yield self._source(row, number)
                            number += 1
                except (OSError, pyarrow.ArrowException) as error:
                    reason = " ".join(str(error).split())[:200]
                    for row in range(max(number, start), min(end, stop)):
                        path = self.path / str(row)
                        name = f"{self.path.name}/{row}"
                        yield Source(name, path, error=f"{path}: the table is damaged: {reason}")

    def _source(self, row: dict[str, Any], number: int) -> Source:
        name = self._name(row, number)
        if not self._contents:
            folder = self.path.parent
            return Source(name, folder / spelled_on_disk(folder, name))
        content = row[self._contents]
        if isinstance(content, dict):
            content = content["bytes"]
        return Source(name, self.path.parent / name, content or b"")

    def _name(self, row: dict[str, Any], number: int) -> str:
        return self._given(row) or f"{self.path.name}/{number}"

    def _given(self, row: dict[str, Any]) -> str:
        name = row[self._names] if self._names else row.get(self._contents)
        if isinstance(name, dict):
            name = name.get("path")
        return str(name) if isinstance(name, str | int) else ""

    def _unreadable(self, error: Exception) -> DataError:
        return DataError(
            f"{self.path}: cannot be read as Parquet: {' '.join(str(error).split())[:200]}"
        )


class PackedPictures:
    """The pictures of several files, one file after the other: see `Pictures`."""

    def __init__(self, files: Sequence[PackedFile], part: slice | None = None) -> None:
        self._start, self._stop, _ = (part or slice(None)).indices(sum(f.count for f in files))
        self._files: list[PackedFile] = []
        for file in files:  # those that the part has pictures of
            if self._files or self._start < file.count:
                self._files.append(file)
            else:
                self._start -= file.count
                self._stop -= file.count
        count = 0
        for index, file in enumerate(self._files):
            if count >= self._stop:
                del self._files[index:]
                break
            count += file.count

    def __len__(self) -> int:
        return max(0, self._stop - self._start)

    def __iter__(self) -> Iterator[Source]:
        first = 0
        for file in self._files:
            start, stop = max(self._start - first, 0), min(self._stop - first, file.count)
            if start < stop:
                left = stop - start
                for source in file.read(start, stop):
                    yield source
                    left -= 1
                if left:
                    raise DataError(f"{file.path}: has become shorter since the work began")
            first += file.count

    def __getitem__(self, part: slice, /) -> PackedPictures:
        start, stop, step = part.indices(len(self))
        if step != 1:
            raise ValueError(f"a step of {step}: pictures are read in order")
        return PackedPictures(self._files, slice(self._start + start, self._start + stop))

    @property
    def files(self) -> tuple[PackedFile, ...]:
        """Those that it has pictures of."""
        return tuple(self._files)

    def identity(self) -> list[object]:
        """What tells them from others: file names, sizes and numbers of pictures."""
        files = [[file.path.name, file.size, file.count] for file in self._files]
        return [self._start, self._stop, *files]


def _count_distinct(path: Path, names: Iterable[str]) -> int:
    """
    Raises:
        DataError: a name stands twice.
    """
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise DataError(f"{path}: {name!r} stands twice")
        seen.add(name)
    return len(seen)


def _refuse_shared_names(files: Sequence[PackedFile]) -> None:
    """Eight bytes a name are in memory, not the names.

    Raises:
        DataError: a name stands twice, in one of the files or in two.
    """
    hashes = np.concatenate(
        [np.fromiter(map(hash, file.names()), dtype=np.int64) for file in files]
    )
    hashes.sort()
    doubtful = set(hashes[1:][hashes[1:] == hashes[:-1]].tolist())
    owners: dict[str, Path] = {}
    for file in files if doubtful else ():
        for name in file.names():
            if hash(name) in doubtful:
                if name in owners:
                    where = "twice" if owners[name] == file.path else f"in {owners[name].name}, too"
                    raise DataError(f"{file.path}: {name!r} stands {where}")
                owners[name] = file.path


KINDS: dict[str, type[PackedFile]] = {".tar": TarPictures, ".parquet": ParquetPictures}


def packed_files(images: Path) -> list[Path]:
    """The file, or the files in a folder, sorted, that hold pictures by their ending. In a folder,
    labels that were written there are none."""
    if images.is_file():
        return [images] if images.suffix.lower() in KINDS else []
    return [
        file
        for file in sorted(images.iterdir())
        if file.suffix.lower() in KINDS
        and file.is_file()
        and not file.name.startswith(".")
        and read_provenance(file) is None  # which no other .json beside it passes for
    ]


def open_packed(files: Sequence[Path]) -> PackedPictures:
    """The pictures in these files.

    Raises:
        DataError: a file that cannot be read, a name that stands twice, or no picture in any of
            them.
        MissingExtraError: Parquet without pyarrow.
    """
    opened = [KINDS[file.suffix.lower()](file) for file in files]
    _refuse_shared_names(opened)
    pictures = PackedPictures(opened)
    if not len(pictures):
        raise DataError(f"{files[0] if len(files) == 1 else files[0].parent}: no pictures in it")
    return pictures


def open_pictures(images: Path, info: Path | None = None) -> Pictures:
    """As `list_pictures`; besides, the pictures in a `.tar` or `.parquet` file, or in a folder of
    such files that has no pictures of its own.

    Raises:
        DataError: as `list_pictures` and `open_packed`.
        MissingExtraError: Parquet without pyarrow.
    """
    if images.is_file() and packed_files(images):
        if info is not None:
            raise DataError(f"{images}: is a list already; --info goes with a folder")
        return open_packed([images])
    if info is None and images.is_dir() and (files := packed_files(images)):
        if not picture_names(images):
            return open_packed(files)
    return list_pictures(images, info)


def pictures_digest(pictures: Pictures) -> str:
    """What tells lists of pictures apart: names and their order. Not the folder they lie in, which
    may have another name on another machine."""
    digest = hashlib.sha256()
    if isinstance(pictures, PackedPictures):
        digest.update(json.dumps(pictures.identity()).encode())
    else:
        for source in pictures:
            digest.update(json.dumps(source.image_id).encode() + b"\n")
    return digest.hexdigest()


def places_digest(pictures: Pictures) -> str:
    """What tells apart where pictures lie: cameras give the same names in every folder. Of packed
    files their dates, too."""
    digest = hashlib.sha256()
    if isinstance(pictures, PackedPictures):
        for file in pictures.files:
            place = [os.path.abspath(file.path), file.path.stat().st_mtime_ns]
            digest.update(json.dumps(place).encode())
    else:
        here = os.getcwd()
        for source in pictures:
            digest.update(json.dumps(os.path.join(here, source.path)).encode())
    return digest.hexdigest()


def files_read(pictures: Pictures) -> list[Path]:
    """The tables and packed files that name or hold the pictures."""
    if isinstance(pictures, PackedPictures):
        return [file.path for file in pictures.files]
    if isinstance(pictures, ListedPictures) and pictures.table is not None:
        return [pictures.table]
    return []


def import_pyarrow(path: Path) -> Any:
    """
    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingExtraError("pyarrow", "parquet", f"{path}: Parquet") from None
    return pyarrow


def _holds_bytes(pyarrow: Any, kind: Any) -> bool:
    types = pyarrow.types
    if types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return bool(index >= 0 and _holds_bytes(pyarrow, kind.field(index).type))
    return bool(types.is_binary(kind) or types.is_large_binary(kind))
