"""The built-in sample: faces drawn by this program, in exactly the competition's layout, so that
the quick start runs with no data at all.

    ROOT/sample.json                                    version, seed, counts, digest of each file:
                                                        marks it complete
    ROOT/train/train.csv                                id,gender,race,age,path
    ROOT/train/images/000001_male_Asian_24/mask1.jpg    seven pictures a person
    ROOT/eval/info.csv, gt.csv                          ImageID,ans: blank, and the truth
    ROOT/eval/images/<40 hex digits>.jpg                other people than in train

The faces are schematic cartoons. Each label has drawn signs (long hair or heavy brows, grey hair
and wrinkles, where the mask sits), made to be learnt in a minute. A score on them says that the
program works; nothing about real people, and no score on photos, follows from them.

The same seed gives the same bytes with the same versions of numpy and Pillow.
"""

from __future__ import annotations

import csv
import hashlib
import json
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from PIL import Image
from tqdm import tqdm

from maskcls.data.cartoon import RACES, SamplePerson, draw_picture
from maskcls.data.profiles import PROFILE_COLUMNS
from maskcls.errors import ConfigError, DataError
from maskcls.labels import AGE_BOUNDS, MASK_OF_STEM, AgeLabels, GenderLabels

VERSION = 1  # raise it whenever the pictures change, so that old samples are remade
MARKER = "sample.json"
_FILES = "files"  # of the marker
LEAST_PEOPLE = len(GenderLabels) * len(AgeLabels)  # one for each gender and age group
EVAL_START = 500_000  # eval ids begin above it, so the eval set is the same for any size of train
ANSWER_COLUMNS = ("ImageID", "ans")

_AGES = (18, *AGE_BOUNDS, 76)  # years; where each group begins, and the end of the last
# A quarter of the people are 60 or over; six in a row hold each group twice.
_GROUP_CYCLE = (*AgeLabels, *AgeLabels, AgeLabels.YOUNG, AgeLabels.MIDDLE)
_SUFFIXES, _SUFFIX_SHARES = (".jpg", ".jpeg", ".png"), (0.7, 0.15, 0.15)
# Last word of a generator's key. Never 0: numpy takes (7, 1) and (7, 1, 0) for the same key.
_PLAN = 1  # `cartoon` has the words from 2 on


def plan_people(first: int, count: int, seed: int) -> list[SamplePerson]:
    """The people with the ids `first`, `first + 1`, …: every gender and age group is among any
    `LEAST_PEOPLE` of them counted from the first; race is drawn apart from the labels."""
    people = []
    seen = dict.fromkeys(AgeLabels, 0)
    for position in range(count):
        group = _GROUP_CYCLE[position % len(_GROUP_CYCLE)]
        gender = GenderLabels(seen[group] % len(GenderLabels))
        seen[group] += 1
        rng = np.random.default_rng((seed, first + position, _PLAN))
        age = int(rng.integers(_AGES[group], _AGES[group + 1]))
        race = RACES[rng.integers(len(RACES))]
        people.append(SamplePerson(first + position, gender, race, age))
    return people


def ensure_sample(
    root: Path, people: int = 160, eval_people: int = 60, seed: int = 7, progress: bool = True
) -> Path:
    """`root`, holding the sample: the one that is there if it is complete and of this version, seed
    and size, otherwise a new one. Raises as `make_sample`."""
    wanted = _marker(people, eval_people, seed)
    try:
        marker = _read_marker(root)
        if marker.items() >= wanted.items() and marker.get(_FILES) == _digests(root):
            return root
    except OSError as error:
        raise DataError(f"{root}: {error.strerror or error}") from error
    return make_sample(root, people, eval_people, seed, progress)


def make_sample(
    root: Path, people: int = 160, eval_people: int = 60, seed: int = 7, progress: bool = True
) -> Path:
    """Draw the sample and put it at `root`, in place of an older sample; return `root`.

    It is drawn in a hidden sibling folder and renamed at the end: `root` is whole or not there.

    Args:
        people: people in `train/`, seven pictures each.
        eval_people: other people, in `eval/`, seven pictures each.
        progress: show a progress bar on stderr.

    Raises:
        ConfigError: too few or too many people, or a negative seed.
        DataError: `root` holds something that is not a sample's, or cannot be written.
    """
    for name, count in (("people", people), ("eval_people", eval_people)):
        if not LEAST_PEOPLE <= count < EVAL_START:
            raise ConfigError(f"{name} {count} is not in {LEAST_PEOPLE}..{EVAL_START - 1}")
    if seed < 0:
        raise ConfigError(f"seed {seed} is negative")
    try:
        if root.exists():
            _check_replaceable(root)
        root.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root.parent, prefix=f".{root.name}-") as scratch:
            draft = Path(scratch) / "new"
            total = (people + eval_people) * len(MASK_OF_STEM)
            hidden = None if progress else True  # None: shown where somebody looks
            with tqdm(total=total, desc="sample", unit="picture", disable=hidden) as bar:
                _write_train(draft / "train", plan_people(1, people, seed), seed, bar)
                _write_eval(
                    draft / "eval", plan_people(EVAL_START + 1, eval_people, seed), seed, bar
                )
            marker = _marker(people, eval_people, seed) | {_FILES: _digests(draft)}
            (draft / MARKER).write_text(json.dumps(marker, indent=2) + "\n", encoding="utf-8")
            if root.exists():
                _check_replaceable(root)  # again: drawing takes a while
                root.rename(Path(scratch) / "old")  # goes with the scratch folder
            draft.rename(root)
    except OSError as error:
        raise DataError(f"{root}: cannot write the sample: {error.strerror or error}") from error
    return root


def _marker(people: int, eval_people: int, seed: int) -> dict[str, int]:
    return {"version": VERSION, "seed": seed, "people": people, "eval_people": eval_people}


def _read_marker(root: Path) -> dict[str, Any]:
    try:
        marker = json.loads((root / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return marker if isinstance(marker, dict) else {}


def _digests(root: Path) -> dict[str, str]:
    """Of every file but the marker."""
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        for path in sorted(root.rglob("*"))
        if path.is_file() and path != root / MARKER
    }


def _check_replaceable(root: Path) -> None:
    """An empty folder is, and a sample, also one that has lost files or its marker's other values.
    A file that is not as it was drawn may be somebody's own.

    Raises:
        DataError: `root` holds such a file, or is no sample.
    """
    known = _read_marker(root).get(_FILES)
    if not isinstance(known, dict):
        if root.is_dir() and not any(root.iterdir()):
            return
        raise DataError(
            f"{root} is there and is no sample that this version drew; name another folder, or "
            "remove it if nothing in it is yours"
        )
    own = [name for name, digest in _digests(root).items() if known.get(name) != digest]
    if own:
        raise DataError(
            f"{root} holds {len(own)} files that are not as the sample was drawn, first: {own[0]}; "
            "name another folder, or move them if they are yours and remove it"
        )


def _write_train(
    folder: Path, people: Sequence[SamplePerson], seed: int, bar: tqdm[NoReturn]
) -> None:
    for person in people:
        home = folder / "images" / person.row[-1]
        home.mkdir(parents=True)
        rng = np.random.default_rng((seed, person.number, _PLAN, 1))
        suffixes = rng.choice(_SUFFIXES, len(MASK_OF_STEM), p=_SUFFIX_SHARES)
        for stem, suffix in zip(MASK_OF_STEM, suffixes, strict=True):
            _save(draw_picture(person, stem, seed), home / f"{stem}{suffix}")
            bar.update()
    _write_csv(folder / "train.csv", PROFILE_COLUMNS, (person.row for person in people))


def _write_eval(
    folder: Path, people: Sequence[SamplePerson], seed: int, bar: tqdm[NoReturn]
) -> None:
    images = folder / "images"
    images.mkdir(parents=True)
    rows = []
    for person in people:
        for stem, mask in MASK_OF_STEM.items():
            # The name says nothing of the labels. sha1 has the competition's 40 hex digits.
            name = hashlib.sha1(f"{seed}/{person.number}/{stem}".encode()).hexdigest() + ".jpg"
            _save(draw_picture(person, stem, seed), images / name)
            rows.append((name, str(person.answer(mask))))
            bar.update()
    order = np.random.default_rng((seed, EVAL_START, _PLAN)).permutation(len(rows))
    rows = [rows[position] for position in order]
    _write_csv(folder / "info.csv", ANSWER_COLUMNS, ((name, "0") for name, _ in rows))
    _write_csv(folder / "gt.csv", ANSWER_COLUMNS, rows)


def _write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)


def _save(image: Image.Image, path: Path) -> None:
    if path.suffix == ".png":
        image.save(path, compress_level=1)  # the default level takes longer than the drawing
    else:
        image.save(path, quality=90)
