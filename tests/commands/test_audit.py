"""`maskcls-data audit` on real files."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from maskcls.commands.data import main
from maskcls.data.profiles import read_profiles
from maskcls.labels import TASKS, GenderLabels
from tests.evaluation.synthetic import answers, write_oof

DataDir = Callable[..., Path]
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def oof(data_dir: DataDir, tmp_path: Path) -> Path:
    """Of 30 people in `train`, one of whom is labelled with the wrong gender."""
    root = data_dir(30)
    truth = read_profiles(root)
    truth[4] = replace(truth[4], gender=GenderLabels(1 - truth[4].gender))
    given = answers(np.random.default_rng(0), TASKS["mask_gender"], truth)
    return write_oof(tmp_path / "oof.csv", "mask_gender", root, read_profiles(root), given)


def test_from_the_table_to_corrected_data(oof: Path, tmp_path: Path, capsys: Capture) -> None:
    root, out = tmp_path / "train", tmp_path / "new" / "audit"
    assert main(["check", str(root), "--json", str(tmp_path / "before.json")]) == 0
    capsys.readouterr()
    assert main(["audit", "--oof", str(oof), "--out", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "mask: of 210 labels of pictures 0 are contradicted; 0 to look at"
    assert lines[1] == "gender: of 30 labels of people 1 are contradicted; 1 to look at"
    assert lines[2].endswith("fixes.csv: 1 new corrections")
    assert lines[3].endswith(
        f"maskcls-train --task all --data-dir {root} --fixes {out / 'fixes.csv'}"
    )
    assert sorted(path.name for path in out.iterdir()) == ["audit.html", "fixes.csv", "ranking.csv"]
    after = tmp_path / "after.json"
    fixed = ["check", str(root), "--fixes", str(out / "fixes.csv"), "--json", str(after)]
    assert main(fixed) == 0
    before, now = (
        json.loads(file.read_text("utf-8"))["classes"] for file in (tmp_path / "before.json", after)
    )
    moved = {name: now[name] - before[name] for name in now if now[name] != before[name]}
    assert sum(moved.values()) == 0
    assert sum(abs(count) for count in moved.values()) == 2 * 7


def test_a_reviewed_table_is_not_lost(oof: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "audit"
    out.mkdir()
    (out / "fixes.csv").write_text("mine", "utf-8")
    assert main(["audit", "--oof", str(oof), "--out", str(out)]) == 1
    assert "fixes.csv is there already" in capsys.readouterr().err
    assert (out / "fixes.csv").read_text("utf-8") == "mine"
    assert [path.name for path in out.iterdir()] == ["fixes.csv"]


@pytest.mark.parametrize(("top", "pictures"), [("1", 7), ("3%", 7), ("0.5", 14), ("5", 14)])
def test_top(data_dir: DataDir, tmp_path: Path, top: str, pictures: int) -> None:
    root = data_dir(30)
    truth = read_profiles(root)
    for number in (4, 7):
        truth[number] = replace(truth[number], gender=GenderLabels(1 - truth[number].gender))
    given = answers(np.random.default_rng(0), TASKS["mask_gender"], truth)
    oof = write_oof(tmp_path / "oof.csv", "mask_gender", root, read_profiles(root), given)
    assert main(["audit", "--oof", str(oof), "--out", str(tmp_path / "a"), "--top", top]) == 0
    assert (tmp_path / "a" / "audit.html").read_text("utf-8").count("<img") == pictures


def test_no_pictures(oof: Path, tmp_path: Path) -> None:
    options = ["--out", str(tmp_path / "a"), "--no-pictures"]
    assert main(["audit", "--oof", str(oof), *options]) == 0
    assert "<img" not in (tmp_path / "a" / "audit.html").read_text("utf-8")


@pytest.mark.parametrize("top", ["0", "-3", "x", "0.0", "1.5", "101%", "%"])
def test_a_wrong_top(oof: Path, top: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["audit", "--oof", str(oof), f"--top={top}"])
    assert caught.value.code == 2
    assert f"{top!r} is neither a count from 1 nor a share" in capsys.readouterr().err


def test_a_bad_table_leaves_nothing(oof: Path, tmp_path: Path, capsys: Capture) -> None:
    lines = oof.read_text("utf-8").splitlines()
    oof.write_text("\n".join([*lines[:9], lines[9] + ",9", *lines[10:]]) + "\n", "utf-8")
    out = tmp_path / "audit"
    assert main(["audit", "--oof", str(oof), "--out", str(out)]) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"error: {oof}, line 10: ")
    assert err.count("\n") == 1
    assert not out.exists()
