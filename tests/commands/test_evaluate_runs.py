"""`maskcls-evaluate RUN RUN`: both branches on the people who validated both."""

from __future__ import annotations

import base64
import csv
import html
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from sklearn.metrics import accuracy_score, f1_score

from maskcls.checkpoints import read_manifest
from maskcls.commands import evaluate, infer, train
from maskcls.data.profiles import read_profiles
from maskcls.data.runs import labelled_pictures
from maskcls.data.sample import make_sample
from maskcls.data.splits import people_of, read_split
from maskcls.images import content_digest, read_image
from maskcls.labels import ATTRIBUTES, MULTI
from maskcls.training import handlers
from tests.seen import add_seen

SMALL = (
    "--weights none --model base --height 48 --width 36 --epochs 3 --lr 0.005 --device cpu "
    "--batch-size 16 --val-ratio 0.3 --mixup 0 --cutmix 0"
).split()
MASKS = ("incorrect_mask", "normal")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs") / "sample"
    return make_sample(root, people=18, eval_people=6, progress=False) / "train"


@pytest.fixture(scope="module")
def runs(data: Path) -> list[Path]:
    """A run of each branch, one of age that others validated, and one with another rate."""
    argv = [*SMALL, "--data-dir", str(data), "--model-dir", str(data.parent / "runs")]
    argv += ["--cache", str(data.parent / "cache")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(handlers, "confusion_figure", lambda *a: Figure((1, 1), dpi=8))
        patch.setattr(handlers, "grid_image", lambda *a: Figure((1, 1), dpi=8))
        for task in ("mask_gender", "age"):
            assert train.main([*argv, "--task", task]) == 0
        others = ["--task", "age", "--name", "others", "--seed", "7"]
        assert train.main([*argv, *others]) == 0
        assert train.main([*argv, "--task", "age", "--name", "slower", "--lr", "0.0005"]) == 0
    folder = data.parent / "runs"
    names = ("mask_gender/exp", "age/exp", "age/others", "age/slower")
    return [folder / name for name in names]


def fails(argv: list[str], capsys: pytest.CaptureFixture[str], code: int = 1) -> str:
    assert evaluate.main(argv) == code
    [line] = capsys.readouterr().err.splitlines()
    return line


def test_the_score_is_that_of_labelling_these_people(
    data: Path, runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    score = tmp_path / "score.json"
    picture = tmp_path / "confusion.png"
    report = tmp_path / "new" / "report.html"
    options = ["--json", str(score), "--confusion", str(picture), "--report", str(report)]
    assert evaluate.main([str(runs[0]), str(runs[1]), *options]) == 0
    out = capsys.readouterr().out
    values = json.loads(score.read_text("utf-8"))

    validating = people_of(read_split(runs[0] / "split.csv"), "val")
    people = [person for person in read_profiles(data) if person.person in validating]
    assert values["people"] == len(people) == 5
    truth = {str(path): label for path, label in labelled_pictures(people)}
    (tmp_path / "list.txt").write_text("".join(f"{name}\n" for name in truth), "utf-8")
    argv = ["--model", str(runs[0]), str(runs[1]), "--images", str(tmp_path / "list.txt")]
    assert infer.main([*argv, "--out", str(tmp_path / "out.csv"), "--provider", "cpu"]) == 0
    with (tmp_path / "out.csv").open(newline="", encoding="utf-8") as file:
        answers = {row["ImageID"]: int(row["ans"]) for row in csv.DictReader(file)}
    labels = list(truth.values()), [answers[name] for name in truth]
    assert values["macro_f1"] == pytest.approx(f1_score(*labels, average="macro"))
    assert values["accuracy"] == pytest.approx(accuracy_score(*labels))
    assert values["count"] == 35

    for name in ("macro_f1", "accuracy"):
        low, high = values["intervals"][name]
        assert low <= values[name] <= high
        assert f"{low:.4f} to {high:.4f} in 95% of draws of 5 people" in out
    assert set(values["if_perfect"]) == set(ATTRIBUTES)
    for attribute, value in values["if_perfect"].items():
        assert f"macro F1 {value:.4f} if {attribute} were always right" in out
    assert picture.read_bytes().startswith(b"\x89PNG")

    assert out.splitlines()[-1] == f"wrote {report}"
    text = report.read_text("utf-8")
    low, high = values["intervals"]["macro_f1"]
    assert f"macro F1<b>{values['macro_f1']:.4f}</b>{low:.3f} to {high:.3f}" in text
    assert "5 people, 35 pictures" in text
    assert "Left out" not in text
    wrong = [name for name, label in truth.items() if answers[name] != label]
    assert f"{min(24, len(wrong))} of {len(wrong)} wrong answers" in text
    shown = re.findall(r"<br>([^<]+/[^<]+\.\w+)", text)
    assert len(shown) == min(24, len(wrong))
    assert {Path(name).name for name in shown} <= {Path(name).name for name in wrong}
    assert text.count("<img ") >= 2 * len(shown)  # a network each, or both, were wrong
    assert text.count("<svg ") == 4 + 2 * 2


def test_each_caption_stands_below_its_picture(
    data: Path, runs: list[Path], tmp_path: Path
) -> None:
    page = tmp_path / "report.html"
    assert evaluate.main([str(runs[0]), str(runs[1]), "--report", str(page)]) == 0
    spec = read_manifest(runs[0] / "best.pt").preprocess
    paths = {f"{path.parent.name}/{path.name}": path for path in data.rglob("images/*/*.*")}
    faces = {name: _pixels(spec.resize(read_image(path))) for name, path in paths.items()}
    labels = {
        f"{path.parent.name}/{path.name}": label
        for path, label in labelled_pictures(read_profiles(data))
    }
    figures = re.findall(
        r'base64,([^"]+)"[^>]*><img[^>]*>(?:<img[^>]*>)?</div><figcaption>([^(]+) \(.*?\) → .*?'
        r"<br>([^<]+)",
        page.read_text("utf-8"),
    )
    assert len(figures) > 1
    for data_of_picture, truth, name in figures:
        assert html.unescape(truth) == MULTI.class_names[labels[html.unescape(name)]]
        with Image.open(io.BytesIO(base64.b64decode(data_of_picture))) as image:
            shown = _pixels(image)
        nearest = min(faces, key=lambda each: float(np.abs(shown - faces[each]).mean()))
        assert nearest == html.unescape(name)


def _pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image, dtype=np.float64)


def test_runs_are_held_against_others_on_the_same_people(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sides = [[str(runs[0]), str(runs[1])], [str(runs[0]), str(runs[3])]]
    found = []
    for number, (own, other) in enumerate((sides, sides[::-1])):
        file = tmp_path / f"{number}.json"
        capsys.readouterr()
        assert evaluate.main([*own, "--against", *other, "--json", str(file)]) == 0
        found.append(json.loads(file.read_text("utf-8")))
        against = found[-1]["against"]
        low, high = against["interval"]
        said = f"macro F1 {against['macro_f1']:.4f} of {', '.join(other)}: a gain of "
        said += f"{against['gain']:+.4f}, {low:+.4f} to {high:+.4f} in 95% of draws of these people"
        assert said in capsys.readouterr().out

    def over_true_classes(values: dict[str, Any]) -> float:
        return float(np.mean([one["f1"] for one in values["per_class"] if one["support"]]))

    one, other = found
    gain = over_true_classes(one) - over_true_classes(other)
    assert gain != 0
    assert one["against"]["macro_f1"] == pytest.approx(other["macro_f1"])
    assert one["against"]["gain"] == pytest.approx(gain)
    assert other["against"]["gain"] == pytest.approx(-gain)
    low, high = one["against"]["interval"]
    assert low <= gain <= high and low < high
    assert other["against"]["interval"] == pytest.approx([-high, -low])
    # The same networks: nothing gained, whoever is drawn.
    assert evaluate.main([*sides[0], "--against", *sides[0]]) == 0
    assert "a gain of +0.0000, +0.0000 to +0.0000 in" in capsys.readouterr().out


def test_people_that_all_runs_validated_are_scored(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "score.json"
    validating = [people_of(read_split(run / "split.csv"), "val") for run in runs]
    common = validating[0] & validating[2]
    argv = [str(runs[0]), str(runs[1]), "--against", str(runs[0]), str(runs[2])]
    assert 0 < len(common) < 5
    assert evaluate.main([*argv, "--json", str(file)]) == 0
    assert json.loads(file.read_text("utf-8"))["people"] == len(common)
    assert fails(["--against", str(runs[0])], capsys, 2).endswith("name some before it")


def test_a_report_without_pictures(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "report.html"
    argv = [str(runs[0]), str(runs[1]), "--report", str(report), "--no-pictures"]
    assert evaluate.main(argv) == 0
    text = report.read_text("utf-8")
    assert "<img " not in text
    assert "holds pictures of people" not in text
    assert "Privacy: this file holds the names of people" in text
    assert "wrong answers" in text


def test_a_folder_of_runs_and_an_unreadable_picture(
    data: Path, runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    validating = people_of(read_split(runs[0] / "split.csv"), "val")
    victim = next((data / "images" / sorted(validating)[0]).iterdir())
    content = victim.read_bytes()
    try:
        victim.write_bytes(content[:100])
        assert evaluate.main([str(runs[0]), str(runs[1]), "--json", str(tmp_path / "a.json")]) == 0
    finally:
        victim.write_bytes(content)
    assert "warning: 1 unreadable pictures are skipped" in capsys.readouterr().out
    assert json.loads((tmp_path / "a.json").read_text("utf-8"))["count"] == 34


def test_people_whom_a_start_has_seen_are_told(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    started = tmp_path / "age" / "started"
    shutil.copytree(runs[1], started)
    person = min(people_of(read_split(started / "split.csv"), "val"))
    add_seen(started / "best.pt", person)
    assert evaluate.main([str(runs[0]), str(runs[1])]) == 0
    assert "warning" not in capsys.readouterr().out
    page, file = tmp_path / "page.html", tmp_path / "score.json"
    argv = ["--report", str(page), "--json", str(file), "--no-pictures"]
    assert evaluate.main([str(runs[0]), str(started), *argv]) == 0
    [caveat] = json.loads(file.read_text("utf-8"))["caveats"]
    assert caveat.startswith("1 of these people are in the training of a network that one of")
    assert f"first: {person};" in caveat
    assert f"warning: {caveat}\n" in capsys.readouterr().out
    assert html.escape(caveat) in page.read_text("utf-8")


def test_pictures_that_training_had_in_another_folder_are_told(
    data: Path, runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    started = tmp_path / "age" / "started"
    shutil.copytree(runs[1], started)
    person = min(people_of(read_split(started / "split.csv"), "val"))
    picture = min((data / "images" / person).iterdir())
    add_seen(started / "best.pt", content_digest(picture.read_bytes()))
    assert evaluate.main([str(runs[0]), str(started)]) == 0
    caveat = "1 of these pictures are in the training of a network too, in another person's folder"
    assert f"warning: {caveat};" in capsys.readouterr().out


def test_a_calibration_by_the_same_people_is_told(
    data: Path, runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [*SMALL, "--data-dir", str(data), "--cache", str(data.parent / "cache"), "--task", "age"]
    assert train.main([*argv, "--model-dir", str(tmp_path), "--calibration", "macro_f1"]) == 0
    capsys.readouterr()
    assert evaluate.main([str(runs[0]), str(tmp_path / "age/exp")]) == 0
    caveat = "the calibration of age was fitted on people who are scored here; the scores flatter"
    assert f"warning: {caveat}\n" in capsys.readouterr().out
    assert caveat in (tmp_path / "age/exp/report.html").read_text("utf-8")
    assert caveat not in (runs[1] / "report.html").read_text("utf-8")


def test_masks_that_only_one_run_has_corrected(
    data: Path, runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    person = sorted(people_of(read_split(runs[0] / "split.csv"), "val"))[0]
    picture = next((data / "images" / person).glob("normal.*"))
    fixes = tmp_path / "fixes.csv"
    target = f"{person}/{picture.name}"
    fixes.write_text(f"target,field,old,new,why\n{target},mask,normal,incorrect,\n", "utf-8")
    argv = [*SMALL, "--data-dir", str(data), "--cache", str(data.parent / "cache"), "--task", "age"]
    assert train.main([*argv, "--model-dir", str(tmp_path), "--fixes", str(fixes)]) == 0
    capsys.readouterr()
    for pair in ([runs[0], tmp_path / "age/exp"], [tmp_path / "age/exp", runs[0]]):
        line = fails([*map(str, pair)], capsys)
        assert line == (
            f"error: {person}: these runs were trained with different labels of this person"
        )


def test_pictures_that_all_became_unreadable(
    data: Path, runs: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    validating = people_of(read_split(runs[0] / "split.csv"), "val")
    pictures = [path for name in validating for path in (data / "images" / name).iterdir()]
    contents = {path: path.read_bytes() for path in pictures}
    try:
        for path in pictures:
            path.write_bytes(b"version https://git-lfs.github.com/spec/v1")
        line = fails([str(runs[0]), str(runs[1])], capsys)
    finally:
        for path, content in contents.items():
            path.write_bytes(content)
    assert line == "error: none of the 35 pictures of their people can be read"


def test_people_who_are_not_as_they_were(
    data: Path, runs: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    person = sorted(people_of(read_split(runs[0] / "split.csv"), "val"))[0]
    picture = next((data / "images" / person).iterdir())
    away = picture.rename(data / picture.name)
    try:
        line = fails([str(runs[0]), str(runs[1])], capsys)
    finally:
        away.rename(picture)
    assert f"1 people of {runs[0] / 'best.pt'} are gone, or have other labels or pictures" in line
    assert f"first: {person};" in line
    table = data / "train.csv"
    before = table.read_bytes()
    try:
        text = before.decode()
        [row] = [row for row in text.splitlines() if row.endswith(person)]
        age = row.split(",")[3]
        table.write_text(text.replace(row, row.replace(f",{age},", f",{int(age) + 1},")), "utf-8")
        assert "other labels" in fails([str(runs[0]), str(runs[1])], capsys)
    finally:
        table.write_bytes(before)
    # Two pictures that have exchanged their names, and with them their masks.
    one, other = (next((data / "images" / person).glob(f"{name}.*")) for name in MASKS)
    contents = one.read_bytes(), other.read_bytes()
    try:
        one.write_bytes(contents[1])
        other.write_bytes(contents[0])
        assert f"first: {person};" in fails([str(runs[0]), str(runs[1])], capsys)
        other.write_bytes(contents[0][:200])  # damage is told otherwise, and left out
        assert evaluate.main([str(runs[0]), str(runs[1])]) == 0
        assert "warning: 1 unreadable pictures are skipped" in capsys.readouterr().out
    finally:
        one.write_bytes(contents[0])
        other.write_bytes(contents[1])


def test_what_cannot_be_scored(
    data: Path, runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mask_gender, age, others, _ = map(str, runs)
    line = fails([mask_gender], capsys)
    assert "none answers age" in line
    line = fails([mask_gender, age, "--gt", "gt.csv"], capsys, code=2)
    assert line == "error: give either runs, or --gt and --pred, or --oof"
    common = people_of(read_split(runs[0] / "split.csv"), "val")
    common &= people_of(read_split(runs[2] / "split.csv"), "val")
    if common:
        assert evaluate.main([mask_gender, others, "--json", str(tmp_path / "b.json")]) == 0
        assert json.loads((tmp_path / "b.json").read_text("utf-8"))["people"] == len(common)
        capsys.readouterr()
    else:
        assert "nobody validated all of these runs" in fails([mask_gender, others], capsys)
    copy = tmp_path / "copy"
    shutil.copytree(runs[1], copy)
    (copy / "split.csv").write_text("person,side\n", "utf-8")
    assert f"{copy / 'split.csv'}: is not the split of" in fails([mask_gender, str(copy)], capsys)
    (copy / "split.csv").unlink()
    assert "no split of the run beside its checkpoint" in fails([mask_gender, str(copy)], capsys)
