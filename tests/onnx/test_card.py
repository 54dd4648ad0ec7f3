"""`model_card.md` says what the manifest and the comparison say, and nothing of this machine."""

from __future__ import annotations

import errno
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score

from maskcls.checkpoints import read_checkpoint, read_manifest, save_checkpoint
from maskcls.commands import combine
from maskcls.data.runs import labelled_pictures, people_of_run
from maskcls.data.splits import read_split, side_sizes
from maskcls.errors import ExportError
from maskcls.files import file_digest
from maskcls.images import content_digest, read_image
from maskcls.labels import ATTRIBUTES, MULTI
from maskcls.onnx import exporter
from maskcls.onnx.card import CARD_FILE
from maskcls.onnx.exporter import export
from maskcls.provenance import fingerprint
from maskcls.runtime import Classifier
from tests.seen import add_seen

MakeRun = Callable[..., Path]


def quiet(*_: object) -> None: ...


@pytest.fixture
def runs(make_run: MakeRun) -> list[Path]:
    return [
        make_run("mask_gender", "base", tta="none") / "best.pt",
        make_run("age", "base", height=40, width=56) / "best.pt",
    ]


def card_of(runs: list[Path], out: Path, **options: object) -> str:
    result = export(runs, out, say=quiet, **options)  # type: ignore[arg-type]
    assert result.card == out / CARD_FILE
    return result.card.read_text("utf-8")


def rows(card: str, header: str) -> list[list[str]]:
    """The rows of the first table whose header line holds `header`."""
    table = card[card.index(header) :].partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table]


def test_scores_are_those_of_the_files(runs: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "onnx"
    card = card_of(runs, out)
    people = people_of_run(runs[0], read_manifest(runs[0]), "val")
    listed = labelled_pictures(people)
    with Classifier(out / "maskcls.onnx", provider="cpu") as classifier:
        answers = classifier.predict([np.asarray(read_image(path)) for path, _ in listed])
    truth = np.array([label for _, label in listed])
    found = np.array([answer.label for answer in answers])

    scored = {name: (f1, accuracy) for name, f1, _, accuracy, _ in rows(card, "| of | macro F1")}
    assert list(scored) == ["all 18 classes", *ATTRIBUTES]
    pairs = {"all 18 classes": (truth, found)} | {
        name: (MULTI.decode(truth)[name], MULTI.decode(found)[name]) for name in ATTRIBUTES
    }
    for name, (right, answered) in pairs.items():
        assert scored[name] == (
            f"{f1_score(right, answered, average='macro'):.4f}",
            f"{accuracy_score(right, answered):.4f}",
        )

    crossed = rows(card, "| mask | gender | age | macro F1")
    digits = MULTI.decode(truth)
    assert len(crossed) == len(np.unique(truth))
    for mask, gender, age, f1, accuracy, count, pictures in crossed:
        wanted = [
            ATTRIBUTES[n].index(v.replace("\\", ""))
            for n, v in zip(ATTRIBUTES, (mask, gender, age), strict=True)
        ]
        own = np.all([digits[n] == w for n, w in zip(ATTRIBUTES, wanted, strict=True)], axis=0)
        labels = np.unique(truth[own])
        expected = f1_score(truth[own], found[own], labels=labels, average="macro", zero_division=0)
        assert f1 == f"{expected:.4f} *"  # few people
        assert accuracy == f"{accuracy_score(truth[own], found[own]):.4f} *"
        assert int(pictures) == own.sum() and int(count) <= len(people)


def test_it_says_where_the_files_come_from(runs: list[Path], tmp_path: Path) -> None:
    content = read_checkpoint(runs[1])
    values = json.loads(content["manifest"])
    values |= {"git_revision": "5ca1ab1e", "metrics": {"macro_f1": 0.43216}}
    save_checkpoint(content | {"manifest": json.dumps(values)}, runs[1])
    card = card_of(runs, tmp_path / "onnx")
    for run in runs:
        assert file_digest(run) in card
        assert read_manifest(run).split_hash in card
    assert "`5ca1ab1e`" in card and "age validated with macro F1 0.4322" in card
    assert str(tmp_path) not in card
    verdict = json.loads((tmp_path / "onnx" / "parity.json").read_text())
    assert "compute in **fp32**" in card and "**passed**" in card
    differences = {name: worst for name, worst, _, _ in rows(card, "| network | logits differ")}
    assert differences == {n: f"{e['max_logit']:.2g}" for n, e in verdict["networks"].items()}
    for title in ("Intended use", "Limits", "Ethics of inferring gender and age from faces"):
        assert f"\n## {title}\n" in card


def test_training_data_in_numbers(runs: list[Path], tmp_path: Path) -> None:
    card = card_of(runs, tmp_path / "onnx")
    sizes = side_sizes(read_split(runs[0].parent / "split.csv"))
    assert sum(people for people, _ in sizes["train"].values()) == 8
    assert "mask_gender and age: 8 people with 56 pictures trained, 4 others with 28" in card
    table = rows(card, "| gender | age | people who trained")
    assert [int(row[2]) for row in table] == [
        sizes["train"].get(group, (0, 0))[0]
        for group in sorted(sizes["train"].keys() | sizes["val"].keys())
    ]


def test_people_that_it_was_trained_on_are_told(runs: list[Path], tmp_path: Path) -> None:
    card = card_of(runs, tmp_path / "onnx")
    assert "scores flatter" not in card
    manifest = read_manifest(runs[0])
    known = sorted(fingerprint(p.person) for p in people_of_run(runs[0], manifest, "val"))[:2]
    content = read_checkpoint(runs[1])
    save_checkpoint(content | {"seen": content["seen"].new_tensor(known)}, runs[1])
    assert "**2 of them are people" in card_of(runs, tmp_path / "onnx")


def test_pictures_that_train_in_another_folder_are_told(runs: list[Path], tmp_path: Path) -> None:
    manifest = read_manifest(runs[0])
    path, _ = labelled_pictures(people_of_run(runs[0], manifest, "val"))[0]
    add_seen(runs[1], content_digest(path.read_bytes()))
    told = "**1 of the pictures are in the training of a network too"
    assert told in card_of(runs, tmp_path / "onnx")


def test_a_greedy_soup_chosen_by_those_who_score_it_is_told(
    runs: list[Path], tmp_path: Path
) -> None:
    other = shutil.copytree(runs[1].parent, tmp_path / "other")
    add_seen(other / "best.pt", "a stranger")  # files that are alike count once
    argv = [str(runs[1].parent), str(other), "--how", "greedy-soup", "--model-dir", str(tmp_path)]
    assert combine.main(argv) == 0
    soup = tmp_path / "age" / "greedy-soup" / "best.pt"
    told = "They chose, too, which networks are in the greedy soup of age."
    assert told in card_of([runs[0], soup], tmp_path / "of the soup")
    assert told not in card_of(runs, tmp_path / "alone")


def test_what_is_not_known_is_not_told(runs: list[Path], tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for index, path in enumerate(sorted((tmp_path / "train" / "images").glob("*/*"))):
        shutil.copy(path, photos / f"{index}.jpg")
    (runs[1].parent / "split.csv").unlink()
    card = card_of(runs[1:], tmp_path / "onnx", pictures=photos)
    assert "# Model card: age from a face" in card and "maskcls.onnx" not in card
    assert "age: not known. `split.csv`" in card
    assert "Not known: the files were compared on a folder" in card
    assert not re.search(r"\| macro F1", card)


def test_a_card_of_an_earlier_export_goes(runs: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "onnx"
    card_of(runs, out)
    with pytest.raises(ExportError):
        export(runs, out, max_f1_drop=-2.0, say=quiet)
    assert not (out / CARD_FILE).exists()


def test_what_an_earlier_export_fused_does_not_pass_for_this_one(
    runs: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "onnx"
    export(runs, out, triton=True, say=quiet)
    [served] = out.glob("model_repository/*/*/model.onnx")
    export(runs[1:], out, triton=True, say=quiet)
    assert not (out / "maskcls.onnx").exists() and not served.parents[1].exists()
    assert [path.parts[-3] for path in out.glob("model_repository/*/*/*")] == ["age"]
    export(runs[:1], out, triton=True, say=quiet)
    assert [path.parts[-3] for path in out.glob("model_repository/*/*/*")] == ["mask_gender"]
    export(runs[1:], out, say=quiet)
    assert not (out / "model_repository").exists()
    assert (out / "age.onnx").is_file() and (out / "mask_gender.onnx").is_file()
    export(runs, out, say=quiet)
    with pytest.raises(ExportError):
        export(runs[1:], out, max_f1_drop=-2.0, say=quiet)
    assert sorted(path.name for path in out.glob("*.*")) == ["mask_gender.onnx", "parity.json"]


def test_a_verdict_is_the_last_to_be_written(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "onnx"
    export(runs, out, say=quiet)
    real = exporter.onnx.save

    def full(proto: object, path: Path) -> None:
        if "age" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        real(proto, path)

    monkeypatch.setattr(exporter.onnx, "save", full)
    with pytest.raises(OSError, match="No space left"):
        export(runs, out, say=quiet)
    assert not (out / "parity.json").exists() and not (out / CARD_FILE).exists()
