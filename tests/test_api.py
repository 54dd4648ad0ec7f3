"""`from maskcls import train, export, load`: the commands as functions, on a real training."""

from __future__ import annotations

import csv
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import maskcls
from maskcls import export, load, train
from maskcls.commands import infer
from maskcls.data.sample import ensure_sample
from maskcls.errors import CheckpointError, ConfigError, PictureError
from maskcls.images import MAX_PIXELS, read_image
from maskcls.labels import ATTRIBUTES, MULTI
from maskcls.runtime import Classifier, Prediction

ROOT = Path(__file__).resolve().parents[1]
SMALL = {"weights": "none", "model": "base", "height": 32, "width": 32, "epochs": 1}

# One worker trains, the others would only do it again.
pytestmark = pytest.mark.xdist_group("api")


def quiet(*_: object) -> None: ...


@dataclass(frozen=True)
class Work:
    """What three calls have left."""

    folder: Path
    said: list[str]
    pictures: list[Path]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Work:
    folder = tmp_path_factory.mktemp("api")
    data = ensure_sample(folder / "data", 8, 6, 1)
    said: list[str] = []
    results = train(
        data / "train", model_dir=folder / "runs", cache=folder / "cache", say=said.append, **SMALL
    )
    assert {task: result.folder for task, result in results.items()} == {
        task: folder / "runs" / task / "exp" for task in ("mask_gender", "age")
    }
    export(folder / "runs", folder / "onnx", say=said.append)
    return Work(folder, said, sorted((data / "eval" / "images").iterdir()))


@pytest.fixture(scope="module")
def classifier(work: Work) -> Classifier:
    return load(work.folder / "onnx", provider="cpu", batch_size=5)


def test_the_second_branch_starts_from_the_first(work: Work) -> None:
    assert "age starts from what mask_gender has learnt on the same people" in work.said


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"batch_size": -1}, {"workers": 0}])
def test_numbers_that_label_nothing(work: Work, wrong: dict[str, int]) -> None:
    [name] = wrong
    with pytest.raises(ConfigError, match=f"{name} .*must be 1 or more"):
        load(work.folder / "onnx", provider="cpu", **wrong)  # type: ignore[arg-type]


def test_one_image_many_times_in_a_list(work: Work) -> None:
    """Its file is read where it is first looked at, which two threads would do at once."""
    classifier = load(work.folder / "onnx", provider="cpu", workers=4)
    for _ in range(20):
        answers = classifier.predict([Image.open(work.pictures[0])] * 8)
        assert {answer.error for answer in answers} == {""}
        assert len({answer.label for answer in answers}) == 1


def test_a_huge_image_many_times_in_a_list_is_not_decoded(work: Work, tmp_path: Path) -> None:
    side = int(MAX_PIXELS**0.5) + 1
    Image.new("1", (side, side)).save(tmp_path / "huge.png")
    classifier = load(work.folder / "onnx", provider="cpu")
    with Image.open(tmp_path / "huge.png") as image:
        answers = classifier.predict([image] * 2)
        assert all("pixels" in answer.error for answer in answers)
        assert image.fp is not None  # which decoding closes


def test_answers_are_those_of_the_command(work: Work, classifier: Classifier) -> None:
    answers = classifier.predict(work.pictures)
    out = work.folder / "output.csv"
    model = str(work.folder / "onnx" / "maskcls.onnx")
    images = str(work.pictures[0].parent)
    assert (
        infer.main(["--model", model, "--images", images, "--out", str(out), "--probabilities"])
        == 0
    )
    with out.open(encoding="utf-8", newline="") as file:
        rows = {row["ImageID"]: row for row in csv.DictReader(file)}
    assert len(rows) == len(answers) == 42
    for path, answer in zip(work.pictures, answers, strict=True):
        row = rows[path.name]
        assert answer.label == int(row["ans"])
        for name, values in ATTRIBUTES.items():
            for value in values:
                expected = float(row[f"{name}: {value}"])
                assert answer.probabilities[name][value] == pytest.approx(expected, abs=1e-5)


def test_an_answer_is_named(work: Work, classifier: Classifier) -> None:
    answer = classifier.predict(work.pictures[0])
    assert isinstance(answer, Prediction)
    assert answer.label is not None and answer.error == ""
    assert answer.name == MULTI.class_names[answer.label]
    assert answer.name == f"{answer.mask}, {answer.gender}, {answer.age}"
    assert list(answer.probabilities["label"]) == list(MULTI.class_names)
    assert max(answer.probabilities["label"].items(), key=lambda item: item[1])[0] == answer.name
    for name in (*ATTRIBUTES, "label"):
        assert sum(answer.probabilities[name].values()) == pytest.approx(1, abs=1e-5)
    worn = [p for name, p in answer.probabilities["label"].items() if name.startswith("worn")]
    assert sum(worn) == pytest.approx(answer.probabilities["mask"]["worn"], abs=1e-5)


KINDS: dict[str, Callable[[Path], object]] = {
    "path": lambda path: path,
    "text": str,
    "bytes": Path.read_bytes,
    "opened": Image.open,
    "array": lambda path: np.asarray(read_image(path)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_is_the_same_in_every_form(
    kind: str, work: Work, classifier: Classifier, tmp_path: Path
) -> None:
    turned = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    with Image.open(work.pictures[3]) as image:
        image.rotate(90, expand=True).save(turned, exif=exif, quality=95)
    deep = tmp_path / "deep.png"
    Image.fromarray(np.arange(0, 60000, 10, dtype=np.uint16).reshape(100, 60)).save(deep)
    for path in (work.pictures[3], turned, deep):
        expected = classifier.predict(path)
        assert classifier.predict(KINDS[kind](path)) == expected  # type: ignore[call-overload]
    listed = [KINDS[kind](work.pictures[3]), work.pictures[0]]
    assert [answer.label for answer in classifier.predict(listed)] == [  # type: ignore[call-overload]
        classifier.predict(path).label for path in (work.pictures[3], work.pictures[0])
    ]


BAD: dict[str, tuple[object, str]] = {
    "no picture": (b"bad", "{}: not a picture in a known format"),
    "no file": (Path("no/such.jpg"), "no/such.jpg: no such file"),
    "empty": (b"", "{}: not a picture"),
    "no pixels": (Image.new("RGB", (0, 4)), r"{}: has no pixels \(0x4\)"),
    "an empty array": (np.zeros((0, 4, 3), np.uint8), r"{}: an array of uint8 \(0, 4, 3\)"),
    "float": (np.zeros((4, 4, 3)), r"{}: an array of float64 .* uint8 \(H, W, 3\)"),
    "grey": (np.zeros((4, 4), np.uint8), r"{}: an array of uint8 \(4, 4\)"),
    "channels first": (np.zeros((3, 4, 4), np.uint8), r"{}: an array of uint8 \(3, 4, 4\)"),
    "a batch": (np.zeros((2, 4, 4, 3), np.uint8), r"{}: an array of uint8 \(2, 4, 4, 3\)"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_picture_is_named(case: str, work: Work, classifier: Classifier) -> None:
    picture, message = BAD[case]
    with pytest.raises(PictureError, match=message.format("the picture")):
        classifier.predict(picture)  # type: ignore[call-overload]
    good = work.pictures[0]
    answers = classifier.predict([good, good, picture, good])  # type: ignore[list-item]
    with pytest.raises(PictureError, match=message.format(r"pictures\[2\]")):
        raise PictureError(answers[2].error)
    assert answers[2] == Prediction(error=answers[2].error)
    assert [answer.label for answer in answers[:2] + answers[3:]] == [answers[0].label] * 3
    assert answers[0].label is not None


def test_what_is_no_picture_at_all_is_named_too(classifier: Classifier) -> None:
    answers = classifier.predict([None, 3])  # type: ignore[list-item]
    assert [answer.error.partition(";")[0] for answer in answers] == [
        "pictures[0]: NoneType",
        "pictures[1]: int",
    ]
    assert classifier.predict([]) == []


def test_a_damaged_opened_picture_is_named(work: Work, classifier: Classifier) -> None:
    content = work.pictures[0].read_bytes()
    with pytest.raises(PictureError, match="the picture: cannot be decoded"):
        classifier.predict(content[: len(content) // 2])
    half = work.folder / "half.jpg"
    half.write_bytes(content[: len(content) // 2])
    with Image.open(half) as image, pytest.raises(PictureError, match="cannot be decoded"):
        classifier.predict(image)


def test_threads_share_a_classifier(work: Work, classifier: Classifier) -> None:
    expected = [classifier.predict(path) for path in work.pictures]
    assert len({answer.probabilities["mask"]["worn"] for answer in expected}) > 20
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            assert list(pool.map(classifier.predict, work.pictures)) == expected


def test_checkpoints_answer_as_the_file_does(work: Work, classifier: Classifier) -> None:
    answers = load(work.folder / "runs").predict(work.pictures)
    for answer, other in zip(answers, classifier.predict(work.pictures), strict=True):
        for name, value in answer.probabilities["label"].items():
            assert other.probabilities["label"][name] == pytest.approx(value, abs=0.02)


def test_a_closed_classifier_says_so(work: Work) -> None:
    with load(work.folder / "onnx" / "maskcls.onnx", provider="cpu") as classifier:
        assert classifier.predict(work.pictures[0]).error == ""
    with pytest.raises(ValueError, match="the classifier is closed"):
        classifier.predict(work.pictures[0])


def test_a_file_of_settings(work: Work, tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text("epochs: 0\nage:\n  batch_size: 8\n")
    data = work.folder / "data" / "train"
    with pytest.raises(ConfigError, match="epochs 0: must be 1 or more"):
        train(data, config=tmp_path / "my.yaml", model_dir=tmp_path / "runs")
    options = SMALL | {"cache": work.folder / "cache", "model_dir": tmp_path / "runs"}
    [result] = train([data], "age", config=tmp_path / "my.yaml", say=quiet, **options).values()
    assert "batch_size: 8\n" in (result.folder / "config.yaml").read_text()


def test_mistakes_are_found_before_the_work(tmp_path: Path) -> None:
    options = {"model_dir": tmp_path / "runs"}
    with pytest.raises(ConfigError, match="unknown task 'ages'; did you mean 'age'"):
        train(tmp_path, "ages", **options)
    with pytest.raises(ConfigError, match="unknown key 'epoch'; did you mean 'epochs'"):
        train(tmp_path, epoch=3, **options)
    with pytest.raises(ConfigError, match="unknown precision 'fp8'"):
        export([], tmp_path / "onnx", precision="fp8")
    with pytest.raises(ConfigError, match="unknown provider 'gpu'"):
        load(tmp_path, provider="gpu")
    with pytest.raises(CheckpointError, match="needs runs of mask_gender and age"):
        load(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_names_are_those_of_the_package() -> None:
    assert {"train", "export", "load", "__version__"} <= set(dir(maskcls))
    with pytest.raises(AttributeError, match="no attribute 'predict'"):
        _ = maskcls.predict


def test_load_brings_no_torch(work: Work) -> None:
    code = (
        "import sys; from maskcls import load\n"
        f"answer = load({str(work.folder / 'onnx')!r}).predict({str(work.pictures[0])!r})\n"
        "assert answer.label is not None\n"
        "assert not {'torch', 'torchvision', 'ignite'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
