"""Interrupted and resumed is the same as never interrupted, bit for bit."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure

from maskcls.checkpoints import read_checkpoint, save_checkpoint
from maskcls.config import TrainConfig, read_yaml, resolve, to_yaml
from maskcls.data.runs import people_of_run
from maskcls.data.sample import make_sample
from maskcls.data.splits import people_of, read_split
from maskcls.errors import CheckpointError, ConfigError, DataError, TrainingError
from maskcls.files import locked
from maskcls.manifest import Manifest
from maskcls.provenance import OTHERS, fingerprint
from maskcls.training import RunResult, handlers, resume, train
from tests.training import small

SMALL = small.SMALL | {"epochs": 3, "lr": 0.005}
Check = Callable[[Path, Path], None]
STEPS = 4  # of an epoch: 9 people, 63 pictures

CASES: dict[str, dict[str, Any]] = {
    "ema": {
        "ema_decay": 0.9,
        "patience": 3,
        "mixup": 0.3,
        "cutmix": 0.3,
        "calibration": "macro_f1",
    },
    "plateau": {"schedule": "plateau", "plateau_patience": 0, "ema_decay": 0.0, "lr": 0.0},
    "parts": {"accumulate": 2, "optimizer": "sgd", "criterion": "focal", "clip_norm": 0.0},
    "sampled": {
        "sampling": "balanced",
        "augmentation": "RandAugmentation",
        "layer_decay": 0.8,
        "soften_age": 4.0,
    },
    "early": {"patience": 2, "lr": 0.0, "epochs": 9, "augmentation": "CustomAugmentation"},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("resume") / "sample"
    return make_sample(root, people=12, eval_people=6, progress=False)


@pytest.fixture(autouse=True, scope="module")
def plain_figures() -> Any:
    """Figures take most of so small a training's time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(handlers, "confusion_figure", lambda *a: Figure((1, 1), dpi=8))
        patch.setattr(handlers, "grid_image", lambda *a: Figure((1, 1), dpi=8))
        yield


def flags_of(data: Path, model_dir: Path, **flags: Any) -> dict[str, Any]:
    places = {
        "data_dir": (str(data / "train"),),
        "model_dir": str(model_dir),
        "cache": str(data.parent / "cache"),
    }
    return SMALL | places | flags


def fit(data: Path, model_dir: Path, **flags: Any) -> RunResult:
    return train(
        resolve("age", "scratch", flags=flags_of(data, model_dir, **flags)), lambda _: None
    )


def interrupt(data: Path, model_dir: Path, iteration: int, **flags: Any) -> Path:
    """A training that somebody ends with Ctrl-C before an iteration; its run folder."""
    real = handlers.seed_step

    def step(seed: int, number: int) -> None:
        if number == iteration:
            raise KeyboardInterrupt
        real(seed, number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(handlers, "seed_step", step)
        with pytest.raises(KeyboardInterrupt):
            fit(data, model_dir, **flags)
    return model_dir / "age" / "exp"


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Name of a case → the run folder of a training that nobody interrupted."""
    done: dict[str, Path] = {}

    def make(case: str) -> Path:
        if case not in done:
            done[case] = fit(data, tmp_path_factory.mktemp(case), **CASES[case]).folder
        return done[case]

    return make


@pytest.fixture(scope="module")
def interrupted(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder whose training ended inside the third epoch; tests work on copies."""
    return interrupt(data, tmp_path_factory.mktemp("part"), 2 * STEPS + 3, **CASES["ema"])


@pytest.fixture
def part(interrupted: Path, tmp_path: Path) -> Path:
    shutil.copytree(interrupted, tmp_path / "age" / "exp")
    return tmp_path / "age" / "exp"


def bytes_of(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def halve(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize(
    ("case", "iteration"),
    [
        ("ema", STEPS + 1),
        ("ema", 2 * STEPS + 3),
        ("plateau", 2 * STEPS + 2),
        ("parts", 2 * STEPS + 4),
        ("sampled", STEPS + 3),
        ("early", STEPS + 2),
    ],
)
def test_resumed_is_uninterrupted(
    data: Path,
    tmp_path: Path,
    whole: Callable[[str], Path],
    case: str,
    iteration: int,
    assert_same_run: Check,
) -> None:
    folder = interrupt(data, tmp_path, iteration, **CASES[case])
    said: list[str] = []
    result = resume(folder, say=said.append)
    assert said[0] == f"resuming {folder} after epoch {(iteration - 1) // STEPS}"
    assert result.folder == folder
    assert result.epochs == 3
    assert_same_run(folder, whole(case))
    if case == "plateau":
        assert read_checkpoint(folder / "last.pt")["schedule"]["plateaus"] == 2


def test_a_second_interruption_does_no_harm(
    data: Path, tmp_path: Path, whole: Callable[[str], Path], assert_same_run: Check
) -> None:
    folder = interrupt(data, tmp_path, STEPS + 1, **CASES["ema"])
    real = handlers.seed_step

    def step(seed: int, number: int) -> None:
        if number == 2 * STEPS + 2:
            raise KeyboardInterrupt
        real(seed, number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(handlers, "seed_step", step)
        with pytest.raises(KeyboardInterrupt):
            resume(folder, say=lambda _: None)
    resume(folder, say=lambda _: None)
    assert_same_run(folder, whole("ema"))


@pytest.mark.parametrize("case", ["ema", "early"])
def test_a_finished_run_is_left_as_it_is(whole: Callable[[str], Path], case: str) -> None:
    folder = whole(case)
    before = bytes_of(folder)
    said: list[str] = []
    result = resume(folder, say=said.append)
    assert said == [f"{folder} is finished: 3 epochs; nothing to do"]
    assert result.epochs == 3
    assert bytes_of(folder) == before


def test_a_finished_run_gets_the_report_that_it_lacks(
    whole: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = tmp_path / "exp"
    shutil.copytree(whole("early"), folder)
    report = (folder / "report.html").read_bytes()
    (folder / "report.html").unlink()
    before = {name: content for name, (content, _) in bytes_of(folder).items()}
    said: list[str] = []
    assert resume(folder, say=said.append).epochs == 3
    assert said == [f"{folder} is finished: 3 epochs"]
    assert len((folder / "report.html").read_bytes()) == pytest.approx(len(report), rel=0.05)
    after = {name: content for name, (content, _) in bytes_of(folder).items()}
    assert {name: after[name] for name in before} == before


@pytest.mark.parametrize("why", ["data", "tracker"])
def test_a_report_that_cannot_be_had_leaves_a_finished_run_finished(
    data: Path, whole: Callable[[str], Path], tmp_path: Path, why: str
) -> None:
    folder = tmp_path / "exp"
    shutil.copytree(whole("early"), folder)
    (folder / "report.html").unlink()
    train, away = data / "train", data / "away"
    if why == "data":
        train.rename(away)
    else:
        (folder / "trackers.json").write_text("no JSON")
    said: list[str] = []
    try:
        assert resume(folder, say=said.append).epochs == 3
    finally:
        if why == "data":
            away.rename(train)
    assert said[0] == f"{folder} is finished: 3 epochs"
    [warning] = said[1:]
    assert warning.startswith("warning: ")
    assert ("no such data folder" if why == "data" else "not JSON") in warning
    assert (folder / "report.html").is_file() == (why == "tracker")
    if why == "data":  # asked for, and so an error
        with pytest.raises(DataError, match="no such data folder"):
            resume(folder, {"data_dir": (str(away),)}, say=said.append)


def test_a_finished_run_learns_where_its_data_are_now(
    data: Path, whole: Callable[[str], Path], tmp_path: Path
) -> None:
    folder, moved = tmp_path / "exp", tmp_path / "moved"
    shutil.copytree(whole("ema"), folder)
    shutil.copytree(data / "train", moved)
    manifest = Manifest.from_json(read_checkpoint(folder / "best.pt")["manifest"])

    def pictures() -> set[Path]:
        people = people_of_run(folder / "best.pt", manifest, "val")
        return {picture.path for person in people for picture in person.pictures}

    assert pictures() and all(path.is_relative_to(data) for path in pictures())
    resume(folder, {"data_dir": (str(moved),)}, say=lambda _: None)
    assert pictures() and all(path.is_relative_to(moved) for path in pictures())
    next((moved / "images").glob("*/*")).unlink()
    with pytest.raises(CheckpointError, match="other data than"):
        resume(folder, {"data_dir": (str(moved / "images"),)}, say=lambda _: None)


def test_a_resumed_run_remembers_whom_its_start_has_seen(
    data: Path, whole: Callable[[str], Path], tmp_path: Path
) -> None:
    start = whole("ema") / "best.pt"
    known = set(read_checkpoint(start)["seen"].tolist())
    folder = interrupt(data, tmp_path, STEPS + 2, epochs=2, seed=7, weights=str(start))
    resume(folder, say=lambda _: None)
    validating = people_of(read_split(folder / "split.csv"), "val")
    both = {fingerprint(person) for person in validating} & known
    assert both  # seen by the start alone, which is told
    flags = flags_of(data, tmp_path, epochs=1, seed=7, weights=str(start))
    said: list[str] = []
    train(resolve("age", "scratch", flags=flags), said.append)
    [warning] = [line for line in said if line.startswith("warning: ")]
    assert f"{start}: was trained on {len(both)} of the {len(validating)} people" in warning
    for name in ("best.pt", "last.pt"):
        seen = set(read_checkpoint(folder / name)["seen"].tolist())
        assert known < seen


def test_a_start_that_does_not_say_whom_it_has_seen_leaves_nobody_a_stranger(
    data: Path, whole: Callable[[str], Path], tmp_path: Path
) -> None:
    start = tmp_path / "plain.pt"
    torch.save(read_checkpoint(whole("ema") / "best.pt")["model"], start)
    said: list[str] = []
    flags = flags_of(data, tmp_path / "one", epochs=1, seed=7, weights=str(start))
    done = train(resolve("age", "scratch", flags=flags), said.append).folder
    [warning] = [line for line in said if line.startswith("warning: ")]
    assert f"{start}: does not say whom all it, or what it started from," in warning
    folder = interrupt(data, tmp_path, STEPS + 2, epochs=2, seed=7, weights=str(start))
    resume(folder, say=lambda _: None)
    for run in (done, folder):
        own = people_of(read_split(run / "split.csv"), "train")
        for name in ("best.pt", "last.pt"):
            seen = set(read_checkpoint(run / name)["seen"].tolist())
            assert {OTHERS, *map(fingerprint, own)} < seen
        assert "does not say whom all it" in (run / "report.html").read_text("utf-8")
    # And so does what starts from it.
    said.clear()
    flags = flags_of(data, tmp_path / "two", epochs=1, seed=7, weights=str(done / "best.pt"))
    train(resolve("age", "scratch", flags=flags), said.append)
    [warning] = [line for line in said if line.startswith("warning: ")]
    assert "does not say whom all it" in warning


@pytest.mark.parametrize("damage", [flip, halve, Path.unlink])
def test_a_damaged_checkpoint_gives_way_to_the_previous(
    part: Path, whole: Callable[[str], Path], damage: Callable[[Path], None], assert_same_run: Check
) -> None:
    damage(part / "last.pt")
    said: list[str] = []
    with pytest.warns(UserWarning, match=r"last\.pt: .*; taking .*last\.prev\.pt instead"):
        resume(part, say=said.append)
    assert said[0].endswith("after epoch 1")
    assert_same_run(part, whole("ema"))


def test_two_damaged_checkpoints_are_both_named(part: Path) -> None:
    flip(part / "last.pt")
    halve(part / "last.prev.pt")
    before = bytes_of(part)
    with pytest.raises(CheckpointError, match=r"last\.pt: damaged.*last\.prev\.pt: damaged"):
        resume(part)
    assert bytes_of(part) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 7}, r"seed 7 \(the run has 42\)"),
        ({"lr": 0.5, "epochs": 9}, r"lr 0.5 \(the run has 0.005\)|epochs 9 \(the run has 3\)"),
        ({"model": "resnet18"}, r"model 'resnet18' \(the run has 'base'\)"),
        ({"val_ratio": 0.5}, r"val_ratio 0.5 \(the run has 0.25\)"),
        ({"crop": [0.5, 0.5]}, "crop"),
    ],
)
def test_another_config_is_refused(part: Path, changes: dict[str, Any], message: str) -> None:
    before = bytes_of(part)
    with pytest.raises(CheckpointError, match=f"another config: .*({message})"):
        resume(part, changes)
    assert bytes_of(part) == before


def test_a_value_that_is_none_is_not_blamed_on_the_run(part: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        resume(part, {"model": "efficentnet_b3"})
    assert "did you mean 'efficientnet_b3'" in str(caught.value)
    assert "config.yaml" not in str(caught.value)


def test_other_data_are_refused(data: Path, part: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(data / "train", other)
    rows = (other / "train.csv").read_text().splitlines(keepends=True)
    gone = rows.pop().rsplit(",", 1)[1].strip()
    (other / "train.csv").write_text("".join(rows))
    with pytest.raises(CheckpointError, match="other data than .*1 people are gone, 0 are new"):
        resume(part, {"data_dir": (str(other),)}, say=lambda _: None)
    assert gone

    changed = tmp_path / "changed"
    shutil.copytree(data / "train", changed)
    first, second = sorted(next(iter((changed / "images").iterdir())).iterdir())[:2]
    first.write_bytes(second.read_bytes())
    with pytest.raises(CheckpointError, match="0 people are gone, 0 are new, 1 changed"):
        resume(part, {"data_dir": (str(changed),)}, say=lambda _: None)


def test_data_folders_in_another_order_are_refused(data: Path, tmp_path: Path) -> None:
    """Batches go by places in the list of pictures: some would come twice in the epoch."""
    folders = [tmp_path / name for name in ("one", "two")]
    for folder, start in zip(folders, (0, 6), strict=True):
        for person in sorted((data / "train" / "images").iterdir())[start : start + 6]:
            shutil.copytree(person, folder / "images" / person.name)
    run = interrupt(data, tmp_path / "runs", 6, data_dir=tuple(map(str, folders)))
    with pytest.raises(CheckpointError, match="its pictures come in another order"):
        resume(run, {"data_dir": tuple(map(str, reversed(folders)))}, say=lambda _: None)
    moved = [folder.rename(folder.with_name(f"moved-{folder.name}")) for folder in folders]
    assert resume(run, {"data_dir": tuple(map(str, moved))}, say=lambda _: None).epochs == 3


def test_weights_of_classes_are_those_that_the_run_began_with(data: Path, tmp_path: Path) -> None:
    file = tmp_path / "weights.txt"
    file.write_text("1\n2\n3\n")
    run = interrupt(data, tmp_path / "runs", 6, class_weights=str(file))
    file.write_text("1\n2\n4\n")
    with pytest.raises(CheckpointError, match=r"began with \[1\.0, 2\.0, 3\.0\]; put them back"):
        resume(run, say=lambda _: None)
    file.unlink()
    resume(run, say=lambda _: None)
    assert read_checkpoint(run / "last.pt")["class_weights"].tolist() == [1, 2, 3]
    file.write_text("1\n2\n4\n")  # of no use to one that is over
    (run / "report.html").unlink()
    assert resume(run, say=lambda _: None).epochs == 3
    assert (run / "report.html").is_file()


def test_of_a_finished_run_of_a_gpu_a_cpu_notes_where_its_data_are(
    data: Path, whole: Callable[[str], Path], tmp_path: Path
) -> None:
    run, moved = tmp_path / "run", tmp_path / "moved"
    shutil.copytree(whole("ema"), run)
    shutil.copytree(data / "train", moved)
    content = read_checkpoint(run / "last.pt")
    manifest = Manifest.from_json(content["manifest"])
    config = {**manifest.config, "precision": "fp16"}
    changed = dataclasses.replace(manifest, config=config)
    save_checkpoint(content | {"manifest": changed.to_json()}, run / "last.pt")
    (run / "config.yaml").write_bytes(to_yaml(TrainConfig.from_dict(config)).encode())
    said: list[str] = []
    resume(run, {"data_dir": (str(moved),)}, said.append)
    assert read_yaml(run / "config.yaml")["data_dir"] == [str(moved)]
    (run / "report.html").unlink()
    resume(run, say=said.append)
    assert f"warning: {run / 'report.html'} was not written: ProviderError" in said[-1]


def test_moved_data_and_another_machine_are_accepted(
    data: Path, part: Path, tmp_path: Path, whole: Callable[[str], Path], assert_same_run: Check
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(data / "train", moved)
    changes = {"data_dir": (str(moved),), "workers": 1, "cache": str(tmp_path / "cache")}
    resume(part, changes, say=lambda _: None)
    assert_same_run(part, whole("ema"))


def test_a_run_that_still_trains_is_not_resumed(part: Path) -> None:
    before = bytes_of(part)
    with locked(part / ".lock", lambda: None):
        with pytest.raises(TrainingError, match="another process is training in it"):
            resume(part, say=lambda _: None)
    assert bytes_of(part) == before
    assert resume(part, say=lambda _: None).epochs == 3


def test_what_is_no_run(part: Path, tmp_path: Path) -> None:
    for folder in (tmp_path / "none", tmp_path):
        with pytest.raises(CheckpointError, match="not a run folder"):
            resume(folder)
    (part / "config.yaml").write_text("modell: base\n")
    with pytest.raises(CheckpointError, match="config.yaml: .*did you mean 'model'"):
        resume(part)


def test_a_run_without_a_finished_epoch_says_so(data: Path, tmp_path: Path) -> None:
    folder = interrupt(data, tmp_path, 2)
    with pytest.raises(CheckpointError, match=r"ended before anything was saved"):
        resume(folder)


def test_a_checkpoint_of_another_kind(part: Path) -> None:
    for name in ("last.pt", "last.pt.sha256", "last.prev.pt", "last.prev.pt.sha256"):
        (part / name).unlink()
    shutil.copy(part / "best.pt", part / "last.pt")
    with pytest.raises(CheckpointError, match=r"last\.pt: holds no state of history"):
        resume(part, say=lambda _: None)
