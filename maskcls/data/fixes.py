"""Corrections of labels: a reviewable table beside the data, instead of renamed files.

    target,field,old,new,why
    006359_female_Asian_18,gender,female,male,seen on all seven pictures
    000020_female_Asian_50/incorrect_mask.jpg,mask,incorrect,normal,swapped with normal.jpg

`target` is a person's folder (fields gender, race, age) or one picture in it (field mask). `old`
must be what the data says, so a table that has gone stale is noticed.
"""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any

from maskcls.data.profiles import Profile, nfc
from maskcls.errors import DataError, unknown
from maskcls.files import replacing, write_rows
from maskcls.labels import AgeLabels, GenderLabels, MaskLabels

COLUMNS = ("target", "field", "old", "new", "why")
PERSON_FIELDS = ("gender", "race", "age")
PICTURE_FIELDS = ("mask",)


@dataclass(frozen=True)
class Fix:
    """One correction, as it stands in the table."""

    target: str
    field: str
    old: str
    new: str
    why: str


def read_fixes(path: Path) -> list[Fix]:
    """The rows of a fixes table.

    Raises:
        DataError: no such file, not UTF-8, a missing column, an unknown field or value, the same
            field of a target corrected twice.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)  # else one quote hides all that follows
            missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
            if missing:
                raise DataError(
                    f"{path}: no column {', '.join(missing)}; needs {','.join(COLUMNS)}"
                )
            fixes, lines = [], []
            for row in reader:
                fixes.append(Fix(*((row[name] or "").strip() for name in COLUMNS)))
                lines.append(reader.line_num)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not a CSV table in UTF-8: {error}") from None
    seen: set[tuple[str, str]] = set()
    for fix, number in zip(fixes, lines, strict=True):
        where = f"{path}, line {number}"
        fields = fields_of(fix.target)
        if fix.field not in fields:
            raise DataError(f"{where}: {unknown('field', fix.field, fields)} for {fix.target!r}")
        try:
            parse_label(fix.field, fix.old)
            parse_label(fix.field, fix.new)
        except DataError as error:
            raise DataError(f"{where}: {error}") from None
        key = (nfc(fix.target), fix.field)
        if key in seen:
            raise DataError(f"{where}: {fix.field} of {fix.target!r} is corrected twice")
        seen.add(key)
    return fixes


def fields_of(target: str) -> tuple[str, ...]:
    """What can be corrected there."""
    return PICTURE_FIELDS if "/" in target else PERSON_FIELDS


def write_fixes(path: Path, fixes: Iterable[Fix]) -> None:
    """A table that `read_fixes` reads, whole or not at all.

    Raises:
        OSError: it cannot be written; names `path`.
    """
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        write_rows(file, itertools.chain([COLUMNS], (astuple(fix) for fix in fixes)))


def apply_fixes(profiles: Iterable[Profile], fixes: Sequence[Fix]) -> list[Profile]:
    """The people with corrected labels; files are not touched.

    Raises:
        DataError: a target that does not exist, or whose label is not `old`.
    """
    corrected = []
    used: set[Fix] = set()
    by_target: dict[str, list[Fix]] = {}
    for fix in fixes:
        by_target.setdefault(nfc(fix.target), []).append(fix)
    for profile in profiles:
        for fix in by_target.get(profile.person, ()):
            _check_old(fix, getattr(profile, fix.field))
            changed: dict[str, Any] = {fix.field: parse_label(fix.field, fix.new)}
            profile = replace(profile, **changed)
            used.add(fix)
        pictures = []
        for picture in profile.pictures:
            for fix in by_target.get(f"{profile.person}/{nfc(picture.path.name)}", ()):
                _check_old(fix, picture.mask)
                picture = replace(picture, mask=_parse_mask(fix.new))
                used.add(fix)
            pictures.append(picture)
        corrected.append(replace(profile, pictures=tuple(pictures)))
    unused = [fix.target for fix in fixes if fix not in used]
    if unused:
        raise DataError(
            f"fixes for {len(unused)} target(s) that are not in the data, first: {unused[0]!r}"
        )
    return corrected


def parse_label(field: str, value: str) -> int | str:
    """A label as it is written in the table → as `Profile` and `Picture` hold it.

    Raises:
        DataError: no such label of that field.
    """
    if field == "gender":
        return GenderLabels.from_str(value)
    if field == "age":
        AgeLabels.from_number(value)
        return int(value)
    return _parse_mask(value) if field == "mask" else nfc(value)


def _parse_mask(value: str) -> MaskLabels:
    try:
        return MaskLabels[value.upper()]
    except KeyError:
        known = [label.name.lower() for label in MaskLabels]
        raise DataError(unknown("mask label", value, known)) from None


def _check_old(fix: Fix, current: int | str) -> None:
    if parse_label(fix.field, fix.old) != current:
        shown = current.name.lower() if isinstance(current, GenderLabels | MaskLabels) else current
        raise DataError(
            f"fix of {fix.target!r}: {fix.field} is {shown!r} in the data, not {fix.old!r}; "
            "was it corrected there already?"
        )
