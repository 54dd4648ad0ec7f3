"""Groups of folds: trained, killed, gone on with, and everybody scored by who has not seen them."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from sklearn.metrics import accuracy_score, f1_score

import maskcls
from maskcls.checkpoints import read_checkpoint, save_checkpoint
from maskcls.classifier import TorchClassifier
from maskcls.commands import combine, evaluate, train
from maskcls.commands import data as data_command
from maskcls.config import read_yaml, resolve
from maskcls.data.fixes import Fix, write_fixes
from maskcls.data.profiles import read_profiles
from maskcls.data.sample import make_sample
from maskcls.data.splits import people_of, read_split
from maskcls.data.targets import AGE_STEPS
from maskcls.devices import resolve_precision
from maskcls.evaluation import out_of_fold
from maskcls.evaluation.folds_report import report_folds
from maskcls.evaluation.report import Report, write_report
from maskcls.files import file_digest
from maskcls.folds import read_group
from maskcls.images import content_digest, read_image
from maskcls.labels import AGE_BOUNDS, ATTRIBUTES, TASKS, softmax
from maskcls.manifest import Manifest
from maskcls.models import answer_in_steps
from maskcls.provenance import fingerprint, read_provenance
from maskcls.training import handlers
from maskcls.training.folds import start_group
from tests.seen import add_seen

ROOT = Path(maskcls.__file__).parents[1]
FOLDS = 3
SMALL = "--weights none --model base --height 32 --width 32 --epochs 1 --device cpu --workers 1"
SMALL += " --batch-size 16 --precision fp32 --lr 0.005 --tta flip --name folds"
BRANCHES = ("mask_gender", "age")


@pytest.fixture(scope="module", autouse=True)
def plain_figures() -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(handlers, "confusion_figure", lambda *a: Figure((1, 1), dpi=8))
        patch.setattr(handlers, "grid_image", lambda *a: Figure((1, 1), dpi=8))
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("folds") / "sample"
    folder = make_sample(root, people=13, eval_people=6, progress=False) / "train"
    # A name that a careless table would break at, and one person beyond equal folds.
    person = sorted((folder / "images").iterdir())[0]
    table = folder / "train.csv"
    odd = f'김,"{person.name}'
    rows = list(csv.reader(io.StringIO(table.read_text("utf-8"), newline="")))
    rows = [[odd if cell == person.name else cell for cell in row] for row in rows]
    person.rename(person.with_name(odd))
    with table.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder


def options(data: Path, models: Path) -> list[str]:
    places = ["--data-dir", str(data), "--model-dir", str(models)]
    return [*SMALL.split(), *places, "--cache", str(data.parent / "cache"), "--folds", str(FOLDS)]


@pytest.fixture(scope="module")
def groups(data: Path) -> list[Path]:
    """Both branches, every fold."""
    models = data.parent / "models"
    assert train.main([*options(data, models), "--task", "all", "--calibration", "macro_f1"]) == 0
    return [models / task / "folds" for task in BRANCHES]


def table_of(group: Path) -> list[dict[str, str]]:
    text = (group / "oof.csv").read_bytes().decode(errors="surrogateescape")
    return list(csv.DictReader(io.StringIO(text, newline="")))


def fails(main: object, argv: list[str], capsys: pytest.CaptureFixture[str], code: int = 1) -> str:
    capsys.readouterr()
    assert main(argv) == code  # type: ignore[operator]
    [line] = [row for row in capsys.readouterr().err.splitlines() if row.startswith("error: ")]
    return line


# --- training ------------------------------------------------------------------------------------


def test_every_fold_is_a_run_and_everybody_validates_once(data: Path, groups: list[Path]) -> None:
    everybody = {profile.person for profile in read_profiles(data)}
    for group in groups:
        assert sorted(path.name for path in group.iterdir()) == sorted(
            ["folds.yaml", "oof.csv", "oof.csv.json", *(f"fold{k}" for k in range(FOLDS))]
        )
        validating = []
        for fold in range(FOLDS):
            run = group / f"fold{fold}"
            config = read_yaml(run / "config.yaml")
            assert (config["fold"], config["folds"], config["name"]) == (fold, FOLDS, run.name)
            assert (run / "report.html").is_file()
            validating += people_of(read_split(run / "split.csv"), "val")
        assert sorted(validating) == sorted(everybody)


def test_age_starts_from_the_fold_with_the_same_people(groups: list[Path]) -> None:
    for fold in range(FOLDS):
        first, second = (group / f"fold{fold}" for group in groups)
        assert read_yaml(second / "config.yaml")["weights"] == str(first / "best.pt")
        assert people_of(read_split(first / "split.csv"), "val") == people_of(
            read_split(second / "split.csv"), "val"
        )


def test_a_start_that_has_seen_who_validates_is_refused(
    data: Path, groups: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = groups[0] / "fold1" / "best.pt"
    argv = [*options(data, tmp_path / "models"), "--task", "age", "--weights", str(start)]
    line = fails(train.main, argv, capsys)  # fold 0 validates whom fold 1's network has seen
    assert f"{start}: was trained on 5 of the 5 people who validate here, first: " in line
    assert not (tmp_path / "models" / "age").exists()  # nothing is left behind
    assert train.main([*argv, "--fold", "1"]) == 0
    # One on both sides of the data is no fault of the start.
    table = read_split(groups[0] / "fold1" / "split.csv")
    person, learnt = (min(people_of(table, side)) for side in ("val", "train"))
    copied = tmp_path / "copied"
    shutil.copytree(data, copied)
    shutil.copy(*(next((copied / "images" / p).glob("normal.*")) for p in (learnt, person)))
    both = [*options(copied, tmp_path / "models"), "--task", "age", "--weights", str(start)]
    assert train.main([*both, "--fold", "1"]) == 0
    # The same pictures in a folder of another name.
    picture = min((data / "images" / person).iterdir())
    other = tmp_path / "other.pt"
    shutil.copy(start, other)
    add_seen(other, content_digest(picture.read_bytes()))
    argv[-1] = str(other)
    line = fails(train.main, [*argv, "--fold", "1"], capsys)
    assert f"{other}: was trained on 1 of the 4 people who validate here, first: {person}" in line


def test_a_finished_group_says_so(groups: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.read_bytes() for path in groups[1].rglob("*.pt")}
    assert train.main(["--resume", str(groups[1])]) == 0
    out = capsys.readouterr().out
    for fold in range(FOLDS):
        assert f"{groups[1] / f'fold{fold}'} is finished: 1 epochs; nothing to do" in out
    assert f"{groups[1]} is finished; its scores: maskcls-evaluate --oof {groups[1]}" in out
    assert before == {path: path.read_bytes() for path in groups[1].rglob("*.pt")}


def test_what_auto_comes_to_is_settled_when_a_group_begins(tmp_path: Path) -> None:
    flags = {"folds": 2, "precision": "auto", "device": "cpu", "model_dir": str(tmp_path)}
    group = start_group(resolve("age", "scratch", flags=flags))
    found = resolve_precision("auto", torch.device("cpu")).name
    assert read_group(group).precision == found != "auto"


def test_another_config_is_refused(groups: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    line = fails(train.main, ["--resume", str(groups[1]), "--epochs", "9"], capsys)
    assert "cannot be resumed with another config: epochs 9 (the run has 1)" in line
    line = fails(train.main, ["--resume", str(groups[1]), "--task", "mask"], capsys)
    assert "is a run of task age, not mask" in line


def test_a_killed_group_goes_on(
    data: Path, groups: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """SIGTERM in the second fold; the result is that of the group that nobody disturbed."""
    models = tmp_path / "models"
    argv = [*options(data, models), "--task", "mask_gender", "--calibration", "macro_f1"]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "cli" / "train.py"), *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    group = models / "mask_gender" / "folds"
    deadline = time.monotonic() + 120
    while not (group / "fold1" / "config.yaml").is_file():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    out = process.communicate()[0]
    assert process.returncode == 143, out
    assert f"go on with: maskcls-train --resume {group}" in out
    assert not (group / "fold2").exists()
    finished = (group / "fold0" / "best.pt").read_bytes()

    assert train.main(["--resume", str(group)]) == 0
    assert f"{group / 'fold0'} is finished" in capsys.readouterr().out
    assert (group / "fold0" / "best.pt").read_bytes() == finished
    for fold in range(FOLDS):
        name = f"fold{fold}/best.pt"
        one, other = (read_checkpoint(path / name)["model"] for path in (group, groups[0]))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)
    own, reference = (table_of(path) for path in (group, groups[0]))
    assert own == reference


def test_a_signal_at_the_end_of_a_fold_begins_no_other(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def draw(*_: object) -> Figure:  # after the last step of the only epoch
        os.kill(os.getpid(), signal.SIGTERM)
        return Figure((1, 1), dpi=8)

    monkeypatch.setattr(handlers, "confusion_figure", draw)
    with pytest.raises(SystemExit) as ended:
        train.main([*options(data, tmp_path), "--task", "age"])
    assert ended.value.code == 143
    group = tmp_path / "age" / "folds"
    assert (group / "fold0" / "report.html").is_file() and not (group / "fold1").exists()
    assert f"go on with: maskcls-train --resume {group}" in capsys.readouterr().out


def test_a_group_whose_data_have_moved_is_scored(
    data: Path, groups: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    group, moved = tmp_path / "folds", tmp_path / "moved"
    shutil.copytree(groups[0], group)
    shutil.copytree(data, moved)
    (group / "oof.csv").unlink()
    assert train.main(["--resume", str(group), "--data-dir", str(moved)]) == 0
    assert {row["data_dir"] for row in table_of(group)} == {str(moved)}
    for one, other in zip(table_of(group), table_of(groups[0]), strict=True):
        assert one == other | {"data_dir": str(moved)}
    assert read_group(group).data_dir == (str(moved),)  # where the next folds look


def test_folds_of_other_labels_are_refused_before_they_train(
    data: Path, groups: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One label of a picture: the folds would still validate everybody once."""
    group = tmp_path / "folds"
    shutil.copytree(groups[0], group)
    shutil.rmtree(group / "fold2")
    before = (group / "folds.yaml").read_bytes()
    person = sorted((data / "images").iterdir())[0]
    [picture] = [path.name for path in person.iterdir() if path.stem == "normal"]
    fixes = tmp_path / "fixes.csv"
    write_fixes(fixes, [Fix(f"{person.name}/{picture}", "mask", "normal", "incorrect", "")])
    line = fails(train.main, ["--resume", str(group), "--fixes", str(fixes)], capsys)
    assert f"{group / 'fold0'}: was trained on other data than {data} with {fixes}: " in line
    assert "0 people are gone, 0 are new, 1 changed" in line
    assert not (group / "fold2").exists()
    assert (group / "folds.yaml").read_bytes() == before


def test_a_fold_waits_for_the_one_that_it_starts_from(
    groups: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    age = tmp_path / "age"
    age.mkdir()
    text = (groups[1] / "folds.yaml").read_text("utf-8")
    other = tmp_path / "other"
    shutil.copytree(groups[0], other)
    shutil.rmtree(other / "fold0")
    (age / "folds.yaml").write_text(text.replace(str(groups[0]), str(other)), "utf-8")
    line = fails(train.main, ["--resume", str(age)], capsys)
    assert f"{other / 'fold0'}: is not finished, and fold 0 starts from it" in line
    assert (age / "folds.yaml").is_file()  # to be gone on with


def test_folds_that_cannot_be_trained_leave_nothing(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = options(data, tmp_path / "models")
    assert "there are only 13 people" in fails(train.main, [*argv, "--folds", "14"], capsys, 2)
    assert "folds 1: must be 2 or more" in fails(train.main, [*argv, "--folds", "1"], capsys, 2)
    assert not list(tmp_path.glob("models/*"))


# --- out of fold ----------------------------------------------------------------------------------


def test_each_person_is_answered_by_the_network_that_has_not_seen_them(
    data: Path, groups: list[Path]
) -> None:
    profiles = {profile.person: profile for profile in read_profiles(data)}
    for group in groups:
        task = TASKS[group.parent.name]
        rows = table_of(group)
        columns = ["data_dir", "path", "person", "fold", "label", "answer"]
        columns += [f"p_{i}" for i in range(task.num_classes)]
        if task.name == "age":
            columns += [f"age_{first}" for first in (0, *AGE_STEPS)]
        assert list(rows[0]) == columns
        assert len(rows) == len({row["path"] for row in rows}) == 13 * 7
        assert {row["data_dir"] for row in rows} == {str(data)}
        networks = [
            TorchClassifier(
                [group / f"fold{k}" / "best.pt"],
                torch.device("cpu"),
                complete=False,
                calibrated=False,  # they were calibrated on the people whom they answer
            )
            for k in range(FOLDS)
        ]
        for row in rows[::5]:
            path = data / "images" / row["path"]
            profile = profiles[row["person"]]
            [picture] = [p for p in profile.pictures if p.path == path]  # the name came through
            attributes = {"mask": picture.mask, "gender": profile.gender, "age": profile.age_group}
            assert int(row["label"]) == task.encode(**attributes)
            network = networks[int(row["fold"])]
            assert network.trained_on and fingerprint(row["person"]) not in network.trained_on
            others = {n.trained_on and fingerprint(row["person"]) in n.trained_on for n in networks}
            assert others == {True, False}
            spec = network.specs[0]
            pixels = np.array(spec.resize(read_image(path)))  # a copy that can be written to
            expected = softmax(network.logits(0, pixels[None]))[0]
            shares = [float(row[f"p_{i}"]) for i in range(task.num_classes)]
            np.testing.assert_allclose(shares, expected, atol=1e-5)
            assert int(row["answer"]) == int(np.argmax(shares))


def test_what_oof_csv_says_of_itself(groups: list[Path]) -> None:
    group = groups[1]
    values = json.loads((group / "oof.csv.json").read_text("utf-8"))
    assert (values["task"], values["folds"], values["pictures"]) == ("age", FOLDS, 13 * 7)
    assert values["config"]["model"] == "base" and "data_dir" not in values["config"]
    assert len(set(values["split_hashes"])) == FOLDS
    provenance = read_provenance(group / "oof.csv")
    assert provenance is not None and provenance.seen_in_training == 0
    assert [model.sha256 for model in provenance.models] == [
        file_digest(group / f"fold{k}" / "best.pt") for k in range(FOLDS)
    ]


def test_scores_are_those_of_the_table(
    groups: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "score.json"
    before = (groups[0] / "oof.csv").read_bytes()
    assert evaluate.main(["--oof", str(groups[0]), "--json", str(file)]) == 0
    out = capsys.readouterr().out
    assert (groups[0] / "oof.csv").read_bytes() == before  # as training wrote it
    values = json.loads(file.read_text("utf-8"))
    rows = table_of(groups[0])
    labels, answers = ([int(row[name]) for row in rows] for name in ("label", "answer"))
    assert values["macro_f1"] == pytest.approx(f1_score(labels, answers, average="macro"))
    assert values["accuracy"] == pytest.approx(accuracy_score(labels, answers))
    low, high = values["intervals"]["macro_f1"]
    assert low < high and low <= values["macro_f1"] <= high
    assert f"macro F1 {low:.4f} to {high:.4f} in 95% of draws of 13 people" in out
    assert (values["people"], values["count"]) == (13, 91)
    folds = np.array([int(row["fold"]) for row in rows])
    assert values["fold_macro_f1"] == pytest.approx(
        [
            f1_score(np.array(labels)[own], np.array(answers)[own], average="macro")
            for own in (folds == fold for fold in range(FOLDS))
        ]
    )
    assert sum(each["support"] for each in values["per_class"]) == 91


def test_both_groups_score_the_18_classes(
    groups: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "score.json"
    argv = ["--oof", *map(str, groups), "--json", str(file)]
    assert evaluate.main([*argv, "--confusion", str(tmp_path / "c.png")]) == 0
    assert (tmp_path / "c.png").is_file()
    values = json.loads(file.read_text("utf-8"))
    tables = [{row["path"]: row for row in table_of(group)} for group in groups]
    names = list(tables[0])
    truth, found = (
        [int(tables[0][n][key]) * 3 + int(tables[1][n][key]) for n in names]
        for key in ("label", "answer")
    )
    assert values["macro_f1"] == pytest.approx(f1_score(truth, found, average="macro"))
    assert values["count"] == 91 and values["people"] == 13
    assert set(values["groups"]) == set(BRANCHES)


def test_a_group_whose_data_are_told_in_another_way(
    groups: list[Path], data: Path, tmp_path: Path
) -> None:
    copy, link = tmp_path / "copy", tmp_path / "link"
    shutil.copytree(groups[1], copy)
    link.symlink_to(data)
    for config in copy.glob("fold*/config.yaml"):
        config.write_text(config.read_text("utf-8").replace(str(data), str(link)), "utf-8")
    files = [tmp_path / "one.json", tmp_path / "other.json"]
    for file, age in zip(files, (groups[1], copy), strict=True):
        assert evaluate.main(["--oof", str(groups[0]), str(age), "--json", str(file)]) == 0
    assert str(link) in (copy / "oof.csv").read_text("utf-8")
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_group_that_answers_all_at_once(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main([*options(data, tmp_path), "--task", "multi"]) == 0
    group, file = tmp_path / "multi" / "folds", tmp_path / "score.json"
    capsys.readouterr()
    argv = ["--oof", str(group), "--json", str(file), "--confusion", str(tmp_path / "c.png")]
    assert evaluate.main(argv) == 0
    out = capsys.readouterr().out
    values, rows = json.loads(file.read_text("utf-8")), table_of(group)
    labels, answers = ([int(row[name]) for row in rows] for name in ("label", "answer"))
    classes = sorted({*labels, *answers})
    expected = f1_score(labels, answers, average="macro", labels=classes)
    assert values["macro_f1"] == pytest.approx(expected)
    assert values["groups"]["multi"]["macro_f1"] == values["macro_f1"]
    assert values["if_perfect"].keys() == set(ATTRIBUTES)
    assert "if age were always right" in out
    assert (tmp_path / "c.png").is_file()


def test_a_report_of_everybody(
    groups: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[Report] = []

    def keep(report: Report, path: Path) -> None:
        made.append(report)
        write_report(report, path)

    monkeypatch.setattr("maskcls.evaluation.report.write_report", keep)
    page, score = tmp_path / "new" / "oof.html", tmp_path / "score.json"
    argv = ["--oof", *map(str, groups), "--report", str(page), "--json", str(score)]
    assert evaluate.main(argv) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"wrote {page}"
    [report] = made
    values = json.loads(score.read_text("utf-8"))
    text = page.read_text("utf-8")
    assert f"<b>{values['macro_f1']:.4f}</b>" in text and "13 people, 91 pictures" in text
    assert [run.task for run in report.runs] == [
        f"{task}, fold {fold}" for task in BRANCHES for fold in range(FOLDS)
    ]
    # The maps are those of the fold's network, which has not seen who is shown.
    tables = {g.parent.name: {row["path"]: row for row in table_of(g)} for g in groups}
    assert report.mistakes
    shown = [(mistake.name, view) for mistake in report.mistakes for view in mistake.views]
    assert len({tables["age"][name]["fold"] for name, _ in shown}) > 1
    for name, view in shown:
        row = tables[view.task][name]
        [group] = [each for each in groups if each.parent.name == view.task]
        checkpoint = group / f"fold{row['fold']}" / "best.pt"
        own = TorchClassifier([checkpoint], torch.device("cpu"), complete=False)
        assert own.trained_on and fingerprint(row["person"]) not in own.trained_on
        pixels = np.array(own.specs[0].resize(read_image(Path(row["data_dir"], "images", name))))
        assert np.array_equal(view.pixels, pixels)
        assert row["label"] != row["answer"]
        heat = own.grad_cam(0, pixels[None], np.array([int(row["answer"])]))[0]
        np.testing.assert_allclose(view.heat, heat, atol=1e-5)


def test_finer_ages_stand_beside_the_answers(groups: list[Path]) -> None:
    columns = [f"age_{first}" for first in (0, *AGE_STEPS)]
    rows = table_of(groups[1])
    for fold in range(FOLDS):
        [row, *_] = [row for row in rows if row["fold"] == str(fold)]
        steps = np.array([float(row[name]) for name in columns])
        answered = [float(row[f"p_{label}"]) for label in range(3)]
        borders = [columns.index(f"age_{first}") for first in (0, *AGE_BOUNDS)]
        assert np.add.reduceat(steps, borders) == pytest.approx(answered, abs=1e-5)
        network = TorchClassifier(
            [groups[1] / f"fold{fold}" / "best.pt"],
            torch.device("cpu"),
            complete=False,
            calibrated=False,
        )
        image = read_image(Path(row["data_dir"], "images", row["path"]))
        pixels = np.array(network.specs[0].resize(image))[None]
        assert softmax(network.logits(0, pixels))[0] == pytest.approx(answered, abs=1e-5)
        assert answer_in_steps(network.network(0)) is not None
        assert softmax(network.logits(0, pixels))[0] == pytest.approx(steps, abs=1e-5)
        assert answer_in_steps(network.network(0)) is None  # they are classes now


def test_groups_in_another_order_are_scored_alike(groups: list[Path]) -> None:
    """As of folds of another seed, whose people come in another order."""
    device = torch.device("cpu")
    first, second = (out_of_fold.answer_out_of_fold(group, device) for group in groups)
    order = np.random.default_rng(0).permutation(len(second.places))
    moved = replace(
        second,
        **{
            name: [getattr(second, name)[row] for row in order]
            for name in ("places", "paths", "people", "races")
        },
        **{
            name: getattr(second, name)[order]
            for name in ("folds", "labels", "probabilities", "multi_labels")
        },
    )
    one, other = (report_folds([first, found], device) for found in (second, moved))
    assert np.array_equal(one.answers.predicted, other.answers.predicted)
    assert one.mistakes and other.mistakes
    for here, there in zip(one.mistakes, other.mistakes, strict=True):
        assert (here.name, here.predicted) == (there.name, there.predicted)
        for view, same in zip(here.views, there.views, strict=True):
            assert np.array_equal(view.pixels, same.pixels)
            np.testing.assert_allclose(view.heat, same.heat, atol=1e-5)


def test_a_report_of_one_group_without_pictures(groups: list[Path], tmp_path: Path) -> None:
    page = tmp_path / "oof.html"
    argv = ["--oof", str(groups[1]), "--report", str(page), "--no-pictures"]
    assert evaluate.main(argv) == 0
    text = page.read_text("utf-8")
    assert "<img" not in text and "Confusion matrix: age" in text
    assert "Confusion matrix: all 18" not in text


def test_the_audit_reads_them(groups: list[Path], tmp_path: Path) -> None:
    """Of every label of every person, from the folders of the groups as they are."""
    argv = ["audit", "--oof", *map(str, groups), "--out", str(tmp_path / "audit")]
    assert data_command.main(argv) in (0, 1)
    with (tmp_path / "audit" / "ranking.csv").open(encoding="utf-8", newline="") as file:
        ranking = list(csv.DictReader(file))
    counts = {name: sum(row["attribute"] == name for row in ranking) for name in ATTRIBUTES}
    assert counts == {"mask": 13 * 7, "gender": 13, "age": 13}


def test_what_cannot_be_scored_out_of_fold(
    groups: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    main = evaluate.main
    run = groups[0] / "fold0"
    assert "not a group of folds" in fails(main, ["--oof", str(run)], capsys)
    assert "none answers mask" in fails(main, ["--oof", *[str(groups[1])] * 2], capsys)
    assert "give either runs" in fails(main, [str(run), "--oof", str(groups[0])], capsys, 2)
    for what in ([str(run)], ["--oof", str(groups[0])]):
        assert "--allow-seen: is for --gt" in fails(main, [*what, "--allow-seen"], capsys, 2)
    copy = tmp_path / "copy"
    shutil.copytree(groups[0], copy)
    last = copy / "fold1" / "last.pt"
    content = read_checkpoint(last)
    manifest = Manifest.from_json(content["manifest"])
    longer = replace(manifest, config={**manifest.config, "epochs": 2})
    save_checkpoint(content | {"manifest": longer.to_json()}, last)
    for command, options in ((main, ["--oof"]), (combine.main, ["--model-dir", str(tmp_path)])):
        line = fails(command, [*options, str(copy)], capsys)
        assert f"{last.parent}: is not trained to its end yet; go on with maskcls-train" in line
    shutil.rmtree(copy / "fold1")
    line = fails(main, ["--oof", str(copy)], capsys)
    assert f"{copy / 'fold1'}: is not trained yet; go on with maskcls-train --resume {copy}" in line
    shutil.copytree(copy / "fold0", copy / "fold1")
    assert "not each of them once" in fails(main, ["--oof", str(copy)], capsys)
    shutil.rmtree(copy / "fold1")  # as many as there should be, and some of them twice
    shutil.rmtree(copy / "fold2")
    for name in ("fold1", "fold2"):
        shutil.copytree(groups[0] / "fold1", copy / name)
    assert "not each of them once" in fails(main, ["--oof", str(copy)], capsys)
    shutil.rmtree(copy / "fold2")
    shutil.copytree(groups[0] / "fold2", copy / "fold2")
    monkeypatch.setattr(out_of_fold, "_require_partition", lambda *a: None)
    shutil.rmtree(copy / "fold1")
    shutil.copytree(groups[0] / "fold1", copy / "fold1")
    shutil.copy(copy / "fold2" / "best.pt", copy / "fold1" / "best.pt")
    shutil.copy(copy / "fold2" / "best.pt.sha256", copy / "fold1" / "best.pt.sha256")
    assert "is not the split of" in fails(main, ["--oof", str(copy)], capsys)


def test_pictures_that_lie_in_another_fold_too_are_told(
    data: Path, groups: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    group = tmp_path / "folds"
    shutil.copytree(groups[1], group)
    checkpoint = group / "fold0" / "best.pt"
    person = min(people_of(read_split(group / "fold0" / "split.csv"), "val"))
    picture = min((data / "images" / person).iterdir())
    add_seen(checkpoint, content_digest(picture.read_bytes()))
    page, values = tmp_path / "oof.html", tmp_path / "oof.json"
    assert evaluate.main(["--oof", str(group), "--report", str(page), "--json", str(values)]) == 0
    told = "1 of the pictures are in the training of the network of age"
    assert f"warning: {told}" in capsys.readouterr().out
    assert told in page.read_text("utf-8")
    [caveat] = json.loads(values.read_text("utf-8"))["caveats"]
    assert caveat.startswith(told)
    provenance = read_provenance(group / "oof.csv")
    assert provenance is not None and provenance.seen_in_training == 1


def test_the_check_of_seen_people_can_fail(
    groups: list[Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(out_of_fold, "fingerprint", lambda person: known)
    seen = read_checkpoint(groups[0] / "fold0" / "best.pt")["seen"]
    known = int(seen[0])
    line = fails(evaluate.main, ["--oof", str(groups[0])], capsys)
    assert "was trained on 5 of the people who validate its fold" in line


def test_a_fold_that_has_learnt_one_of_its_own_people_is_refused(
    groups: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    group = shutil.copytree(groups[0], tmp_path / "folds")
    person = min(people_of(read_split(group / "fold0" / "split.csv"), "val"))
    add_seen(group / "fold0" / "best.pt", person)
    line = fails(evaluate.main, ["--oof", str(group)], capsys)
    assert f"was trained on 1 of the people who validate its fold, first: {person}" in line
