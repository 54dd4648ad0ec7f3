"""`maskcls-infer` on two small trained runs, up to the score."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from maskcls.commands import evaluate
from maskcls.commands.infer import CPU_BATCH, build_parser, main
from maskcls.config import resolve
from maskcls.data.profiles import read_profiles
from maskcls.data.sample import make_sample
from maskcls.images import decode, read_bytes
from maskcls.labels import BRANCHES, MULTI, combine
from maskcls.models import load_model
from maskcls.runtime import tuning
from maskcls.training import handlers, train

SMALL: dict[str, Any] = {
    "model": "base",
    "weights": "none",
    "crop": None,
    "epochs": 2,
    "batch_size": 16,
    "val_ratio": 0.25,
    "device": "cpu",
    "precision": "fp32",
    "lr": 0.005,
    "ema_decay": 0.0,
    "criterion": "cross_entropy",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("infer") / "sample"
    return make_sample(root, people=12, eval_people=6, progress=False)


@pytest.fixture(scope="module")
def models(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of each branch, of different input sizes."""
    folder = tmp_path_factory.mktemp("models")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(handlers, "confusion_figure", lambda *a: Figure((1, 1), dpi=8))
        patch.setattr(handlers, "grid_image", lambda *a: Figure((1, 1), dpi=8))
        for task, side in (("mask_gender", 32), ("age", 40)):
            places = {"data_dir": (str(data / "train"),), "model_dir": str(folder)}
            own = {"height": side, "width": side, "cache": str(data.parent / "cache")}
            train(resolve(task, "scratch", flags=SMALL | places | own), lambda _: None)
    return folder


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("MODEL", "EVAL"):
        monkeypatch.delenv(f"SM_CHANNEL_{name}", raising=False)
    monkeypatch.delenv("SM_OUTPUT_DATA_DIR", raising=False)
    monkeypatch.delenv("SM_GROUND_TRUTH_DIR", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def table_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def fails(argv: list[str], capsys: pytest.CaptureFixture[str], code: int = 1) -> str:
    assert main(argv) == code
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


def expected(models: Path, paths: list[Path]) -> list[int]:
    """The labels by plain means, picture by picture."""
    answers = []
    loaded = [load_model(models / task / "exp") for task in ("mask_gender", "age")]
    for path in paths:
        parts = {}
        for model, manifest in loaded:
            spec = manifest.preprocess
            pixels = spec.resize(decode(read_bytes(path), path))
            image = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None] / 255
            mean, std = (torch.tensor(v).view(3, 1, 1) for v in (spec.mean, spec.std))
            with torch.inference_mode():
                probabilities = model((image - mean) / std).softmax(dim=1).numpy()
            parts[manifest.task] = probabilities
        answers.append(int(combine(parts).argmax()))
    return answers


def test_rows_and_order_of_the_table_are_kept(
    data: Path, models: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = place / "deep" / "output.csv"
    argv = ["--model", str(models), "--images", str(data / "eval"), "--out", str(out)]
    assert main([*argv, "--provider", "cpu"]) == 0
    files = ", ".join(str(models / task / "exp" / "best.pt") for task in BRANCHES)
    said = f"computing with cpu: {files}\nlabelled 42 pictures → {out}\n"
    assert capsys.readouterr().out == said
    rows, info = table_of(out), table_of(data / "eval" / "info.csv")
    assert list(rows[0]) == ["ImageID", "ans"]
    names = [row["ImageID"] for row in rows]
    assert names == [row["ImageID"] for row in info]
    assert names != sorted(names)
    paths = [data / "eval" / "images" / name for name in names]
    assert [int(row["ans"]) for row in rows] == expected(models, paths)
    provenance = json.loads(out.with_name("output.csv.json").read_text())
    assert (provenance["pictures"], provenance["errors"]) == (42, 0)
    assert provenance["seen_in_training"] == 0
    # and the score of it
    assert evaluate.main(["--gt", str(data / "eval"), "--pred", str(out), "--no-confusion"]) == 0
    assert "(42 pictures)" in capsys.readouterr().out


def test_the_validation_people_get_what_validation_saw(
    data: Path, models: Path, place: Path
) -> None:
    sides = {row["person"]: row["side"] for row in table_of(models / "mask_gender/exp/split.csv")}
    assert sides == {row["person"]: row["side"] for row in table_of(models / "age/exp/split.csv")}
    profiles = [p for p in read_profiles(data / "train") if sides[p.person] == "val"]
    pictures = [(p, picture) for p in profiles for picture in p.pictures]
    listing = place / "list.txt"
    listing.write_text("".join(f"{picture.path}\n" for _, picture in pictures))
    out = place / "output.csv"
    argv = ["--model", str(models), "--images", str(listing), "--out", str(out)]
    assert main([*argv, "--batch-size", "5"]) == 0
    found = np.array([int(row["ans"]) for row in table_of(out)])
    assert found.tolist() == expected(models, [picture.path for _, picture in pictures])
    assert json.loads((place / "output.csv.json").read_text())["seen_in_training"] == 0
    for task, attribute in (("mask_gender", "gender"), ("age", "age")):
        truth = [int(p.gender if attribute == "gender" else p.age_group) for p, _ in pictures]
        rows = table_of(models / task / "exp" / "metrics.csv")
        best = max(rows, key=lambda row: float(row["macro_f1"]))
        if task == "age":
            share = np.mean(MULTI.decode(found)["age"] == truth)
            assert share == pytest.approx(float(best["accuracy"]))


@pytest.mark.parametrize("size", ["1", "7", "64"])
def test_the_size_of_a_batch_changes_nothing(
    data: Path, models: Path, place: Path, size: str
) -> None:
    argv = ["--model", str(models), "--images", str(data / "eval"), "--probabilities"]
    assert main([*argv, "--out", "a.csv"]) == 0
    assert main([*argv, "--out", "b.csv", "--batch-size", size, "--workers", "3"]) == 0
    one, other = table_of(place / "a.csv"), table_of(place / "b.csv")
    assert [row["ans"] for row in one] == [row["ans"] for row in other]
    columns = list(one[0])[2:]
    assert len(columns) == 8
    for a, b in zip(one, other, strict=True):
        assert [float(a[name]) for name in columns] == pytest.approx(
            [float(b[name]) for name in columns], abs=2e-6
        )
        assert sum(float(a[name]) for name in columns) == pytest.approx(3, abs=1e-5)


def test_a_folder_without_a_table(data: Path, models: Path, place: Path) -> None:
    folder = data / "train" / "images"
    assert main(["--model", str(models), "--images", str(folder), "--out", "o.csv"]) == 0
    names = [row["ImageID"] for row in table_of(place / "o.csv")]
    assert len(names) == 12 * 7
    assert names == sorted(path.relative_to(folder).as_posix() for path in folder.glob("*/*"))


def test_ways_to_name_the_models(
    data: Path, models: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = str(data / "eval")
    runs = [models / "mask_gender" / "exp", models / "age" / "exp"]
    ways = {
        "folder": [models],
        "runs": runs,
        "turned": runs[::-1],
        "files": [run / "best.pt" for run in runs],
        "mixed": [runs[0], runs[1] / "best.pt"],
    }
    for name, paths in ways.items():
        out = f"{name}.csv"
        assert main(["--model", *map(str, paths), "--images", images, "--out", out]) == 0
    monkeypatch.setenv("SM_CHANNEL_MODEL", str(models))
    monkeypatch.setenv("SM_CHANNEL_EVAL", images)
    monkeypatch.setenv("SM_OUTPUT_DATA_DIR", str(place / "answers"))
    assert main([]) == 0
    texts = {(place / f"{name}.csv").read_text() for name in ways}
    assert texts == {(place / "answers" / "output.csv").read_text()}


def test_the_newest_run_of_a_task_is_taken(data: Path, models: Path, place: Path) -> None:
    copy = place / "models"
    shutil.copytree(models, copy)
    shutil.copytree(copy / "age" / "exp", copy / "age" / "exp2")
    for name, seconds in (("exp", 2_000_000_000), ("exp2", 1_000_000_000)):
        os.utime(copy / "age" / name / "best.pt", (seconds, seconds))
    assert main(["--model", str(copy), "--images", str(data / "eval"), "--out", "o.csv"]) == 0
    used = json.loads((place / "o.csv.json").read_text())["models"]
    assert [model["path"] for model in used] == [
        str(copy / task / "exp" / "best.pt") for task in ("mask_gender", "age")
    ]


def test_a_picture_that_cannot_be_read(
    data: Path, models: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = place / "eval"
    shutil.copytree(data / "eval", folder)
    bad, gone = (row["ImageID"] for row in table_of(folder / "info.csv")[3:5])
    os.truncate(folder / "images" / bad, 1000)
    (folder / "images" / gone).unlink()
    argv = ["--model", str(models), "--images", str(folder)]
    assert main([*argv, "--out", "o.csv"]) == 0
    out, err = capsys.readouterr()
    assert "labelled 40 pictures" in out
    assert err.startswith("warning: 2 pictures could not be read")
    assert bad in err
    assert gone in err
    rows = table_of(place / "o.csv")
    assert [row["ImageID"] for row in rows if row["error"]] == [bad, gone]
    assert [row["ImageID"] for row in rows if not row["ans"]] == [bad, gone]
    assert len(rows) == 42
    assert bad in fails([*argv, "--out", "strict.csv", "--strict"], capsys)
    assert {path.name for path in place.iterdir()} == {"eval", "o.csv", "o.csv.json"}


def test_no_picture_at_all(models: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "a").mkdir()
    argv = ["--model", str(models), "--out", "o.csv", "--images"]
    assert "a: no pictures in it" in fails([*argv, "a"], capsys)
    assert "no such folder or list of pictures: b" in fails([*argv, "b"], capsys)
    (place / "a" / "x.jpg").write_bytes(b"no")
    assert "none of 1 pictures can be read" in fails([*argv, "a"], capsys)
    assert not (place / "o.csv").exists()


def test_models_that_do_not_do(
    data: Path, models: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--images", str(data / "eval"), "--out", "o.csv", "--model"]
    (place / "none").mkdir()
    line = fails([*argv, "none"], capsys)
    assert "needs runs of mask_gender and age to label pictures, has none" in line
    assert "maskcls-train --task all --model-dir none" in line
    shutil.copytree(models / "age", place / "half" / "age")
    line = fails([*argv, "half"], capsys)
    assert "has age" in line
    assert "maskcls-train --task all --model-dir half" in line
    run = str(models / "age" / "exp")
    assert "none answers mask" in fails([*argv, run], capsys)
    both = str(models / "mask_gender" / "exp")
    assert "more than one answers" in fails([*argv, run, run, both], capsys)
    assert "no such checkpoint or folder: gone" in fails([*argv, "gone"], capsys)
    (place / "model.onnx").touch()
    assert "model.onnx: damaged, truncated" in fails([*argv, "model.onnx"], capsys)
    assert "not both" in fails([*argv, "model.onnx", run], capsys, code=2)
    (place / "junk.pt").write_bytes(b"junk")
    assert "junk.pt" in fails([*argv, "junk.pt"], capsys)
    assert not (place / "o.csv").exists()


def test_options_that_are_missing_or_wrong(
    data: Path, models: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--model", str(models), "--images", str(data / "eval"), "--out", "o.csv"]
    assert "$SM_CHANNEL_MODEL" in fails([], capsys, code=2)
    assert "$SM_CHANNEL_EVAL" in fails(argv[:2], capsys, code=2)
    assert "$SM_OUTPUT_DATA_DIR" in fails(argv[:4], capsys, code=2)
    assert "name it .csv or .parquet" in fails([*argv[:5], "o.txt"], capsys, code=2)
    assert "tensorrt" in fails([*argv, "--provider", "tensorrt"], capsys, code=2)
    assert "one batch at a time" in fails([*argv, "--lanes", "2"], capsys, code=2)
    assert "is a list already" in fails(
        [*argv[:2], "--images", str(data / "eval/info.csv"), "--info", "x.csv", *argv[4:]], capsys
    )
    for wrong in (["--batch-size", "0"], ["--provider", "gpu"]):
        with pytest.raises(SystemExit) as caught:
            main([*argv, *wrong])
        assert caught.value.code == 2
    assert not (place / "o.csv").exists()


def test_the_help_says_when_lanes_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "usable_cores", lambda: 2)
    pictures = round(tuning.least_job(CPU_BATCH), -3)
    help = " ".join(build_parser().format_help().split())
    assert f"a large job (on two cores, of {pictures:,.0f} pictures)" in help


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_is_never_replaced_in_silence(
    data: Path, models: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--model", str(models), "--images", str(data / "eval"), "--out", "o.csv"]
    assert "finds no CUDA device" in fails([*argv, "--provider", "cuda"], capsys)
    assert not (place / "o.csv").exists()


def test_a_score_on_training_people_is_refused(
    data: Path, models: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = data / "train" / "images"
    assert main(["--model", str(models), "--images", str(folder), "--out", "o.csv"]) == 0
    err = capsys.readouterr().err
    assert err == "note: 63 of the pictures or their people were trained on\n"
    with (place / "gt.csv").open("w") as file:
        file.write("ImageID,ans\n")
        for profile in read_profiles(data / "train"):
            for picture in profile.pictures:
                label = MULTI.encode(
                    mask=int(picture.mask), gender=int(profile.gender), age=int(profile.age_group)
                )
                file.write(f"{picture.path.relative_to(folder).as_posix()},{label}\n")
    argv = ["--gt", "gt.csv", "--pred", "o.csv", "--no-confusion"]
    assert evaluate.main(argv) == 1
    assert "63 of 84 pictures are of people" in capsys.readouterr().err
    assert evaluate.main([*argv, "--allow-seen"]) == 0
    assert "flatters the model" in capsys.readouterr().err


def test_people_and_pictures_that_were_trained_on_are_known_anywhere(
    data: Path, models: Path, place: Path
) -> None:
    rows = table_of(models / "age" / "exp" / "split.csv")
    person = next(row["person"] for row in rows if row["side"] == "train")
    source = sorted((data / "train" / "images" / person).iterdir())[0]
    # The same picture under another name, and another picture of the same person.
    (place / "photos" / person).mkdir(parents=True)
    shutil.copy(source, place / "photos" / f"copy{source.suffix}")
    Image.new("RGB", (64, 64), "red").save(place / "photos" / person / "new.png")
    Image.new("RGB", (64, 64), "blue").save(place / "photos" / "stranger.png")
    assert main(["--model", str(models), "--images", "photos", "--out", "o.csv"]) == 0
    assert json.loads((place / "o.csv.json").read_text())["seen_in_training"] == 2


def test_a_person_is_known_in_either_spelling(data: Path, place: Path) -> None:
    """NFC and NFD names are one person, in training and in labelling."""
    from maskcls.provenance import fingerprint
    from maskcls.runtime import Source, inference

    class Plain:
        specs = ()
        models = ()
        provider = "cpu"
        lanes = 1
        trained_on = frozenset({fingerprint(unicodedata.normalize("NFC", "000001_male_한국_30"))})

        def predict(self, pixels: object) -> np.ndarray:
            return np.eye(1, 18, dtype=np.float32)

    folder = place / unicodedata.normalize("NFD", "000001_male_한국_30")
    folder.mkdir()
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    result = inference(Plain(), [Source("a", folder / "a.png")], place / "o.csv")
    assert result.seen_in_training == 1


@pytest.mark.filterwarnings("default:.*taking .* instead")
def test_a_damaged_model_gives_way_to_the_previous_and_is_told(
    data: Path, models: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = place / "models"
    shutil.copytree(models, copy)
    run = copy / "age" / "exp"
    for end in ("", ".sha256"):  # a run with one best epoch has no previous one yet
        shutil.copy(run / f"best.pt{end}", run / f"best.prev.pt{end}")
    os.truncate(run / "best.pt", 1000)
    argv = ["--model", str(copy), "--images", str(data / "eval"), "--out", "o.csv"]
    assert main(argv) == 0
    told = capsys.readouterr().err
    assert re.search(r"^warning: .*best\.pt: damaged .*; taking .*prev\.pt instead$", told, re.M)
    used = json.loads((place / "o.csv.json").read_text())["models"]
    assert [Path(model["path"]).name for model in used] == ["best.pt", "best.prev.pt"]
    assert len(table_of(place / "o.csv")) == 42


def test_a_file_where_the_output_folder_should_be(
    data: Path, models: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "file").write_text("mine")
    argv = ["--model", str(models), "--images", str(data / "eval"), "--out", "file/o.csv"]
    assert main(argv) == 1
    assert capsys.readouterr().err == "error: file: File exists\n"
    assert (place / "file").read_text() == "mine"
