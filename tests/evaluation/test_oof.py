"""Reading out-of-fold predictions: what is taken, and which words a bad table gets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from maskcls.config import resolve
from maskcls.data.profiles import read_profiles
from maskcls.errors import DataError
from maskcls.evaluation.oof import read_oof
from maskcls.folds import write_group
from maskcls.labels import TASKS
from tests.evaluation.synthetic import answers, write_oof

DataDir = Callable[..., Path]
HEADER = "data_dir,path,person,fold,label,answer,p_0,p_1"
ROW = "data,a/mask1.jpg,a,0,1,0,0.75,0.25"


def table(folder: Path, *lines: str, task: str = '{"task": "gender"}') -> Path:
    file = folder / "oof.csv"
    file.write_text("\n".join(lines) + "\n", "utf-8")
    (folder / "oof.csv.json").write_text(task, "utf-8")
    return file


@pytest.mark.parametrize("task", list(TASKS))
def test_what_was_written_is_read(data_dir: DataDir, tmp_path: Path, task: str) -> None:
    root = data_dir(6)
    people = read_profiles(root)
    given = answers(np.random.default_rng(0), TASKS[task], people)
    read = read_oof(write_oof(tmp_path / "oof.csv", task, root, people, given))
    assert read.task is TASKS[task]
    assert read.probabilities == pytest.approx(np.concatenate(given), abs=1e-5)
    assert read.probabilities.sum(axis=1) == pytest.approx(np.ones(42))
    assert set(read.data_dirs) == {str(root)}
    assert read.paths[0] == f"{people[0].folder.name}/{people[0].pictures[0].path.name}"
    assert read.where(3) == f"{tmp_path / 'oof.csv'}, line 5"
    for label, person in zip(read.labels[::7], people, strict=True):
        digits = read.task.decode(int(label))
        assert digits.get("gender", person.gender) == person.gender
        assert digits.get("age", person.age_group) == person.age_group


def test_more_columns_korean_names_and_rounding(tmp_path: Path) -> None:
    name = "000001_female_아시아_45"
    row = f"data,{name}/mask1.jpg,{name},0,1,0,0.7504,0.2500,?"
    read = read_oof(table(tmp_path, HEADER + ",note", row))
    assert read.paths == (f"{name}/mask1.jpg",)
    assert read_oof(tmp_path).paths == read.paths  # the folder names it, too
    assert read.probabilities == pytest.approx(np.array([[0.7501, 0.2499]]), abs=1e-4)


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ([], "line 1: no column data_dir, path"),
        ([HEADER], "no rows"),
        ([HEADER.replace(",person", ""), ROW], "line 1: no column person"),
        ([HEADER.replace(",p_1", ""), ROW], "line 1: no column p_1; of the task gender"),
        ([HEADER + ",p_2", ROW + ",0"], "line 1: column p_2; of the task gender, which has 2"),
        ([HEADER, ROW, "data,a/mask2.jpg,a,0,1,0,0.7"], "line 3: not 8 cells"),
        ([HEADER, ROW + ",0.1"], "line 2: not 8 cells"),
        ([HEADER, ROW, ROW], "line 3: 'a/mask1.jpg' stands in line 2 too"),
        ([HEADER, ROW.replace("0.75", "0.85")], "line 2: the probabilities sum to 1.1000"),
        ([HEADER, ROW.replace("0.75,0.25", "1.5,-0.5")], "line 2: 1.5, -0.5 are not prob"),
        ([HEADER, ROW.replace("0.75", "nan")], "line 2: nan, 0.25 are not prob"),
        ([HEADER, ROW.replace("0.75", "much")], "line 2: could not convert .*'much'"),
        ([HEADER, ROW.replace(",1,0,0.75", ",2,0,0.75")], "line 2: label '2' is not .* to 1"),
        ([HEADER, ROW.replace(",1,0,0.75", ",1,-1,0.75")], "line 2: answer '-1' is not"),
        ([HEADER, ROW.replace("a,0,1", "a,x,1")], "line 2: fold 'x' is not a whole number"),
        ([HEADER, ROW.replace("a/mask1.jpg", "mask1.jpg")], "line 2: path 'mask1.jpg' is not"),
        ([HEADER, ROW.replace("a/mask1.jpg", "../mask1.jpg")], "line 2: path '../mask1.jpg'"),
        ([HEADER, ROW.replace(",a,", ",b,")], "line 2: person 'b' is not the folder of 'a/mask1"),
        ([HEADER, 'data,"a'], "not a CSV table"),
    ],
)
def test_bad_tables(tmp_path: Path, lines: list[str], reason: str) -> None:
    file = table(tmp_path, *lines)
    with pytest.raises(DataError, match=reason) as caught:
        read_oof(file)
    assert str(caught.value).startswith(str(file))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"task": "genders"}', "unknown task 'genders'; did you mean 'gender'"),
        ('{"tasks": "gender"}', 'not a JSON object with a "task"'),
        ('["gender"]', "not a JSON object"),
        ("gender", "not a JSON object"),
        ('{"task": "gender", "fixes": [{"target": "a"}]}', 'and "fixes" as a table of fixes'),
        (
            '{"task": "gender", "fixes": [{"target": "a", "field": "sex", "old": "male", '
            '"new": "female", "why": ""}]}',
            'and "fixes" as',
        ),
        (
            '{"task": "gender", "fixes": [{"target": "a", "field": "mask", "old": "mask", '
            '"new": "normal", "why": ""}]}',
            'and "fixes" as',
        ),
        ('{"task": "gender", "fixes": 3}', 'and "fixes" as a table of fixes'),
        ('{"task": "age"}', "no column p_2; of the task age, which has 3 classes"),
    ],
)
def test_bad_tasks(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        read_oof(table(tmp_path, HEADER, ROW, task=text))


AGES = "data_dir,path,person,fold,label,answer,p_0,p_1,p_2"
AGE_ROW = "data,a/mask1.jpg,a,0,1,0,0.5,0.25,0.25"


def test_finer_ages(tmp_path: Path) -> None:
    text = '{"task": "age"}'
    plain = read_oof(table(tmp_path, AGES, AGE_ROW, task=text))
    assert plain.years == () and plain.ages is None
    columns = ",age_0,age_20,age_30,age_60"
    row = AGE_ROW + ",0.125,0.375,0.25,0.25"
    read = read_oof(table(tmp_path, AGES + columns, row, task=text))
    assert read.years == (0, 20, 30, 60)
    assert read.ages == pytest.approx(np.array([[0.125, 0.375, 0.25, 0.25]]))
    # A task without ages has other columns of these names.
    assert read_oof(table(tmp_path, HEADER + ",age_7", ROW + ",?")).years == ()


@pytest.mark.parametrize(
    ("columns", "cells", "reason"),
    [
        ("age_0,age_30", "0.5,0.5", "line 1: the columns age_0, age_30 do not begin.*age_60 among"),
        ("age_5,age_30,age_60", "0.5,0.5,0", "line 1: .*do not begin with age_0, ascend"),
        ("age_0,age_60,age_30", "0.5,0.5,0", "line 1: the columns age_0, age_60, age_30"),
        ("age_0,age_30,age_60", "0.5,0.5,0.5", "line 2: the probabilities sum to 1.5"),
        ("age_0,age_30,age_60", "0.5,0.5,old", "line 2: could not convert"),
    ],
)
def test_bad_finer_ages(tmp_path: Path, columns: str, cells: str, reason: str) -> None:
    lines = f"{AGES},{columns}", f"{AGE_ROW},{cells}"
    with pytest.raises(DataError, match=reason):
        read_oof(table(tmp_path, *lines, task='{"task": "age"}'))


def test_missing_files(tmp_path: Path) -> None:
    file = table(tmp_path, HEADER, ROW)
    (tmp_path / "oof.csv.json").unlink()
    with pytest.raises(DataError, match=r"oof\.csv\.json: No such file.*which task"):
        read_oof(file)
    table(tmp_path, HEADER, ROW)
    file.unlink()
    with pytest.raises(DataError, match=r"oof\.csv: no such file; maskcls-train --folds"):
        read_oof(file)


def test_a_group_that_was_not_scored(tmp_path: Path) -> None:
    config = resolve("age", "scratch", {"data_dir": ["data"], "folds": 3})
    write_group(tmp_path, config)
    for path in (tmp_path, tmp_path / "oof.csv"):
        with pytest.raises(DataError) as raised:
            read_oof(path)
        assert str(raised.value) == (
            f"{tmp_path}: has no oof.csv yet; this writes it: maskcls-evaluate --oof {tmp_path}"
        )
