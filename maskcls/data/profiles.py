"""The people of a data folder and their pictures: an index, read from `train.csv` or from the
folders alone.

    DIR/train.csv                                     id,gender,race,age,path       (optional)
    DIR/images/000001_female_Asian_45/mask1.jpg       {id}_{gender}_{race}_{age}/{picture}

`DIR/images` itself, or a folder that holds the people directly, is taken as well. The key of a
person is the folder's name: ids repeat (003397 is two people in the competition's data). A folder
of the same name in two data folders is one person.
"""

from __future__ import annotations

import csv
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from maskcls.errors import DataError
from maskcls.images import is_image_file
from maskcls.labels import MASK_OF_STEM, AgeLabels, GenderLabels, MaskLabels

PROFILE_COLUMNS = ("id", "gender", "race", "age", "path")


@dataclass(frozen=True)
class Picture:
    """One picture of a person."""

    path: Path
    mask: MaskLabels


@dataclass(frozen=True)
class Profile:
    """One person: their folder, labels and pictures."""

    folder: Path
    id: str
    gender: GenderLabels
    race: str
    age: int  # years
    pictures: tuple[Picture, ...] = ()

    @property
    def person(self) -> str:
        """The key: the folder's name in Unicode NFC, so that NFD copies are the same person."""
        return nfc(self.folder.name)

    @property
    def age_group(self) -> AgeLabels:
        return AgeLabels.from_number(self.age)


def nfc(text: str) -> str:
    """Unicode NFC: how names are compared. Paths are kept as they are on the disk."""
    return unicodedata.normalize("NFC", text)


def parse_folder_name(name: str) -> tuple[str, GenderLabels, str, int]:
    """`{id}_{gender}_{race}_{age}` → (id, gender, race, age).

    Raises:
        DataError: the name does not parse; says which part and shows a good one.
    """
    parts = name.split("_")
    try:
        if len(parts) != 4 or not parts[0]:
            raise DataError(f"{len(parts)} parts instead of 4")
        number, gender, race, age = parts
        AgeLabels.from_number(age)
        return number, GenderLabels.from_str(gender), race, int(age)
    except DataError as error:
        raise DataError(
            f"folder name {name!r} is not {{id}}_{{gender}}_{{race}}_{{age}}: {error} "
            "(a good one: 000001_female_Asian_45)"
        ) from None


def read_profiles(data_dir: Path) -> list[Profile]:
    """All people of a data folder with their pictures, in the order of the folders' names.

    With a `train.csv` its rows are the people and their labels; without one, the folders under
    `images/` are.

    Raises:
        DataError: no such folder, no people in it, a row or folder name that does not parse, a
            person without a folder or without pictures, a picture whose name says no mask state.
    """
    images, table = locate(data_dir)
    profiles = read_table(table, images) if table.is_file() else _from_folders(images)
    if not profiles:
        raise DataError(
            f"{table if table.is_file() else images}: no people in it; expected folders like "
            f"{images / '000001_female_Asian_45'} with mask1.jpg … normal.jpg inside"
        )
    return [
        Profile(p.folder, p.id, p.gender, p.race, p.age, tuple(list_pictures(p.folder)))
        for p in sorted(profiles, key=lambda profile: profile.person)
    ]


def read_all_profiles(data_dirs: Sequence[Path]) -> list[Profile]:
    """The people of several data folders, one after the other.

    Raises:
        DataError: as `read_profiles`; or none given, or one of them given twice.
    """
    if not data_dirs:
        raise DataError("no data folder was given: --data-dir DIR")
    require_distinct(data_dirs)
    return [profile for data_dir in data_dirs for profile in read_profiles(data_dir)]


def require_distinct(data_dirs: Sequence[Path]) -> None:
    """
    Raises:
        DataError: one of them is given twice, or is not there.
    """
    resolved = [locate(data_dir)[0].resolve() for data_dir in data_dirs]
    twice = {str(folder) for folder in resolved if resolved.count(folder) > 1}
    if twice:
        raise DataError(f"data folder given twice: {', '.join(sorted(twice))}")


def locate(data_dir: Path) -> tuple[Path, Path]:
    """The folder that holds the people's folders, and where a `train.csv` would lie.

    Raises:
        DataError: no such folder, or the one above it.
    """
    if not data_dir.is_dir():
        what = "a file, not a data folder" if data_dir.exists() else "no such data folder"
        raise DataError(f"{what}: {data_dir}")
    images = data_dir / "images"
    if images.is_dir():
        return images, data_dir / "train.csv"
    if data_dir.absolute().name == "images":  # what the original's SM_CHANNEL_TRAIN points to
        above = data_dir.parent if data_dir.name == "images" else data_dir / ".."
        return data_dir, above / "train.csv"
    table = data_dir / "train.csv"
    if not table.is_file() and (below := sorted(data_dir.glob("[!.]*/images/[!.]*_*_*_*/"))):
        raise DataError(
            f"{data_dir}: not a data folder, but one lies in it; name that: {below[0].parents[1]}"
        )
    return data_dir, table


def read_table(table: Path, images: Path) -> list[Profile]:
    """The rows of a `train.csv` as people, still without pictures; their folders lie in `images`.

    Raises:
        DataError: not UTF-8, a missing column, a cell that does not fit, a path that leaves the
            folder or stands in two rows.
    """
    profiles = []
    for row in iter_table(table, images):
        if isinstance(row, DataError):
            raise row
        profiles.append(row)
    return profiles


def iter_table(table: Path, images: Path) -> Iterator[Profile | DataError]:
    """As `read_table`, row by row: what is wrong with one row comes in the place of its person, so
    that a check can go on with the next.

    Raises:
        DataError: the table as a whole cannot be read: not UTF-8, a missing column.
    """
    rows_of: dict[str, int] = {}
    on_disk = {nfc(folder.name): folder for folder in images.iterdir()}
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)  # else one quote hides all that follows
            missing = [name for name in PROFILE_COLUMNS if name not in (reader.fieldnames or ())]
            if missing:
                raise DataError(f"{table}: no column {', '.join(missing)}")
            for row in reader:
                # line_num, not a count of rows: DictReader passes over empty lines.
                number = reader.line_num
                try:
                    profile = _from_row(row, images)
                    if profile.person in rows_of:
                        other = rows_of[profile.person]
                        raise DataError(f"path {row['path']!r} stands in line {other} too")
                except DataError as error:
                    yield DataError(f"{table}, line {number}: {error}")
                    continue
                rows_of[profile.person] = number
                yield replace(profile, folder=on_disk.get(profile.person, profile.folder))
    except UnicodeDecodeError as error:
        raise DataError(f"{table}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    except csv.Error as error:
        raise DataError(f"{table}: not a CSV table: {error}") from None


def _from_row(row: dict[str, str | None], images: Path) -> Profile:
    cells = {name: value.strip() for name in PROFILE_COLUMNS if (value := row[name]) is not None}
    if len(cells) < len(PROFILE_COLUMNS):
        raise DataError("fewer cells than columns")
    path = cells["path"]
    if not path or path in (".", "..") or Path(path).name != path or "\0" in path:
        raise DataError(f"path {path!r} is not the name of a person's folder")
    gender = GenderLabels.from_str(cells["gender"])
    AgeLabels.from_number(cells["age"])
    number, race = nfc(cells["id"]), nfc(cells["race"])
    return Profile(images / path, number, gender, race, int(cells["age"]))


def _from_folders(images: Path) -> list[Profile]:
    return [profile_of_folder(folder) for folder in people_folders(images)]


def people_folders(images: Path) -> list[Path]:
    """The folders in `images`, sorted by name; hidden ones are passed over."""
    return [path for path in visible(images) if path.is_dir()]


def profile_of_folder(folder: Path) -> Profile:
    """A person, still without pictures, from the folder's name alone.

    Raises:
        DataError: the name does not parse.
    """
    try:
        return Profile(folder, *parse_folder_name(nfc(folder.name)))
    except DataError as error:
        raise DataError(f"{folder.parent}: {error}") from None


def list_pictures(folder: Path) -> list[Picture]:
    """The pictures of a person's folder, sorted by name; hidden and other files are passed over.

    Raises:
        DataError: no such folder, no picture in it, or one whose name says no mask state.
    """
    try:
        paths = visible(folder)
    except OSError as error:
        raise DataError(f"{folder}: {error.strerror or error}; the person has no folder") from None
    pictures = [picture_of_file(path) for path in paths if is_image_file(path)]
    if not pictures:
        raise DataError(
            f"{folder}: no pictures in it; expected {', '.join(MASK_OF_STEM)} (.jpg, .png, …)"
        )
    return pictures


def picture_of_file(path: Path) -> Picture:
    """A picture, labelled by its file's name.

    Raises:
        DataError: the name says no mask state.
    """
    try:
        return Picture(path, MaskLabels.from_filename(path.name))
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


def visible(folder: Path) -> list[Path]:
    """What lies in a folder, sorted by name, without hidden files.

    Raises:
        OSError: there is no such folder, or it cannot be read.
    """
    return sorted((path for path in folder.iterdir() if not _hidden(path)), key=lambda p: p.name)


def _hidden(path: Path) -> bool:
    # Also macOS's "._name" companions, which look like pictures by their extension.
    return path.name.startswith(".")
