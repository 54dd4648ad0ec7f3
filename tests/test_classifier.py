"""A classifier made of checkpoints answers what its networks answer."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from maskcls.checkpoints import save_checkpoint
from maskcls.classifier import TorchClassifier, find_checkpoints, lacking_tasks
from maskcls.errors import CheckpointError
from maskcls.files import file_digest
from maskcls.labels import ATTRIBUTES, MULTI, TASKS
from maskcls.manifest import ENSEMBLE, Calibration, Manifest
from maskcls.models import Answer, Ensemble, create_model, load_model, model_args
from maskcls.preprocessing import PreprocessSpec

CPU = torch.device("cpu")
SPECS = {
    "mask_gender": PreprocessSpec(32, 40),
    "age": PreprocessSpec(48, 32, (0.8, 1.0), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4)),
}


def write(
    path: Path,
    task: str,
    name: str = "base",
    seed: int = 0,
    seen: list[int] | None = None,
    **more: object,
) -> nn.Module:
    """A checkpoint of a small network with random weights; returns the network."""
    spec = SPECS.get(task, SPECS["age"])
    torch.manual_seed(seed)
    model = create_model(name, TASKS[task].num_classes, spec.size).eval()
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.weight.data *= 20  # answers that are not all alike
    arguments = model_args(name, spec.size)
    manifest = Manifest(task, TASKS[task].class_names, spec, name, arguments, **more)  # type: ignore[arg-type]
    content = {"manifest": manifest.to_json(), "model": model.state_dict()}
    if seen is not None:
        content["seen"] = torch.tensor(seen, dtype=torch.int64)
    save_checkpoint(content, path)
    return model


def run(model_dir: Path, task: str, name: str = "exp", **options: object) -> Path:
    """MODEL_DIR/<task>/<name>/best.pt"""
    path = model_dir / task / name / "best.pt"
    write(path, task, **options)  # type: ignore[arg-type]
    return path


def batches(tasks: list[str], count: int = 9) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [
        rng.integers(0, 256, (count, *SPECS.get(task, SPECS["age"]).size, 3), dtype=np.uint8)
        for task in tasks
    ]


@torch.inference_mode()
def direct(model: nn.Module, task: str, pixels: np.ndarray) -> np.ndarray:
    spec = SPECS.get(task, SPECS["age"])
    return model(torch.from_numpy(spec.normalise(pixels))).softmax(dim=1).numpy()


# --- answers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [["mask_gender", "age"], ["age", "mask_gender"]])
def test_two_branches_equal_pytorch(tmp_path: Path, order: list[str]) -> None:
    models = {task: write(tmp_path / f"{task}.pt", task) for task in order}
    classifier = TorchClassifier([tmp_path / f"{task}.pt" for task in order], CPU)
    assert classifier.specs == tuple(SPECS[task] for task in order)
    pixels = batches(order)
    answer = MULTI.marginals(classifier.predict(pixels))
    parts = dict(zip(order, pixels, strict=True))
    both = direct(models["mask_gender"], "mask_gender", parts["mask_gender"]).reshape(-1, 3, 2)
    age = direct(models["age"], "age", parts["age"])
    assert both.argmax(axis=1).std() > 0  # not the same answer to everything
    np.testing.assert_allclose(answer["mask"], both.sum(axis=2), atol=2e-5)
    np.testing.assert_allclose(answer["gender"], both.sum(axis=1), atol=2e-5)
    np.testing.assert_allclose(answer["age"], age, atol=2e-5)
    for name, values in ATTRIBUTES.items():
        assert answer[name].shape == (9, len(values))
        np.testing.assert_allclose(answer[name].sum(axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("tasks", [["multi"], ["age", "gender", "mask"]])
def test_other_sets_of_networks(tmp_path: Path, tasks: list[str]) -> None:
    models = [write(tmp_path / f"{task}.pt", task) for task in tasks]
    pixels = batches(tasks)
    classifier = TorchClassifier([tmp_path / f"{task}.pt" for task in tasks], CPU)
    answer = MULTI.marginals(classifier.predict(pixels))
    assert set(answer) == set(ATTRIBUTES)
    if tasks == ["multi"]:
        joint = direct(models[0], "multi", pixels[0]).reshape(-1, 3, 2, 3)
        np.testing.assert_allclose(answer["gender"], joint.sum(axis=(1, 3)), atol=2e-5)
        np.testing.assert_allclose(answer["age"], joint.sum(axis=(1, 2)), atol=2e-5)
    else:
        for model, task, part in zip(models, tasks, pixels, strict=True):
            np.testing.assert_allclose(answer[task], direct(model, task, part), atol=2e-5)


@pytest.mark.parametrize("tta", ["none", "flip"])
def test_answers_are_calibrated_after_the_average(tmp_path: Path, tta: str) -> None:
    config = {"config": {"tta": tta}}
    bias = (0.5, -2.0, 1.0)
    write(tmp_path / "plain.pt", "age", **config)
    write(tmp_path / "calibrated.pt", "age", **config, calibration=Calibration(2.5, bias))
    [pixels] = batches(["age"])
    plain, changed = (
        TorchClassifier([tmp_path / f"{name}.pt"], CPU, complete=False).logits(0, pixels)
        for name in ("plain", "calibrated")
    )
    np.testing.assert_allclose(changed, plain / 2.5 + np.array(bias), atol=1e-5)
    assert (changed.argmax(axis=1) != plain.argmax(axis=1)).any()


def test_networks_are_in_evaluation_mode(tmp_path: Path) -> None:
    write(tmp_path / "multi.pt", "multi", name="resnet18")  # batch normalisation
    classifier = TorchClassifier([tmp_path / "multi.pt"], CPU)
    [pixels] = batches(["multi"])
    whole = classifier.predict([pixels])
    alone = np.concatenate([classifier.predict([pixels[i : i + 1]]) for i in range(9)])
    np.testing.assert_allclose(whole, alone, atol=1e-5)


# --- where it comes from -----------------------------------------------------------------------


def test_files_are_named_with_their_digests(tmp_path: Path) -> None:
    paths = [tmp_path / "a.pt", tmp_path / "b.pt"]
    write(paths[0], "mask_gender")
    write(paths[1], "age")
    models = TorchClassifier(paths, CPU).models
    assert [model.task for model in models] == ["mask_gender", "age"]
    assert [model.path for model in models] == [str(path) for path in paths]
    assert [model.sha256 for model in models] == [file_digest(path) for path in paths]


def test_who_was_trained_on(tmp_path: Path) -> None:
    paths = [tmp_path / "a.pt", tmp_path / "b.pt"]
    write(paths[0], "mask_gender", seen=[-5, 3])
    write(paths[1], "age", seen=[3, 2**62])
    assert TorchClassifier(paths, CPU).trained_on == {-5, 3, 2**62}
    write(paths[1], "age", seen=None)  # one that does not say: nobody can tell any more
    assert TorchClassifier(paths, CPU).trained_on is None
    write(paths[0], "mask_gender", seen=[])
    write(paths[1], "age", seen=[])
    assert TorchClassifier(paths, CPU).trained_on == frozenset()


# --- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        (["mask_gender"], "none answers age"),
        (["age"], "none answers mask"),
        (["mask", "age"], "none answers gender"),
        (["mask_gender", "age", "mask"], "more than one answers mask"),
        (["multi", "age"], "more than one answers age"),
    ],
)
def test_every_attribute_once(tmp_path: Path, tasks: list[str], message: str) -> None:
    paths = [tmp_path / f"{task}.pt" for task in tasks]
    for path, task in zip(paths, tasks, strict=True):
        write(path, task)
    with pytest.raises(CheckpointError, match=message) as caught:
        TorchClassifier(paths, CPU)
    assert all(f"{path} ({task})" in str(caught.value) for path, task in zip(paths, tasks))  # noqa: B905


def test_a_checkpoint_that_does_not_fit_is_named(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.pt", tmp_path / "bad.pt"
    write(good, "mask_gender")
    model = write(bad, "age")
    spec = SPECS["age"]
    manifest = Manifest("age", TASKS["age"].class_names, spec, "resnet18", {})
    save_checkpoint({"manifest": manifest.to_json(), "model": model.state_dict()}, bad)
    with pytest.raises(
        CheckpointError, match=r"bad\.pt: the weights do not fit resnet18"
    ) as caught:
        TorchClassifier([good, bad], CPU)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500  # it is one error line


# --- which files -------------------------------------------------------------------------------


def age_by(path: Path, seconds: int) -> None:
    """Makes a run older: its checkpoint and its folder."""
    for part in (path, path.parent):
        stat = part.stat()
        os.utime(part, (stat.st_atime, stat.st_mtime - seconds))


def test_the_newest_runs_of_both_branches(tmp_path: Path) -> None:
    old = run(tmp_path, "age", "exp2")
    new = run(tmp_path, "age", "exp")
    age_by(old, 100)
    mask = run(tmp_path, "mask_gender")
    run(tmp_path, "multi")  # the branches go first
    (tmp_path / "age" / "exp3").mkdir()  # has no best checkpoint yet
    assert find_checkpoints([tmp_path]) == [mask, new]
    age_by(new, 200)
    assert find_checkpoints([tmp_path]) == [mask, old]


def test_other_tasks_where_a_branch_is_missing(tmp_path: Path) -> None:
    run(tmp_path, "age")
    paths = {task: run(tmp_path, task) for task in ("mask", "gender")}
    assert find_checkpoints([tmp_path]) == [
        paths["mask"],
        paths["gender"],
        tmp_path / "age" / "exp" / "best.pt",
    ]
    multi = run(tmp_path, "multi")
    assert find_checkpoints([tmp_path]) == [multi]


def test_files_and_run_folders(tmp_path: Path) -> None:
    mask, age = run(tmp_path, "mask_gender"), run(tmp_path, "age")
    assert find_checkpoints([mask, age]) == [mask, age]
    assert find_checkpoints([mask.parent, age]) == [mask, age]


def test_what_is_found_can_be_opened(tmp_path: Path) -> None:
    run(tmp_path, "mask_gender")
    run(tmp_path, "age")
    assert TorchClassifier(find_checkpoints([tmp_path]), CPU).specs == tuple(SPECS.values())


@pytest.mark.parametrize(("have", "shown"), [(None, "none"), ("age", "age"), ("mask", "mask")])
def test_one_branch_is_not_enough(tmp_path: Path, have: str | None, shown: str) -> None:
    if have:
        run(tmp_path, have)
    with pytest.raises(CheckpointError) as caught:
        find_checkpoints([tmp_path])
    assert f"needs runs of mask_gender and age to label pictures, has {shown};" in str(caught.value)
    assert f"maskcls-train --task all --model-dir {tmp_path}" in str(caught.value)


def test_a_path_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such checkpoint or folder: .*nowhere"):
        find_checkpoints([tmp_path / "nowhere"])


def test_a_damaged_best_falls_back_and_says_so(tmp_path: Path) -> None:
    path = run(tmp_path, "multi")
    write(path, "multi", seed=1)
    path.write_bytes(b"")
    with pytest.warns(UserWarning, match="best.prev.pt instead"):
        classifier = TorchClassifier(find_checkpoints([tmp_path]), CPU)
    assert classifier.specs == (SPECS["age"],)


@pytest.mark.parametrize(
    ("trained", "lacking"),
    [
        (["mask_gender"], ["age"]),
        (["age"], ["mask_gender"]),
        (["mask_gender", "age"], []),
        (["multi"], []),
        (["gender"], ["mask", "age"]),
        (["gender", "mask"], ["age"]),
        (["mask", "gender", "age"], []),
        (["multi", "mask_gender"], []),
    ],
)
def test_what_is_still_to_be_trained(
    tmp_path: Path, trained: list[str], lacking: list[str]
) -> None:
    for task in trained:
        run(tmp_path, task)
    assert lacking_tasks(tmp_path, trained[-1]) == lacking


def test_the_map_of_an_ensemble_is_the_mean_of_its_members(tmp_path: Path) -> None:
    paths = [tmp_path / f"{seed}.pt" for seed in range(2)]
    for seed, path in enumerate(paths):
        write(path, "age", "resnet18", seed=seed, config={"tta": "flip"})
    members = [load_model(path) for path in paths]
    first = members[0][1]
    whole = replace(
        first,
        model=ENSEMBLE,
        model_args={"members": [manifest.to_dict() for _, manifest in members]},
        config={"tta": "none"},
    )
    model = Ensemble([Answer(*member) for member in members])
    file = tmp_path / "ensemble.pt"
    save_checkpoint({"manifest": whole.to_json(), "model": model.state_dict()}, file)
    [pixels] = batches(["age"], 3)
    classes = np.array([0, 1, 2])
    alone = [
        TorchClassifier([path], CPU, complete=False).grad_cam(0, pixels, classes) for path in paths
    ]
    found = TorchClassifier([file], CPU, complete=False).grad_cam(0, pixels, classes)
    np.testing.assert_allclose(found, (alone[0] + alone[1]) / 2, atol=1e-5)
    assert np.abs(alone[0] - alone[1]).max() > 0.1
