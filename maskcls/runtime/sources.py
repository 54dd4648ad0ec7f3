"""Which pictures are labelled, under which names and in which order."""

from __future__ import annotations

import csv
import io
import os
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, overload

from maskcls.errors import DataError
from maskcls.images import is_image_file

ID_COLUMNS = ("ImageID", "path")


@dataclass(frozen=True)
class Source:
    """One picture to label."""

    image_id: str  # as it stands in the output
    path: Path
    content: bytes | None = None  # of a picture that is packed with others; else of the file `path`
    error: str = ""  # why a packed picture has no content


class Pictures(Protocol):
    """Pictures in order, read one after the other: a sequence of `Source`, or what
    `maskcls.runtime.packed` opens, which is never in memory as a whole."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Source]: ...

    def __getitem__(self, part: slice, /) -> Pictures: ...


class ListedPictures(Sequence[Source]):
    """Files by their names below a folder. A `Source` is made when it is asked for, so that of a
    long list only the names are in memory. `spelled`: names whose file is written otherwise.
    `table`: the list that names them, where there is one."""

    def __init__(
        self,
        folder: Path,
        names: Sequence[str],
        spelled: Mapping[str, str] | None = None,
        table: Path | None = None,
    ) -> None:
        self._folder = folder
        self._names = names
        self._spelled = spelled or {}
        self.table = table

    def __len__(self) -> int:
        return len(self._names)

    @overload
    def __getitem__(self, place: int) -> Source: ...
    @overload
    def __getitem__(self, place: slice) -> ListedPictures: ...
    def __getitem__(self, place: int | slice) -> Source | ListedPictures:
        if isinstance(place, slice):
            names = self._names[place]
            # Of these names only: a cluster is sent a slice for each of its tasks.
            spelled = {name: self._spelled[name] for name in names if name in self._spelled}
            return ListedPictures(self._folder, names, spelled, self.table)
        name = self._names[place]
        return Source(name, self._folder / self._spelled.get(name, name))


def list_pictures(images: Path, info: Path | None = None) -> ListedPictures:
    """The pictures that `--images` and `--info` name.

    A folder gives all pictures under it, sorted, by their path relative to it; a competition folder
    (`images/` and `info.csv` in it) gives the rows of its `info.csv`. A CSV with a column ImageID
    or path, or a TXT with a path a line, gives its rows, relative to its own folder. With `info`,
    its rows name pictures under the folder `images`.

    A row whose file is missing is still listed: labelling reports it.

    Raises:
        DataError: no such file or folder, a folder below that cannot be read, no pictures in it, a
            table without the column, an ImageID that stands twice.
    """
    if images.is_file():
        if info is not None:
            raise DataError(f"{images}: is a list already; --info goes with a folder")
        return _read_list(images, images.parent)
    if not images.is_dir():
        raise DataError(f"no such folder or list of pictures: {images}")
    if info is None and (images / "info.csv").is_file() and (images / "images").is_dir():
        images, info = images / "images", images / "info.csv"
    if info is not None:
        return _read_list(info, images)
    names = picture_names(images)
    if not names:
        raise DataError(f"{images}: no pictures in it")
    return ListedPictures(images, names)


def picture_names(folder: Path) -> list[str]:
    """All pictures below, by their paths relative to it, sorted by their parts. Hidden names are
    passed over, links to folders not followed.

    Raises:
        DataError: a folder that cannot be read; its pictures would be missing without a word.
    """

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename}: {error.strerror or error}") from None

    found = []
    for parent, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        below = Path(parent).relative_to(folder)
        found += [
            (below / name).as_posix()
            for name in files
            if not name.startswith(".") and is_image_file(name)
        ]
    return sorted(found, key=lambda name: name.replace("/", "\0"))  # a/b before a.b, as of paths


def _read_list(table: Path, folder: Path) -> ListedPictures:
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            text = file.read()
    except OSError as error:
        raise DataError(f"{table}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{table}: not UTF-8 text ({error.reason} at {error.start})") from None
    # Not splitlines(), which breaks names at more than the ends of lines.
    if table.suffix.lower() == ".txt":
        names = [name for line in io.StringIO(text, newline=None) if (name := line.strip())]
    else:
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        try:
            column = next((name for name in ID_COLUMNS if name in (reader.fieldnames or ())), None)
            if column is None:
                raise DataError(f"{table}: no column {' or '.join(ID_COLUMNS)}")
            names = [row[column] or "" for row in reader]
        except csv.Error as error:
            raise DataError(f"{table}: not a CSV table: {error}") from None
    if not names:
        raise DataError(f"{table}: no pictures in it")
    seen: set[str] = set()
    for name in names:
        if name in seen or not name:
            raise DataError(f"{table}: {'an empty name' if not name else f'{name!r} stands twice'}")
        seen.add(name)
    spelled = {name: other for name in names if (other := spelled_on_disk(folder, name)) != name}
    return ListedPictures(folder, names, spelled, table)


def spelled_on_disk(folder: Path, name: str) -> str:
    """The name as its file has it; a file whose name differs only in Unicode normalisation will do.
    The name itself where there is none."""
    # os.path: a name that no file can have, because it is too long, is none that exists.
    if not name.isascii() and not os.path.exists(folder / name):
        if parts := _parts_on_disk(folder, Path(name).parts):
            return Path(*parts).as_posix()
    return name


def _parts_on_disk(folder: Path, parts: Sequence[str]) -> list[str] | None:
    """Each folder of a path, and its file, in the form that is there: they may differ in it."""
    if not parts:
        return []
    first = parts[0]
    for form in dict.fromkeys((first, *(unicodedata.normalize(f, first) for f in ("NFC", "NFD")))):
        if os.path.exists(folder / form):
            rest = _parts_on_disk(folder / form, parts[1:])
            if rest is not None:
                return [form, *rest]
    return None
