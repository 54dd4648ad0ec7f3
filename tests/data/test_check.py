"""`check_data`: finds every fault in one go, and nothing in a good folder."""

from __future__ import annotations

import csv
import json
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from maskcls.data.check import CheckReport, check_data
from maskcls.data.fixes import Fix
from maskcls.data.profiles import read_profiles
from maskcls.errors import DataError
from maskcls.labels import MASK_OF_STEM, MULTI

DataDir = Callable[..., Path]
PEOPLE = 6


def check(root: Path, *fixes: Fix) -> CheckReport:
    return check_data([root], fixes, progress=False)


def kinds(report: CheckReport) -> list[tuple[str, str]]:
    return [(problem.kind, problem.severity) for problem in report.problems]


def only(report: CheckReport, kind: str, severity: str, detail: str = "") -> str:
    """The place of the single problem, which is of that kind."""
    assert kinds(report) == [(kind, severity)]
    (problem,) = report.problems
    assert detail in problem.detail
    assert report.broken is (severity == "error")
    return problem.where


def folders(root: Path) -> list[Path]:
    return sorted((root / "images").iterdir())


def rewrite(root: Path, change: Callable[[list[list[str]]], None]) -> None:
    """Changes the rows of train.csv; the first is the header."""
    table = root / "train.csv"
    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    change(rows)
    with table.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)


@pytest.mark.parametrize("table", [True, False])
def test_a_good_folder(data_dir: DataDir, table: bool) -> None:
    root = data_dir(PEOPLE, table=table)
    report = check(root)
    assert report.problems == ()
    assert not report.broken
    assert (report.people, report.pictures) == (PEOPLE, PEOPLE * len(MASK_OF_STEM))
    labels = [
        MULTI.encode(mask=picture.mask, gender=profile.gender, age=profile.age_group)
        for profile in read_profiles(root)
        for picture in profile.pictures
    ]
    assert report.classes == tuple(labels.count(label) for label in range(18))
    assert report.extensions == {".jpg": report.pictures}
    assert report.sizes == {(96, 128): report.pictures}
    assert json.loads(json.dumps(report.to_dict()))["people"] == PEOPLE


def test_no_folder_at_all(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such data folder"):
        check(tmp_path / "nowhere")
    assert only(check(tmp_path), "no people", "error") == "."


def test_the_folder_above(data_dir: DataDir) -> None:
    root = data_dir(1)
    for read in (check, read_profiles):
        with pytest.raises(DataError, match=f"^{root.parent}: .* name that: {root}$"):
            read(root.parent)
    (root.parent / "eval/images/thumbnails").mkdir(parents=True)
    with pytest.raises(DataError, match=f"name that: {root}$"):
        check(root.parent)
    (root.parent / "train.csv").touch()  # somebody else's rule: this is the data folder
    assert not (root.parent / "images").exists()
    with pytest.raises(DataError, match=r"train\.csv.*id"):
        read_profiles(root.parent)


def test_table_rows(data_dir: DataDir) -> None:
    root = data_dir(PEOPLE)

    def change(rows: list[list[str]]) -> None:
        rows[1][1] = "woman"
        rows[2][3] = "old"
        rows[3][4] = "../elsewhere"
        rows.append(["000009", "male", "Asian", "30", "000009_male_Asian_30"])

    rewrite(root, change)
    report = check(root)
    assert kinds(report) == [
        *[("table row", "error")] * 3,
        *[("not in the table", "warning")] * 3,
        ("no folder", "error"),
    ]
    assert [problem.detail[:7] for problem in report.problems[:3]] == [
        "line 2:",
        "line 3:",
        "line 4:",
    ]
    assert report.problems[6].where == str(Path("images", "000009_male_Asian_30"))


def test_an_unreadable_table_leaves_the_folders(data_dir: DataDir) -> None:
    root = data_dir(PEOPLE)
    (root / "train.csv").write_text("id,gender\n", "utf-8")
    report = check(root)
    assert only(report, "table", "error", "no column race, age, path") == "train.csv"
    assert report.people == PEOPLE


def test_folder_names(data_dir: DataDir) -> None:
    root = data_dir(PEOPLE, table=False)
    first, second, *_ = folders(root)
    first.rename(first.with_name("000001_male_Asian"))
    second.rename(second.with_name("backup"))
    report = check(root)
    assert kinds(report) == [("folder name", "error")] * 2
    assert report.people == PEOPLE - 2


def test_an_odd_folder_name_with_a_table_is_a_warning(data_dir: DataDir) -> None:
    root = data_dir(PEOPLE)
    folders(root)[0].rename(root / "images" / "odd")
    rewrite(root, lambda rows: rows[1].__setitem__(4, "odd"))
    assert only(check(root), "folder name", "warning") == str(Path("images", "odd"))


def test_name_contradicts_table(data_dir: DataDir) -> None:
    root = data_dir(PEOPLE)
    rewrite(root, lambda rows: rows[1].__setitem__(1, "female"))
    only(check(root), "name contradicts table", "warning", "gender is female in the table, male")


def test_unlisted_folders_and_other_files(data_dir: DataDir) -> None:
    root = data_dir(PEOPLE)
    rewrite(root, lambda rows: rows.pop())
    (root / "images" / "notes.txt").touch()
    (folders(root)[0] / "Thumbs.db").touch()
    (folders(root)[0] / ".DS_Store").touch()
    report = check(root)
    assert kinds(report) == [
        ("other file", "warning"),
        ("not in the table", "warning"),
        ("other file", "warning"),
    ]
    assert not report.broken


def test_one_id_of_two_people(data_dir: DataDir) -> None:
    root = data_dir(PEOPLE, table=False)
    first, second, *_ = folders(root)
    second.rename(second.with_name("000001_male_White_45"))
    report = check(root)
    assert only(report, "id used twice", "warning", "000001_male_White") == f"images/{first.name}"


def test_nfc_and_nfd_folders(data_dir: DataDir) -> None:
    root = data_dir(PEOPLE, table=False)
    first, second, *_ = folders(root)
    name = "000001_male_한국_45"
    first.rename(first.with_name(name))
    second.rename(second.with_name(unicodedata.normalize("NFD", name)))
    if len(folders(root)) < PEOPLE:
        pytest.skip("this file system takes the two names for one")
    assert ("same name twice", "error") in kinds(check(root))


def test_picture_names(data_dir: DataDir) -> None:
    root = data_dir(PEOPLE)
    first, second, third, *_ = folders(root)
    (first / "mask5.jpg").rename(first / "mask6.jpg")
    Image.open(second / "mask1.jpg").save(second / "mask1.png")
    (third / "normal.jpg").unlink()
    report = check(root)
    assert [(problem.kind, problem.where) for problem in report.problems] == [
        ("picture name", f"images/{first.name}/mask6.jpg"),
        ("same picture name twice", f"images/{second.name}"),
        ("missing pictures", f"images/{first.name}"),
        ("missing pictures", f"images/{third.name}"),
    ]
    assert report.broken
    assert report.extensions == {".jpg": PEOPLE * 7 - 2, ".png": 1}


def test_unreadable_pictures(data_dir: DataDir) -> None:
    root = data_dir(PEOPLE)
    first, second, *_ = folders(root)
    content = (first / "mask1.jpg").read_bytes()
    (first / "mask1.jpg").write_bytes(content[: len(content) // 2])
    (first / "mask2.jpg").write_bytes(b"")
    (second / "normal.jpg").unlink()
    (second / "normal.jpg").mkdir()
    report = check(root)
    assert kinds(report) == [("unreadable picture", "error")] * 3
    assert report.problems[0].where == f"images/{first.name}/mask1.jpg"
    assert report.problems[1].detail == "the file is empty"
    assert report.pictures == PEOPLE * 7
    assert sum(report.sizes.values()) == PEOPLE * 7 - 3


def test_same_file_twice(data_dir: DataDir) -> None:
    root = data_dir(PEOPLE)
    first, second, *_ = folders(root)
    shutil.copy(first / "mask1.jpg", first / "mask2.jpg")
    where = only(check(root), "same file twice", "warning", "mask2.jpg")
    assert where == f"images/{first.name}/mask1.jpg"
    shutil.copy(first / "normal.jpg", second / "normal.jpg")
    report = check(root)
    assert kinds(report) == [("same file twice", "warning"), ("same file, two people", "error")]
    assert f"{second.name}/normal.jpg" in report.problems[1].detail


def test_a_person_under_two_names(data_dir: DataDir) -> None:
    root = data_dir(PEOPLE)
    first, second, *_ = folders(root)
    for stem in ("normal", "mask1"):
        image = Image.open(first / f"{stem}.jpg")
        darker = ImageEnhance.Brightness(image.resize((72, 96))).enhance(0.8)
        darker.save(second / f"{stem}.jpg", quality=60)
    report = check(root)
    where = only(report, "two people look the same", "warning", f"{second.name}")
    assert Path(where).parent == Path("images", first.name)
    assert "4 pictures" in report.problems[0].detail


def test_uniform_pictures_look_like_nobody(data_dir: DataDir) -> None:
    root = data_dir(PEOPLE)
    for level, folder in enumerate(folders(root)):
        Image.new("RGB", (96, 128), (level, level, level)).save(folder / "normal.jpg")
    assert check(root).problems == ()


def test_fixes(data_dir: DataDir) -> None:
    root = data_dir(PEOPLE)
    first, *_ = folders(root)
    before = np.array(check(root).classes)
    good = Fix(first.name, "gender", "male", "female", "")
    report = check(
        root,
        Fix("nobody", "gender", "male", "female", ""),
        good,
        Fix(f"{first.name}/normal.jpg", "mask", "mask", "normal", ""),
        Fix(f"{first.name}/normal.jpg", "mask", "normal", "incorrect", ""),
    )
    assert kinds(report) == [("fix does not apply", "error")] * 2
    assert [problem.where for problem in report.problems] == ["nobody", f"{first.name}/normal.jpg"]
    assert (report.corrected, report.fixes) == (2, 4)
    genders = [MULTI.decode(label)["gender"] for label in range(18)]
    males = before[np.equal(genders, 0)].sum()
    assert np.array(report.classes)[np.equal(genders, 0)].sum() == males - 7
    assert check(root, good).problems == ()


def test_several_folders_are_checked_together(data_dir: DataDir) -> None:
    """As they are trained on: a person may be in two of them, and a table of fixes be of all."""
    one, two = data_dir(PEOPLE, name="one"), data_dir(PEOPLE, name="two")
    both, added = folders(two)[0], folders(two)[1:]
    shutil.copy(folders(one)[1] / "normal.jpg", added[1] / "normal.jpg")
    for number, folder in enumerate(added, 11):
        folder.rename(folder.with_name(f"0000{number}_{folder.name.split('_', 1)[1]}"))
    (two / "train.csv").unlink()
    (one / "train.csv").unlink()
    fixes = [Fix(root_folder.name, "race", "x", "y", "") for root_folder in folders(two)[1:2]]
    report = check_data([one, two], fixes, progress=False)
    assert report.people == 2 * PEOPLE - 1  # one is in both
    found = {(problem.kind, problem.where) for problem in report.problems}
    assert ("fix does not apply", fixes[0].target) in found
    assert ("same file, two people", str(folders(one)[1] / "normal.jpg")) in found
    assert not {kind for kind, _ in found} & {"labelled in two ways", "id used twice"}
    assert [kind for kind, _ in kinds(check_data([one], fixes, progress=False))] == [
        "fix does not apply"
    ]
    first, copy = (folders(root)[0] / "normal.jpg" for root in (one, two))
    [twice] = [p for p in report.problems if p.kind == "same file twice" and p.where == str(first)]
    assert twice.detail == f"byte for byte {copy}"
    (folders(one)[0] / "mask1.jpg").unlink()
    assert "missing pictures" not in {kind for kind, _ in kinds(check_data([one, two]))}
    assert ("missing pictures", "error") in kinds(check_data([one]))
    shutil.copy(copy.with_name("mask1.jpg"), first.with_name("mask1.jpg"))
    table = f"id,gender,race,age,path\n000001,female,Asian,77,{both.name}\n"
    (two / "train.csv").write_text(table, "utf-8")
    shutil.rmtree(two / "images")
    shutil.copytree(folders(one)[0], two / "images" / both.name)
    report = check_data([one, two], progress=False)
    assert ("labelled in two ways", "error") in kinds(report)
    with pytest.raises(DataError, match="given twice"):
        check_data([one, two, one], progress=False)


def test_the_stand_in_data(maskface: Path) -> None:
    report = check(maskface / "train")
    assert report.problems == ()
    assert (report.people, report.pictures) == (400, 2800)
    assert sum(report.classes) == 2800
    assert report.sizes == {(384, 512): 2800}
