"""Trainings from their config to what lies in the run folder."""

from __future__ import annotations

import csv
import hashlib
import math
import random
import re
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from matplotlib.figure import Figure
from sklearn import metrics
from sklearn.utils.class_weight import compute_class_weight
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from maskcls import models
from maskcls.checkpoints import read_checkpoint
from maskcls.config import CRITERION_NAMES, OPTIMIZER_NAMES, TrainConfig, read_yaml, resolve
from maskcls.data.loaders import validation_loader
from maskcls.data.profiles import read_profiles
from maskcls.data.sample import make_sample
from maskcls.data.targets import auxiliary_sizes
from maskcls.devices import resolve_precision
from maskcls.errors import ConfigError, DataError, TrainingError
from maskcls.files import file_digest
from maskcls.images import decode, read_bytes
from maskcls.labels import TASKS
from maskcls.manifest import Manifest
from maskcls.models import load_model, predict_logits
from maskcls.training import RunResult, engines, handlers, increment_path, objective, run, train
from maskcls.training.data import load_data
from maskcls.training.objective import Objective
from tests.training import small

DataDir = Callable[..., Path]
SMALL = small.SMALL | {"epochs": 2}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("run") / "sample"
    return make_sample(root, people=12, eval_people=6, progress=False)


@pytest.fixture
def plain_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures take most of so small a training's time."""
    monkeypatch.setattr(handlers, "confusion_figure", lambda *a: Figure((1, 1), dpi=8))
    monkeypatch.setattr(handlers, "grid_image", lambda *a: Figure((1, 1), dpi=8))


def config_of(data: Path, model_dir: Path, task: str = "mask_gender", **flags: Any) -> TrainConfig:
    places = {
        "data_dir": (str(data / "train"),),
        "model_dir": str(model_dir),
        "cache": str(data.parent / "cache"),
    }
    return resolve(task, "scratch", flags=SMALL | places | flags)


def fit(data: Path, model_dir: Path, task: str = "mask_gender", **flags: Any) -> RunResult:
    said: list[str] = []
    return train(config_of(data, model_dir, task, **flags), said.append)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def weights_of(folder: Path, name: str = "last.pt") -> dict[str, torch.Tensor]:
    return read_checkpoint(folder / name)["model"]


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.fixture(scope="module")
def done(data: Path, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """A training that the tests below only look at, with its real figures."""
    fixes = data.parent / "fixes.csv"
    person = read_profiles(data / "train")[0]
    old = person.gender.name.lower()
    new = "female" if old == "male" else "male"
    fixes.write_text(f"target,field,old,new,why\n{person.person},gender,{old},{new},test\n")
    model_dir = tmp_path_factory.mktemp("models")
    return fit(data, model_dir, epochs=3, patience=3, lr=0.005, fixes=str(fixes))


def test_what_a_training_leaves(data: Path, done: RunResult) -> None:
    folder = done.folder
    names = {path.name for path in folder.iterdir() if "tfevents" not in path.name}
    kept = {
        f"{name}{end}" for name in ("last", "last.prev", "best") for end in (".pt", ".pt.sha256")
    }
    assert kept | {"config.yaml", "split.csv", "metrics.csv", "report.html"} <= names
    assert names - kept <= {"config.yaml", "split.csv", "metrics.csv", "report.html"} | {
        "best.prev.pt",
        "best.prev.pt.sha256",
    }
    for path in folder.glob("*.pt"):
        assert file_digest(path) == (folder / f"{path.name}.sha256").read_text().strip()
    assert (folder.parent.name, folder.name) == ("mask_gender", "exp")
    config = TrainConfig.from_dict(read_yaml(folder / "config.yaml"))
    assert (config.epochs, config.name, config.precision) == (3, "exp", "fp32")
    assert (done.epochs, done.unreadable) == (3, 0)


def test_the_split_is_by_person_and_the_checkpoint_knows_it(data: Path, done: RunResult) -> None:
    rows = rows_of(done.folder / "split.csv")
    assert len({row["person"] for row in rows}) == len(rows) == 12
    sides = {
        side: {row["person"] for row in rows if row["side"] == side} for side in ("train", "val")
    }
    assert {side: len(people) for side, people in sides.items()} == {"train": 9, "val": 3}
    table = (done.folder / "split.csv").read_bytes()
    for name in ("best.pt", "last.pt"):
        manifest = Manifest.from_json(read_checkpoint(done.folder / name)["manifest"])
        assert manifest.split_hash == hashlib.sha256(table).hexdigest()
        assert manifest.config == read_yaml(done.folder / "config.yaml")
        [fix] = manifest.fixes
        assert (fix["field"], fix["why"]) == ("gender", "test")
        assert rows[0]["gender"] == fix["new"]
        assert torch.__version__.startswith(manifest.versions["torch"])


def test_the_best_checkpoint_is_the_best_epoch_of_the_table(data: Path, done: RunResult) -> None:
    rows = rows_of(done.folder / "metrics.csv")
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    scores = [float(row["macro_f1"]) for row in rows]
    assert done.best_score == max(scores)
    best = read_checkpoint(done.folder / "best.pt")
    epoch = best["trainer"]["iteration"] // best["trainer"]["epoch_length"]
    assert epoch == len(scores) - scores[::-1].index(max(scores))
    stored = Manifest.from_json(best["manifest"]).metrics
    assert stored == pytest.approx({key: float(rows[epoch - 1][key]) for key in stored}, abs=0)
    assert set(stored) == {"val_loss", "macro_f1", "accuracy", "mask_f1", "gender_f1"}


def test_the_table_says_what_scikit_learn_finds_in_the_best_checkpoint(
    data: Path, done: RunResult
) -> None:
    model, manifest = load_model(done.folder)
    task, spec = manifest.get_task(), manifest.preprocess
    val = {row["person"]: row for row in rows_of(done.folder / "split.csv") if row["side"] == "val"}
    truth, predicted = [], []
    for profile in read_profiles(data / "train"):
        if profile.person not in val:
            continue
        for picture in profile.pictures:
            gender = ("male", "female").index(val[profile.person]["gender"])
            truth.append(task.encode(mask=int(picture.mask), gender=gender))
            pixels = spec.resize(decode(read_bytes(picture.path), picture.path))
            image = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None] / 255
            mean, std = (torch.tensor(v).view(3, 1, 1) for v in (spec.mean, spec.std))
            with torch.inference_mode():
                predicted.append(int(model((image - mean) / std).argmax()))
    expected = metrics.f1_score(truth, predicted, average="macro", zero_division=0)
    assert done.best_score == pytest.approx(expected)


def test_the_report_is_of_the_best_network(data: Path, done: RunResult) -> None:
    text = (done.folder / "report.html").read_text("utf-8")
    assert f"macro F1<b>{done.best_score:.4f}</b>" in text
    assert "3 people, 21 pictures" in text
    assert "base, " in text
    wrong = re.search(r"(\d+) of (\d+) wrong answers", text)
    assert wrong
    rows = rows_of(done.folder / "metrics.csv")
    best = max(rows, key=lambda row: (float(row["macro_f1"]), int(row["epoch"])))
    assert int(wrong[2]) == round(21 * (1 - float(best["accuracy"])))
    assert text.count("<img ") == 2 * int(wrong[1])
    assert text.count("<svg ") == 3 + 2


@pytest.mark.usefixtures("plain_figures")
def test_a_report_tells_which_pictures_train_in_another_folder(
    data: Path, done: RunResult, tmp_path: Path
) -> None:
    shutil.copytree(data / "train", tmp_path / "train")
    sides = {row["person"]: row["side"] for row in rows_of(done.folder / "split.csv")}
    first = {side: min(p for p in sides if sides[p] == side) for side in ("train", "val")}
    folders = {side: tmp_path / "train" / "images" / first[side] for side in first}
    for name in ("mask1", "mask2"):
        [old], [new] = (list(folders[side].glob(f"{name}.*")) for side in ("train", "val"))
        old.unlink()
        shutil.copy(new, folders["train"] / new.name)
    result = fit(tmp_path, tmp_path / "models", epochs=1, fixes=str(data.parent / "fixes.csv"))
    after = {row["person"]: row["side"] for row in rows_of(result.folder / "split.csv")}
    assert after == sides
    told = "2 of these pictures are in the training of a network too"
    assert told in (result.folder / "report.html").read_text("utf-8")
    assert "in the training of a network" not in (done.folder / "report.html").read_text("utf-8")


@pytest.mark.usefixtures("plain_figures")
def test_a_report_that_cannot_be_drawn_does_not_lose_the_run(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise RuntimeError("out of\nink")

    monkeypatch.setattr(run, "report_run", fail)
    said: list[str] = []
    result = train(config_of(data, tmp_path, epochs=1), said.append)
    page = result.folder / "report.html"
    assert said[-1] == f"warning: {page} was not written: RuntimeError: out of ink"
    assert not page.exists()
    assert (result.folder / "best.pt").is_file()


def test_a_report_leaves_random_numbers_and_the_run_as_they_were(
    data: Path, done: RunResult
) -> None:
    config = TrainConfig.from_dict(read_yaml(done.folder / "config.yaml"))
    val_loader = validation_loader(load_data(config, str).val, config.batch_size * 2)
    page = (done.folder / "report.html").read_bytes()
    files = {p: p.read_bytes() for p in done.folder.iterdir() if p.name != "report.html"}
    (done.folder / "report.html").unlink()
    state = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index]
    cpu = torch.device("cpu")
    run.report_run(done.folder, config, val_loader, cpu, resolve_precision("fp32", cpu))
    assert torch.equal(torch.get_rng_state(), state[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == state[1:]  # type: ignore[index]
    again = (done.folder / "report.html").read_bytes()
    made = re.compile(rb"Made:</dt><dd>[^<]*")
    assert made.sub(b"", again) == made.sub(b"", page)
    assert {p: p.read_bytes() for p in done.folder.iterdir() if p.name != "report.html"} == files


def test_tensorboard_reads_scalars_and_pictures(done: RunResult) -> None:
    events = EventAccumulator(str(done.folder), size_guidance={"images": 0})
    events.Reload()
    tags = events.Tags()
    assert {"epoch/macro_f1", "epoch/val_loss", "epoch/train_loss", "epoch/lr"} <= set(
        tags["scalars"]
    )
    table = [float(row["macro_f1"]) for row in rows_of(done.folder / "metrics.csv")]
    scalars = events.Scalars("epoch/macro_f1")
    assert [scalar.step for scalar in scalars] == [1, 2, 3]
    assert [scalar.value for scalar in scalars] == pytest.approx(table)
    assert set(tags["images"]) == {"confusion", "validation mistakes"}
    assert [image.step for image in events.Images("confusion")] == [1, 2, 3]
    for tag in tags["images"]:
        assert events.Images(tag)[0].encoded_image_string.startswith(b"\x89PNG")


def test_figures_are_of_the_answers_to_validation_people(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[Any, ...]] = []

    def draw(*arguments: Any) -> Figure:
        drawn.append(arguments)
        return Figure((1, 1), dpi=8)

    monkeypatch.setattr(handlers, "confusion_figure", draw)
    monkeypatch.setattr(handlers, "grid_image", draw)
    config = config_of(data, tmp_path, epochs=1, lr=0.005, ema_decay=0.0)
    folder = train(config, lambda _: None).folder
    (matrix, *_), (pixels, labels, predictions, names) = drawn
    loaded = load_data(config, lambda _: None)
    shown, truth, _ = loaded.dataset.__getitems__(loaded.val.indices)
    model, manifest = load_model(folder)
    images = torch.from_numpy(manifest.preprocess.normalise(shown.numpy()))
    with torch.inference_mode():
        found = predict_logits(model, images, config.tta).argmax(dim=1)
    np.testing.assert_array_equal(matrix, metrics.confusion_matrix(truth, found, labels=range(6)))
    assert (matrix != matrix.T).any()
    answers = {
        picture.tobytes(): (int(label), int(answer))
        for picture, label, answer in zip(shown.numpy(), truth, found, strict=True)
    }
    told = zip(labels, predictions, strict=True)
    assert [answers[picture.tobytes()] for picture in pixels] == list(told)
    assert len(pixels) == min(16, int((truth != found).sum())) > 0
    assert tuple(names) == TASKS["mask_gender"].class_names


@pytest.mark.usefixtures("plain_figures")
def test_equal_seeds_give_equal_bits_and_others_do_not(data: Path, tmp_path: Path) -> None:
    runs = [
        fit(data, tmp_path, seed=seed, workers=workers, cache=str(tmp_path / cache))
        for seed, workers, cache in ((1, 1, "a"), (1, 3, "b"), (2, 1, "a"))
    ]
    first, second, other = (result.folder for result in runs)
    assert [folder.name for folder in (first, second, other)] == ["exp", "exp2", "exp3"]
    for name in ("best.pt", "last.pt"):
        assert same(weights_of(first, name), weights_of(second, name))
    assert (first / "metrics.csv").read_bytes() == (second / "metrics.csv").read_bytes()
    assert (first / "split.csv").read_bytes() == (second / "split.csv").read_bytes()
    assert not same(weights_of(first), weights_of(other))


@pytest.mark.usefixtures("plain_figures")
def test_the_best_weights_are_the_averaged_ones(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Rises with the epochs, whatever the network has learnt.
    monkeypatch.setattr(handlers, "score", lambda engine: -engine.state.metrics["val_loss"])
    folder = fit(data, tmp_path, ema_decay=0.9, lr=0.001).folder
    last, best = (read_checkpoint(folder / name) for name in ("last.pt", "best.pt"))
    assert last["trainer"]["iteration"] == best["trainer"]["iteration"]
    assert same(best["model"], last["ema"])
    assert not same(best["model"], last["model"])
    assert "ema" not in best


@pytest.mark.usefixtures("plain_figures")
def test_averaged_weights_have_averaged_statistics(data: Path, tmp_path: Path) -> None:
    folder = fit(data, tmp_path, model="resnet18", epochs=1, ema_decay=0.9).folder
    content = read_checkpoint(folder / "last.pt")
    statistics = [key for key in content["model"] if "running_" in key]
    assert statistics
    assert not any(torch.equal(content["ema"][key], content["model"][key]) for key in statistics)


@pytest.mark.usefixtures("plain_figures")
def test_averaged_weights_by_hand(data: Path, tmp_path: Path) -> None:
    """Each step's weights count as much as `ema_decay` says, the early ones' more."""
    weights: list[list[torch.Tensor]] = []  # those that it began with, and after each step

    def note(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        parameters = (p for group in optimizer.param_groups for p in group["params"])
        weights.append([p.detach().clone() for p in parameters])

    def note_first(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if not weights:
            note(optimizer)

    hooks = register_optimizer_step_pre_hook(note_first), register_optimizer_step_post_hook(note)
    try:
        folder = fit(data, tmp_path, ema_decay=0.6, epochs=2, lr=0.001).folder
    finally:
        for hook in hooks:
            hook.remove()
    last = read_checkpoint(folder / "last.pt")
    average, *ended = weights
    assert len(ended) == last["trainer"]["iteration"] > 6  # where 1 - 0.6 is the larger share
    for step, present in enumerate(ended, 1):
        share = max(1 - 0.6, 4 / (4 + step))
        pairs = zip(average, present, strict=True)
        average = [(1 - share) * mean + share * now for mean, now in pairs]
    trained = [
        next(n for n, value in last["model"].items() if torch.equal(value, now))
        for now in ended[-1]
    ]
    for name, expected in zip(trained, average, strict=True):
        torch.testing.assert_close(last["ema"][name], expected)


OPTIONS: dict[str, dict[str, Any]] = {
    "noise": {"augmentation": "AddGaussianNoise"},
    "custom": {"augmentation": "CustomAugmentation"},
    "none": {"augmentation": "BaseAugmentation", "optimizer": "adam", "schedule": "constant"},
    "plateau": {"schedule": "plateau", "optimizer": "sgd", "clip_norm": 0.5, "lr": 0.01},
    "focal": {"criterion": "focal:0.5,f1:0.5", "class_weights": "balanced", "focal_alpha": 0.5},
    "f1": {"criterion": "f1", "class_weights": "sqrt", "accumulate": 2},
    "sum": {"criterion": "cross_entropy:0.7,label_smoothing:0.3", "patience": 2},
    "bf16": {"precision": "bf16", "ema_decay": 0.9},
    "folds": {"fold": 1, "folds": 4},
    "mixed": {"mixup": 0.5, "cutmix": 0.5, "soften_age": 0.0, "auxiliary": 0.0},
    "sampled": {"sampling": "balanced", "class_weights": "none"},
    "border ages": {"task": "multi", "border_ages": "soften", "soften_age": 0.0},
    "ordinal": {"task": "age", "age_loss": "ordinal", "mixup": 0.5},
    "expected": {"task": "age", "age_loss": "expected", "auxiliary": 0.5},
    "layers": {"layer_decay": 0.5, "schedule": "plateau"},
    "randaugment": {"augmentation": "RandAugmentation", "rand_operations": 3, "erasing": 0.5},
    "mixed rare": {"mixup": 0.5, "cutmix": 0.5, "mix_rare": True, "sampling": "sqrt"},
    "mixed focal": {"mixup": 1.0, "criterion": "focal:0.5,f1:0.5"},
}


@pytest.mark.usefixtures("plain_figures")
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_options_train(data: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    result = fit(data, tmp_path, **{"epochs": 1, **options})
    [row] = rows_of(result.folder / "metrics.csv")
    assert np.isfinite([float(value) for value in row.values()]).all()
    assert all(torch.isfinite(value).all() for value in weights_of(result.folder).values())


RANDOM = {"augmentation": "RandAugmentation"}
AGES = {"task": "age", "auxiliary": 0.0, "soften_age": 4.0}
INGREDIENTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "augmentation": ({}, {"augmentation": "AddGaussianNoise"}),
    "rand_operations": (RANDOM, {"rand_operations": 3}),
    "rand_magnitude": (RANDOM, {"rand_magnitude": 20.0}),
    "erasing": ({}, {"erasing": 0.5}),
    "sampling": ({}, {"sampling": "balanced"}),
    "mixup": ({}, {"mixup": 0.5}),
    "cutmix": ({}, {"cutmix": 0.5}),
    "mix_rare": ({"mixup": 0.5}, {"mix_rare": True}),
    "f1": ({"criterion": "cross_entropy"}, {"criterion": "cross_entropy:0.7,f1:0.3"}),
    "focal": ({"criterion": "cross_entropy"}, {"criterion": "focal"}),
    "focal_gamma": ({"criterion": "focal"}, {"focal_gamma": 1.0}),
    "label_smoothing": ({"criterion": "label_smoothing"}, {"label_smoothing": 0.3}),
    "class_weights": ({"class_weights": "none"}, {"class_weights": "balanced"}),
    "layer_decay": ({}, {"layer_decay": 0.5}),
    "ordinal": (AGES, {"age_loss": "ordinal"}),
    "expected": (AGES, {"age_loss": "expected"}),
    "f1 of ages": (AGES, {"criterion": "cross_entropy:0.7,f1:0.3"}),
    "border_ages": ({"task": "age", "soften_age": 0.0}, {"border_ages": "soften"}),
}


@pytest.mark.parametrize(("option", "power"), [("sqrt", 0.5), ("balanced", 1.0)])
def test_class_weights_are_those_of_scikit_learn(
    data: Path, tmp_path: Path, option: str, power: float
) -> None:
    config = config_of(data, tmp_path, class_weights=option, mixup=0.2, cutmix=0.5)
    loaded = load_data(config, lambda _: None)
    made = Objective(config, loaded)
    own = loaded.dataset.labels[loaded.train.indices]
    weights = compute_class_weight("balanced", classes=np.unique(own), y=own) ** power
    assert made.class_weights is not None and weights.std() > 0.05
    np.testing.assert_allclose(made.class_weights.numpy()[np.unique(own)], weights, rtol=1e-6)
    mixing = made.mixing()
    assert mixing is not None and (mixing.mixup, mixing.cutmix) == (0.2, 0.5)


@pytest.mark.usefixtures("plain_figures")
@pytest.mark.parametrize(("base", "ingredient"), INGREDIENTS.values(), ids=INGREDIENTS)
def test_an_ingredient_changes_what_is_learnt(
    data: Path, tmp_path: Path, base: dict[str, Any], ingredient: dict[str, Any]
) -> None:
    without, changed = (
        fit(data, tmp_path, **{"epochs": 1, **base, **more}).folder for more in ({}, ingredient)
    )
    assert not same(weights_of(without), weights_of(changed))


@pytest.mark.usefixtures("plain_figures")
def test_softened_ages_change_what_age_learns_and_nothing_else(data: Path, tmp_path: Path) -> None:
    options = {"epochs": 1, "class_weights": "sqrt", "auxiliary": 0.0}
    runs = [fit(data, tmp_path, task, soften_age=years, **options)
            for task in ("age", "mask_gender") for years in (0.0, 4.0)]  # fmt: skip
    age, soft_age, mask_gender, soft_mask_gender = (weights_of(run.folder) for run in runs)
    assert any(not torch.equal(age[key], soft_age[key]) for key in age)
    assert all(torch.equal(mask_gender[key], soft_mask_gender[key]) for key in mask_gender)


@pytest.mark.usefixtures("plain_figures")
def test_people_at_a_border_validate_and_do_not_train(data_dir: DataDir, tmp_path: Path) -> None:
    ages = (20, 27, 28, 29, 30, 45, 57, 59, 60, 22, 40, 26)
    root = data_dir(12, name="border/train", ages=ages).parent
    runs, said = {}, {}
    for task, option in (("age", "keep"), ("age", "drop"), ("mask_gender", "drop")):
        lines: list[str] = []
        config = config_of(root, tmp_path, task, border_ages=option, epochs=1, val_ratio=0.5)
        runs[task, option] = train(config, lines.append).folder
        [said[task, option]] = [line for line in lines if "validating on" in line]
    rows = rows_of(runs["age", "drop"] / "split.csv")
    border = {
        side: sum(row["side"] == side and int(row["age"]) in (27, 28, 29, 57, 59) for row in rows)
        for side in ("train", "val")
    }
    assert min(border.values()) > 0
    gone, kept = border["train"], 6 - border["train"]
    assert (
        f"{7 * kept} pictures of {kept} people ({7 * gone} of {gone} others left out, at the "
        "border of an age group), validating on 42 of 6 others" in said["age", "drop"]
    )
    assert "left out" not in said["age", "keep"] + said["mask_gender", "drop"]
    tables = {path: (folder / "split.csv").read_bytes() for path, folder in runs.items()}
    assert len(set(tables.values())) == 1
    hashes = {
        Manifest.from_json(read_checkpoint(folder / "best.pt")["manifest"]).split_hash
        for folder in runs.values()
    }
    assert len(hashes) == 1
    keep, drop = (weights_of(runs["age", option]) for option in ("keep", "drop"))
    assert not same(keep, drop)


def test_a_border_that_leaves_nobody(data_dir: DataDir, tmp_path: Path) -> None:
    root = data_dir(4, name="border/train", ages=(27, 28, 58, 59)).parent
    with pytest.raises(DataError, match="no readable training picture that border_ages drop keeps"):
        fit(root, tmp_path, "age", border_ages="drop", val_ratio=0.5)


@pytest.mark.usefixtures("plain_figures")
@pytest.mark.parametrize("options", [{}, {"class_weights": "sqrt", "soften_age": 4.0}])
def test_learning_the_other_attributes_changes_the_weights(
    data: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    plain, beside = (
        fit(data, tmp_path, epochs=1, auxiliary=weight, **options).folder for weight in (0.0, 0.5)
    )
    before, after = weights_of(plain), weights_of(beside)
    assert before["fc.bias"].shape == (6,)
    assert after["fc.bias"].shape == (6 + auxiliary_sizes(TASKS["mask_gender"])[0],)
    assert all(not torch.equal(before[key], after[key]) for key in before if "conv" in key)
    losses = [float(rows_of(run / "metrics.csv")[0]["val_loss"]) for run in (plain, beside)]
    assert losses[0] == pytest.approx(losses[1], rel=0.2)  # of the task alone, in both


@pytest.mark.usefixtures("plain_figures")
@pytest.mark.parametrize("auxiliary", [0.0, 0.5])
@pytest.mark.parametrize("task", [name for name in TASKS if name != "mask_gender"])
def test_every_task_trains(data: Path, tmp_path: Path, task: str, auxiliary: float) -> None:
    # Three people cannot hold all 18 classes: validation lacks some, and still has a score.
    result = fit(data, tmp_path, task, epochs=1, auxiliary=auxiliary)
    model, manifest = load_model(result.folder)
    assert manifest.task == task
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, TASKS[task].num_classes)
    assert 0 <= result.best_score <= 1


@pytest.mark.usefixtures("plain_figures")
@pytest.mark.parametrize("criterion", CRITERION_NAMES)
@pytest.mark.parametrize(("task", "weights"), [("mask_gender", "balanced"), ("age", "sqrt")])
def test_one_person_on_either_side_is_enough(
    data_dir: DataDir, tmp_path: Path, task: str, weights: str, criterion: str
) -> None:
    """Classes are absent from both sides, and batch normalisation gets no batch of one."""
    root = data_dir(2, name="two/train").parent
    options = {"model": "resnet18", "val_ratio": 0.5, "batch_size": 2, "epochs": 1}
    result = fit(root, tmp_path, task, criterion=criterion, class_weights=weights, **options)
    [row] = rows_of(result.folder / "metrics.csv")
    assert np.isfinite([float(value) for value in row.values()]).all()
    assert all(torch.isfinite(value).all() for value in weights_of(result.folder).values())


def test_too_little_to_train_on(data_dir: DataDir, tmp_path: Path) -> None:
    root = data_dir(2, name="two/train").parent
    folders = sorted((root / "train/images").iterdir())
    for folder in folders:
        for path in sorted(folder.iterdir())[1:]:
            path.unlink()
    with pytest.raises(DataError, match="one readable training picture"):
        fit(root, tmp_path, val_ratio=0.5, batch_size=2)
    shutil.rmtree(folders[0])
    (root / "train/train.csv").unlink()
    with pytest.raises(DataError, match="1 person in the data"):
        fit(root, tmp_path)
    assert not list(tmp_path.glob("mask_gender/*"))


@pytest.mark.usefixtures("plain_figures")
@pytest.mark.parametrize("optimizer", OPTIMIZER_NAMES)
def test_a_rate_of_0_changes_nothing(data: Path, tmp_path: Path, optimizer: str) -> None:
    options = {"lr": 0.0, "optimizer": optimizer, "augmentation": "BaseAugmentation"}
    folder = fit(data, tmp_path, **options).folder
    first, last = rows_of(folder / "metrics.csv")
    assert first | {"epoch": "2", "train_loss": last["train_loss"]} == last
    assert same(weights_of(folder, "last.prev.pt"), weights_of(folder))


@pytest.mark.usefixtures("plain_figures")
def test_parts_of_a_batch_train_as_the_batch(data: Path, tmp_path: Path) -> None:
    # With the base network's dropout off: its random numbers fall otherwise in parts.
    import maskcls.baseline

    rows = []
    dropout = torch.nn.Dropout
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(maskcls.baseline.nn, "Dropout", lambda p: dropout(0.0))
        for parts in (1, 2):
            result = fit(data, tmp_path, accumulate=parts, class_weights="none", optimizer="sgd")
            rows.append(rows_of(result.folder / "metrics.csv")[-1])
    for key in ("train_loss", "val_loss"):
        assert float(rows[0][key]) == pytest.approx(float(rows[1][key]), rel=1e-4)


class SlowStatistics(nn.Module):
    """Its batch statistics follow as slowly as those of efficientnet_pytorch."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3, momentum=0.01)
        self.fc = nn.Linear(3, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.fc(self.norm(images).mean((2, 3)))
        return answer


@pytest.mark.parametrize(("sampling", "left"), [("none", 1.0), ("sqrt", 0.5), ("balanced", 0.0)])
def test_rare_partners_make_classes_as_likely_whatever_is_sampled(
    data: Path, tmp_path: Path, sampling: str, left: float
) -> None:
    """`left`: of the imbalance, as a power of the counts, once sampling has drawn the batch."""
    config = config_of(data, tmp_path, sampling=sampling, mixup=0.3, mix_rare=True)
    loaded = load_data(config, str)
    mixing = Objective(config, loaded).mixing()
    assert mixing is not None and mixing.rarity is not None
    labels = loaded.dataset.labels
    counts = np.bincount(labels[loaded.train.indices])
    assert len(set(counts[counts > 0])) > 1
    chances = [
        counts[label] ** left * mixing.rarity[np.flatnonzero(labels == label)[0]]
        for label in np.flatnonzero(counts)
    ]
    assert chances == pytest.approx([chances[0]] * len(chances))


@pytest.mark.usefixtures("plain_figures")
def test_statistics_that_start_at_nothing_forget_it_soon(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(models.MODELS, "base", SlowStatistics)

    def variance(**flags: Any) -> torch.Tensor:
        flags |= {"ema_decay": 0.0, "lr": 0.0, "augmentation": "BaseAugmentation"}
        return weights_of(fit(data, tmp_path, **flags).folder)["norm.running_var"]

    torch.save(SlowStatistics(6).state_dict(), tmp_path / "start.pt")
    steps = 2 * math.ceil(9 * 7 / SMALL["batch_size"])
    slowly = variance(weights=str(tmp_path / "start.pt"))
    soon = variance()
    # Of the ones that both begin with, 0.99 and 0.9 to the power of the steps are left; the rest is
    # the pictures' own.
    own = (slowly - 0.99**steps) / (1 - 0.99**steps)
    torch.testing.assert_close(soon, 0.9**steps + (1 - 0.9**steps) * own, rtol=0.1, atol=0)
    assert ((own - 1).abs() > 0.2).all()  # or nothing was tested


@pytest.mark.usefixtures("plain_figures")
def test_weights_from_a_file(data: Path, tmp_path: Path) -> None:
    file = tmp_path / "weights.txt"
    file.write_text("1\n2\n0.5\n")
    assert fit(data, tmp_path / "runs", "age", epochs=1, class_weights=str(file)).epochs == 1


@pytest.mark.parametrize("text", ["1\n2\n", "1\n2\nx\n", "1\n2\n-1\n", "0 0 0", "1 2 nan", None])
def test_a_bad_file_of_weights_leaves_nothing(data: Path, tmp_path: Path, text: str | None) -> None:
    file = tmp_path / "weights.txt"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ConfigError, match="class_weights .*weights.txt"):
        fit(data, tmp_path / "runs", "age", class_weights=str(file))
    assert not (tmp_path / "runs").exists()


@pytest.mark.usefixtures("plain_figures")
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("at", [1, 7, 12])  # the first step, one in the middle, the last
def test_a_loss_that_explodes_keeps_the_checkpoints(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int, value: float
) -> None:
    class Exploding(torch.nn.CrossEntropyLoss):
        calls = 0

        def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            Exploding.calls += torch.is_grad_enabled()
            return super().forward(logits, target) * (value if Exploding.calls == at else 1.0)

    monkeypatch.setattr(objective, "create_criterion", lambda *a, **k: Exploding())
    epochs, _ = divmod(at - 1, 4)
    with pytest.raises(
        TrainingError,
        match=f"loss is {value} at epoch {epochs + 1}, iteration {at}; a lower --lr",
    ):
        fit(data, tmp_path, epochs=3)
    folder = tmp_path / "mask_gender" / "exp"
    if epochs == 0:
        assert {path.name for path in folder.glob("*.pt")} == set()
        return
    assert len(rows_of(folder / "metrics.csv")) == epochs
    for name in ("best.pt", "last.pt"):
        assert all(torch.isfinite(value).all() for value in weights_of(folder, name).values())


@pytest.mark.usefixtures("plain_figures")
def test_a_huge_rate_is_told(data: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="the loss is (nan|inf)"):
        fit(data, tmp_path, lr=99.0, optimizer="sgd", clip_norm=0.0, epochs=9, warmup_epochs=0.0)


@pytest.mark.usefixtures("plain_figures")
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_answers_that_are_no_numbers_are_not_scored(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    """The argmax of NaN is class 0, whose score may equal the best, which it would replace."""
    calls = 0

    def predict(model: torch.nn.Module, images: torch.Tensor, tta: str) -> torch.Tensor:
        nonlocal calls
        calls += 1
        logits = predict_logits(model, images, tta)
        if calls > epoch:
            logits[-1, 0] = value
        return logits

    epoch = 1  # of one batch of validation pictures
    monkeypatch.setattr(engines, "predict_logits", predict)
    with pytest.raises(TrainingError, match="answers some pictures with NaN or infinity; a lower"):
        fit(data, tmp_path, epochs=3, batch_size=64)
    assert calls == 2
    folder = tmp_path / "mask_gender" / "exp"
    assert len(rows_of(folder / "metrics.csv")) == 1
    for name in ("best.pt", "last.pt"):
        content = read_checkpoint(folder / name)
        assert content["trainer"]["iteration"] == content["trainer"]["epoch_length"]


@pytest.mark.usefixtures("plain_figures")
def test_early_stopping_stops_and_says_so(data: Path, tmp_path: Path) -> None:
    said: list[str] = []
    config = config_of(
        data, tmp_path, lr=0.0, patience=1, epochs=9, schedule="constant", ema_decay=0.0
    )
    result = train(config, said.append)
    assert result.epochs == 2  # the second was no better than the first
    assert [line.endswith("stopping early") for line in said if " epoch " in line] == [False, True]
    best = read_checkpoint(result.folder / "best.pt")
    assert best["trainer"]["iteration"] == 2 * best["trainer"]["epoch_length"]  # the latest equal


@pytest.mark.usefixtures("plain_figures")
@pytest.mark.parametrize(
    ("scores", "epochs", "best"),
    [
        ([math.nan, 0.5, math.nan, math.nan, 0.9], 4, 2),
        ([0.5, math.nan, 0.6, math.nan, math.nan], 5, 3),
        ([math.nan] * 5, 3, 3),
    ],
)
def test_a_score_that_is_no_number_is_the_worst(
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    scores: list[float],
    epochs: int,
    best: int,
) -> None:
    real = run.attach_metrics

    def attach(evaluator: Engine, *args: Any) -> None:
        real(evaluator, *args)

        @evaluator.on(Events.COMPLETED)
        def change(engine: Engine) -> None:
            engine.state.metrics["macro_f1"] = left.pop(0)

    left = list(scores)
    monkeypatch.setattr(run, "attach_metrics", attach)
    result = fit(data, tmp_path, epochs=5, patience=2)
    assert result.epochs == epochs
    content = read_checkpoint(result.folder / "best.pt")
    assert content["trainer"]["iteration"] == best * content["trainer"]["epoch_length"]


def test_folders_get_numbers_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "exp"
    assert [increment_path(path).name for _ in range(3)] == ["exp", "exp2", "exp3"]
    (tmp_path / "deep" / "exp2").rmdir()
    assert increment_path(path).name == "exp2"
    assert increment_path(path, exist_ok=True) == path
    (tmp_path / "file").touch()
    assert increment_path(tmp_path / "file").name == "file2"
    assert increment_path(tmp_path / "v1.0").name == "v1.0"
    assert increment_path(tmp_path / "v1.0").name == "v1.02"


def test_many_threads_get_folders_of_their_own(tmp_path: Path) -> None:
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda _: increment_path(tmp_path / "runs" / "exp"), range(64)))
    assert len(set(found)) == 64
    assert {path.name for path in found} == {"exp"} | {f"exp{n}" for n in range(2, 65)}
