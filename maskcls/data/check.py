"""What is wrong with a data folder, all of it at once: names, the table, pictures, people who are
in it twice.

`read_profiles` stops at the first fault, as a training should. This goes on to the last, so that a
folder is mended in one go.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from PIL import Image
from tqdm import tqdm

from maskcls.data.fixes import Fix, apply_fixes
from maskcls.data.profiles import (
    Picture,
    Profile,
    iter_table,
    locate,
    nfc,
    parse_folder_name,
    people_folders,
    picture_of_file,
    profile_of_folder,
    require_distinct,
    visible,
)
from maskcls.errors import DataError, PictureError
from maskcls.images import content_digest, decode, is_image_file, read_bytes
from maskcls.labels import MASK_OF_STEM, MULTI, GenderLabels, MaskLabels

Severity = Literal["error", "warning"]
_T = TypeVar("_T")

NEAR_DUPLICATE = {
    MaskLabels.MASK: 0.97,
    MaskLabels.INCORRECT: 0.955,
    MaskLabels.NORMAL: 0.955,
}
"""Correlation of two thumbnails from which on they count as the same photo. Higher with a mask on:
it covers half of what tells people apart.

Measured on 1,600 people with seven pictures each, faces of about the same size and place. A picture
and its copy, 250 of them: saved again as JPEG of quality 30, at half or a quarter of the size,
darker by 30 % or with less contrast at least 0.995; brighter by 30 %, where highlights clip, 0.97
or more in 95 of 100. Strangers: at most 0.969 with masks on (32 million pairs), 0.943 without (2.6
million). What lies above was looked at: two pairs, the same photo under two ids both times, with
poses and light of their own. A crop that is off by 3 % gives 0.87 to 0.93, as strangers reach too,
so cropped copies are not found.
"""
_THUMBNAIL_SIDE = 24  # pixels
_THUMBNAIL_CROP = 0.8  # of height and width: backgrounds and borders of photo series are alike
_BLOCK = 1024  # thumbnails compared at once: 20,000 pictures need 80 MB a block, not 1.6 GB


@dataclass(frozen=True)
class Problem:
    """One thing found. Errors keep a training from running or falsify its score; warnings may be
    meant that way."""

    kind: str
    severity: Severity
    where: str  # a path, relative to the data folder where there is but one; or a fix's target
    detail: str


@dataclass(frozen=True)
class CheckReport:
    """What a data folder holds, and what is wrong with it."""

    people: int
    pictures: int  # also those that cannot be read
    fixes: int  # corrections of labels that were given
    corrected: int  # of these were applied
    classes: tuple[int, ...]  # pictures per 18-class label, after the fixes
    extensions: dict[str, int]  # lower case, with the dot
    sizes: dict[tuple[int, int], int]  # (width, height) in pixels, upright
    problems: tuple[Problem, ...]

    @property
    def broken(self) -> bool:
        """Whether any problem is an error."""
        return any(problem.severity == "error" for problem in self.problems)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "broken": self.broken,
            "people": self.people,
            "pictures": self.pictures,
            "fixes": self.fixes,
            "corrected": self.corrected,
            "classes": dict(zip(MULTI.class_names, self.classes, strict=True)),
            "extensions": self.extensions,
            "sizes": {f"{width}x{height}": count for (width, height), count in self.sizes.items()},
            "problems": [asdict(problem) for problem in self.problems],
        }


def check_data(
    data_dirs: Sequence[Path],
    fixes: Sequence[Fix] = (),
    workers: int = 2,
    progress: bool = True,
) -> CheckReport:
    """Everything that can be said before a training about its data folders: every picture is
    decoded.

    Args:
        data_dirs: one or several that are trained on together; people of the same name are one.
        fixes: applied before pictures are counted.
        workers: threads that decode.
        progress: show a progress bar on stderr.

    Raises:
        DataError: there is no such folder, or one is given twice. All else becomes a `Problem`.
    """
    require_distinct(data_dirs)
    found = _Findings(data_dirs)
    profiles = []
    for images, table in [locate(data_dir) for data_dir in data_dirs]:
        people = _read_people(images, table, found)
        if not people:
            found.error("no people", images, "expected folders like 000001_female_Asian_45")
        profiles += people
    _check_ids(profiles, found)
    _check_agreement(profiles, found)
    profiles = [replace(p, pictures=_check_folder(p.folder, found)) for p in profiles]
    _check_missing(profiles, found)
    profiles, corrected = _apply(profiles, fixes, found)

    pictures = [(profile, picture) for profile in profiles for picture in profile.pictures]
    seen = _look_at(pictures, workers, progress, found)
    _check_exact_duplicates(seen, found)
    _check_near_duplicates(seen, found)

    classes = Counter(
        int(MULTI.encode(mask=picture.mask, gender=profile.gender, age=profile.age_group))
        for profile, picture in pictures
    )
    return CheckReport(
        people=len({profile.person for profile in profiles}),
        pictures=len(pictures),
        fixes=len(fixes),
        corrected=corrected,
        classes=tuple(classes[label] for label in range(MULTI.num_classes)),
        extensions=_by_count(picture.path.suffix.lower() for _, picture in pictures),
        sizes=_by_count(one.size for one in seen),
        problems=tuple(found.problems),
    )


class _Findings:
    """Collects problems; paths become relative to the data folder, where there is but one."""

    def __init__(self, data_dirs: Sequence[Path]) -> None:
        self.data_dirs = data_dirs
        self.problems: list[Problem] = []

    def error(self, kind: str, where: Path | str, detail: object) -> None:
        self._add(kind, "error", where, detail)

    def warning(self, kind: str, where: Path | str, detail: object) -> None:
        self._add(kind, "warning", where, detail)

    def name(self, where: Path | str) -> str:
        """A path as it is shown."""
        path = Path(where)
        if len(self.data_dirs) == 1 and path.is_relative_to(self.data_dirs[0]):
            path = path.relative_to(self.data_dirs[0])
        return str(path)

    def _add(self, kind: str, severity: Severity, where: Path | str, detail: object) -> None:
        # Errors of single files begin with the file's path, which `where` already says.
        text = str(detail).removeprefix(f"{where}: ").removeprefix(f"{where}, ")
        self.problems.append(Problem(kind, severity, self.name(where), text))


# --- folders and the table ---------------------------------------------------------------------


def _read_people(images: Path, table: Path, found: _Findings) -> list[Profile]:
    """The people, in the order of the folders' names, still without pictures."""
    folders = people_folders(images)
    for path in visible(images):
        if not path.is_dir() and path != table:
            found.warning("other file", path, "not the folder of a person")
    _check_collisions(folders, found)
    profiles = _from_table(table, images, found) if table.is_file() else None
    if profiles is None:
        return _from_names(folders, found)
    listed = {profile.person for profile in profiles}
    for folder in folders:
        if nfc(folder.name) not in listed:
            found.warning("not in the table", folder, f"{table.name} has no good row for it")
    for profile in profiles:
        _check_against_name(profile, found)
    return sorted(profiles, key=lambda profile: profile.person)


def _from_table(table: Path, images: Path, found: _Findings) -> list[Profile] | None:
    """The people of the good rows; None if the table cannot be read at all."""
    profiles = []
    try:
        for row in iter_table(table, images):
            if isinstance(row, DataError):
                found.error("table row", table, row)
            else:
                profiles.append(row)
    except DataError as error:
        found.error("table", table, error)
        return None
    return profiles


def _from_names(folders: Iterable[Path], found: _Findings) -> list[Profile]:
    profiles = []
    for folder in folders:
        try:
            profiles.append(profile_of_folder(folder))
        except DataError as error:
            found.error("folder name", folder, str(error).removeprefix(f"{folder.parent}: "))
    return profiles


def _check_collisions(folders: Sequence[Path], found: _Findings) -> None:
    same = defaultdict(list)
    for folder in folders:
        same[nfc(folder.name)].append(folder)
    for first, *others in same.values():
        for other in others:
            found.error(
                "same name twice",
                other,
                f"looks like {first.name!r} but is spelt with other characters (Unicode NFC and "
                "NFD); merge the two folders",
            )


def _check_against_name(profile: Profile, found: _Findings) -> None:
    """A row of the table against the folder's name; a training believes the row."""
    try:
        name = parse_folder_name(nfc(profile.folder.name))
    except DataError as error:
        found.warning("folder name", profile.folder, error)
        return
    row = (profile.id, profile.gender, nfc(profile.race), profile.age)
    for field, in_name, in_row in zip(("id", "gender", "race", "age"), name, row, strict=True):
        if in_name != in_row:
            shown = [
                value.name.lower() if isinstance(value, GenderLabels) else value
                for value in (in_row, in_name)
            ]
            found.warning(
                "name contradicts table",
                profile.folder,
                f"{field} is {shown[0]} in the table, {shown[1]} in the name",
            )


def _check_ids(profiles: Iterable[Profile], found: _Findings) -> None:
    people = defaultdict(list)
    for profile in profiles:
        people[profile.id].append(profile)
    for number, (first, *others) in people.items():
        others = [other for other in others if other.person != first.person]
        if others:
            names = ", ".join(other.folder.name for other in others)
            found.warning("id used twice", first.folder, f"id {number!r} is also that of {names}")


def _check_agreement(profiles: Iterable[Profile], found: _Findings) -> None:
    """People who are in several data folders, under one name."""
    people = defaultdict(list)
    for profile in profiles:
        people[profile.person].append(profile)
    for first, *others in people.values():
        for other in others:
            mine, theirs = ((one.gender.name.lower(), one.age) for one in (first, other))
            if mine != theirs:
                found.error(
                    "labelled in two ways",
                    first.folder,
                    f"{mine[0]}, {mine[1]}; but {theirs[0]}, {theirs[1]} in {other.folder}; "
                    "correct one of the two folders' tables or names",
                )


def _check_folder(folder: Path, found: _Findings) -> tuple[Picture, ...]:
    """The pictures of a person; those whose names say no mask state are left out."""
    try:
        paths = visible(folder)
    except OSError as error:
        found.error("no folder", folder, f"{error.strerror or error}; it is listed in the table")
        return ()
    pictures = []
    for path in paths:
        if not is_image_file(path):
            found.warning("other file", path, "not a picture, by its name")
            continue
        try:
            pictures.append(picture_of_file(path))
        except DataError as error:
            found.error("picture name", path, error)
    stems = Counter(picture.path.stem for picture in pictures)
    for stem, count in stems.items():
        if count > 1:
            names = [picture.path.name for picture in pictures if picture.path.stem == stem]
            found.error("same picture name twice", folder, f"{' and '.join(names)}: keep one")
    return tuple(pictures)


def _check_missing(profiles: Iterable[Profile], found: _Findings) -> None:
    """People without all of the seven pictures, in whichever data folder."""
    people = defaultdict(list)
    for profile in profiles:
        people[profile.person].append(profile)
    for own in people.values():
        stems = {picture.path.stem for profile in own for picture in profile.pictures}
        missing = [stem for stem in MASK_OF_STEM if stem not in stems]
        if missing and any(profile.folder.is_dir() for profile in own):
            found.error("missing pictures", own[0].folder, f"no {', '.join(missing)}")


def _apply(
    profiles: list[Profile], fixes: Sequence[Fix], found: _Findings
) -> tuple[list[Profile], int]:
    """The people with the fixes that apply, and how many do."""
    of_person = defaultdict(list)
    for index, profile in enumerate(profiles):
        of_person[profile.person].append(index)
    profiles = list(profiles)
    applied = 0
    for fix in fixes:
        person = nfc(fix.target).partition("/")[0]
        indices = of_person.get(person, [])
        try:
            fixed = apply_fixes([profiles[index] for index in indices], [fix])
        except DataError as error:
            found.error("fix does not apply", fix.target, error)
            continue
        for index, profile in zip(indices, fixed, strict=True):
            profiles[index] = profile
        applied += 1
    return profiles, applied


# --- pictures ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Seen:
    """One picture that was decoded."""

    path: Path
    person: str
    mask: MaskLabels
    digest: str
    size: tuple[int, int]  # pixels, width × height
    thumbnail: np.ndarray  # float32 (_THUMBNAIL_SIDE²), zero mean, norm 1, or all 0 if uniform


def _look_at(
    pictures: Sequence[tuple[Profile, Picture]], workers: int, progress: bool, found: _Findings
) -> list[_Seen]:
    """Every picture that can be decoded."""

    def look(item: tuple[Profile, Picture]) -> _Seen | PictureError:
        profile, picture = item
        try:
            content = read_bytes(picture.path)
            image = decode(content, picture.path)
        except PictureError as error:
            return error
        return _Seen(
            path=picture.path,
            person=profile.person,
            mask=picture.mask,
            digest=content_digest(content),
            size=image.size,
            thumbnail=_thumbnail(image),
        )

    seen = []
    with ThreadPoolExecutor(workers) as pool:
        results = pool.map(look, pictures)
        bar = tqdm(
            results, "pictures", len(pictures), disable=None if progress else True, unit=" pictures"
        )
        for (_, picture), result in zip(pictures, bar, strict=True):
            if isinstance(result, PictureError):
                found.error("unreadable picture", picture.path, result)
            else:
                seen.append(result)
    return seen


def _thumbnail(image: Image.Image) -> np.ndarray:
    """A picture's centre, small, grey, without brightness and contrast: two of them multiplied are
    their correlation."""
    margin = (1 - _THUMBNAIL_CROP) / 2
    width, height = image.size
    box = (width * margin, height * margin, width * (1 - margin), height * (1 - margin))
    side = (_THUMBNAIL_SIDE, _THUMBNAIL_SIDE)
    small = image.convert("L").resize(side, Image.Resampling.BOX, box)
    levels = np.asarray(small, dtype=np.float32).ravel()
    levels = levels - levels.mean()
    norm = float(np.linalg.norm(levels))
    return np.asarray(levels / norm if norm > 0 else levels)


def _check_exact_duplicates(seen: Iterable[_Seen], found: _Findings) -> None:
    same = defaultdict(list)
    for one in seen:
        same[one.digest].append(one)
    for first, *others in same.values():
        strangers = [other for other in others if other.person != first.person]
        own = [other for other in others if other.person == first.person]
        if strangers:
            names = ", ".join(found.name(other.path) for other in strangers)
            found.error(
                "same file, two people",
                first.path,
                f"byte for byte {names}; one person on both sides of a split falsifies the score",
            )
        if own:
            names = ", ".join(
                other.path.name
                if other.path.parent == first.path.parent
                else found.name(other.path)
                for other in own
            )
            found.warning("same file twice", first.path, f"byte for byte {names}")


def _check_near_duplicates(seen: Sequence[_Seen], found: _Findings) -> None:
    """Each picture against all of other people with the same mask label: under different labels the
    drawn or worn masks decide what is alike, not the faces. One problem for a pair of people.

    Only a picture's nearest neighbour is looked at, so that a thousand copies of one face give a
    thousand problems, not half a million.
    """
    pairs: dict[tuple[str, str], list[tuple[float, _Seen, _Seen]]] = defaultdict(list)
    for mask in MaskLabels:
        group = [one for one in seen if one.mask is mask]
        for correlation, one, other in _nearest(group):
            if correlation >= NEAR_DUPLICATE[mask] and one.digest != other.digest:
                first, second = sorted((one, other), key=lambda each: each.person)
                pairs[first.person, second.person].append((correlation, first, second))
    for _, hits in sorted(pairs.items()):
        correlation, first, second = max(hits, key=lambda hit: hit[0])
        pictures = len({one.path for _, *both in hits for one in both})
        found.warning(
            "two people look the same",
            first.path,
            f"looks like {found.name(second.path)} (correlation {correlation:.3f}; "
            f"{pictures} pictures of the two in all)",
        )


def _nearest(group: Sequence[_Seen]) -> Iterator[tuple[float, _Seen, _Seen]]:
    """(correlation, picture, the picture of another person that is most like it)."""
    if not group:
        return
    thumbnails = np.stack([one.thumbnail for one in group])  # (N, pixels)
    _, people = np.unique([one.person for one in group], return_inverse=True)
    for start in range(0, len(group), _BLOCK):
        block = slice(start, start + _BLOCK)
        correlations = thumbnails[block] @ thumbnails.T  # (_BLOCK, N)
        correlations[people[block, None] == people] = -1
        for row, column in enumerate(correlations.argmax(axis=1)):
            yield float(correlations[row, column]), group[start + row], group[column]


def _by_count(values: Iterable[_T]) -> dict[_T, int]:
    """Value → how often, the most frequent first."""
    return dict(Counter(values).most_common())
