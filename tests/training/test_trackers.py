"""What arrives in the trackers, through their own clients and without a network."""

from __future__ import annotations

import importlib
import json
import shutil
import struct
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from maskcls.config import TRACKER_NAMES, TrainConfig, resolve
from maskcls.data.sample import make_sample
from maskcls.errors import MissingExtraError, TrackerError
from maskcls.files import file_digest
from maskcls.training import handlers, resume, train
from maskcls.training.figures import to_pixels
from maskcls.training.trackers import EVERY, IDS_FILE, KEPT
from tests.training import small

# What MLflow uses of SQLAlchemy, and ClearML of pyparsing.
pytestmark = [
    pytest.mark.xdist_group("trackers"),  # the clients take seconds to open and to close
    pytest.mark.filterwarnings("ignore:The ``noload`` loader:DeprecationWarning"),
    pytest.mark.filterwarnings(r"ignore::DeprecationWarning:(clearml|pyparsing)\."),
]

INSTALLED = [name for name in TRACKER_NAMES if find_spec(name) is not None]
# 16 steps an epoch, so that the loss is reported in the second and in the third.
SMALL = small.SMALL | {"epochs": 3, "batch_size": 4, "lr": 0.005, "patience": 0}
SCORES = {"epoch", "lr", "train_loss", "val_loss", "macro_f1", "accuracy"}


@dataclass(frozen=True)
class Tracked:
    """A run that was interrupted in its second epoch, and went on from its first."""

    home: Path
    folder: Path
    before: Path  # a copy of the folder, from when it was interrupted
    said: list[str]

    @property
    def ids(self) -> list[dict[str, str]]:
        """Tracker → its run: of the interrupted one, and of the resumed one."""
        return [json.loads((f / IDS_FILE).read_text()) for f in (self.before, self.folder)]

    @property
    def rows(self) -> list[dict[str, float]]:
        head, *lines = (self.folder / "metrics.csv").read_text().split()
        return [
            dict(zip(head.split(","), map(float, line.split(",")), strict=True)) for line in lines
        ]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("trackers") / "sample"
    return make_sample(root, people=12, eval_people=6, progress=False)


@pytest.fixture(autouse=True, scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the clients write. No network, no account, and figures that take no time."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("HOME", str(folder))
        for name in ("WANDB_PROJECT", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID", "CI"):
            patch.delenv(name, raising=False)
        for name in ("WANDB_DIR", "WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
            patch.setenv(name, str(folder / "wandb"))
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        patch.setenv("CLEARML_OFFLINE_MODE", "1")
        patch.setattr(handlers, "confusion_figure", lambda *a: Figure((1, 1), dpi=8))
        patch.setattr(handlers, "grid_image", lambda *a: Figure((2, 1), dpi=8))
        yield folder


def config_of(data: Path, model_dir: Path, **flags: Any) -> TrainConfig:
    places = {
        "data_dir": (str(data / "train"),),
        "model_dir": str(model_dir),
        "cache": str(data.parent / "cache"),
    }
    return resolve("age", "scratch", flags=SMALL | places | flags)


def stop(said: list[str], when: str) -> Callable[[str], None]:
    def say(text: str) -> None:
        said.append(text)
        if when in text:
            raise KeyboardInterrupt

    return say


@pytest.fixture(scope="module")
def tracked(data: Path, home: Path, tmp_path_factory: pytest.TempPathFactory) -> Tracked:
    said: list[str] = []
    models = tmp_path_factory.mktemp("tracked")
    config = config_of(data, models, tracker=",".join(INSTALLED))
    with pytest.raises(KeyboardInterrupt):
        train(config, stop(said, "epoch 2/3"))
    folder, before = models / "age" / "exp", models / "before" / "exp"
    shutil.copytree(folder, before)
    assert resume(folder, say=said.append).epochs == 3
    assert not [text for text in said if "warning" in text]
    return Tracked(home, folder, before, said)


# --- what each has ------------------------------------------------------------------------------


def test_tensorboard(tracked: Tracked) -> None:
    events = EventAccumulator(str(tracked.folder), size_guidance={"images": 0})
    events.Reload()
    for name in SCORES:
        found = {scalar.step: scalar.value for scalar in events.Scalars(f"epoch/{name}")}
        assert found == pytest.approx({row["epoch"]: row[name] for row in tracked.rows})
    # The first of the two was written before the interruption too, and is shown once.
    assert [scalar.step for scalar in events.Scalars("step/loss")] == [EVERY, 2 * EVERY]
    assert [scalar.step for scalar in events.Scalars("lr/group_0")] == [EVERY, 2 * EVERY]
    assert {image.step for image in events.Images("confusion")} == {1, 2, 3}
    assert {(image.width, image.height) for image in events.Images("validation mistakes")} == {
        (16, 8)
    }


def records(path: Path) -> Iterator[Any]:
    """Those of an offline W&B run: protocol buffers in the log format of LevelDB."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, text = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        _, size, kind = struct.unpack_from("<IHB", data, at)
        text += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(text)
            text = b""


def test_wandb(tracked: Tracked) -> None:
    pytest.importorskip("wandb")
    own, again = (ids["wandb"] for ids in tracked.ids)
    assert own == again
    assert f"wandb: new run {own}" in tracked.said
    assert f"wandb: goes on with run {own}" in tracked.said
    parts = sorted((tracked.home / "wandb").rglob(f"run-{own}.wandb"))
    assert len(parts) == 2
    history: dict[int, dict[str, Any]] = {}
    codes, kept = [], {}
    for part in parts:
        for record in records(part):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                assert (record.run.project, record.run.display_name) == ("maskcls", "age/exp")
                config = {item.key: item.value_json for item in record.run.config.update}
                assert (config["epochs"], config["model"], config["lr"]) == ("3", '"base"', "0.005")
            elif kind == "history":
                items = {"/".join(i.nested_key) or i.key: i.value_json for i in record.history.item}
                values = {key: json.loads(value) for key, value in items.items()}
                history.setdefault(values["_step"], {}).update(values)
            elif kind == "artifact":
                [entry] = record.artifact.manifest.contents
                kept[entry.path] = Path(entry.local_path)
            elif kind == "exit":
                codes.append(record.exit.exit_code)
    assert codes == [1, 0]
    epochs = {step: values for step, values in history.items() if "epoch/epoch" in values}
    assert list(epochs) == [16, 32, 48]
    for values, row in zip(epochs.values(), tracked.rows, strict=True):
        assert {key: values[f"epoch/{key}"] for key in SCORES} == pytest.approx(row)
        assert values["confusion/_type"] == "image-file"
        assert values["validation mistakes/width"] == 16
    assert {"step/loss", "lr/group_0"} <= history[EVERY].keys() & history[2 * EVERY].keys()
    pictures = list((tracked.home / "wandb").rglob("files/media/images/*.png"))
    assert len(pictures) == 6
    assert set(kept) == set(KEPT)
    assert file_digest(kept["best.pt"]) == file_digest(tracked.folder / "best.pt")


def test_mlflow(tracked: Tracked) -> None:
    mlflow = pytest.importorskip("mlflow")
    own, again = (ids["mlflow"] for ids in tracked.ids)
    assert own == again
    client = mlflow.MlflowClient()
    run = client.get_run(own)
    assert (run.info.status, run.info.run_name) == ("FINISHED", "age/exp")
    assert client.get_experiment(run.info.experiment_id).name == "maskcls"
    assert (run.data.params["epochs"], run.data.params["model"]) == ("3", "base")
    for name in SCORES:
        found = {m.step: m.value for m in client.get_metric_history(own, f"epoch {name}")}
        assert found == pytest.approx({row["epoch"]: row[name] for row in tracked.rows})
    assert {m.step for m in client.get_metric_history(own, "step loss")} == {EVERY, 2 * EVERY}
    assert {file.path for file in client.list_artifacts(own)} == {
        *KEPT,
        "confusion",
        "validation_mistakes",
    }
    for name in KEPT:
        copy = Path(mlflow.artifacts.download_artifacts(run_id=own, artifact_path=name))
        assert copy.read_bytes() == (tracked.folder / name).read_bytes()
    grid = mlflow.artifacts.download_artifacts(
        run_id=own, artifact_path="validation_mistakes/epoch_003.png"
    )
    with Image.open(grid) as picture:
        assert picture.size == (16, 8)
    assert mlflow.active_run() is None


def test_clearml(tracked: Tracked) -> None:
    pytest.importorskip("clearml")
    own = [ids["clearml"] for ids in tracked.ids]
    assert own[0] != own[1]  # a session that lies on disk cannot be gone on with
    found: dict[str, dict[int, float]] = {}
    for session in own:
        [folder] = [path for path in tracked.home.rglob(session) if path.is_dir()]
        task = json.loads((folder / "task.json").read_text())
        assert (task["project_name"], task["name"]) == ("maskcls", "age/exp")
        assert task["hyperparams"]["config"]["model"]["value"] == "base"
        for line in (folder / "metrics.jsonl").read_text().splitlines():
            for event in json.loads(line):
                name = f"{event['metric']}/{event['variant']}"
                found.setdefault(name, {})[event["iter"]] = event.get("value")
    for name in SCORES:
        assert found[f"epoch/{name}"] == pytest.approx(
            {row["epoch"]: row[name] for row in tracked.rows}
        )
    assert set(found["step/loss"]) == {EVERY, 2 * EVERY}
    assert set(found["confusion/confusion"]) == {1, 2, 3}
    assert {artifact["key"] for artifact in task["execution"]["artifacts"]} == set(KEPT)
    [copy] = folder.rglob("best.pt/best.pt")
    assert file_digest(copy) == file_digest(tracked.folder / "best.pt")
    assert len(list(folder.rglob("*.jpeg"))) == 4  # of the second and third epoch


# --- trackers change nothing, and break nothing -------------------------------------------------


def test_a_tracked_run_learns_the_same(
    data: Path, tracked: Tracked, tmp_path: Path, assert_same_run: Callable[[Path, Path], None]
) -> None:
    plain = train(config_of(data, tmp_path, tracker="none"), lambda _: None).folder
    assert_same_run(tracked.folder, plain)
    assert not list(plain.glob("*tfevents*")) and not (plain / IDS_FILE).exists()


def test_a_resumed_run_may_have_other_trackers(tracked: Tracked, tmp_path: Path) -> None:
    folder = shutil.copytree(tracked.before, tmp_path / "exp")
    events = {path.name for path in folder.glob("*tfevents*")}
    assert resume(folder, {"tracker": "none"}, lambda _: None).epochs == 3
    assert {path.name for path in folder.glob("*tfevents*")} == events


def test_one_that_fails_is_left_out(data: Path, tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    said: list[str] = []

    def say(text: str) -> None:
        said.append(text)
        if "epoch 1/2" in text:  # from now on there is no place for pictures
            run = mlflow.active_run()
            place = Path(run.info.artifact_uri.removeprefix("file://"))
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text("in the way")

    result = train(config_of(data, tmp_path, tracker="mlflow,tensorboard", epochs=2), say)
    [warning] = [text for text in said if "warning" in text]
    assert warning.startswith("warning: mlflow failed and is left out from here on: ")
    assert result.epochs == 2 and (result.folder / "report.html").is_file()
    assert mlflow.active_run() is None  # closed all the same
    events = EventAccumulator(str(result.folder))
    events.Reload()
    assert [scalar.step for scalar in events.Scalars("epoch/macro_f1")] == [1, 2]


# --- before the first step ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["wandb", "mlflow", "clearml"])
def test_a_missing_package_is_told_before_anything_is_done(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    # A folder that has the name of the package is not the package.
    (tmp_path / "path" / name).mkdir(parents=True)
    monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path / "path")])
    importlib.invalidate_caches()
    said: list[str] = []
    with pytest.raises(MissingExtraError, match=rf"--tracker {name} needs .*'maskcls\[{name}\]'"):
        train(config_of(data, tmp_path / "models", tracker=f"tensorboard,{name}"), said.append)
    assert not said and not (tmp_path / "models").exists()


def test_one_that_cannot_be_opened_is_an_error(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nowhere://at-all")
    config = config_of(data, tmp_path / "models", tracker="tensorboard,mlflow")
    with pytest.raises(TrackerError, match="--tracker mlflow: cannot be opened: .*nowhere"):
        train(config, lambda _: None)
    assert list((tmp_path / "models" / "age").iterdir()) == []


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_a_damaged_record_of_trackers(tracked: Tracked, tmp_path: Path, text: str) -> None:
    folder = shutil.copytree(tracked.before, tmp_path / "exp")
    (folder / IDS_FILE).write_text(text)
    with pytest.raises(TrackerError, match=f"{IDS_FILE}: .*remove it"):
        resume(folder, {"tracker": "tensorboard"}, lambda _: None)
    assert (folder / "last.pt").is_file()


def test_figures_become_pixels() -> None:
    figure = Figure((0.5, 0.25), dpi=40, facecolor="red")
    pixels = to_pixels(figure)
    assert pixels.shape == (10, 20, 3) and pixels.dtype == np.uint8
    assert (pixels == [255, 0, 0]).all()
    assert torch.from_numpy(pixels).is_contiguous()
