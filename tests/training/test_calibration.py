"""A training fits a calibration to its validation people, and nothing else about it changes."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from maskcls.checkpoints import read_checkpoint
from maskcls.classifier import TorchClassifier
from maskcls.config import resolve
from maskcls.data.datasets import MaskSplitByProfileDataset
from maskcls.data.sample import make_sample
from maskcls.evaluation.calibration import balancing_bias
from maskcls.labels import TASKS
from maskcls.manifest import Calibration, Manifest
from maskcls.models import load_model, predict_logits
from maskcls.training import RunResult, handlers, train
from maskcls.training.calibration import METRICS, calibrate
from tests.training import small

SMALL = small.SMALL | {"epochs": 3, "lr": 0.005}
Fit = Callable[..., tuple[RunResult, list[str]]]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("calibration") / "sample"
    return make_sample(root, people=12, eval_people=6, progress=False)


@pytest.fixture
def fit(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fit:
    """`fit("age", calibration="macro_f1")` → the result of a training, and what it said."""
    monkeypatch.setattr(handlers, "confusion_figure", lambda *a: Figure((1, 1), dpi=8))
    monkeypatch.setattr(handlers, "grid_image", lambda *a: Figure((1, 1), dpi=8))

    def fit(task: str = "mask_gender", **flags: Any) -> tuple[RunResult, list[str]]:
        places = {
            "data_dir": (str(data / "train"),),
            "model_dir": str(tmp_path),
            "cache": str(data.parent / "cache"),
        }
        said: list[str] = []
        config = resolve(task, "scratch", flags=SMALL | places | flags)
        return train(config, said.append), said

    return fit


def rows_of(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def content_of(run: Path, name: str = "best.pt") -> tuple[Manifest, Mapping[str, torch.Tensor]]:
    content = read_checkpoint(run / name)
    return Manifest.from_json(content["manifest"]), content["model"]


@pytest.mark.parametrize(("task", "tta"), [("mask_gender", "flip"), ("age", "none")])
def test_the_best_checkpoint_has_the_calibration_of_its_answers(
    data: Path, fit: Fit, task: str, tta: str
) -> None:
    result, said = fit(task, calibration="macro_f1", tta=tta)
    model, manifest = load_model(result.folder)
    flags = SMALL | {"data_dir": (str(data / "train"),), "cache": str(data.parent / "cache")}
    config = resolve(task, "scratch", flags=flags)
    dataset = MaskSplitByProfileDataset(
        [data / "train"],
        config.preprocess(),
        task=TASKS[task],
        cache=str(data.parent / "cache"),
        say=lambda _: None,
    )
    training, validation, _ = dataset.split(val_ratio=0.25, seed=config.seed)
    pixels, labels, indices = dataset.__getitems__(validation.indices)
    images = torch.from_numpy(manifest.preprocess.normalise(pixels.numpy()))
    with torch.inference_mode():
        logits = predict_logits(model, images, tta).numpy()
    counts = np.bincount(dataset.labels[training.indices], minlength=logits.shape[1])
    people = [dataset.people[index] for index in indices.tolist()]
    expected, metrics = calibrate("macro_f1", logits, labels.numpy(), people, counts)

    assert expected is not None and manifest.calibration is not None
    found = manifest.calibration
    assert found.temperature == pytest.approx(expected.temperature, rel=1e-3)
    assert found.bias == pytest.approx(expected.bias)
    assert found.bias == pytest.approx(tuple(metrics["shift"] * balancing_bias(counts)))
    assert {name: manifest.metrics[name] for name in METRICS} == pytest.approx(metrics, rel=1e-3)
    row = rows_of(result.folder)[-1]
    assert set(METRICS) < row.keys()

    answers = TorchClassifier([result.folder / "best.pt"], torch.device("cpu"), complete=False)
    np.testing.assert_allclose(
        answers.logits(0, pixels.numpy()),
        logits / found.temperature + np.array(found.bias),
        atol=1e-4,
    )
    [line] = [line for line in said if "calibration, " in line]
    assert line.startswith(f"{task}: calibration, fitted on the validation people")
    assert f"temperature {found.temperature:.2f}, shift {metrics['shift']:.1f}" in line
    before, after = manifest.metrics["macro_f1"], manifest.metrics["calibrated_macro_f1"]
    assert f"macro F1 {before:.4f} → {after:.4f}" in line


def test_a_training_learns_the_same_with_and_without(fit: Fit) -> None:
    runs = [
        fit(calibration=kind, ema_decay=0.9)[0].folder
        for kind in ("none", "temperature", "macro_f1")
    ]
    plain, *others = (rows_of(run) for run in runs)
    for rows in others:
        assert [{key: row[key] for key in plain[0]} for row in rows] == plain
    assert all(float(row["calibrated_nll"]) <= float(row["nll"]) for row in others[0])
    for name in ("best.pt", "last.pt"):
        (none, weights), *pairs = (content_of(run, name) for run in runs)
        assert none.calibration is None and none.format == 1
        for manifest, same in pairs:
            assert manifest.calibration is not None and manifest.format == 2
            assert all(torch.equal(weights[key], same[key]) for key in weights)
        (temperature, _), (both, _) = pairs
        assert temperature.calibration is not None and both.calibration is not None
        assert set(temperature.calibration.bias) == {0.0}
        assert temperature.calibration.temperature == both.calibration.temperature


def test_no_finite_number_no_calibration() -> None:
    logits = np.zeros((3, 2), dtype=np.float32)
    labels, people, counts = np.array([0, 1, 1]), ["a", "b", "c"], np.array([5, 5])
    assert calibrate("macro_f1", logits, labels, people, counts)[0] == Calibration(1.0, (0.0, 0.0))
    for bad in (math.nan, math.inf, -math.inf):
        logits[1, 1] = bad
        found, metrics = calibrate("macro_f1", logits, labels, people, counts)
        assert found is None
        assert tuple(metrics) == METRICS and all(map(math.isnan, metrics.values()))
