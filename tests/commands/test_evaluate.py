"""`maskcls-evaluate` on real files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from sklearn import metrics

import maskcls
from maskcls.commands.evaluate import build_parser, main
from maskcls.labels import ATTRIBUTES
from maskcls.provenance import (
    ModelFile,
    Provenance,
    provenance_path,
    read_provenance,
    write_provenance,
)

TRUTH = {f"{number:03}.jpg": number % 18 for number in range(90)}
PREDICTED = {
    name: (label + (index % 5 == 0)) % 18 for index, (name, label) in enumerate(TRUTH.items())
}
MACRO_F1 = metrics.f1_score(list(TRUTH.values()), list(PREDICTED.values()), average="macro")
ACCURACY = 0.8


def write_table(path: Path, answers: dict[str, int]) -> Path:
    rows = "".join(f"{name},{label}\n" for name, label in answers.items())
    path.write_text("ImageID,ans\n" + rows, "utf-8")
    return path


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with gt.csv and output.csv, and no variable set."""
    monkeypatch.delenv("SM_GROUND_TRUTH_DIR", raising=False)
    monkeypatch.delenv("SM_OUTPUT_DATA_DIR", raising=False)
    write_table(tmp_path / "gt.csv", TRUTH)
    write_table(tmp_path / "output.csv", PREDICTED)
    return tmp_path


def tables(folder: Path) -> list[str]:
    return ["--gt", str(folder / "gt.csv"), "--pred", str(folder / "output.csv")]


def provenance(seen: int | None) -> Provenance:
    models = (ModelFile("mask_gender", "runs/mask_gender/a/best.pt", "00"),)
    return Provenance(pictures=90, errors=0, seen_in_training=seen, models=models)


def assert_refused(
    argv: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == code
    out, err = capsys.readouterr()
    assert out == ""
    *notes, last = err.splitlines()
    assert all(line.startswith("note: ") for line in notes)
    assert last.startswith("error: ")
    assert message in last


def test_report_json_and_picture(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    score = folder / "new" / "score.json"
    assert main([*tables(folder), "--json", str(score)]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0] == f"18-class macro F1 {MACRO_F1:.4f}  accuracy 0.8000  (90 pictures)"
    assert [line.split()[0] for line in lines[1:4]] == ["mask", "gender", "age"]
    assert lines[5].split() == ["label", "name", "precision", "recall", "F1", "pictures"]
    table = lines[6:24]
    assert {len(line) for line in lines[5:24]} == {len(lines[5])}
    assert table[17].split()[:4] == ["17", "not", "worn,", "female,"]
    assert lines[-2:] == [f"wrote {score}", f"wrote {folder / 'confusion.png'}"]
    assert err.startswith("note: cannot tell whether the model was trained on these people")
    assert err.count("\n") == 1

    values = json.loads(score.read_text("utf-8"))
    assert values["macro_f1"] == pytest.approx(MACRO_F1, rel=1e-14)
    assert values["accuracy"] == ACCURACY
    assert (
        set(values["mask"])
        == set(values["gender"])
        == set(values["age"])
        == {
            "macro_f1",
            "accuracy",
        }
    )
    assert len(values["per_class"]) == len(values["confusion"]) == 18
    assert (values["count"], values["missing"], values["seen_in_training"]) == (90, 0, None)
    with Image.open(folder / "confusion.png") as image:
        image.load()


def test_a_perfect_prediction_scores_one(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_table(folder / "output.csv", TRUTH)
    assert main([*tables(folder), "--no-confusion"]) == 0
    assert "macro F1 1.0000  accuracy 1.0000" in capsys.readouterr().out
    assert not (folder / "confusion.png").exists()


def test_folders_and_variables_stand_for_the_tables(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["--gt", str(folder), "--pred", str(folder), "--no-confusion"]) == 0
    by_folder = capsys.readouterr().out
    monkeypatch.setenv("SM_GROUND_TRUTH_DIR", str(folder))
    monkeypatch.setenv("SM_OUTPUT_DATA_DIR", str(folder))
    assert main(["--no-confusion"]) == 0
    assert capsys.readouterr().out == by_folder
    # An option is stronger than its variable.
    other = write_table(folder / "other.csv", TRUTH)
    assert main(["--no-confusion", "--pred", str(other)]) == 0
    assert "macro F1 1.0000" in capsys.readouterr().out
    monkeypatch.setenv("SM_OUTPUT_DATA_DIR", str(folder / "none"))
    assert_refused([], 1, str(Path("none", "output.csv: No such file")), capsys)


def test_missing_answers_are_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (folder / "output.csv").read_text("utf-8").replace("001.jpg,1\n", "001.jpg,\n")
    (folder / "output.csv").write_text(text.replace("002.jpg,2\n", ""), "utf-8")
    picture, score = folder / "c.png", folder / "s.json"
    assert main([*tables(folder), "--json", str(score), "--confusion", str(picture)]) == 0
    assert "(90 pictures, 2 without an answer count as wrong)" in capsys.readouterr().out
    values = json.loads(score.read_text("utf-8"))
    assert (values["count"], values["missing"]) == (90, 2)
    assert values["accuracy"] == pytest.approx(70 / 90)
    assert picture.exists()


def test_classes_that_do_not_occur_show_dashes(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("gt.csv", "output.csv"):
        write_table(folder / name, {"a.jpg": 3})
    assert main([*tables(folder), "--no-confusion"]) == 0
    out = capsys.readouterr().out
    assert "macro F1 1.0000" in out
    assert out.splitlines()[6].split()[-4:] == ["-", "-", "-", "0"]


def test_a_truth_of_zeros_is_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_table(folder / "gt.csv", dict.fromkeys(TRUTH, 0))
    assert main([*tables(folder), "--no-confusion"]) == 0
    assert "is it an info.csv to fill in?" in capsys.readouterr().err


def test_a_report_that_cannot_be_written_is_told_before_the_work(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "is.html").mkdir()
    argv = ["--gt", "no such file", "--pred", "nor this"]
    assert_refused([*argv, "--report", str(folder / "is.html")], 2, "is a folder", capsys)
    inside = folder / "gt.csv" / "new" / "r.html"
    assert_refused([*argv, "--report", str(inside)], 2, "gt.csv is no folder", capsys)
    if os.geteuid():  # root may write anywhere
        folder.chmod(0o500)
        inside = folder / "new" / "r.html"
        assert_refused([*argv, "--report", str(inside)], 2, "is no folder that can be", capsys)


def test_a_report_of_a_prediction_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = folder / "new" / "report.html"
    argv = [*tables(folder), "--no-confusion", "--report", str(report)]
    assert main(argv) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"wrote {report}"
    text = report.read_text("utf-8")
    assert f"macro F1<b>{MACRO_F1:.4f}</b>" in text
    assert text.count("Left out: ") == 4
    assert "It is not known whether the model was trained on these people." in text

    columns = [f"{name}: {value}" for name in ATTRIBUTES for value in ATTRIBUTES[name]]
    shares = ",".join(f"{1 / len(values)}" for values in ATTRIBUTES.values() for _ in values)
    rows = "".join(f"{name},{label},{shares}\n" for name, label in PREDICTED.items())
    (folder / "output.csv").write_text(f"ImageID,ans,{','.join(columns)}\n{rows}", "utf-8")
    write_provenance(folder / "output.csv", provenance(seen=12))
    assert main([*argv, "--allow-seen"]) == 0
    text = report.read_text("utf-8")
    assert "mask: ECE 0.0000" in text  # a third of the pictures is of each mask state
    assert text.count("Left out: ") == 3
    assert "12 of the pictures are of people" in text
    assert "Network, mask_gender:</dt><dd>runs/mask_gender/a/best.pt" in text


def test_people_of_the_training_are_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_provenance(folder / "output.csv", provenance(seen=12))
    score = folder / "score.json"
    argv = [*tables(folder), "--json", str(score)]
    assert_refused(argv, 1, "12 of 90 pictures", capsys)
    assert_refused(argv, 1, "--allow-seen", capsys)
    assert sorted(path.name for path in folder.iterdir()) == [
        *("gt.csv", "output.csv", "output.csv.json"),
    ]

    assert main([*argv, "--allow-seen"]) == 0
    out, err = capsys.readouterr()
    assert f"macro F1 {MACRO_F1:.4f}" in out
    assert err.startswith("warning: ")
    assert "12 of 90 pictures" in err
    assert json.loads(score.read_text("utf-8"))["seen_in_training"] == 12


def test_strangers_are_scored_without_a_note(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_provenance(folder / "output.csv", provenance(seen=0))
    score = folder / "score.json"
    assert main([*tables(folder), "--no-confusion", "--json", str(score)]) == 0
    assert capsys.readouterr().err == ""
    assert json.loads(score.read_text("utf-8"))["seen_in_training"] == 0


@pytest.mark.parametrize("case", ["changed predictions", "damaged", "wrong type", "unknown"])
def test_a_provenance_that_does_not_tell_is_noted(
    folder: Path, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pred = folder / "output.csv"
    path = write_provenance(pred, provenance(seen=None if case == "unknown" else 12))
    text = path.read_text("utf-8")
    if case == "changed predictions":
        write_table(pred, TRUTH)
    elif case == "damaged":
        path.write_text(text[:-20], "utf-8")
    elif case == "wrong type":
        path.write_text(text.replace('"seen_in_training": 12', '"seen_in_training": "12"'), "utf-8")
    assert main([*tables(folder), "--no-confusion"]) == 0
    err = capsys.readouterr().err
    assert err.startswith("note: cannot tell whether the model was trained on these people")
    assert err.count("\n") == 1


def test_provenance_round_trip(folder: Path) -> None:
    pred = folder / "output.csv"
    assert read_provenance(pred) is None
    assert write_provenance(pred, provenance(seen=3)) == provenance_path(pred)
    assert read_provenance(pred) == provenance(seen=3)
    values = json.loads((folder / "output.csv.json").read_text("utf-8"))
    assert list(values) == ["pictures", "errors", "seen_in_training", "models", "labels_sha256"]
    assert list(values["models"][0]) == ["task", "path", "sha256"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "--gt is missing: give a file, or a folder with gt.csv in $SM_GROUND_TRUTH_DIR"),
        (["--gt", "gt.csv"], "--pred is missing"),
        (["--gt", "a", "--pred", "b", "--confusion", "c.jpg"], "--confusion c.jpg"),
        (["--gt", "a", "--pred", "b", "--report", "r.pdf"], "--report r.pdf: the report is a page"),
        (["--gt", "a", "--pred", "b", "--no-pictures"], "--no-pictures: goes with --report"),
    ],
)
def test_a_wrong_option_ends_with_two(
    folder: Path, argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert_refused(argv, 2, message, capsys)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("gt.csv", None, "gt.csv: No such file"),
        ("gt.csv", "", "gt.csv: the file is empty"),
        ("gt.csv", "ImageID,ans\n000.jpg,\n", "gt.csv, line 2: ans ''"),
        ("output.csv", None, "output.csv: No such file"),
        ("output.csv", "ImageID,label\n", "output.csv, line 1: no column ans"),
        ("output.csv", "ImageID,ans\n000.jpg,18\n", "output.csv, line 2: ans '18'"),
        ("output.csv", "ImageID,ans\n000.jpg,1\n000.jpg,1\n", "output.csv, line 3: ImageID"),
        ("output.csv", "ImageID,ans\nx.jpg,1\n", "first: 'x.jpg'"),
    ],
)
def test_bad_tables_end_with_one_and_write_nothing(
    folder: Path, name: str, text: str | None, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / name).unlink()
    if text is not None:
        (folder / name).write_text(text, "utf-8")
    before = sorted(folder.iterdir())
    assert_refused([*tables(folder), "--json", str(folder / "s.json")], 1, message, capsys)
    assert sorted(folder.iterdir()) == before


def test_a_json_that_cannot_be_written_leaves_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main([*tables(folder), "--json", str(folder)]) == 1
    assert f"error: {folder}: Is a directory" in capsys.readouterr().err

    score = folder / "score.json"
    score.write_text("old", "utf-8")

    def half(self: Path, text: str, encoding: str) -> None:
        self.write_bytes(text.encode(encoding)[:5])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", half)
    assert main([*tables(folder), "--json", str(score)]) == 1
    err = capsys.readouterr().err
    assert f"error: no space left on device while writing {score}" in err
    assert score.read_text("utf-8") == "old"
    assert sorted(path.name for path in folder.iterdir()) == ["gt.csv", "output.csv", "score.json"]


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert "maskcls-evaluate --gt data/eval/gt.csv --pred output.csv --json score.json" in out
    assert "$SM_GROUND_TRUTH_DIR/gt.csv" in out
    # The example in the help parses.
    build_parser().parse_args("--gt data/eval/gt.csv --pred output.csv --json score.json".split())


RUN = """
import sys
from maskcls.commands.evaluate import main
light = {"torch", "numpy", "matplotlib", "pandas"}.isdisjoint(sys.modules)
code = main()
assert light, "importing the command is slow"
assert {"torch", "pandas"}.isdisjoint(sys.modules)
raise SystemExit(code)
"""


def test_as_a_process(folder: Path) -> None:
    command = [sys.executable, "-W", "error", "-c", RUN]
    root = Path(maskcls.__file__).parents[1]
    done = subprocess.run(
        [*command, *tables(folder)], capture_output=True, text=True, cwd=root, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"18-class macro F1 {MACRO_F1:.4f}")
    assert (folder / "confusion.png").exists()

    variables = {"SM_GROUND_TRUTH_DIR": str(folder), "SM_OUTPUT_DATA_DIR": str(folder / "none")}
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=root, env=os.environ | variables, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
