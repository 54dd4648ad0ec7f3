"""Corrections of labels: the table, and what it does to people and pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from maskcls.data.fixes import Fix, apply_fixes, read_fixes
from maskcls.data.profiles import Profile, read_profiles
from maskcls.errors import DataError
from maskcls.labels import GenderLabels, MaskLabels

DataDir = Callable[..., Path]
HEADER = "target,field,old,new,why\n"


@pytest.fixture
def profiles(data_dir: DataDir) -> list[Profile]:
    """000001_male_Asian_45, 000002_male_Asian_63."""
    return read_profiles(data_dir(2))


def table(folder: Path, *rows: str) -> Path:
    path = folder / "fixes.csv"
    path.write_text(HEADER + "".join(f"{row}\n" for row in rows), "utf-8")
    return path


def test_fixes_change_labels_only(profiles: list[Profile], tmp_path: Path) -> None:
    first, second = profiles
    fixes = read_fixes(
        table(
            tmp_path,
            f"{first.person},gender,male,female,seen",
            f"{first.person},age,45,61,seen",
            f"{first.person},race,Asian,White,",
            f"{first.person}/normal.jpg,mask,normal,incorrect,swapped",
            f"{first.person}/incorrect_mask.jpg,mask,incorrect,normal,swapped",
        )
    )
    fixed, untouched = apply_fixes(profiles, fixes)
    assert untouched == second
    assert (fixed.gender, fixed.age, fixed.race) == (GenderLabels.FEMALE, 61, "White")
    assert fixed.folder == first.folder
    assert [picture.path for picture in fixed.pictures] == [p.path for p in first.pictures]
    masks = {picture.path.stem: picture.mask for picture in fixed.pictures}
    assert masks["normal"] is MaskLabels.INCORRECT
    assert masks["incorrect_mask"] is MaskLabels.NORMAL


def test_no_fixes(profiles: list[Profile]) -> None:
    assert apply_fixes(profiles, []) == profiles


@pytest.mark.parametrize(
    ("target", "field", "old", "reason"),
    [
        ("000001_male_Asian_45", "gender", "female", "'male' in the data, not 'female'"),
        ("000001_male_Asian_45", "age", "44", "45 in the data, not '44'"),
        ("000001_male_Asian_45/normal.jpg", "mask", "mask", "'normal' in the data"),
        ("000009_male_Asian_45", "gender", "male", "not in the data"),
        ("000001_male_Asian_45/normal.png", "mask", "normal", "not in the data"),
    ],
)
def test_stale_fixes(
    profiles: list[Profile], target: str, field: str, old: str, reason: str
) -> None:
    new = {"gender": "female", "age": "50", "mask": "incorrect"}[field]
    with pytest.raises(DataError, match=f"{target}.*{reason}|{reason}.*{target}"):
        apply_fixes(profiles, [Fix(target, field, old, new, "")])


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        (["p,sex,male,female,"], "line 2: unknown field 'sex'"),
        (["p,mask,normal,mask,"], "line 2: unknown field 'mask'"),
        (["p/normal.jpg,gender,male,female,"], "line 2: unknown field 'gender'"),
        (["p,age,20,200,"], "line 2: age '200'"),
        (["p,age,twenty,20,"], "line 2: age 'twenty'"),
        (["p/normal.jpg,mask,normal,worn,"], "line 2: unknown mask label 'worn'"),
        (["p,age,20,21,", "p,age,20,22,"], "line 3: age of 'p' is corrected twice"),
        (["", "", "p,age,20,21,", "p,age,20,22,"], "line 5: age of 'p' is corrected twice"),
        (['p,age,20,21,"told us so', "q,age,20,22,x"], "not a CSV table"),
    ],
)
def test_bad_tables(tmp_path: Path, rows: list[str], reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        read_fixes(table(tmp_path, *rows))


def test_unreadable_tables(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        read_fixes(tmp_path / "missing.csv")
    path = tmp_path / "fixes.csv"
    path.write_text("target,field\n", "utf-8")
    with pytest.raises(DataError, match="no column old, new, why"):
        read_fixes(path)
    path.write_bytes((HEADER + "한국,age,20,21,\n").encode("cp949"))
    with pytest.raises(DataError, match="UTF-8"):
        read_fixes(path)
