"""The benchmark of the audit as a process of its own: the labels it makes wrong, and that its
figures are those of the ranking it leaves. How good they are is not tested."""

from __future__ import annotations

import csv
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from maskcls.data.fixes import apply_fixes, read_fixes
from maskcls.data.profiles import read_profiles

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.audit import blind_recall

Run = Callable[..., "subprocess.CompletedProcess[str]"]
SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "audit.py"


@pytest.fixture
def run(run_script: Run) -> Run:
    return lambda *options: run_script(SCRIPT, *options)


@pytest.mark.slow
def test_figures_are_those_of_the_ranking(
    run: Run, data_dir: Callable[..., Path], tmp_path: Path
) -> None:
    root, kept = data_dir(18), tmp_path / "kept"
    small = "--model base --height 32 --width 32 --epochs 1 --batch-size 16 --folds 2".split()
    written = ("--keep", kept, "--json", tmp_path / "figures.json")
    done = run("--data-dir", root, *small, "--share", 0.1, *written)
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())
    wrong = read_fixes(kept / "wrong.csv")
    before = read_profiles(root)
    after = apply_fixes(before, wrong)
    changed = {
        "gender": {a.person for a, b in zip(after, before, strict=True) if a.gender != b.gender},
        "age": {a.person for a, b in zip(after, before, strict=True) if a.age_group != b.age_group},
    }
    assert list(figures["attributes"]) == ["gender", "age"]
    for name, row in figures["attributes"].items():
        assert row["wrong"] == len(changed[name]) == 2
        with (kept / f"ranking_{name}.csv").open(encoding="utf-8", newline="") as file:
            ranked = [each for each in csv.DictReader(file) if each["attribute"] == name]
        assert row["people"] == len(ranked) == 18
        first = {each["target"] for each in ranked[: math.ceil(0.1 * 18)]}
        assert row["found"] == len(first & changed[name])
        assert row["recall"] == pytest.approx(row["found"] / 2)
        assert 0 <= row["accuracy"] <= 1
        assert 0 <= row["blind_recall"] <= 1
        assert f"| {name} | 18 | 2 | {row['found']} |" in done.stdout
    for task in ("mask_gender", "age"):
        names = {path.name for path in (kept / "runs" / task / "folds").iterdir()}
        assert names == {"folds.yaml", "fold0", "fold1", "oof.csv", "oof.csv.json"}


@pytest.mark.parametrize(
    ("attribute", "years"), [("gender", ()), ("age", ()), ("age", (0, 20, 30, 45, 60, 70))]
)
def test_answers_that_say_nothing_find_rare_labels_first(
    attribute: str, years: tuple[int, ...]
) -> None:
    """Of 40 people 10 are labelled female, or 80 and 81, 2 of them wrongly, as is one other."""
    ranking: Any = [
        SimpleNamespace(
            target=f"{n:02}",
            label=int(n < 10) * (1 if attribute == "gender" else 2),
            profile=SimpleNamespace(age=80 + n % 2 if n < 10 else 45 + n % 8),
        )
        for n in range(40)
    ]
    # The first 4 of the ranking are of the 10, with no order among these: 4 / 10 of the 2.
    found = blind_recall(ranking, attribute, {"03", "07", "20"}, years)
    assert found == pytest.approx(2 * 4 / 10 / 3)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--folds", "0"], "--folds 0: needs at least 1"),
        (["--share", "0.2"], "--share 0.2: must be above 0 and at most 0.1"),
        (["--keep", str(SCRIPT.parent)], "is not empty"),
    ],
)
def test_wrong_options(run: Run, options: list[str], reason: str) -> None:
    done = run(*options)
    assert done.returncode == 2
    assert reason in done.stderr
