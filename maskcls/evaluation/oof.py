"""Out-of-fold predictions: for every picture the answer of a network that never saw its person.

    data_dir,path,person,fold,label,answer,p_0,…,p_{k-1}
    data/train,000001_female_Asian_45/mask1.jpg,000001_female_Asian_45,0,1,1,0.02,0.95,…

`path` is relative to the folder of `data_dir` that holds the people; `label` and `answer` are
classes of the task that `oof.csv.json`, beside the table, names. There, too, are the corrections
of labels that the trainings had. Columns `age_0,age_5,…` may follow, of networks that tell ages
finer than by groups: how probable it is that somebody is as old as that or older, and younger than
the next of them.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from maskcls.data.fixes import Fix, fields_of
from maskcls.data.profiles import nfc
from maskcls.errors import ConfigError, DataError
from maskcls.folds import is_group
from maskcls.labels import AGE_BOUNDS, Task, get_task
from maskcls.launch import command_line
from maskcls.provenance import provenance_path

OOF_FILE = "oof.csv"
COLUMNS = ("data_dir", "path", "person", "fold", "label", "answer")
TOLERANCE = 1e-3
"""By which the probabilities of a row may miss a sum of 1: they are written with few digits."""


@dataclass(frozen=True, eq=False)
class OofTable:
    """The rows of an `oof.csv`, in its order."""

    file: Path
    task: Task
    fixes: tuple[Fix, ...]  # with which labels were corrected
    data_dirs: tuple[str, ...]  # (N)
    paths: tuple[str, ...]  # (N) {person}/{file}, as they lie on the disk
    lines: tuple[int, ...]  # (N) where each stands in the file
    labels: np.ndarray  # (N,) int, classes of the task
    probabilities: np.ndarray  # (N, C) float64, rows sum to 1
    # (S) the first of each step of ages; none where only groups are told
    years: tuple[int, ...] = ()
    ages: np.ndarray | None = None  # (N, S) float64, rows sum to 1

    def where(self, row: int) -> str:
        """A row, for messages."""
        return f"{self.file}, line {self.lines[row]}"


def read_oof(path: Path) -> OofTable:
    """An `oof.csv`, or the folder it lies in, with the `oof.csv.json` beside it.

    Raises:
        DataError: no such files, a group of folds that has none yet, not a table, a task that does
            not exist or whose classes are not the columns, a row that does not fit, a picture that
            stands twice. Names file and line.
    """
    path = _table_of(path)
    task, fixes = _read_description(provenance_path(path))
    probability_columns = [f"p_{label}" for label in range(task.num_classes)]
    data_dirs, paths, lines, labels, rows, ages = [], [], [], [], [], []
    first_lines: dict[tuple[str, str], int] = {}
    try:
        # surrogateescape: a folder's name that is no UTF-8 stands in it as it lies on the disk.
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            _check_header(path, task, reader.fieldnames or (), probability_columns)
            age_columns = _age_columns(path, task, reader.fieldnames or ())
            for row in reader:
                where = f"{path}, line {reader.line_num}"
                if None in row or None in row.values():
                    raise DataError(f"{where}: not {len(reader.fieldnames or ())} cells")
                picture = _picture(row, where)
                key = (row["data_dir"], nfc(picture))
                if key in first_lines:
                    raise DataError(f"{where}: {picture!r} stands in line {first_lines[key]} too")
                first_lines[key] = reader.line_num
                for column in ("fold", "answer"):
                    _whole(row, column, where, task.num_classes if column == "answer" else None)
                data_dirs.append(row["data_dir"])
                paths.append(picture)
                lines.append(reader.line_num)
                labels.append(_whole(row, "label", where, task.num_classes))
                rows.append(_probabilities([row[name] for name in probability_columns], where))
                if age_columns:
                    ages.append(_probabilities([row[name] for name in age_columns], where))
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from None
    except csv.Error as error:
        raise DataError(f"{path}: not a CSV table: {error}") from None
    if not rows:
        raise DataError(f"{path}: no rows under the header")
    return OofTable(
        path,
        task,
        fixes,
        tuple(data_dirs),
        tuple(paths),
        tuple(lines),
        np.array(labels, dtype=np.int64),
        np.array(rows),
        tuple(age_columns.values()),
        np.array(ages) if ages else None,
    )


def _table_of(path: Path) -> Path:
    """The table itself, where its folder may be given."""
    table = path / OOF_FILE if path.is_dir() else path
    if table.name == OOF_FILE and is_group(table.parent) and not table.exists():
        command = command_line(["maskcls-evaluate", "--oof", table.parent])
        raise DataError(f"{table.parent}: has no {OOF_FILE} yet; this writes it: {command}")
    if not table.exists():
        raise DataError(
            f"{table}: no such file; maskcls-train --folds N writes one for each group of folds"
        )
    return table


def _read_description(file: Path) -> tuple[Task, tuple[Fix, ...]]:
    try:
        values = json.loads(file.read_text("utf-8"))
        task = get_task(str(values["task"]))
        fixes = tuple(Fix(**fix) for fix in values.get("fixes", ()))
        if not all(isinstance(cell, str) for fix in fixes for cell in astuple(fix)):
            raise ValueError
        if any(fix.field not in fields_of(fix.target) for fix in fixes):
            raise ValueError
        return task, fixes
    except OSError as error:
        raise DataError(
            f"{file}: {error.strerror or error}; it says which task the predictions are of"
        ) from None
    except (ValueError, TypeError, KeyError, RecursionError):
        raise DataError(
            f'{file}: not a JSON object with a "task", and "fixes" as a table of fixes has them'
        ) from None
    except ConfigError as error:
        raise DataError(f"{file}: {error}") from None


def _check_header(
    path: Path, task: Task, header: Sequence[str], probability_columns: Sequence[str]
) -> None:
    needed = [*COLUMNS, *probability_columns]
    missing = [name for name in needed if name not in header]
    more = [name for name in header if re.fullmatch("p_[0-9]+", name) and name not in needed]
    if missing or more:
        wrong = f"no column {', '.join(missing)}" if missing else f"column {', '.join(more)}"
        raise DataError(
            f"{path}, line 1: {wrong}; of the task {task.name}, which has {task.num_classes} "
            f"classes, it needs {','.join(COLUMNS)},p_0…p_{task.num_classes - 1}"
        )


def _age_columns(path: Path, task: Task, header: Sequence[str]) -> dict[str, int]:
    """Column → the first year of its step; none where the table has no such columns, or the task no
    ages."""
    if "age" not in task.attributes:
        return {}
    found = {name: int(name[4:]) for name in header if re.fullmatch("age_[0-9]{1,3}", name)}
    years = list(found.values())
    if found and (years[0] != 0 or sorted(set(years)) != years or not {*AGE_BOUNDS} <= {*years}):
        raise DataError(
            f"{path}, line 1: the columns {', '.join(found)} do not begin with age_0, ascend, and "
            f"have {' and '.join(f'age_{bound}' for bound in AGE_BOUNDS)} among them"
        )
    return found


def _picture(row: dict[str, str], where: str) -> str:
    """`{person}/{file}`."""
    path = PurePosixPath(row["path"])
    if len(path.parts) != 2 or path.is_absolute() or ".." in path.parts or "\0" in row["path"]:
        raise DataError(f"{where}: path {row['path']!r} is not {{person's folder}}/{{file}}")
    if nfc(path.parent.name) != nfc(row["person"]):
        raise DataError(f"{where}: person {row['person']!r} is not the folder of {row['path']!r}")
    return str(path)


def _whole(row: dict[str, str], column: str, where: str, bound: int | None) -> int:
    text = row[column].strip()
    # int() alone would take "1_0", "+1" and the digits of other scripts.
    if not re.fullmatch("[0-9]{1,9}", text) or (bound is not None and int(text) >= bound):
        limit = "" if bound is None else f" from 0 to {bound - 1}"
        raise DataError(f"{where}: {column} {row[column]!r} is not a whole number{limit}")
    return int(text)


def _probabilities(cells: Sequence[str], where: str) -> np.ndarray:
    """(C,), which sum to 1."""
    try:
        values = [float(cell) for cell in cells]
    except ValueError as error:
        raise DataError(f"{where}: {error}") from None
    if not all(-TOLERANCE <= value <= 1 + TOLERANCE for value in values):  # NaN is not
        raise DataError(f"{where}: {', '.join(cells)} are not probabilities from 0 to 1")
    total = math.fsum(values)
    if abs(total - 1) > TOLERANCE:
        raise DataError(f"{where}: the probabilities sum to {total:.4f}, not to 1")
    shares = np.clip(values, 0, 1)
    return np.asarray(shares / shares.sum())
