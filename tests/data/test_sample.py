import csv
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from maskcls.data import sample
from maskcls.data.cartoon import SIZE, draw_picture
from maskcls.data.profiles import read_profiles
from maskcls.data.sample import (
    EVAL_START,
    LEAST_PEOPLE,
    MARKER,
    ensure_sample,
    make_sample,
    plan_people,
)
from maskcls.errors import ConfigError, DataError
from maskcls.labels import ATTRIBUTES, MASK_OF_STEM, MULTI, AgeLabels, GenderLabels, MaskLabels

SEED = 7
PEOPLE = 8  # with this seed they have pictures of every suffix
SMALL = {"people": PEOPLE, "eval_people": LEAST_PEOPLE, "seed": SEED, "progress": False}


def rows_of(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


def bytes_of(root: Path) -> dict[str, bytes]:
    files = (path for path in root.rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sample(tmp_path_factory.mktemp("sample") / "demo", **SMALL)


# --- the plan ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("first", "count"), [(1, 160), (EVAL_START + 1, 60)])
def test_default_plan_holds_all_classes_and_a_quarter_are_old(first: int, count: int) -> None:
    people = plan_people(first, count, SEED)
    labels = {person.answer(mask) for person in people for mask in MaskLabels}
    assert labels == set(range(MULTI.num_classes))
    groups = Counter(person.age_group for person in people)
    assert 0.2 <= groups[AgeLabels.OLD] / count <= 0.3
    assert all(18 <= person.age <= 75 for person in people)
    genders = Counter(person.gender for person in people)
    assert abs(genders[GenderLabels.MALE] - genders[GenderLabels.FEMALE]) <= len(AgeLabels)


def test_race_varies_within_every_gender_and_age_group() -> None:
    races: dict[tuple[int, int], set[str]] = {}
    for person in plan_people(1, 160, SEED):
        races.setdefault((person.gender, person.age_group), set()).add(person.race)
    assert len(races) == LEAST_PEOPLE
    assert all(len(found) >= 4 for found in races.values())


def test_a_larger_plan_begins_with_the_smaller_one() -> None:
    assert plan_people(1, 20, SEED)[:8] == plan_people(1, 8, SEED)


def test_answer_is_the_class_of_the_competition() -> None:
    for person in plan_people(1, LEAST_PEOPLE, SEED):
        for mask in MaskLabels:
            digits = MULTI.decode(person.answer(mask))
            assert digits == {"mask": mask, "gender": person.gender, "age": person.age_group}


# --- the pictures ------------------------------------------------------------------------------


def test_pictures_differ_by_stem_person_and_seed() -> None:
    first, second = plan_people(1, 2, SEED)
    pictures = [draw_picture(first, stem, SEED) for stem in MASK_OF_STEM]
    pictures += [draw_picture(second, "normal", SEED), draw_picture(first, "normal", SEED + 1)]
    assert len({picture.tobytes() for picture in pictures}) == len(pictures)
    assert {(picture.size, picture.mode) for picture in pictures} == {(SIZE, "RGB")}


# --- the folder --------------------------------------------------------------------------------


def test_train_layout(small: Path) -> None:
    header, *rows = rows_of(small / "train" / "train.csv")
    assert header == ["id", "gender", "race", "age", "path"]
    assert all(row[-1] == "_".join(row[:-1]) and len(row[0]) == 6 for row in rows)
    folders = sorted((small / "train" / "images").iterdir())
    assert [folder.name for folder in folders] == sorted(row[-1] for row in rows)
    for folder in folders:
        assert sorted(path.stem for path in folder.iterdir()) == sorted(MASK_OF_STEM)
    suffixes = {path.suffix for folder in folders for path in folder.iterdir()}
    assert suffixes == {".jpg", ".jpeg", ".png"}


def test_suffix_says_the_true_format_and_size_is_the_competitions(small: Path) -> None:
    formats = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG"}
    for path in [*small.glob("train/images/*/*"), *small.glob("eval/images/*")]:
        with Image.open(path) as image:
            assert (image.size, image.format) == ((384, 512), formats[path.suffix]), path


def test_profiles_read_the_train_folder(small: Path) -> None:
    profiles = read_profiles(small / "train")
    assert len(profiles) == PEOPLE
    assert {(profile.gender, profile.age_group) for profile in profiles} == {
        (gender, age) for gender in GenderLabels for age in AgeLabels
    }
    for profile in profiles:
        counts = Counter(picture.mask for picture in profile.pictures)
        assert counts == {MaskLabels.MASK: 5, MaskLabels.INCORRECT: 1, MaskLabels.NORMAL: 1}


def test_eval_layout_and_label_counts(small: Path) -> None:
    info, truth = rows_of(small / "eval" / "info.csv"), rows_of(small / "eval" / "gt.csv")
    assert info[0] == truth[0] == ["ImageID", "ans"]
    names = [name for name, _ in truth[1:]]
    assert [name for name, _ in info[1:]] == names
    assert {answer for _, answer in info[1:]} == {"0"}
    assert sorted(names) == sorted(path.name for path in (small / "eval" / "images").iterdir())
    for name in names:
        digits, suffix = name.split(".")
        assert (len(digits), suffix) == (40, "jpg")
        int(digits, 16)
    # One person of each gender and age group, with five pictures, one and one.
    per_class = Counter(int(answer) for _, answer in truth[1:])
    assert len(per_class) == MULTI.num_classes
    for label, count in per_class.items():
        assert count == (5 if MULTI.decode(label)["mask"] == MaskLabels.MASK else 1)


def test_eval_rows_are_shuffled(small: Path) -> None:
    rows = rows_of(small / "eval" / "gt.csv")[1:]
    answers = [int(answer) for _, answer in rows]
    person_by_person = [
        person.answer(mask)
        for person in plan_people(EVAL_START + 1, LEAST_PEOPLE, SEED)
        for mask in MASK_OF_STEM.values()
    ]
    assert sorted(answers) == sorted(person_by_person)
    assert answers != person_by_person
    assert [name for name, _ in rows] != sorted(name for name, _ in rows)


def test_truth_belongs_to_the_picture(small: Path, tmp_path: Path) -> None:
    truth = {name: int(answer) for name, answer in rows_of(small / "eval" / "gt.csv")[1:]}
    pictures = {path.read_bytes(): path.name for path in (small / "eval" / "images").iterdir()}
    person = plan_people(EVAL_START + 1, LEAST_PEOPLE, SEED)[-1]
    for stem, mask in MASK_OF_STEM.items():
        draw_picture(person, stem, SEED).save(tmp_path / "again.jpg", quality=90)
        assert truth[pictures[(tmp_path / "again.jpg").read_bytes()]] == person.answer(mask)


def test_people_of_eval_are_not_in_train(small: Path) -> None:
    train = {row[0] for row in rows_of(small / "train" / "train.csv")[1:]}
    evaluated = {person.row[0] for person in plan_people(EVAL_START + 1, LEAST_PEOPLE, SEED)}
    assert not train & evaluated
    trained = {path.read_bytes() for path in small.glob("train/images/*/*")}
    assert not trained & {path.read_bytes() for path in small.glob("eval/images/*")}


def test_same_seed_same_bytes(small: Path, tmp_path: Path) -> None:
    assert bytes_of(make_sample(tmp_path / "again", **SMALL)) == bytes_of(small)


# --- whole or not there ------------------------------------------------------------------------


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder's life without the seconds of drawing."""
    blank = Image.new("RGB", (4, 4))
    monkeypatch.setattr(sample, "draw_picture", lambda *_: blank)


def interrupt(*_: object) -> Image.Image:
    raise KeyboardInterrupt


def test_interrupted_run_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample, "draw_picture", interrupt)
    with pytest.raises(KeyboardInterrupt):
        make_sample(tmp_path / "demo", **SMALL)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("undrawn")
def test_interrupted_remake_keeps_the_old_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_sample(tmp_path / "demo", **SMALL)
    before = bytes_of(root)
    monkeypatch.setattr(sample, "draw_picture", interrupt)
    with pytest.raises(KeyboardInterrupt):
        ensure_sample(root, **SMALL | {"seed": SEED + 1})
    assert bytes_of(root) == before
    assert list(tmp_path.iterdir()) == [root]


@pytest.mark.parametrize("is_sample", [False, True])
def test_what_somebody_puts_there_on_the_way_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_sample: bool
) -> None:
    root = tmp_path / "demo"
    if is_sample:
        make_sample(root, **SMALL)
    draw = sample.draw_picture

    def put(*args: Any) -> Any:
        (root / "train").mkdir(parents=True, exist_ok=True)
        (root / "train" / "mine.jpg").write_bytes(b"mine")
        return draw(*args)

    monkeypatch.setattr(sample, "draw_picture", put)
    with pytest.raises(DataError, match="name another folder"):
        make_sample(root, **SMALL | {"seed": SEED + 1})
    assert (root / "train" / "mine.jpg").read_bytes() == b"mine"
    assert list(tmp_path.iterdir()) == [root]


@pytest.mark.usefixtures("undrawn")
def test_ensure_reuses_a_complete_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = ensure_sample(tmp_path / "new" / "demo", **SMALL)
    monkeypatch.setattr(sample, "draw_picture", interrupt)
    assert ensure_sample(root, **SMALL) == root


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("change", [{"seed": 8}, {"people": 7}, {"eval_people": 7}])
def test_ensure_remakes_another_sample(tmp_path: Path, change: dict[str, int]) -> None:
    root = ensure_sample(tmp_path / "demo", **SMALL)
    ensure_sample(root, **SMALL | change)
    marker = json.loads((root / MARKER).read_text())
    assert marker.items() >= change.items()
    assert list(tmp_path.iterdir()) == [root]


@pytest.mark.usefixtures("undrawn")
def test_ensure_remakes_an_older_or_damaged_sample(tmp_path: Path) -> None:
    root = ensure_sample(tmp_path / "demo", **SMALL)
    complete = bytes_of(root)
    marker = json.loads(complete[MARKER])
    (root / MARKER).write_text(json.dumps(marker | {"version": 0}))
    ensure_sample(root, **SMALL)
    assert bytes_of(root) == complete
    (root / "eval" / "gt.csv").unlink()
    ensure_sample(root, **SMALL)
    assert bytes_of(root) == complete


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("text", ['{"version": 0}', "", "[1", "[1]", '{"files": 3}'])
def test_whose_files_those_of_a_damaged_marker_are_is_not_known(tmp_path: Path, text: str) -> None:
    root = ensure_sample(tmp_path / "demo", **SMALL)
    (root / MARKER).write_text(text)
    before = bytes_of(root)
    with pytest.raises(DataError, match="is no sample"):
        ensure_sample(root, **SMALL)
    assert bytes_of(root) == before


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("change", [{}, {"people": 7}])
@pytest.mark.parametrize(
    "name", ["thesis.txt", "train/images/000900_male_Asian_24/mask1.jpg", "train/train.csv"]
)
def test_a_sample_with_something_else_in_it_is_left_alone(
    tmp_path: Path, name: str, change: dict[str, int]
) -> None:
    root = ensure_sample(tmp_path / "demo", **SMALL)
    (root / name).parent.mkdir(exist_ok=True)
    (root / name).write_text("years of work")
    before = bytes_of(root)
    with pytest.raises(DataError, match=f"1 files .* first: {name};"):
        ensure_sample(root, **SMALL | change)
    assert bytes_of(root) == before
    assert list(tmp_path.iterdir()) == [root]


@pytest.mark.usefixtures("undrawn")
def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()
    assert (make_sample(tmp_path / "demo", **SMALL) / MARKER).is_file()


def test_a_folder_that_is_no_sample_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(DataError, match="is no sample"):
        ensure_sample(tmp_path, **SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_folder_that_cannot_be_made_is_a_data_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot write the sample"):
        make_sample(tmp_path / "file" / "demo", **SMALL)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"people": LEAST_PEOPLE - 1}, "people 5 is not in 6"),
        ({"eval_people": 0}, "eval_people 0 is not in 6"),
        ({"people": EVAL_START}, "people 500000 is not in"),
        ({"seed": -1}, "seed -1 is negative"),
    ],
)
def test_numbers_that_do_not_fit(tmp_path: Path, change: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_sample(tmp_path / "demo", **SMALL | change)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("progress", [True, False])
def test_progress_bar_is_drawn_when_wanted_and_seen(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    progress: bool,
    terminal: bool,
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    make_sample(tmp_path / "demo", **SMALL | {"progress": progress})
    assert ("98/98" in capsys.readouterr().err) is (progress and terminal)


def test_least_people_follows_from_the_labels() -> None:
    assert len(ATTRIBUTES["gender"]) * len(ATTRIBUTES["age"]) == LEAST_PEOPLE
