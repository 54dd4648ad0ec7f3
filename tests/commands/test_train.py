"""`maskcls-train` on small data: what it trains, what it refuses, and how it ends."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from matplotlib.figure import Figure

import maskcls
import maskcls.weights
from maskcls.checkpoints import read_checkpoint, save_checkpoint
from maskcls.commands import train as command
from maskcls.commands.train import main
from maskcls.config import PRESETS, read_yaml
from maskcls.data.sample import ensure_sample, make_sample
from maskcls.errors import ConfigError
from maskcls.models import create_model, load_model
from maskcls.training import handlers

ROOT = Path(maskcls.__file__).parents[1]
SMALL = {
    "model": "base",
    "weights": "none",
    "height": 32,
    "width": 32,
    "crop": [1.0, 1.0],
    "epochs": 1,
    "batch_size": 16,
    "val_ratio": 0.25,
    "device": "cpu",
    "precision": "fp32",
}
LATER = {
    "soften_age",
    "auxiliary",
    "tta",
    "mixup",
    "cutmix",
    "calibration",
    "sampling",
    "mix_rare",
    "border_ages",
    "age_loss",
    "layer_decay",
    "rand_operations",
    "rand_magnitude",
    "erasing",
    "tracker",
}
"""Keys of a config that the first version did not have."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("train") / "sample"
    return make_sample(root, people=12, eval_people=6, progress=False) / "train"


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, no variable set, and figures that take no time."""
    for name in ("SM_CHANNEL_TRAIN", "SM_MODEL_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(handlers, "confusion_figure", lambda *a: Figure((1, 1), dpi=8))
    monkeypatch.setattr(handlers, "grid_image", lambda *a: Figure((1, 1), dpi=8))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def small(place: Path, data: Path) -> list[str]:
    """The options of a small training."""
    file = place / "small.yaml"
    file.write_text(yaml.safe_dump(SMALL | {"cache": str(data.parent / "cache")}))
    return ["--config", str(file)]


def fails(argv: list[str], capsys: pytest.CaptureFixture[str], code: int = 1) -> str:
    """The one `error:` line of a command that ends with it."""
    assert main(argv) == code
    err = capsys.readouterr().err
    assert "Traceback" not in err
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


def copy_of(data: Path, place: Path, table: bool = False) -> Path:
    shutil.copytree(data, place / "data")
    if not table:
        (place / "data" / "train.csv").unlink()
    return place / "data"


def test_age_starts_from_what_mask_gender_has_learnt(
    place: Path, data: Path, small: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [*small, "--data-dir", str(data), "--task", "all", "--epochs", "1", "--lr", "0"]
    assert main([*argv, "--model-dir", "models"]) == 0
    assert "age starts from what mask_gender has learnt" in capsys.readouterr().out
    first = place / "models" / "mask_gender" / "exp"
    config = read_yaml(place / "models" / "age" / "exp" / "config.yaml")
    assert config["weights"] == str(Path("models/mask_gender/exp/best.pt"))
    assert config["weight_decay"] == PRESETS["branch"]["age"]["weight_decay"]  # not fine-tuning's
    before, after = (
        load_model(run)[0].state_dict() for run in (first, place / "models" / "age" / "exp")
    )
    frozen = [name for name, value in before.items() if value.dim() == 4]  # nothing moves at lr 0
    assert frozen
    assert all(torch.equal(before[name], after[name]) for name in frozen)


@pytest.mark.parametrize(
    "section", [{"seed": 7}, {"val_ratio": 0.4}, {"model": "resnet18", "height": 32, "width": 32}]
)
def test_a_branch_with_other_people_or_network_starts_at_random(
    place: Path, data: Path, section: dict[str, object]
) -> None:
    file = place / "own.yaml"
    values = SMALL | {"cache": str(data.parent / "cache"), "epochs": 1, "age": section}
    file.write_text(yaml.safe_dump(values))
    argv = ["--config", str(file), "--data-dir", str(data), "--task", "all"]
    assert main([*argv, "--model-dir", "models"]) == 0
    assert read_yaml(place / "models/age/exp/config.yaml")["weights"] == "none"


def test_both_branches_with_sections_and_flags(
    place: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = place / "both.yaml"
    values = SMALL | {
        "task": "all",
        "epochs": 5,
        "cache": str(data.parent / "cache"),
        "age": {"criterion": "focal", "lr": 3e-3},
        "mask_gender": {"augmentation": "BaseAugmentation"},
    }
    file.write_text(yaml.safe_dump(values))
    argv = ["--config", str(file), "--data-dir", str(data), "--model-dir", "models"]
    assert main([*argv, "--epochs", "1", "--name", "first"]) == 0
    out = capsys.readouterr().out
    assert "next: maskcls-infer --model models --images DIR" in out
    for task in ("mask_gender", "age"):
        folder = place / "models" / task / "first"
        assert f"{task}: best macro F1 0." in out
        _, manifest = load_model(folder)
        config = read_yaml(folder / "config.yaml")
        assert manifest.task == config["task"] == task
        assert config["epochs"] == 1  # the flag is stronger than the file
    age, other = (
        read_yaml(place / f"models/{t}/first/config.yaml") for t in ("age", "mask_gender")
    )
    assert (age["criterion"], age["lr"], age["augmentation"]) == ("focal", 3e-3, "RandAugmentation")
    assert (other["criterion"], other["augmentation"]) == ("label_smoothing", "BaseAugmentation")


def test_all_is_checked_before_the_first_training(
    place: Path, data: Path, small: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [*small, "--data-dir", str(data), "--task", "all"]
    torch.save(create_model("base", 6, (32, 32)).state_dict(), place / "start.pt")
    start = ["--weights", str(place / "start.pt")]
    line = fails([*argv, *start, "--age-loss", "ordinal"], capsys, 2)
    assert "age_loss ordinal" in line  # which fits the preset from scratch alone
    line = fails([*argv, "--class-weights", "weights.txt"], capsys, 2)
    assert "class_weights 'weights.txt': neither" in line
    file = place / "own.yaml"
    values = yaml.safe_load(Path(small[1]).read_text()) | {"age": {"weights": "nowhere.pt"}}
    file.write_text(yaml.safe_dump(values))
    argv = ["--config", str(file), "--data-dir", str(data), "--task", "all"]
    assert "nowhere.pt" in fails(argv, capsys, 2)
    assert not (place / "runs").exists()
    # What fits these weights alone is no mistake.
    flags = {"weights": "imagenet", "border_ages": "soften"}
    assert command.check_values("age", {}, flags, None).soften_age == 0
    assert command.check_values("age", {}, flags | {"weights": "auto"}, None).soften_age == 0
    with pytest.raises(ConfigError, match="border_ages soften"):
        command.check_values("age", {}, flags | {"weights": "none"}, None)


def test_a_signal_too_late_for_one_network_begins_no_other(
    place: Path,
    data: Path,
    small: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def draw(*_: object) -> Figure:  # after the last step of the only epoch
        os.kill(os.getpid(), signal.SIGTERM)
        return Figure((1, 1), dpi=8)

    monkeypatch.setattr(handlers, "confusion_figure", draw)
    with pytest.raises(SystemExit) as ended:
        main([*small, "--data-dir", str(data), "--task", "all"])
    assert ended.value.code == 143
    assert "interrupted; age was not begun" in capsys.readouterr().out
    assert (place / "runs/mask_gender/exp/report.html").is_file()
    assert not (place / "runs/age").exists()


def test_variables_stand_for_the_folders(
    place: Path,
    data: Path,
    small: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("SM_CHANNEL_TRAIN", str(data / "images"))  # what the original's points to
    monkeypatch.setenv("SM_MODEL_DIR", str(place / "models"))
    assert main([*small, "--task", "age"]) == 0
    by_images = (place / "models/age/exp/split.csv").read_bytes()
    monkeypatch.setenv("SM_CHANNEL_TRAIN", str(data))
    assert main([*small, "--task", "age"]) == 0
    assert (place / "models/age/exp2/split.csv").read_bytes() == by_images
    # An option is stronger than its variable.
    monkeypatch.setenv("SM_CHANNEL_TRAIN", str(place / "none"))
    assert main([*small, "--task", "age", "--data-dir", str(data), "--model-dir", "own"]) == 0
    assert (place / "own/age/exp/best.pt").is_file()
    # One network labels nothing: the next step is the other one, on the same people.
    other = shlex.join(["--config", small[1], "--data-dir", str(data), "--model-dir", "own"])
    assert f"next: maskcls-train --task mask_gender {other}\n" in capsys.readouterr().out
    argv = [*small, "--task", "age", "--data-dir", str(data), "--model-dir", "own"]
    assert main([*argv, "--seed", "7", "--weights", "none"]) == 0
    other = shlex.join(["--config", small[1], "--weights", "none", "--seed", "7", *argv[4:]])
    assert f"next: maskcls-train --task mask_gender {other}\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--task", "agee"], "unknown task 'agee'; did you mean 'age'?"),
        (["--model", "efficentnet_b3"], "did you mean 'efficientnet_b3'?"),
        (["--criterion", "focall"], "did you mean 'focal'?"),
        (["--criterion", "focal:x"], "not a positive number"),
        (["--augmentation", "BestAugmentatio"], "did you mean 'BestAugmentation'?"),
        (["--optimizer", "adamww"], "did you mean 'adamw'?"),
        (["--schedule", "cosin"], "did you mean 'cosine'?"),
        (["--weights", "imagnet"], "did you mean 'imagenet'?"),
        (["--epochs", "0"], "epochs 0: must be 1 or more"),
        (["--lr", "nan"], "lr nan"),
        (["--fold", "1"], "fold and folds go together"),
        (["--height", "-3"], "-3"),
    ],
)
def test_what_does_not_exist_is_refused_before_anything_is_written(
    place: Path,
    data: Path,
    small: list[str],
    argv: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = ["--data-dir", str(data), "--model-dir", str(place / "models")]
    assert message in fails([*small, *places, *argv], capsys, code=2)
    assert not (place / "models").exists()


def test_a_config_file_is_checked(
    place: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = place / "c.yaml"
    argv = ["--config", str(file), "--data-dir", str(data), "--task", "age"]
    for text, message in (
        ("epoch: 3", "unknown key 'epoch'; did you mean 'epochs'?"),
        ("age: {epoch: 3}", "section age: unknown key 'epoch'"),
        ("mask: {epoch: 3}", "section mask: unknown key 'epoch'"),  # even of another task
        ("epochs: many", "epochs 'many': must be int"),
        ("epochs: [", "not YAML"),
        ("- 1", "holds no keys and values"),
        ("age: 3", "section age must hold keys and values"),
        ("task: agee", "unknown task 'agee'"),
    ):
        file.write_text(text)
        own = argv[:-2] if text.startswith("task") else argv
        assert message in fails(own, capsys, code=2)
    file.unlink()
    assert "c.yaml: No such file" in fails(argv, capsys, code=2)
    assert not (place / "runs").exists()


def test_folders_that_cannot_be_trained_on(
    place: Path, data: Path, small: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [*small, "--model-dir", "models", "--data-dir"]
    assert "no such data folder: none" in fails([*argv, "none"], capsys)
    (place / "empty" / "images").mkdir(parents=True)
    assert "no people in it" in fails([*argv, "empty"], capsys)
    copy = copy_of(data, place)
    (copy / "images" / "000001_femal_Asian_45").mkdir()
    line = fails([*argv, str(copy)], capsys)
    assert "000001_femal_Asian_45" in line
    assert "did you mean 'female'?" in line
    twice = fails([*argv, str(data), "--data-dir", str(data)], capsys)
    assert "given twice" in twice
    assert not (place / "models").exists()


def test_a_truncated_picture_is_skipped_or_an_error(
    place: Path, data: Path, small: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    copy = copy_of(data, place)
    picture = next(iter(sorted((copy / "images").iterdir()))) / "normal.jpg"
    picture = next(iter(sorted(picture.parent.glob("normal.*"))))
    os.truncate(picture, picture.stat().st_size // 2)
    argv = [*small, "--data-dir", str(copy), "--task", "mask"]
    assert "1 unreadable: " in fails([*argv, "--strict"], capsys)
    assert not (place / "runs").exists()
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert "warning: 1 unreadable pictures are skipped:" in out
    assert str(picture) in out
    numbers = re.search(r"(\d+) pictures of 9 people, validating on (\d+) of 3 others", out)
    assert numbers and int(numbers[1]) + int(numbers[2]) == 12 * 7 - 1


@pytest.fixture
def unreachable(place: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    import torch

    url = "http://127.0.0.1:9/x-00000000.pth"
    monkeypatch.setattr(maskcls.weights, "imagenet_url", lambda model: url)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(place / "hub"))
    return url


def test_weights_that_cannot_be_had(
    data: Path,
    place: Path,
    small: list[str],
    unreachable: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    line = fails([*small, "--data-dir", str(data), "--weights", "imagenet"], capsys)
    assert unreachable in line
    assert str(place / "hub" / "checkpoints") in line
    assert "--weights none" in line
    assert not (place / "runs").exists()


@pytest.mark.parametrize("text", ["lr: -1", "age: {lr: -1}", "fold: 3", "eopchs: 3"])
def test_a_bad_value_of_a_file_names_the_file(
    place: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "own.yaml").write_text(text)
    argv = ["--config", "own.yaml", "--task", "age"]
    assert fails(argv, capsys, 2).startswith("error: own.yaml: ")
    # Not where an option is to blame.
    assert "own.yaml" not in fails([*argv, "--seed", "-1"], capsys, 2)


def test_auto_trains_from_scratch_where_there_is_no_network(
    data: Path, place: Path, small: list[str], unreachable: str, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [*small, "--data-dir", str(data), "--task", "age", "--weights", "auto"]
    assert main(argv) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if "from scratch" in line]
    assert len(said) == 1
    assert said[0].startswith("training from scratch: ImageNet weights of base cannot be")
    config = read_yaml(place / "runs/age/exp/config.yaml")
    preset = PRESETS["scratch"]["age"]
    for name in ("lr", "ema_decay", "soften_age", "schedule"):  # `small` sets the others
        assert config[name] == preset[name]
    assert config["weights"] == "none"


def test_without_data_the_built_in_sample(
    place: Path,
    small: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import maskcls.data.sample

    def tiny(root: Path) -> Path:
        return ensure_sample(root, people=12, eval_people=6, progress=False)

    monkeypatch.setattr(command, "SAMPLE_DIR", place / "drawn")
    monkeypatch.setattr(maskcls.data.sample, "ensure_sample", tiny)
    assert main(small) == 0
    out = capsys.readouterr().out
    assert "training on the built-in sample of drawn faces" in out
    assert str(place / "drawn") in out
    # Apart from runs on photos: `--model runs` must not take a network that knows cartoons only.
    assert (place / "drawn/mask_gender/exp/best.pt").is_file()
    assert not (place / "runs").exists()


def test_resume(
    place: Path,
    data: Path,
    small: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    argv = [*small, "--data-dir", str(data), "--task", "age", "--epochs", "2"]
    assert main([*argv, "--name", "whole"]) == 0
    real = handlers.seed_step

    def step(seed: int, number: int) -> None:
        if number == 6:
            raise KeyboardInterrupt
        real(seed, number)

    monkeypatch.setattr(handlers, "seed_step", step)
    assert main([*argv, "--name", "part"]) == 130
    assert capsys.readouterr().err.endswith("interrupted\n")
    monkeypatch.setattr(handlers, "seed_step", real)
    run = place / "runs/age/part"
    assert "seed 7 (the run has 42)" in fails(["--resume", str(run), "--seed", "7"], capsys)
    assert "is a run of task age" in fails(["--resume", str(run), "--task", "mask"], capsys)
    assert "not a run folder" in fails(["--resume", str(place)], capsys)
    assert main(["--resume", str(run)]) == 0
    out = capsys.readouterr().out
    assert f"resuming {run} after epoch 1" in out
    assert f"→ {run / 'best.pt'}" in out
    assert (run / "metrics.csv").read_bytes() == (run.parent / "whole/metrics.csv").read_bytes()
    assert main(["--resume", str(run)]) == 0
    assert "is finished: 2 epochs" in capsys.readouterr().out


def test_a_full_disk_keeps_what_was_saved(
    data: Path,
    small: list[str],
    tiny_disk: Path,
    fill: Callable[[Path], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    real = handlers.History.add

    def add(self: Any, row: dict[str, float]) -> None:
        real(self, row)
        if row["epoch"] == 2:
            fill(tiny_disk)

    monkeypatch.setattr(handlers.History, "add", add)
    argv = [*small, "--data-dir", str(data), "--task", "age", "--epochs", "3"]
    line = fails([*argv, "--model-dir", str(tiny_disk / "models")], capsys)
    run = tiny_disk / "models/age/exp"
    assert line.startswith(f"error: no space left on device while writing {run}/")
    content = read_checkpoint(run / "last.pt")
    assert content["trainer"]["iteration"] == content["trainer"]["epoch_length"]
    load_model(run)
    # With room again it goes on.
    (tiny_disk / "filler").unlink()
    monkeypatch.setattr(handlers.History, "add", real)
    assert main(["--resume", str(run)]) == 0


def test_a_folder_that_turns_read_only_keeps_what_was_saved(
    data: Path,
    small: list[str],
    tiny_disk: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    models = tiny_disk / "models"
    run = models / "age/exp"

    def freeze(how: str, folder: Path) -> None:  # root heeds no permissions, but this
        argv = [str(shutil.which("chattr")), how, str(folder)]
        if shutil.which("chattr") is None or subprocess.run(argv, capture_output=True).returncode:
            pytest.skip("needs chattr, and a tmpfs that knows it")

    freeze("+i", tiny_disk)
    argv = [*small, "--data-dir", str(data), "--task", "age", "--epochs", "3"]
    argv += ["--model-dir", str(models)]
    line = fails(argv, capsys)
    assert line == f"error: {models}: Operation not permitted"
    freeze("-i", tiny_disk)

    real = handlers.History.add

    def add(self: Any, row: dict[str, float]) -> None:
        real(self, row)
        if row["epoch"] == 2:
            freeze("+i", run)

    monkeypatch.setattr(handlers.History, "add", add)
    try:
        line = fails(argv, capsys)
        assert line.startswith(f"error: {run}/")
        assert line.endswith(": Operation not permitted")
        content = read_checkpoint(run / "last.pt")
        assert content["trainer"]["iteration"] == content["trainer"]["epoch_length"]
        load_model(run)
        assert "Operation not permitted" in fails(["--resume", str(run)], capsys)
    finally:
        freeze("-i", run)
    monkeypatch.setattr(handlers.History, "add", real)
    assert main(["--resume", str(run)]) == 0


def test_two_at_once_get_folders_of_their_own_and_share_a_cache(
    place: Path, data: Path, small: list[str]
) -> None:
    cache = place / "cache"
    argv = [*small, "--data-dir", str(data), "--task", "age", "--cache", str(cache)]
    processes = [
        subprocess.Popen(
            [sys.executable, str(ROOT / "cli" / "train.py"), *argv],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for _ in range(2)
    ]
    for process in processes:
        out, _ = process.communicate(timeout=300)
        assert process.returncode == 0, out
    runs = sorted(path.name for path in (place / "runs/age").iterdir())
    assert runs == ["exp", "exp2"]
    one, other = (place / "runs/age" / name for name in runs)
    assert (one / "metrics.csv").read_bytes() == (other / "metrics.csv").read_bytes()
    one_model, other_model = (read_checkpoint(path / "best.pt")["model"] for path in (one, other))
    for name, value in one_model.items():
        assert torch.equal(value, other_model[name]), name
    assert len(list(cache.glob("*.npy"))) == 1
    assert not [path for path in cache.rglob("*") if path.suffix in (".tmp", ".lock")]


def test_a_run_of_an_older_version_goes_on(
    place: Path,
    data: Path,
    small: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Options that came later have their defaults, which are what older versions did."""
    argv = [*small, "--data-dir", str(data), "--task", "age", "--epochs", "2"]
    argv += ["--soften-age", "0", "--auxiliary", "0", "--tta", "none"]
    assert main(argv) == 0
    run = place / "runs/age/exp"
    metrics = (run / "metrics.csv").read_bytes()

    def forget(values: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in values.items() if key not in LATER}

    content = read_checkpoint(run / "last.prev.pt")  # after the first epoch
    manifest = json.loads(content["manifest"])
    assert LATER <= manifest["config"].keys()
    manifest["config"] = forget(manifest["config"])
    save_checkpoint(content | {"manifest": json.dumps(manifest)}, run / "last.pt")
    (run / "config.yaml").write_text(yaml.safe_dump(forget(read_yaml(run / "config.yaml"))))
    assert main(["--resume", str(run)]) == 0
    assert f"resuming {run} after epoch 1" in capsys.readouterr().out
    assert (run / "metrics.csv").read_bytes() == metrics
    # The best checkpoint holds no state of the training.
    shutil.copy(run / "best.pt", run / "last.pt")
    (run / "last.pt.sha256").unlink()
    assert "holds no state of" in fails(["--resume", str(run)], capsys)


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [(signal.SIGINT, 130, "interrupted\n"), (signal.SIGTERM, 143, "")],
)
def test_a_signal_ends_it_well(
    place: Path, data: Path, small: list[str], number: int, code: int, said: str
) -> None:
    argv = [*small, "--data-dir", str(data), "--task", "age", "--epochs", "500"]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "cli" / "train.py"), *argv],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # Where the tests run in the background of a script, Ctrl-C is ignored, and inherited so.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    run = place / "runs/age/exp"
    try:
        while not (run / "last.pt").exists():
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == code
    assert err.endswith(said)
    assert "Traceback" not in err
    # It could go on: everything but the end is there.
    epoch = read_checkpoint(run / "last.pt")["trainer"]["iteration"] // 4
    assert len((run / "metrics.csv").read_text().splitlines()) == 1 + epoch
    real = handlers.seed_step

    def step(seed: int, number: int) -> None:
        if number > (epoch + 1) * 4:
            raise KeyboardInterrupt
        real(seed, number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(handlers, "seed_step", step)
        assert main(["--resume", str(run)]) == 130
    rows = (run / "metrics.csv").read_text().splitlines()[1:]
    assert [int(row.split(",")[0]) for row in rows] == list(range(1, epoch + 2))
