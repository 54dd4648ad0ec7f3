"""Ensembles and soups of real trainings: what they answer is computed by hand from their members,
and they are run folders like any other, through PyTorch and through ONNX."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from matplotlib.figure import Figure
from sklearn.metrics import f1_score

from maskcls.checkpoints import read_checkpoint, read_manifest, save_checkpoint
from maskcls.classifier import TorchClassifier
from maskcls.commands import combine, evaluate, export, infer, train
from maskcls.data import runs as finding
from maskcls.data.profiles import read_all_profiles, read_profiles
from maskcls.data.runs import labelled_pictures, people_of_run
from maskcls.data.sample import make_sample
from maskcls.data.splits import people_of, read_split
from maskcls.data.targets import at_border
from maskcls.evaluation.calibration import fit_temperature
from maskcls.evaluation.caveats import caveats
from maskcls.images import content_digest, picture_digest, read_image
from maskcls.labels import TASKS, AgeLabels
from maskcls.manifest import ENSEMBLE, SEEN_KEY, Manifest, OnnxManifest, ensemble_members
from maskcls.models import load_model
from maskcls.onnx.card import CARD_FILE
from maskcls.provenance import OTHERS, fingerprint
from maskcls.training import combine as combining
from maskcls.training import handlers
from tests.seen import add_seen

SMALL = "--weights none --model base --height 32 --width 32 --epochs 1 --device cpu --workers 1"
SMALL += " --batch-size 16 --precision fp32 --tta flip"
FOLDS = 2
RATES = ("0.003", "0.01", "1e-9")  # the last one has learnt nothing


@pytest.fixture(scope="module", autouse=True)
def plain_figures() -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(handlers, "confusion_figure", lambda *a: Figure((1, 1), dpi=8))
        patch.setattr(handlers, "grid_image", lambda *a: Figure((1, 1), dpi=8))
        yield


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("combine")
    make_sample(folder / "data", people=12, eval_people=6, progress=False)
    return folder


@pytest.fixture(scope="module")
def groups(root: Path) -> list[Path]:
    """Both branches in two folds, each calibrated by itself."""
    options = [*SMALL.split(), "--lr", "0.005", "--task", "all", "--name", "folds"]
    options += ["--folds", str(FOLDS), "--calibration", "macro_f1"]
    places = ["--data-dir", str(root / "data/train"), "--model-dir", str(root / "models")]
    assert train.main([*options, *places, "--cache", str(root / "cache")]) == 0
    return [root / "models" / task / "folds" for task in ("mask_gender", "age")]


@pytest.fixture(scope="module")
def runs(root: Path) -> list[Path]:
    """Three trainings of `age` on the same people, from the same start, at different rates."""
    places = ["--data-dir", str(root / "data/train"), "--model-dir", str(root / "rates")]
    for rate in RATES:
        options = [*SMALL.split(), "--task", "age", "--name", "exp", "--val-ratio", "0.4"]
        options += ["--model", "resnet18"]  # it has batch statistics
        assert train.main([*options, *places, "--cache", str(root / "cache"), "--lr", rate]) == 0
    return [root / "rates/age" / name for name in ("exp", "exp2", "exp3")]


@pytest.fixture(scope="module")
def ensembles(groups: list[Path], root: Path) -> Path:
    """The model folder of ensembles of both groups, by one command."""
    where = root / "ensembles"
    assert combine.main([*map(str, groups), "--model-dir", str(where), "--name", "whole"]) == 0
    return where


def answers(run: Path, pixels: np.ndarray) -> np.ndarray:
    checkpoint = run / "best.pt" if run.is_dir() else run
    engine = TorchClassifier([checkpoint], torch.device("cpu"), complete=False)
    return engine.logits(0, pixels)


def pixels_of(run: Path, paths: list[Path]) -> np.ndarray:
    spec = load_model(run)[1].preprocess
    return np.stack([spec.resize(read_image(path)) for path in paths])


def fails(
    argv: list[str],
    capsys: pytest.CaptureFixture[str],
    command: Callable[[list[str]], int] = combine.main,
) -> str:
    capsys.readouterr()
    assert command(argv) == 1
    [line] = [row for row in capsys.readouterr().err.splitlines() if row.startswith("error: ")]
    return line


# --- ensembles -----------------------------------------------------------------------------------


def test_an_ensemble_answers_the_mean_of_its_members(
    groups: list[Path], ensembles: Path, root: Path
) -> None:
    paths = sorted((root / "data/eval/images").iterdir())[:9]
    for group in groups:
        run = ensembles / group.parent.name / "whole"
        pixels = pixels_of(run, paths)
        members = [answers(group / f"fold{fold}", pixels) for fold in range(FOLDS)]
        assert not np.allclose(members[0], members[1], atol=1e-3)
        shares = np.mean(
            [np.exp(one) / np.exp(one).sum(axis=1, keepdims=True) for one in members], axis=0
        )
        np.testing.assert_allclose(np.exp(answers(run, pixels)), shares, rtol=1e-4)


def test_what_an_ensemble_knows_of_itself(groups: list[Path], ensembles: Path, root: Path) -> None:
    run = ensembles / "age" / "whole"
    content = read_checkpoint(run / "best.pt")
    manifest = Manifest.from_json(content["manifest"])
    members = ensemble_members(manifest)
    assert (manifest.model, len(members)) == (ENSEMBLE, FOLDS)
    for fold, member in enumerate(members):
        own = read_checkpoint(groups[1] / f"fold{fold}" / "best.pt")
        assert member == Manifest.from_json(own["manifest"])
        assert member.calibration is not None
        assert set(own["seen"].tolist()) <= set(content["seen"].tolist())
    everybody = {profile.person for profile in read_profiles(root / "data/train")}
    assert people_of(read_split(run / "split.csv"), "train") == everybody
    assert {fingerprint(person) for person in everybody} <= set(content["seen"].tolist())


def test_nobody_is_left_to_score_an_ensemble_of_all_folds(
    ensembles: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [str(ensembles / task / "whole") for task in ("mask_gender", "age")]
    line = fails(runs, capsys, evaluate.main)
    assert f"{runs[0]}: each person has trained one of its networks; label pictures of" in line


def test_an_ensemble_labels_alike_through_onnx(
    ensembles: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "onnx"
    assert export.main(["--model-dir", str(ensembles), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "are of people who trained it" in said and "parity: passed; 0 of" in said
    card = (out / CARD_FILE).read_text("utf-8")
    assert "on people of the training, because nobody was new to all of its networks" in card
    assert "the scores flatter" in card and "chose the epoch" not in card
    # What its members do, which the ensemble itself does not.
    assert f"| the mean of {FOLDS}: base | 32x32 | picture and mirror image |" in card
    assert "not calibrated" not in card
    tables = []
    for name, model in (("torch", ensembles), ("onnx", out / "maskcls.onnx")):
        table = tmp_path / f"{name}.csv"
        argv = ["--model", str(model), "--images", str(root / "data/eval"), "--out", str(table)]
        assert infer.main([*argv, "--provider", "cpu"]) == 0
        tables.append(table.read_bytes())
    assert tables[0] == tables[1]
    assert len({line.split(b",")[1] for line in tables[0].splitlines()[1:]}) > 1
    leaning = [
        member.calibration
        for task in ("mask_gender", "age")
        for member in ensemble_members(load_model(ensembles / task / "whole")[1])
        if member.calibration is not None and any(member.calibration.bias)
    ]
    assert leaning  # or this would hold without calibrations, too
    entries = {p.key: p.value for p in onnx.load(out / "maskcls.onnx").metadata_props}
    assert str(root) not in "".join(entries.values())  # of the members neither
    assert SEEN_KEY in entries
    described = OnnxManifest.from_json(entries["maskcls"])
    assert [len(ensemble_members(network)) for network in described.networks] == [FOLDS] * 2


def test_an_ensemble_of_ensembles(ensembles: Path, groups: list[Path], root: Path) -> None:
    whole = ensembles / "age" / "whole"
    argv = [str(whole), str(groups[1] / "fold0"), "--model-dir", str(root / "nested")]
    assert combine.main(argv) == 0
    pixels = pixels_of(whole, sorted((root / "data/eval/images").iterdir())[:4])
    shares = (np.exp(answers(whole, pixels)), answers(groups[1] / "fold0", pixels))
    alone = np.exp(shares[1]) / np.exp(shares[1]).sum(axis=1, keepdims=True)
    found = np.exp(answers(root / "nested/age/ensemble", pixels))
    np.testing.assert_allclose(found, (shares[0] + alone) / 2, rtol=1e-4)


def test_nobody_is_left_to_score_an_ensemble_of_folds_on(
    ensembles: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate.main([str(ensembles)]) == 1
    assert "error: " in capsys.readouterr().err


# --- soups ----------------------------------------------------------------------------------------


def scores(run: Path) -> tuple[float, list[int]]:
    """macro F1 on those who validate a run, by scikit-learn, and the answers."""
    checkpoint = run / "best.pt"
    manifest = read_manifest(checkpoint)
    listed = labelled_pictures(people_of_run(checkpoint, manifest, "val"))
    found = answers(run, pixels_of(run, [path for path, _ in listed])).argmax(axis=1)
    truth = TASKS["age"].from_multi(np.array([label for _, label in listed]))
    classes = sorted({*truth.tolist(), *found.tolist()})
    return f1_score(truth, found, average="macro", labels=classes), found.tolist()


def test_a_soup_has_the_mean_of_the_weights_and_its_own_statistics(
    runs: list[Path], root: Path
) -> None:
    argv = [*map(str, runs[:2]), "--how", "soup", "--model-dir", str(root / "soups")]
    assert combine.main(argv) == 0
    run = root / "soups/age/soup"
    content = read_checkpoint(run / "best.pt")
    states = []
    for path in runs[:2]:
        saved = read_checkpoint(path / "best.pt")
        states.append(saved.get("ema") or saved["model"])
    statistics = [key for key in content["model"] if "running_" in key]
    assert statistics
    for key, value in content["model"].items():
        mean = (states[0][key].double() + states[1][key].double()) / 2
        if key in statistics:
            assert not torch.allclose(value.double(), mean)
            continue
        if value.is_floating_point():
            torch.testing.assert_close(value, mean.float())
    manifest = Manifest.from_json(content["manifest"])
    # Those of the first layer, on all training pictures at once.
    listed = labelled_pictures(people_of_run(run / "best.pt", manifest, "train"))
    pixels = manifest.preprocess.normalise(pixels_of(run, [path for path, _ in listed]))
    model = load_model(run)[0]
    with torch.inference_mode():
        values = model.conv1(torch.from_numpy(pixels))
    torch.testing.assert_close(
        content["model"]["bn1.running_mean"], values.mean((0, 2, 3)), rtol=0.02, atol=1e-3
    )
    assert manifest.config["combined"]["how"] == "soup"
    assert manifest.metrics["macro_f1"] == pytest.approx(scores(run)[0])
    assert people_of(read_split(run / "split.csv"), "val") == people_of(
        read_split(runs[0] / "split.csv"), "val"
    )


def test_a_soup_is_calibrated_as_its_networks_were_and_labels_alike_through_onnx(
    groups: list[Path],
    root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    models = tmp_path / "models"
    places = ["--data-dir", str(root / "data/train"), "--cache", str(root / "cache")]
    counted = []
    real = combining.calibrate

    def calibrate(*arguments: Any) -> Any:
        counted.append(arguments[-1])
        return real(*arguments)

    monkeypatch.setattr(combining, "calibrate", calibrate)
    for rate in RATES[:2]:
        options = [*SMALL.split(), "--task", "age", "--calibration", "macro_f1", "--lr", rate]
        options += ["--val-ratio", "0.4", "--model-dir", str(tmp_path / "runs")]
        options += ["--border-ages", "drop"]
        assert train.main([*options, *places]) == 0
    trained = sorted((tmp_path / "runs/age").iterdir())
    capsys.readouterr()
    argv = [*map(str, trained), "--how", "soup", "--model-dir", str(models)]
    assert combine.main(argv) == 0
    said = capsys.readouterr().out
    run = models / "age" / "soup"
    manifest = load_model(run)[1]
    assert manifest.calibration is not None
    assert manifest.config["calibration"] == "macro_f1"
    assert f"temperature {manifest.calibration.temperature:.2f}, " in said
    assert f"; macro F1 {manifest.metrics['macro_f1']:.4f} → " in said
    assert "; their epochs were chosen by them: it flatters" in said  # the score is without it
    # As in the trainings, which leave out who is at a border.
    learnt = people_of_run(run / "best.pt", manifest, "train")
    ages = np.array([person.age for person in learnt])
    assert at_border(ages).any()
    groups_of_age = [AgeLabels.from_number(age) for age in ages[~at_border(ages)]]
    assert counted == [pytest.approx(7 * np.bincount(groups_of_age, minlength=3))]
    # By the answers of the soup itself, on those who validated.
    listed = labelled_pictures(people_of_run(run / "best.pt", manifest, "val"))
    plain = tmp_path / "plain.pt"
    content = read_checkpoint(run / "best.pt")
    save_checkpoint(content | {"manifest": replace(manifest, calibration=None).to_json()}, plain)
    logits = answers(plain, pixels_of(run, [path for path, _ in listed]))
    truth = TASKS["age"].from_multi(np.array([label for _, label in listed]))
    assert manifest.calibration.temperature == pytest.approx(fit_temperature(logits, truth))

    shutil.copytree(groups[0] / "fold0", models / "mask_gender" / "fold0")
    assert export.main(["--model-dir", str(models), "--out", str(tmp_path / "onnx")]) == 0
    card = (tmp_path / "onnx" / CARD_FILE).read_text("utf-8")
    assert f", {manifest.metrics['calibrated_macro_f1']:.4f} with its calibration, over" in card
    tables = []
    for model in (models, tmp_path / "onnx" / "maskcls.onnx"):
        table = tmp_path / f"{model.name}.csv"
        argv = ["--model", str(model), "--images", str(root / "data/eval"), "--out", str(table)]
        assert infer.main([*argv, "--provider", "cpu"]) == 0
        tables.append(table.read_bytes())
    assert tables[0] == tables[1]


def test_a_soup_without_a_calibration_says_so(
    runs: list[Path], groups: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nobody is left to fit it on; or the networks differ in it."""
    argv = ["--how", "soup", "--model-dir", str(tmp_path)]
    capsys.readouterr()
    assert combine.main([str(groups[1]), *argv]) == 0
    assert "no calibration: nobody is left to fit it on" in capsys.readouterr().out
    assert load_model(tmp_path / "age/soup")[1].config["calibration"] == "none"
    other = tmp_path / "other"
    shutil.copytree(runs[0], other)
    content = read_checkpoint(other / "best.pt")
    manifest = Manifest.from_json(content["manifest"])
    leaning = replace(manifest, config={**manifest.config, "calibration": "temperature"})
    save_checkpoint(content | {"manifest": leaning.to_json()}, other / "best.pt")
    assert combine.main([str(runs[1]), str(other), *argv]) == 0
    assert "no calibration: its networks differ in it" in capsys.readouterr().out
    assert load_model(tmp_path / "age/soup2")[1].calibration is None
    assert combine.main([str(runs[1]), str(runs[0]), *argv]) == 0
    assert "no calibration" not in capsys.readouterr().out


def test_an_ensemble_is_no_start(
    ensembles: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = ensembles / "age" / "whole" / "best.pt"
    argv = ["--task", "age", "--weights", str(start), "--data-dir", str(root / "data/train")]
    assert train.main([*argv, "--model-dir", str(tmp_path)]) == 1
    assert f"{start}: is an ensemble, which no network can start from" in capsys.readouterr().err


def test_a_greedy_soup_is_the_mean_of_all_that_it_takes(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rising = iter(np.linspace(0.1, 0.9, 20))  # whatever is added, it scores higher
    real = combining._score

    def score(*arguments: Any) -> Any:
        return replace(real(*arguments), macro_f1=float(next(rising)))

    monkeypatch.setattr(combining, "_score", score)
    argv = [*map(str, runs), "--how", "greedy-soup", "--model-dir", str(tmp_path)]
    assert combine.main(argv) == 0
    content = read_checkpoint(tmp_path / "age/greedy-soup/best.pt")
    config = Manifest.from_json(content["manifest"]).config
    assert len(config["combined"]["checkpoints"]) == 3
    states = []
    for run in runs:
        saved = read_checkpoint(run / "best.pt")
        states.append(saved.get("ema") or saved["model"])
    for key, value in content["model"].items():
        if value.is_floating_point() and "running_" not in key:
            mean = torch.stack([state[key].double() for state in states]).mean(dim=0)
            torch.testing.assert_close(value, mean.float())


def test_a_greedy_soup_is_never_worse_than_the_best_alone(
    runs: list[Path], root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [*map(str, runs), "--how", "greedy-soup", "--model-dir", str(root / "soups")]
    capsys.readouterr()
    assert combine.main(argv) == 0
    out = capsys.readouterr().out
    alone = {run: scores(run)[0] for run in runs}
    for run, score in alone.items():
        assert f"{run / 'best.pt'}: macro F1 {score:.4f} alone" in out
    whole = scores(root / "soups/age/greedy-soup")[0]
    assert whole >= max(alone.values())
    assert f"macro F1 {whole:.4f}" in out
    assert "they themselves and their epochs were chosen by them: it flatters" in out
    engine = TorchClassifier(
        [root / "soups/age/greedy-soup/best.pt"], torch.device("cpu"), complete=False
    )
    [caveat] = caveats(engine, [], 0)
    assert caveat.startswith("the networks in the greedy soup of age were chosen on people who")
    manifest = load_model(root / "soups/age/greedy-soup")[1]
    taken = len(manifest.config["combined"]["checkpoints"])
    assert f"age: {taken} of 3 networks" in out
    # Combined again, it stays chosen by those who score it.
    for how in ("ensemble", "soup"):
        argv = [str(root / "soups/age/greedy-soup"), str(runs[0]), "--how", how]
        assert combine.main([*argv, "--model-dir", str(root / "again")]) == 0
        assert "they themselves and their epochs were chosen" in capsys.readouterr().out
        best = root / "again/age" / how / "best.pt"
        assert TorchClassifier([best], torch.device("cpu"), complete=False).greedy == ("age",)


def test_who_is_left_out_of_a_greedy_soup_was_seen_all_the_same(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its batch statistics are of all training pictures."""
    monkeypatch.setattr(
        combining, "_greedy", lambda members, average, *rest: (members[:1], average(members[:1]))
    )
    other = tmp_path / "age" / "other"
    shutil.copytree(runs[1], other)
    add_seen(other / "best.pt", "a stranger")
    argv = [str(runs[0]), str(other), "--how", "greedy-soup", "--model-dir", str(tmp_path)]
    assert combine.main(argv) == 0
    content = read_checkpoint(tmp_path / "age" / "greedy-soup" / "best.pt")
    assert len(json.loads(content["manifest"])["config"]["combined"]["checkpoints"]) == 1
    assert fingerprint("a stranger") in content["seen"].tolist()


def test_whose_start_does_not_say_whom_it_saw_is_told(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "age" / "other"
    shutil.copytree(runs[1], other)
    content = dict(read_checkpoint(other / "best.pt"))
    content["seen"] = torch.cat([content["seen"], torch.tensor([OTHERS])])
    save_checkpoint(content, other / "best.pt")
    argv = [str(runs[0]), str(other), "--how", "ensemble", "--model-dir", str(tmp_path)]
    assert combine.main(argv) == 0
    assert f"warning: {other / 'best.pt'}: does not say whom all it" in capsys.readouterr().out
    engine = TorchClassifier(
        [tmp_path / "age" / "ensemble" / "best.pt"], torch.device("cpu"), complete=False
    )
    [caveat] = caveats(engine, [], 0)
    assert caveat.startswith("a network does not say whom all it")


def test_whom_a_start_was_trained_on_scores_no_soup(
    runs: list[Path], root: Path, tmp_path: Path
) -> None:
    """As `--weights` of another split leaves it, which a training only warns of."""
    changed = tmp_path / "age" / "started"
    shutil.copytree(runs[1], changed)
    validated = sorted(people_of(read_split(changed / "split.csv"), "val"))
    add_seen(changed / "best.pt", *validated[:2])
    argv = [str(runs[0]), str(changed), "--how", "soup", "--model-dir", str(tmp_path)]
    assert combine.main(argv) == 0
    table = read_split(tmp_path / "age" / "soup" / "split.csv")
    assert sorted(people_of(table, "val")) == validated[2:]
    assert set(validated[:2]) < people_of(table, "train")


def test_copies_of_what_training_had_score_no_soup(
    runs: list[Path], root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = tmp_path / "age" / "started"
    shutil.copytree(runs[1], changed)
    person = min(people_of(read_split(changed / "split.csv"), "val"))
    picture = min((root / "data/train/images" / person).iterdir())
    add_seen(changed / "best.pt", content_digest(picture.read_bytes()))
    argv = [str(runs[0]), str(changed), "--how", "soup", "--model-dir", str(tmp_path)]
    capsys.readouterr()
    assert combine.main(argv) == 0
    said = "warning: 1 pictures of people whom none has trained on are skipped"
    assert said in capsys.readouterr().out


@pytest.mark.parametrize(("mixed", "collapsed"), [(0.2, True), (0.75, False), (0.85, False)])
def test_a_soup_that_nobody_can_score_is_held_against_its_networks(
    groups: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    mixed: float,
    collapsed: bool,
) -> None:
    scores = iter([mixed, 0.8, 0.9])  # of the soup, then of its networks

    def score(answering: object, pictures: combining._Pictures, *rest: object) -> SimpleNamespace:
        assert len(pictures.labels) == len(pictures.pixels) == 12 * 7
        return SimpleNamespace(macro_f1=next(scores))

    monkeypatch.setattr(combining, "_score", score)
    argv = [str(groups[1]), "--how", "soup", "--model-dir", str(tmp_path)]
    capsys.readouterr()
    assert combine.main(argv) == 0
    out = capsys.readouterr().out
    assert ("their weights cannot be averaged; take --how ensemble" in out) is collapsed
    assert next(scores, None) is None


# --- what cannot be combined ----------------------------------------------------------------------


def test_what_cannot_be_combined(
    runs: list[Path],
    groups: list[Path],
    root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    place = ["--model-dir", str(tmp_path / "models")]
    soup = ["--how", "soup", *place]
    fold = groups[1] / "fold0"
    assert "give two or more runs" in fails([str(runs[0]), *place], capsys)
    assert "give two or more runs" in fails([str(runs[0]), str(runs[0]), *place], capsys)
    assert "no run folder" in fails([str(runs[0]), str(tmp_path), *place], capsys)
    argv = [*SMALL.split(), "--task", "age", "--data-dir", str(root / "data/train")]
    argv += ["--model-dir", str(tmp_path / "other"), "--cache", str(root / "cache")]
    assert train.main([*argv, "--width", "40"]) == 0
    other = tmp_path / "other/age/exp"
    assert "such as their size" in fails([str(runs[0]), str(other), *place], capsys)
    assert train.main([*argv, "--soften-age", "2"]) == 0
    other = tmp_path / "other/age/exp2"
    line = fails([str(runs[0]), str(other), *soup], capsys)
    assert "differ in model, its arguments or tta; take --how ensemble" in line
    line = fails([str(groups[1]), "--how", "greedy-soup", *place], capsys)
    assert "nobody to choose a greedy soup on" in line
    assert not (tmp_path / "models").exists()  # nothing is half-written
    capsys.readouterr()
    argv = ["--model", *map(str, groups), "--images", str(root), "--out", str(tmp_path / "o.csv")]
    assert infer.main(argv) == 1
    assert f"maskcls-combine {groups[0]}" in capsys.readouterr().err
    assert combine.main([str(runs[0]), str(fold), *place]) == 0  # different splits may be one


def test_copies_of_the_data_would_count_people_twice(
    runs: list[Path], root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other, copy = tmp_path / "exp", tmp_path / "copy"
    shutil.copytree(runs[1], other)
    shutil.copytree(root / "data" / "train", copy)
    config = other / "config.yaml"
    config.write_text(config.read_text("utf-8").replace(str(root / "data" / "train"), str(copy)))
    line = fails([str(runs[0]), str(other), "--model-dir", str(tmp_path / "models")], capsys)
    assert "in different folders; give them one place with maskcls-train --resume" in line
    assert not (tmp_path / "models").exists()


def test_a_folder_that_is_told_in_two_ways_is_one(
    runs: list[Path], root: Path, tmp_path: Path
) -> None:
    other, link = tmp_path / "exp", tmp_path / "link"
    shutil.copytree(runs[1], other)
    link.symlink_to(root / "data" / "train")
    config = other / "config.yaml"
    config.write_text(config.read_text("utf-8").replace(str(root / "data" / "train"), str(link)))
    assert combine.main([str(runs[0]), str(other), "--model-dir", str(tmp_path / "models")]) == 0


def test_pictures_are_read_once_for_each_network(
    runs: list[Path], root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To tell whether they are those of its training."""
    listed, digested = [], []

    def people(folders: list[Path]) -> object:
        listed.append(folders)
        return read_all_profiles(folders)

    def digest(path: Path) -> str:
        digested.append(path)
        return picture_digest(path)

    monkeypatch.setattr(finding, "read_all_profiles", people)
    monkeypatch.setattr(finding, "picture_digest", digest)
    assert combine.main([*map(str, runs[:2]), "--model-dir", str(tmp_path)]) == 0
    assert listed == [[root / "data/train"]] * 2
    assert len(digested) == 2 * len(set(digested)) == 2 * 12 * 7


def test_a_table_of_the_eval_folder_is_scored(ensembles: Path, root: Path, tmp_path: Path) -> None:
    """From folds to a score on strangers."""
    out = tmp_path / "output.csv"
    argv = ["--model", str(ensembles), "--images", str(root / "data/eval"), "--out", str(out)]
    assert infer.main(argv) == 0
    with out.open(encoding="utf-8", newline="") as file:
        assert len(list(csv.DictReader(file))) == 6 * 7
    argv = ["--gt", str(root / "data/eval/gt.csv"), "--pred", str(out), "--no-confusion"]
    assert evaluate.main(argv) == 0
