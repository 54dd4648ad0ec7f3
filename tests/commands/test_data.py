"""`maskcls-data` on real files."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from maskcls.commands.data import (
    AUDIT_EPILOG,
    CHECK_EPILOG,
    EPILOG,
    EXAMPLES,
    SAMPLE_EPILOG,
    build_parser,
    main,
)

DataDir = Callable[..., Path]
Capture = pytest.CaptureFixture[str]


def test_a_good_folder(data_dir: DataDir, tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "new" / "check.json"
    assert main(["check", str(data_dir(12)), "--json", str(file)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "12 people, 84 pictures"
    assert lines[2].split() == ["mask", "gender", "<30", "30-59", ">=60"]
    assert lines[3].split() == ["worn", "male", "10", "10", "10"]
    assert lines[8].split() == ["not", "worn", "female", "2", "2", "2"]
    assert len({len(line) for line in lines[2:9]}) == 1
    assert lines[10].split() == ["extensions", ".jpg", "84"]
    assert lines[11].split() == ["sizes", "96x128", "84"]
    assert lines[-2:] == ["good: 0 errors, 0 warnings", f"wrote {file}"]
    report = json.loads(file.read_text("utf-8"))
    assert report["broken"] is False
    assert report["classes"]["worn, male, <30"] == 10
    assert len(report["classes"]) == 18


def test_problems_by_kind(data_dir: DataDir, capsys: Capture) -> None:
    root = data_dir(13)
    for folder in (root / "images").iterdir():
        (folder / "normal.jpg").write_bytes(b"")
        (folder / "notes.txt").touch()
    assert main(["check", str(root)]) == 1
    out = capsys.readouterr().out
    assert "\nerror: unreadable picture (13)\n  images/000001_male_Asian_45/normal.jpg: the" in out
    assert "\nwarning: other file (13)\n" in out
    assert out.index("error: ") < out.index("warning: ")
    assert out.count("the file is empty") == EXAMPLES
    assert out.count("… and 3 more; --all shows them") == 2
    assert out.endswith("\nbroken: 13 errors, 13 warnings\n")
    assert main(["check", str(root), "--all", "--workers", "1"]) == 1
    assert capsys.readouterr().out.count("the file is empty") == 13


def test_warnings_alone_are_no_failure(data_dir: DataDir, capsys: Capture) -> None:
    root = data_dir(2)
    (root / "images" / "notes.txt").touch()
    assert main(["check", str(root)]) == 0
    assert capsys.readouterr().out.endswith("\nusable: 0 errors, 1 warnings\n")


def test_fixes(data_dir: DataDir, tmp_path: Path, capsys: Capture) -> None:
    root, fixes = data_dir(1), tmp_path / "fixes.csv"
    header = "target,field,old,new,why\n"
    fixes.write_text(f"{header}000001_male_Asian_45,age,45,61,seen\n", "utf-8")
    assert main(["check", str(root), "--fixes", str(fixes)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "1 of 1 corrections of labels apply"
    assert lines[4].split() == ["worn", "male", "0", "0", "5"]
    fixes.write_text(f"{header}000001_male_Asian_45,age,40,61,seen\n", "utf-8")
    assert main(["check", str(root), "--fixes", str(fixes)]) == 1
    assert "error: fix does not apply (1)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["missing"], 1, "no such data folder: missing"),
        ([".", "--fixes", "missing.csv"], 1, "missing.csv"),
        ([".", "--workers", "0"], 2, "--workers 0"),
    ],
)
def test_refused(
    options: list[str],
    code: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["check", *options]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert message in err


def test_sample_and_check_of_it(tmp_path: Path, capsys: Capture) -> None:
    root = tmp_path / "sample"
    options = ["sample", "--out", str(root), "--people", "8", "--eval-people", "6", "--seed", "3"]
    assert main(options) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == f"{root / 'train'}: 8 drawn people, 56 pictures, train.csv"
    assert second == f"{root / 'eval'}: 6 others, 42 pictures, info.csv, gt.csv"
    assert main(["check", str(root / "train")]) == 0
    assert capsys.readouterr().out.endswith("\ngood: 0 errors, 0 warnings\n")


def test_the_examples_of_the_help_parse() -> None:
    commands = [
        shlex.split(line)[1:]
        for line in (EPILOG + CHECK_EPILOG + AUDIT_EPILOG + SAMPLE_EPILOG).splitlines()
        if line.startswith("  maskcls-data ")
    ]
    assert len(commands) == 12
    for command in commands:
        build_parser().parse_args(command)


def test_the_stand_in_data(maskface: Path, capsys: Capture) -> None:
    assert main(["check", str(maskface / "train")]) == 0
    assert capsys.readouterr().out.endswith("\ngood: 0 errors, 0 warnings\n")
