"""Labelling keeps names and order, survives bad pictures, and writes all or nothing.

The classifier is a stand-in for a network: it answers from the pixels alone, so that what reaches
it, in which order and in which batch, shows in the labels.
"""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import json
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from maskcls.errors import DataError, MissingExtraError, PictureError
from maskcls.images import read_image
from maskcls.labels import ATTRIBUTES, MULTI, combine
from maskcls.preprocessing import PreprocessSpec
from maskcls.provenance import OTHERS, ModelFile, fingerprint, provenance_path, read_provenance
from maskcls.runtime import Engine, Source, inference, labelling, list_pictures
from maskcls.runtime.labelling import answered_batches
from maskcls.runtime.parts import only_job, parts_path

SPECS = (PreprocessSpec(32, 40), PreprocessSpec(48, 32, (0.5, 0.5)))
COUNT = 23


class PixelClassifier:
    """Probabilities as a fixed function of the mean colours; two networks with their own specs."""

    provider = "cpu"
    models = (ModelFile("mask_gender", "a.pt", "0" * 64), ModelFile("age", "b.pt", "1" * 64))

    def __init__(
        self,
        trained_on: frozenset[int] | None = None,
        specs: tuple[PreprocessSpec, ...] = SPECS,
        lanes: int = 1,
    ) -> None:
        self.trained_on = trained_on
        self.lanes = lanes
        self.specs = specs
        self.batches: list[int] = []

    def predict(self, pixels: Sequence[np.ndarray]) -> np.ndarray:
        assert [part.shape[1:] for part in pixels] == [(*spec.size, 3) for spec in self.specs]
        assert {part.dtype for part in pixels} == {np.dtype(np.uint8)}
        assert len({len(part) for part in pixels}) == 1
        self.batches.append(len(pixels[0]))
        first, second = (part.reshape(len(part), -1, 3).mean(axis=1) for part in pixels)
        return combine(
            {
                "mask": self._softmax(first),
                "gender": self._softmax(first[:, :2] * 2),
                "age": self._softmax(second[:, ::-1]),
            }
        )

    @staticmethod
    def _softmax(values: np.ndarray) -> np.ndarray:
        powers = np.exp((values - values.max(axis=1, keepdims=True)) / 40)
        return (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A competition folder of small pictures whose centre and border differ in colour."""
    rng = np.random.default_rng(1)
    images = tmp_path / "eval" / "images"
    images.mkdir(parents=True)
    names = []
    for index in range(COUNT):
        pixels = np.empty((40 + index, 50, 3), dtype=np.uint8)
        pixels[:] = rng.integers(0, 256, 3)
        pixels[12:28, 15:35] = rng.integers(0, 256, 3)
        name = f"{rng.integers(1 << 30):x}.png"
        Image.fromarray(pixels).save(images / name)
        names.append(name)
    rows = "".join(f"{name},0\n" for name in names)
    (tmp_path / "eval" / "info.csv").write_text("ImageID,ans\n" + rows)
    return tmp_path / "eval"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "answers" / "output.csv"


def rows_of(out: Path) -> list[dict[str, str]]:
    with out.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def expected(source: Source) -> int:
    """The label of one picture, by itself and by hand."""
    image = read_image(source.path)
    answer = PixelClassifier().predict([spec.resize(image)[None] for spec in SPECS])
    return int(answer[0].argmax())


# --- labels ------------------------------------------------------------------------------------


def test_the_stand_in_is_a_classifier_and_tells_pictures_apart(folder: Path) -> None:
    classifier: Engine = PixelClassifier()
    assert classifier.trained_on is None
    assert len({expected(source) for source in list_pictures(folder)}) > 6


def test_order_names_and_labels(folder: Path, out: Path) -> None:
    sources = list_pictures(folder)
    result = inference(PixelClassifier(), sources, out, batch_size=5)
    assert (result.out, result.pictures, result.errors) == (out, COUNT, ())
    asked = [line.split(",")[0] for line in (folder / "info.csv").read_text().split()[1:]]
    assert [row["ImageID"] for row in rows_of(out)] == asked
    assert [int(row["ans"]) for row in rows_of(out)] == [expected(source) for source in sources]
    text = out.read_bytes()
    assert text.startswith(b"ImageID,ans\n") and text.endswith(b"\n") and b"\r" not in text


def test_batch_size_workers_and_lanes_do_not_show(folder: Path, tmp_path: Path) -> None:
    sources = list_pictures(folder)
    (folder / "images" / sources[6].image_id).write_bytes(b"bad")
    contents = set()
    for batch_size, workers, lanes in itertools.product((1, 2, 7, COUNT, 1000), (1, 3), (1, 3)):
        out = tmp_path / f"{batch_size}-{workers}-{lanes}.csv"
        classifier = PixelClassifier(lanes=lanes)
        inference(
            classifier,
            sources,
            out,
            batch_size=batch_size,
            workers=workers,
            probabilities=True,
        )
        contents.add(out.read_bytes())
        assert sum(classifier.batches) == COUNT - 1
        assert max(classifier.batches) <= batch_size
        assert len(classifier.batches) <= -(-COUNT // batch_size)  # it does batch
    assert len(contents) == 1


def test_lanes_work_at_once_and_not_ahead_of_their_reader(folder: Path) -> None:
    """Two batches are in work together, and what nobody has read yet is a few batches."""
    meeting = threading.Barrier(2, timeout=20)
    started: list[int] = []

    class Meeting(PixelClassifier):
        def predict(self, pixels: Sequence[np.ndarray]) -> np.ndarray:
            started.append(len(started))
            meeting.wait()  # for the other lane
            return super().predict(pixels)

    sources = list_pictures(folder)[:20]
    answers = answered_batches(Meeting(lanes=2), sources, 1, 1)
    first, probabilities = next(answers)
    time.sleep(0.2)  # for lanes that would go on without a reader
    assert len(started) <= 6
    rest = list(answers)
    labels = [int(p.argmax()) for p in [probabilities, *(found for _, found in rest)]]
    assert [first[0].source, *(batch[0].source for batch, _ in rest)] == list(sources)
    assert labels == [expected(source) for source in sources]


def test_one_spec_twice(folder: Path, out: Path) -> None:
    class Same(PixelClassifier):
        def predict(self, pixels: Sequence[np.ndarray]) -> np.ndarray:
            np.testing.assert_array_equal(pixels[0], pixels[1])
            return super().predict(pixels)

    result = inference(Same(specs=(SPECS[0], SPECS[0])), list_pictures(folder), out)
    assert result.pictures == COUNT


def test_probabilities(folder: Path, out: Path) -> None:
    inference(PixelClassifier(), list_pictures(folder), out, probabilities=True)
    rows = rows_of(out)
    assert len(rows[0]) == 2 + 3 + 2 + 3
    for row in rows:
        digits = {}
        for attribute, values in ATTRIBUTES.items():
            shares = [float(row[f"{attribute}: {value}"]) for value in values]
            assert sum(shares) == pytest.approx(1, abs=2e-6)
            digits[attribute] = int(np.argmax(shares))
        assert int(row["ans"]) == MULTI.encode(**digits)


# --- bad pictures ------------------------------------------------------------------------------


def test_bad_pictures_have_an_error_and_the_others_their_labels(folder: Path, out: Path) -> None:
    sources = list_pictures(folder)
    truth = [expected(source) for source in sources]
    sources[0].path.write_bytes(b"bad")
    sources[9].path.unlink()  # a row of info.csv without a file
    sources[-1].path.write_bytes(sources[-1].path.read_bytes()[:-30])
    bad = {0, 9, COUNT - 1}
    result = inference(PixelClassifier(), sources, out, batch_size=4, probabilities=True)
    assert len(result.errors) == 3
    rows = rows_of(out)
    assert list(rows[0])[-1] == "error"
    for index, row in enumerate(rows):
        assert row["ImageID"] == sources[index].image_id
        if index in bad:
            assert row["ans"] == row["mask: worn"] == ""
            assert str(sources[index].path) in row["error"]
            assert row["error"] in result.errors
        else:
            assert (row["ans"], row["error"]) == (str(truth[index]), "")
    assert "no such file" in rows[9]["error"]


def test_a_batch_of_bad_pictures_alone(folder: Path, out: Path) -> None:
    sources = list_pictures(folder)
    for source in sources[4:8]:
        source.path.write_bytes(b"bad")
    classifier = PixelClassifier()
    result = inference(classifier, sources, out, batch_size=4)
    assert len(result.errors) == 4
    assert 0 not in classifier.batches


def test_all_bad(folder: Path, out: Path) -> None:
    sources = list_pictures(folder)
    for source in sources:
        source.path.write_bytes(b"bad")
    with pytest.raises(DataError, match=f"none of {COUNT} pictures can be read, first: "):
        inference(PixelClassifier(), sources, out)
    assert not out.exists()


def test_no_pictures_at_all(out: Path) -> None:
    with pytest.raises(DataError):
        inference(PixelClassifier(), [], out)


def test_strict(folder: Path, out: Path) -> None:
    sources = list_pictures(folder)
    sources[9].path.write_bytes(b"bad")
    out.parent.mkdir()
    out.write_text("yesterday's answers")
    with pytest.raises(PictureError) as caught:
        inference(PixelClassifier(), sources, out, batch_size=4, strict=True)
    assert str(sources[9].path) in str(caught.value)
    assert out.read_text() == "yesterday's answers"
    assert [path.name for path in out.parent.iterdir()] == ["output.csv"]


# --- names -------------------------------------------------------------------------------------


def test_names_of_all_kinds_come_back(tmp_path: Path, out: Path) -> None:
    import unicodedata

    names = ["가 나.png", unicodedata.normalize("NFD", "다.png"), 'a,"b".png', "=1+1.png", "é.png"]
    folder = tmp_path / "odd"
    folder.mkdir()
    for name in names:
        Image.new("RGB", (40, 40), "teal").save(folder / name)
    inference(PixelClassifier(), list_pictures(folder), out)
    assert sorted(row["ImageID"] for row in rows_of(out)) == sorted(names)


def test_a_name_that_is_no_text(tmp_path: Path, out: Path) -> None:
    folder = tmp_path / "odd"
    folder.mkdir()
    Image.new("RGB", (40, 40), "teal").save(folder / "good.png")
    try:
        Image.new("RGB", (40, 40), "teal").save(folder / "bad\udce9.png")
    except (OSError, UnicodeError):
        pytest.skip("this file system has only names that are text")
    inference(PixelClassifier(), list_pictures(folder), out)
    assert out.read_bytes().splitlines()[1].split(b",")[0] == b"bad\xe9.png"  # as it is on the disk


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_formulas_are_escaped_in_csv_where_asked(tmp_path: Path, suffix: str) -> None:
    dangerous = ["=1+1.png", "+1.png", "-1.png", "@x.png", "\tx.png", "\rx.png"]
    harmless = ["a=1.png", "'=1.png", "가.png", "1.png", " =.png"]
    sources = [Source(name, tmp_path / "a.png") for name in dangerous + harmless]
    Image.new("RGB", (40, 40), "teal").save(tmp_path / "a.png")
    sources.append(Source("=bad.png", tmp_path / "none.png"))
    plain, escaped = (tmp_path / f"{name}{suffix}" for name in ("plain", "escaped"))
    inference(PixelClassifier(), sources, plain)
    inference(PixelClassifier(), sources, escaped, escape_formulas=True)
    if suffix == ".parquet":
        assert escaped.read_bytes() == plain.read_bytes()
        return
    assert [row["ImageID"] for row in rows_of(plain)] == [source.image_id for source in sources]
    names = [f"'{name}" for name in dangerous] + harmless + ["'=bad.png"]
    assert [row["ImageID"] for row in rows_of(escaped)] == names
    for name in ("ans", "error"):
        assert [row[name] for row in rows_of(plain)] == [row[name] for row in rows_of(escaped)]


# --- pictures that change ----------------------------------------------------------------------


class Meddling(PixelClassifier):
    """While the first batch is computed, somebody works in the folder."""

    def __init__(self, meddle: Callable[[], None]) -> None:
        super().__init__()
        self.meddle = meddle

    def predict(self, pixels: Sequence[np.ndarray]) -> np.ndarray:
        if not self.batches:
            self.meddle()
        return super().predict(pixels)


def test_pictures_that_vanish_or_change_on_the_way(folder: Path, out: Path) -> None:
    sources = list_pictures(folder)
    vanished, cut, replaced, swapped = (sources[index] for index in (20, 16, 15, 22))
    before = {source.image_id: expected(source) for source in sources}

    def meddle() -> None:
        vanished.path.unlink()
        cut.path.write_bytes(cut.path.read_bytes()[:60])
        replaced.path.unlink()
        replaced.path.mkdir()
        shutil.copy(sources[0].path, swapped.path)

    inference(Meddling(meddle), sources, out, batch_size=2)
    rows = {row["ImageID"]: row for row in rows_of(out)}
    assert list(rows) == [source.image_id for source in sources]
    for source in (vanished, cut, replaced):
        assert rows[source.image_id]["ans"] == ""
        assert str(source.path) in rows[source.image_id]["error"]
    before[swapped.image_id] = before[sources[0].image_id]  # what it is now
    for name, row in rows.items():
        if not row["error"]:
            assert int(row["ans"]) == before[name]
    assert sum(bool(row["error"]) for row in rows.values()) == 3


# --- all or nothing ----------------------------------------------------------------------------


class Failing(PixelClassifier):
    def predict(self, pixels: Sequence[np.ndarray]) -> np.ndarray:
        if len(self.batches) >= 2:
            raise RuntimeError("out of memory")
        return super().predict(pixels)


@pytest.mark.parametrize("before", [None, "yesterday's answers"])
@pytest.mark.parametrize("lanes", [1, 2])
def test_output_is_untouched_when_labelling_fails(
    folder: Path, out: Path, before: str | None, lanes: int
) -> None:
    out.parent.mkdir()
    if before:
        out.write_text(before)
    with pytest.raises(RuntimeError, match="out of memory"):
        inference(Failing(lanes=lanes), list_pictures(folder), out, batch_size=4)
    assert [path.read_text() for path in out.parent.iterdir()] == ([before] if before else [])


@pytest.mark.parametrize("lanes", [1, 2])
def test_too_little_memory_for_a_picture_is_no_error_of_it(
    folder: Path, out: Path, lanes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = list_pictures(folder)
    real = Image.open

    def fail(content: io.BytesIO, **options: Any) -> Image.Image:
        if content.getvalue() == sources[9].path.read_bytes():
            raise MemoryError
        return real(content, **options)

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(MemoryError, match=f"{sources[9].image_id}: out of memory"):
        inference(PixelClassifier(lanes=lanes), sources, out, batch_size=4)
    assert list(out.parent.iterdir()) == []


def test_a_folder_that_cannot_be_made(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=str(tmp_path / "file")):
        inference(PixelClassifier(), list_pictures(folder), tmp_path / "file" / "output.csv")


# --- going on ----------------------------------------------------------------------------------


class Killed(PixelClassifier):
    """Ends the job after so many batches, as a kill would."""

    def __init__(self, batches: int) -> None:
        super().__init__()
        self.left = batches

    def predict(self, pixels: Sequence[np.ndarray]) -> np.ndarray:
        if self.left == 0:
            raise KeyboardInterrupt
        self.left -= 1
        return super().predict(pixels)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@pytest.mark.parametrize("batches", [0, 1, 2, 3, 5])
def test_a_job_that_goes_on_ends_with_the_same_bytes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, batches: int
) -> None:
    monkeypatch.setattr(labelling, "PART", 8)  # two batches
    sources = list_pictures(folder)
    sources[2].path.write_bytes(b"bad")
    whole, broken = tmp_path / f"whole.{suffix}", tmp_path / f"broken.{suffix}"
    options = {"batch_size": 4, "probabilities": True}
    inference(PixelClassifier(), sources, whole, **options)
    with pytest.raises(KeyboardInterrupt):
        inference(Killed(batches), sources, broken, **options)
    assert not broken.exists()
    assert parts_path(broken).exists() == (batches >= 2)  # a finished part is kept
    classifier = PixelClassifier()
    inference(classifier, sources, broken, **options, resume=True)
    assert len(classifier.batches) == 6 - batches // 2 * 2  # finished parts are not done again
    assert broken.read_bytes() == whole.read_bytes()
    assert not parts_path(broken).exists()


def test_a_strict_job_does_not_go_on_after_bad_pictures(
    folder: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(labelling, "PART", 8)
    sources = list_pictures(folder)
    for index in (2, 5, 20):
        sources[index].path.write_bytes(b"bad")
    with pytest.raises(KeyboardInterrupt):
        inference(Killed(3), sources, out, batch_size=4)
    classifier = PixelClassifier()
    reason = f"{re.escape(str(sources[2].path))}: .*when {re.escape(str(parts_path(out)))} was"
    with pytest.raises(PictureError, match=reason):
        inference(classifier, sources, out, batch_size=4, strict=True, resume=True)
    assert classifier.batches == []
    assert not out.exists()
    inference(classifier, sources, out, batch_size=4, resume=True)  # what was done is still there
    assert sum(classifier.batches) == COUNT - 8 - 1


def test_a_full_disk_leaves_parts_to_go_on_from(
    folder: Path,
    tmp_path: Path,
    tiny_disk: Path,
    fill: Callable[[Path], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(labelling, "PART", 4)
    sources = list_pictures(folder)
    whole, out = tmp_path / "whole.csv", tiny_disk / "output.csv"
    inference(PixelClassifier(), sources, whole, batch_size=4)

    class Filling(PixelClassifier):
        def predict(self, pixels: Sequence[np.ndarray]) -> np.ndarray:
            if len(self.batches) == 3:
                fill(tiny_disk)
            return super().predict(pixels)

    with pytest.raises(OSError, match="No space left") as caught:
        inference(Filling(), sources, out, batch_size=4)
    assert str(parts_path(out)) in str(caught.value.filename)
    assert not out.exists()
    assert len(list(parts_path(out).glob("*.jsonl"))) == 3
    (tiny_disk / "filler").unlink()
    engine = PixelClassifier()
    inference(engine, sources, out, batch_size=4, resume=True)
    assert sum(engine.batches) == len(sources) - 12
    assert out.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in tiny_disk.iterdir()) == ["output.csv", "output.csv.json"]


def test_parts_of_another_job_are_not_touched(
    folder: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(labelling, "PART", 8)
    sources = list_pictures(folder)
    with pytest.raises(KeyboardInterrupt):
        inference(Killed(3), sources, out, batch_size=4)
    before = sorted((path.name, path.read_bytes()) for path in parts_path(out).iterdir())
    with pytest.raises(DataError, match="go on with --resume"):
        inference(PixelClassifier(), sources, out, batch_size=4)
    others = PixelClassifier()
    others.models = (ModelFile("multi", "c.pt", "2" * 64),)
    for engine, listed, size in (
        (PixelClassifier(), sources, 2),
        (PixelClassifier(), sources[::-1], 4),
        (others, sources, 4),
    ):
        with pytest.raises(DataError, match="of another job"):
            inference(engine, listed, out, batch_size=size, resume=True)
    with pytest.raises(DataError, match="of another job"):  # their cells would be empty
        inference(PixelClassifier(), sources, out, batch_size=4, probabilities=True, resume=True)
    assert sorted((p.name, p.read_bytes()) for p in parts_path(out).iterdir()) == before


def test_the_same_names_in_another_folder_are_another_job(
    folder: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(labelling, "PART", 8)
    shutil.copytree(folder, tmp_path / "other" / folder.name)
    monkeypatch.chdir(folder.parent)
    with pytest.raises(KeyboardInterrupt):
        inference(Killed(3), list_pictures(Path(folder.name)), out, batch_size=4)
    monkeypatch.chdir(tmp_path / "other")
    with pytest.raises(DataError, match="of another job"):
        inference(
            PixelClassifier(), list_pictures(Path(folder.name)), out, batch_size=4, resume=True
        )


def test_what_kills_left_beside_the_output_goes(folder: Path, out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    lost = [out.with_name(f".{name}.123.tmp") for name in (out.name, f"{out.name}.json")]
    others = [out.with_name(name) for name in (f".{out.name}.x.tmp", ".b.csv.1.tmp")]
    for path in (*lost, *others):
        path.touch()
    inference(PixelClassifier(), list_pictures(folder), out)
    assert not any(path.exists() for path in lost)
    assert all(path.exists() for path in others)


def test_a_folder_of_somebody_else_is_not_touched(folder: Path, out: Path) -> None:
    parts_path(out).mkdir(parents=True)
    (parts_path(out) / "mine.txt").write_text("mine")
    with pytest.raises(DataError, match="is in the way"):
        inference(PixelClassifier(), list_pictures(folder), out)
    assert (parts_path(out) / "mine.txt").read_text() == "mine"


@pytest.mark.skipif(sys.platform == "win32", reason="forks")
@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_killed_in_twenty_places(tmp_path: Path, suffix: str) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for index in range(250):
        colour = (index, 255 - index, 7 * index % 256)
        Image.new("RGB", (40, 40), colour).save(folder / f"{index:03d}.png")
    (folder / "075.png").write_bytes(b"bad")
    outs = [tmp_path / f"{name}.{suffix}" for name in ("whole", "killed")]
    script = Path(__file__).with_name("kill_labelling.py")
    for out, kills, lanes in zip(outs, (0, 24), (1, 2), strict=True):
        argv = [sys.executable, str(script), str(folder), str(out), str(kills), str(lanes)]
        done = subprocess.run(argv, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        killed = int(done.stdout)
    assert killed >= 20
    assert outs[0].read_bytes() == outs[1].read_bytes()
    assert not parts_path(outs[1]).exists()


def test_two_jobs_do_not_write_one_output(folder: Path, out: Path) -> None:
    sources = list_pictures(folder)
    with only_job(out):
        with pytest.raises(DataError, match=r"another job is writing it"):
            inference(PixelClassifier(), sources, out)
        link = out.with_name("link.csv")
        link.symlink_to(out)
        with pytest.raises(DataError, match=r"another job is writing it"):
            inference(PixelClassifier(), sources, link)
        assert not out.exists()
    inference(PixelClassifier(), sources, out)
    assert not parts_path(out).exists()


# --- provenance --------------------------------------------------------------------------------


def test_provenance_lies_beside_the_labels(folder: Path, out: Path) -> None:
    sources = list_pictures(folder)
    sources[3].path.write_bytes(b"bad")
    result = inference(PixelClassifier(), sources, out)
    assert result.seen_in_training is None
    found = read_provenance(out)
    assert found is not None
    assert (found.pictures, found.errors, found.seen_in_training) == (COUNT, 1, None)
    assert found.models == PixelClassifier.models
    values = json.loads(provenance_path(out).read_text("utf-8"))
    assert values["labels_sha256"] == hashlib.sha256(out.read_bytes()).hexdigest()
    out.write_bytes(out.read_bytes() + b"x.jpg,3\n")
    assert read_provenance(out) is None  # it is that of another file


def test_seen_pictures_and_people_are_counted(tmp_path: Path, out: Path) -> None:
    for person in ("000001_male_Asian_20", "000002_male_Asian_20", "000003_male_Asian_20"):
        folder = tmp_path / "people" / person
        folder.mkdir(parents=True)
        for stem in ("mask1", "normal"):
            shade = int(hashlib.md5(f"{person}{stem}".encode()).hexdigest()[:2], 16)
            Image.new("RGB", (40, 40), (shade, 9, 9)).save(folder / f"{stem}.png")
    sources = list_pictures(tmp_path / "people")
    picture = hashlib.sha256(sources[2].path.read_bytes()).hexdigest()
    known = frozenset({fingerprint("000001_male_Asian_20"), fingerprint(picture)})
    result = inference(PixelClassifier(known), sources, out)
    assert result.seen_in_training == 3  # two of the first person, one of the second
    found = read_provenance(out)
    assert found is not None and found.seen_in_training == 3
    assert inference(PixelClassifier(frozenset()), sources, out).seen_in_training == 0
    # Whose start does not say whom it has seen: what is known counts, and nobody is a stranger.
    assert inference(PixelClassifier(known | {OTHERS}), sources, out).seen_in_training == 3
    assert inference(PixelClassifier(frozenset({OTHERS})), sources, out).seen_in_training is None


def test_people_with_korean_names_are_known_in_either_form(tmp_path: Path, out: Path) -> None:
    import unicodedata

    person = unicodedata.normalize("NFC", "000001_male_한국_20")
    folder = tmp_path / "people" / unicodedata.normalize("NFD", person)
    folder.mkdir(parents=True)
    Image.new("RGB", (40, 40), "teal").save(folder / "normal.png")
    # Training remembers Profile.person, which is NFC whatever is on the disk.
    classifier = PixelClassifier(frozenset({fingerprint(person)}))
    result = inference(classifier, list_pictures(tmp_path / "people"), out)
    assert result.seen_in_training == 1


# --- parquet -----------------------------------------------------------------------------------


def test_parquet(folder: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    sources = list_pictures(folder)
    sources[3].path.write_bytes(b"bad")
    inference(PixelClassifier(), sources, tmp_path / "a.parquet", probabilities=True)
    inference(PixelClassifier(), sources, tmp_path / "a.csv", probabilities=True)
    table = parquet.read_table(tmp_path / "a.parquet").to_pydict()
    rows = rows_of(tmp_path / "a.csv")
    assert list(table) == list(rows[0])
    assert table["ImageID"] == [row["ImageID"] for row in rows]
    assert table["ans"] == [int(row["ans"]) if row["ans"] else None for row in rows]
    assert [text or "" for text in table["error"]] == [row["error"] for row in rows]
    found = read_provenance(tmp_path / "a.parquet")
    assert found is not None and found.errors == 1


def test_parquet_without_pyarrow_says_what_to_install(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'maskcls\[parquet\]'"):
        inference(PixelClassifier(), list_pictures(folder), tmp_path / "a.parquet")
    assert not list(tmp_path.glob("*.parquet*"))
