"""The index of people: tables, folder names, pictures, and what is refused."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest

from maskcls.data.fixes import Fix, apply_fixes
from maskcls.data.profiles import (
    iter_table,
    list_pictures,
    locate,
    parse_folder_name,
    read_all_profiles,
    read_profiles,
    read_table,
)
from maskcls.errors import DataError
from maskcls.labels import MASK_OF_STEM, AgeLabels, GenderLabels, MaskLabels

DataDir = Callable[..., Path]
HEADER = "id,gender,race,age,path\n"


def write_table(root: Path, *rows: str, encoding: str = "utf-8") -> Path:
    table = root / "train.csv"
    table.write_text(HEADER + "".join(f"{row}\n" for row in rows), encoding)
    return table


@pytest.mark.parametrize("table", [True, False])
def test_people_and_pictures(data_dir: DataDir, table: bool) -> None:
    root = data_dir(6, table=table)
    profiles = read_profiles(root)
    assert [profile.id for profile in profiles] == [f"{number:06d}" for number in range(1, 7)]
    assert {(p.gender, p.age_group) for p in profiles} == {
        (gender, age) for gender in GenderLabels for age in AgeLabels
    }
    for profile in profiles:
        assert profile.person == profile.folder.name
        assert {p.path.stem: p.mask for p in profile.pictures} == MASK_OF_STEM
        assert all(picture.path.is_file() for picture in profile.pictures)


@pytest.mark.parametrize("table", [True, False])
def test_all_three_ways_to_name_a_folder(data_dir: DataDir, table: bool) -> None:
    root = data_dir(6, table=table)
    assert read_profiles(root / "images") == read_profiles(root)
    moved = root.with_name("flat")
    (root / "images").rename(moved)
    # Folders called images, none of which makes a data folder of what it lies in.
    person = next(moved.iterdir())
    for other in (moved / ".cache/images/000001_male_Asian_45", person / "images/thumbnails"):
        other.mkdir(parents=True)
    assert [profile.folder.parent for profile in read_profiles(moved)] == [moved] * 6


def test_the_table_decides_not_the_name(data_dir: DataDir) -> None:
    root = data_dir(1, table=False)
    name = next((root / "images").iterdir()).name
    write_table(root, f"7,male,White,61,{name}")
    (profile,) = read_profiles(root)
    assert (profile.id, profile.gender, profile.age, profile.race) == ("7", 0, 61, "White")


def test_hidden_and_other_files_are_passed_over(data_dir: DataDir) -> None:
    root = data_dir(1, table=False)
    folder = next((root / "images").iterdir())
    (root / "images" / ".cache").mkdir()
    for name in ("._mask1.jpg", ".DS_Store", "notes.txt"):
        (folder / name).touch()
    assert len(list_pictures(folder)) == len(MASK_OF_STEM)
    assert len(read_profiles(root)) == 1


def test_nfd_folders_are_the_people_of_an_nfc_table(data_dir: DataDir) -> None:
    root = data_dir(1, table=False)
    folder = next((root / "images").iterdir())
    name = "000009_female_한국_45"
    decomposed = folder.rename(folder.with_name(unicodedata.normalize("NFD", name)))
    write_table(root, f"000009,female,한국,45,{name}")
    (profile,) = read_profiles(root)
    assert profile.person == name
    assert profile.folder == decomposed
    (root / "train.csv").unlink()
    (from_name,) = read_profiles(root)
    assert from_name.race == profile.race == "한국"
    fix = Fix(name, "race", unicodedata.normalize("NFD", "한국"), "Asian", "")
    assert [one.race for one in apply_fixes([from_name], [fix])] == ["Asian"]


def test_table_with_a_byte_order_mark(data_dir: DataDir) -> None:
    root = data_dir(6)
    table = root / "train.csv"
    table.write_text(table.read_text("utf-8"), "utf-8-sig")
    assert len(read_profiles(root)) == 6


def test_a_quote_that_is_not_closed_hides_nobody(data_dir: DataDir) -> None:
    root = data_dir(6)
    table = root / "train.csv"
    lines = table.read_text("utf-8").splitlines()
    lines[3] = lines[3].replace(",Asian,", ',"Asian,')
    table.write_text("\n".join(lines) + "\n", "utf-8")
    with pytest.raises(DataError, match="not a CSV table"):
        read_profiles(root)


@pytest.mark.parametrize("name", ["001498-1_female_Asian_23", "1_MALE_a b_0"])
def test_folder_names(name: str) -> None:
    number, gender, race, age = parse_folder_name(name)
    assert f"{number}_{gender.name}_{race}_{age}".lower() == name.lower()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("000001_female_Asian", "3 parts"),
        ("000001_female_Asian_45_2", "5 parts"),
        ("_female_Asian_45", "parts"),
        ("000001_woman_Asian_45", "unknown gender 'woman'"),
        ("000001_female_Asian_old", "age 'old'"),
        ("000001_female_Asian_131", "age '131'"),
    ],
)
def test_bad_folder_names(name: str, reason: str, data_dir: DataDir) -> None:
    with pytest.raises(DataError, match=f"{reason}.*a good one: 000001_female_Asian_45"):
        parse_folder_name(name)
    root = data_dir(1, table=False)
    (root / "images" / name).mkdir()
    with pytest.raises(DataError, match=reason):
        read_profiles(root)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("1,female,Asian,45", "fewer cells"),
        ("1,woman,Asian,45,x", "unknown gender 'woman'"),
        ("1,female,Asian,,x", "age ''"),
        ("1,female,Asian,45,", "path ''"),
        ("1,female,Asian,45,..", r"path '\.\.'"),
        ("1,female,Asian,45,../../etc", "is not the name"),
        ("1,female,Asian,45,/etc", "is not the name"),
        ("1,female,Asian,45,good", "stands in line 2 too"),
    ],
)
def test_bad_rows(row: str, reason: str, tmp_path: Path) -> None:
    good = "1,female,Asian,45,good"
    table = write_table(tmp_path, good, "", row, "2,male,Asian,20,last")
    with pytest.raises(DataError, match=rf"train\.csv, line 4: .*{reason}"):
        read_table(table, tmp_path)
    first, bad, last = iter_table(table, tmp_path)
    assert isinstance(bad, DataError)
    assert not isinstance(first, DataError) and not isinstance(last, DataError)
    assert (first.person, last.person) == ("good", "last")


def test_bad_tables(tmp_path: Path) -> None:
    table = tmp_path / "train.csv"
    table.write_text("id,gender,age\n1,male,20\n", "utf-8")
    with pytest.raises(DataError, match="no column race, path"):
        read_table(table, tmp_path)
    table.write_text("", "utf-8")
    with pytest.raises(DataError, match="no column id"):
        read_table(table, tmp_path)
    write_table(tmp_path, "1,female,한국,45,x", encoding="cp949")
    with pytest.raises(DataError, match="not UTF-8"):
        read_table(table, tmp_path)


def test_what_stops_reading(data_dir: DataDir) -> None:
    root = data_dir(2)
    with pytest.raises(DataError, match="no such data folder"):
        read_profiles(root / "nowhere")
    empty = root / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match="no people in it"):
        read_profiles(empty)
    folder = min((root / "images").iterdir())
    (folder / "mask6.jpg").touch()
    with pytest.raises(DataError, match=r"mask6\.jpg: unknown picture name 'mask6'"):
        read_profiles(root)
    for path in folder.iterdir():
        path.unlink()
    with pytest.raises(DataError, match="no pictures in it"):
        read_profiles(root)
    folder.rmdir()
    with pytest.raises(DataError, match="the person has no folder"):
        read_profiles(root)


def test_the_table_beside_the_folder_that_one_stands_in(
    data_dir: DataDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = data_dir(2)
    text = (root / "train.csv").read_text("utf-8")
    age = read_profiles(root)[0].age
    (root / "train.csv").write_text(text.replace(f",{age},", ",77,", 1), "utf-8")
    monkeypatch.chdir(root / "images")
    assert [one.age for one in read_profiles(Path("."))][0] == 77


def test_several_data_folders(data_dir: DataDir) -> None:
    first, second = data_dir(2, name="a"), data_dir(3, name="b", first=10)
    assert len(read_all_profiles([first, second])) == 5
    with pytest.raises(DataError, match="given twice"):
        read_all_profiles([first, second, second / ".." / "a"])
    with pytest.raises(DataError, match="given twice"):
        read_all_profiles([first, first / "images"])
    with pytest.raises(DataError, match="no data folder"):
        read_all_profiles([])


def test_locate(data_dir: DataDir) -> None:
    root = data_dir(1)
    assert locate(root) == (root / "images", root / "train.csv")
    assert locate(root / "images") == (root / "images", root / "train.csv")


def test_the_stand_in_data(maskface: Path) -> None:
    profiles = read_profiles(maskface / "train")
    assert len(profiles) == 400
    assert {len(profile.pictures) for profile in profiles} == {7}
    labels = [picture.mask for profile in profiles for picture in profile.pictures]
    assert labels.count(MaskLabels.MASK) == 5 * 400
