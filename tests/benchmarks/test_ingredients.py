"""The benchmark of ingredients as a process of its own, on few people: what it trains, that its
scores are those of `maskcls-evaluate`, and that it goes on. What an ingredient is worth is not
tested."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from maskcls.checkpoints import read_checkpoint, save_checkpoint
from maskcls.commands import evaluate
from maskcls.config import read_yaml, resolve
from maskcls.evaluation.runs import CommonAnswers
from maskcls.labels import MULTI
from maskcls.manifest import Manifest

Run = Callable[..., "subprocess.CompletedProcess[str]"]
SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "ingredients.py"
CALIBRATIONS = ["temperature scaling", "calibration for macro F1"]
SMALL = "--model base --height 32 --width 32 --epochs 1 --batch-size 16".split()


@pytest.fixture
def run(run_script: Run) -> Run:
    return lambda *options: run_script(SCRIPT, *options)


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("ingredients", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["ingredients"] = module  # dataclasses look it up
    spec.loader.exec_module(module)
    return module


def test_every_ingredient_changes_a_setting(script: ModuleType) -> None:
    for name, tasks in script.VARIANTS.items():
        for task, flags in tasks.items():
            start = "scratch" if task == "mask_gender" else "branch"
            preset = resolve(task, start).to_dict()
            assert all(preset[key] != value for key, value in flags.items()), name


@pytest.mark.slow
def test_scores_are_those_of_the_command(
    run: Run, data_dir: Callable[..., Path], tmp_path: Path
) -> None:
    root, runs, file = data_dir(18), tmp_path / "runs", tmp_path / "gains.json"
    argv = ["--data-dir", root, *SMALL, "--runs", runs, "--json", file, "--only"]
    argv += ["cross entropy", "no mirror images", "ordinal ages", *CALIBRATIONS]
    done = run(*argv)
    assert done.returncode == 0, done.stderr
    figures = json.loads(file.read_text())["variants"]
    assert list(figures) == ["preset", *argv[-5:]]
    assert {path.name for path in (runs / "seed42/age").iterdir()} == {
        "preset",
        "cross-entropy",
        "ordinal-ages",
    }
    alone = tmp_path / "alone"  # the preset's networks, without mirror images
    for task in ("mask_gender", "age"):
        shutil.copytree(runs / "seed42" / task / "preset", alone / task / "preset")
        content = read_checkpoint(alone / task / "preset" / "best.pt")
        manifest = Manifest.from_json(content["manifest"])
        manifest = replace(manifest, config={**manifest.config, "tta": "none"})
        save_checkpoint(
            content | {"manifest": manifest.to_json()}, alone / task / "preset" / "best.pt"
        )
    trained = runs / "seed42"
    pairs = {
        "preset": (trained, "preset", "preset"),
        "cross entropy": (trained, "cross-entropy", "cross-entropy"),
        "no mirror images": (alone, "preset", "preset"),
        "ordinal ages": (trained, "preset", "ordinal-ages"),
    }
    scores, own = {}, {}
    for name, (where, first, second) in pairs.items():
        folders = [where / "mask_gender" / first, where / "age" / second]
        score = tmp_path / "score.json"
        page = tmp_path / "report.html"
        argv_score = [*map(str, folders), "--json", str(score), "--no-confusion"]
        argv_score += ["--report", str(page)]
        assert evaluate.main(argv_score) == 0
        values = json.loads(score.read_text())
        scores[name] = values["macro_f1"]
        own[name] = np.mean([one["f1"] for one in values["per_class"] if one["support"]])
        row = figures[name]
        assert row["seeds"] == [{key: value for key, value in row.items() if key != "seeds"}]
        assert row["macro_f1"] == pytest.approx(scores[name])
        assert row["gain"] == pytest.approx(own[name] - own["preset"])
        low, high = row["interval"]
        assert low <= high
        low, high = row["macro_f1_interval"]
        assert low <= scores[name] <= high
        assert f"| {name} | {scores[name]:.3f} |" in done.stdout
        assert f"age: ECE {row['calibration_error']['age']:.4f}" in page.read_text("utf-8")
    base, warmer = figures["preset"], figures["temperature scaling"]
    assert (warmer["macro_f1"], warmer["gain"]) == (base["macro_f1"], 0)  # no label changes
    assert warmer["calibration_error"] != base["calibration_error"]
    assert read_yaml(runs / "seed42/age/ordinal-ages/config.yaml")["age_loss"] == "ordinal"
    before = {path: path.stat().st_mtime_ns for path in runs.rglob("*.pt")}
    again = run(*argv)
    assert again.returncode == 0 and again.stdout.splitlines()[-2] in done.stdout
    assert {path: path.stat().st_mtime_ns for path in runs.rglob("*.pt")} == before
    longer = run(*argv, "--epochs", 2)
    assert longer.returncode == 2
    assert "epochs 2 (the training there has 1). Give another folder as --runs" in longer.stderr
    stored = runs / "seed42/age/preset/config.yaml"
    text = stored.read_text("utf-8")
    own = read_yaml(stored)["precision"]
    other = "fp32" if own == "bf16" else "bf16"
    stored.write_text(text.replace(f"precision: {own}", f"precision: {other}"), "utf-8")
    line = run(*argv).stderr
    assert f"precision '{own}' (the training there has '{other}')" in line
    stored.write_text(text, "utf-8")
    picture = next((root / "images").glob("*/normal.jpg"))
    Image.new("RGB", (40, 30), "red").save(picture)
    changed = run(*argv[:-2], "mixup")
    assert changed.returncode == 2 and "the data have changed. Give another" in changed.stderr
    elsewhere = run(*argv, "--data-dir", root.rename(tmp_path / "others"))
    assert elsewhere.returncode == 2 and f"data_dir ({root} there)" in elsewhere.stderr


def test_figures_of_several_seeds_are_means(script: ModuleType) -> None:
    """Ann validates with both seeds, Ben and Cas with one. The second one's networks of the
    ingredient take her class 0 for 3."""
    sure = np.eye(MULTI.num_classes)

    def scored(predicted: list[int], whose: list[str]) -> object:
        truth = np.array([0, 3])
        return script.score(CommonAnswers([], [], sure[predicted], truth, whose, 0, []), [])

    right = [scored([0, 3], ["ann", "ben"]), scored([0, 3], ["ann", "cas"])]
    wrong = [right[0], scored([3, 3], ["ann", "cas"])]
    row = script.figures_of(wrong, right)
    fallen = (0 + 2 / 3) / 2
    assert row["macro_f1"] == pytest.approx((1 + fallen) / 2)
    assert row["gain"] == pytest.approx((0 + fallen - 1) / 2)
    # Drawn are Ann, Ben and Cas for both seeds: without Ann all is right.
    assert row["interval"][1] == 0 and row["macro_f1_interval"][1] == 1
    # With Ann alone the second seed has nothing right, and the first one all.
    assert row["interval"][0] == pytest.approx((0 - 1) / 2)
    assert row["macro_f1_interval"][0] == pytest.approx((1 + 0) / 2)
    assert script.figures_of(wrong[1:], right[1:])["gain"] == pytest.approx(fallen - 1)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["temperature", "macro_f1"])
def test_nobody_is_calibrated_by_their_own_labels(
    kind: str, script: ModuleType, data_dir: Callable[..., Path], tmp_path: Path
) -> None:
    argv = [*SMALL, "--runs", str(tmp_path), "--data-dir", str(data_dir(40)), "--epochs", "2"]
    args = script.build_parser().parse_args(argv)
    base = script.train_and_score(args, tmp_path, "preset", 42)
    found = base.answers
    own = sorted(set(found.whose))[:: script.PARTS]  # of one part
    rows = np.isin(found.whose, own)
    assert 0 < rows.sum() < len(rows)

    def answers(changed: np.ndarray) -> np.ndarray:
        truth = np.where(changed, (found.truth + 7) % MULTI.num_classes, found.truth)
        other = replace(base, answers=replace(found, truth=truth))
        whole = script.score_calibrated(other, ["mask_gender", "age"], kind).answers
        return np.array(whole.probabilities)

    before, own_changed, others_changed = (
        answers(changed) for changed in (np.zeros_like(rows), rows, ~rows)
    )
    np.testing.assert_array_equal(before[rows], own_changed[rows])
    assert not np.allclose(before[~rows], own_changed[~rows])
    assert not np.allclose(before[rows], others_changed[rows])


def test_wrong_options(run: Run) -> None:
    assert "--epochs 0: needs at least 1" in run("--epochs", "0").stderr
    assert "invalid choice: 'luck'" in run("--only", "luck").stderr
