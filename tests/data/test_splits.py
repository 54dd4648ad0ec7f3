"""Splits by person: disjoint, complete, stratified, reproducible, and noticed when data change."""

from __future__ import annotations

import csv
import hashlib
from collections import Counter
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskcls.data.profiles import Picture, Profile
from maskcls.data.splits import (
    SPLIT_COLUMNS,
    Split,
    encode_table,
    people_of,
    read_split,
    split_hash,
    split_people,
    split_table,
)
from maskcls.errors import ConfigError, DataError
from maskcls.labels import GenderLabels, MaskLabels


def person(number: int, gender: GenderLabels, age: int) -> Profile:
    folder = Path("images", f"{number:06d}_{gender.name.lower()}_Asian_{age}")
    pictures = tuple(
        Picture(folder / f"{name}.jpg", mask)
        for name, mask in (("mask1", MaskLabels.MASK), ("normal", MaskLabels.NORMAL))
    )
    return Profile(folder, f"{number:06d}", gender, "Asian", age, pictures)


@st.composite
def crowds(draw: st.DrawFn, least: int = 2) -> list[Profile]:
    labels = st.tuples(st.sampled_from(GenderLabels), st.integers(18, 70))
    drawn = draw(st.lists(labels, min_size=least, max_size=80))
    return [person(number, gender, age) for number, (gender, age) in enumerate(drawn)]


CROWD = [person(number, GenderLabels(number % 2), 18 + number) for number in range(40)]
DIGESTS = {str(picture.path): str(picture.path) for p in CROWD for picture in p.pictures}
seeds = st.integers(0, 2**32)


def strata(profiles: list[Profile]) -> Counter[tuple[int, int]]:
    return Counter((profile.gender, profile.age_group) for profile in profiles)


@given(crowds(), st.floats(0.01, 0.99), seeds)
def test_disjoint_complete_and_stratified(crowd: list[Profile], ratio: float, seed: int) -> None:
    split = split_people(crowd, val_ratio=ratio, seed=seed)
    everyone = {profile.person for profile in crowd}
    assert split.train | split.val == everyone
    assert not split.train & split.val
    assert split.train and split.val
    assert abs(len(split.val) - len(everyone) * ratio) <= 1
    share = len(split.val) / len(everyone)
    validating = strata([profile for profile in crowd if profile.person in split.val])
    for stratum, count in strata(crowd).items():
        assert abs(validating[stratum] - count * share) < 1 + 1e-9


@given(crowds(), st.data(), seeds)
def test_folds_partition_the_people(crowd: list[Profile], data: st.DataObject, seed: int) -> None:
    folds = data.draw(st.integers(2, min(len(crowd), 7)))
    splits = [split_people(crowd, fold=fold, folds=folds, seed=seed) for fold in range(folds)]
    validating = [name for split in splits for name in split.val]
    assert sorted(validating) == sorted(profile.person for profile in crowd)
    for split in splits:
        assert split.train == frozenset(validating) - split.val
        counts = strata([profile for profile in crowd if profile.person in split.val])
        for stratum, count in strata(crowd).items():
            assert abs(counts[stratum] - count / folds) < 1


@given(crowds(), st.randoms(use_true_random=False), seeds)
def test_the_order_of_people_plays_no_part(crowd: list[Profile], random: Random, seed: int) -> None:
    shuffled = list(crowd)
    random.shuffle(shuffled)
    assert split_people(shuffled, seed=seed) == split_people(crowd, seed=seed)


def test_seeds() -> None:
    assert split_people(CROWD, seed=3) == split_people(CROWD, seed=3)
    assert len({split_people(CROWD, seed=seed).val for seed in range(10)}) > 5


def test_a_person_in_two_data_folders_is_one() -> None:
    first = CROWD[0]
    other = replace(first, folder=Path("more", first.folder.name), age=69)  # another stratum
    twice = [*CROWD, other]
    split = split_people(twice)
    assert len(split.train) + len(split.val) == len(CROWD)
    assert split_people(twice[::-1]) == split
    digests = DIGESTS | {str(picture.path): "x" for picture in other.pictures}
    assert split_table(twice, split, digests) == split_table(twice[::-1], split, digests)


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.1, float("nan")])
def test_bad_ratios(ratio: float) -> None:
    with pytest.raises(ConfigError, match="val_ratio"):
        split_people(CROWD, val_ratio=ratio)


@pytest.mark.parametrize(("fold", "folds"), [(0, None), (None, 5), (5, 5), (-1, 5), (0, 1)])
def test_bad_folds(fold: int | None, folds: int | None) -> None:
    with pytest.raises(ConfigError, match="fold"):
        split_people(CROWD, fold=fold, folds=folds)


def test_too_few_people() -> None:
    with pytest.raises(ConfigError, match="only 40 people"):
        split_people(CROWD, fold=0, folds=41)
    for crowd in ([], CROWD[:1]):
        with pytest.raises(DataError, match="at least 2"):
            split_people(crowd)


def test_table() -> None:
    split = split_people(CROWD)
    header, *rows = csv.reader(split_table(CROWD, split, DIGESTS).splitlines())
    assert tuple(header) == SPLIT_COLUMNS
    sides = {row[0]: row[-1] for row in rows}
    assert sides == dict.fromkeys(split.train, "train") | dict.fromkeys(split.val, "val")
    assert rows[0][:4] == [CROWD[0].person, "male", "18", "2"]


def test_the_hash_notices_what_changes_a_training() -> None:
    split = split_people(CROWD)
    first = CROWD[0]

    def digest(changed: Profile = first, split: Split = split, content: str = "") -> str:
        digests = DIGESTS | ({str(first.pictures[0].path): content} if content else {})
        return split_hash(split_table([changed, *CROWD[1:]], split, digests))

    moved = Split(split.train ^ {first.person}, split.val ^ {first.person})
    swapped = tuple(replace(picture, mask=MaskLabels.INCORRECT) for picture in first.pictures)
    changed = [
        digest(content="new"),
        digest(split=moved),
        digest(replace(first, gender=GenderLabels.FEMALE)),
        digest(replace(first, age=19)),
        digest(replace(first, pictures=swapped)),
        digest(replace(first, pictures=first.pictures[:1])),
    ]
    assert len({digest(), *changed}) == 1 + len(changed)


def test_the_hash_sees_all_labels_of_a_person_in_two_folders() -> None:
    first = CROWD[0]
    split = split_people(CROWD)

    def table(age: int) -> str:
        other = replace(first, folder=Path("more", first.folder.name), age=age)
        return split_table([*CROWD, other], split, DIGESTS)

    tables = [table(age) for age in (first.age, first.age + 1, first.age + 50)]
    assert len({split_hash(one) for one in tables}) == 3
    assert len({one.splitlines()[1].split(",")[2] for one in tables}) == 1


def test_the_hash_passes_over_order_and_place() -> None:
    split = split_people(CROWD)
    elsewhere = [
        replace(
            profile,
            folder=Path("moved", profile.folder.name),
            pictures=tuple(
                replace(picture, path=Path("moved") / picture.path)
                for picture in reversed(profile.pictures)
            ),
        )
        for profile in reversed(CROWD)
    ]
    digests = {str(Path("moved") / path): digest for path, digest in DIGESTS.items()}
    assert split_table(elsewhere, split, digests) == split_table(CROWD, split, DIGESTS)


def test_the_hash_is_that_of_earlier_versions() -> None:
    """A change to what stands in split.csv would keep people from resuming what they train."""
    table = split_table(CROWD, split_people(CROWD), DIGESTS)
    assert table.splitlines()[1] == (
        "000000_male_Asian_18,male,18,2,"
        "928141a647d9276f8a8586d03386ef3d960c010125c593f9a88bfa5bd520b878,train"
    )
    assert split_hash(table) == "2e06cb05d545108a67450c195d3d001ecbe2ba452064564ded171a436302487b"


def test_a_name_that_is_no_text_has_a_hash() -> None:
    name = "000001_male_\udce9_30"
    assert encode_table(name) == b"000001_male_\xe9_30"
    assert split_hash(name) == hashlib.sha256(b"000001_male_\xe9_30").hexdigest()


# What a file system can name: text, and bytes that are none, as Python reads them.
odd_names = st.one_of(
    st.text(st.characters(exclude_characters="\0/", codec="utf-8"), min_size=1, max_size=8),
    st.binary(min_size=1, max_size=8)
    .filter(lambda name: not {0, ord("/")} & {*name})
    .map(lambda name: name.decode(errors="surrogateescape")),
)


@given(st.sets(odd_names, min_size=2, max_size=6), seeds)
def test_any_names_come_back_from_the_file(
    tmp_path_factory: pytest.TempPathFactory, names: set[str], seed: int
) -> None:
    crowd = [
        replace(person(number, GenderLabels.MALE, 30), folder=Path("images") / name, pictures=())
        for number, name in enumerate(sorted(names))
    ]
    people = {profile.person for profile in crowd}
    if len(people) < 2:  # two forms of one name, or a dot that Path drops
        return
    split = split_people(crowd, val_ratio=0.5, seed=seed)
    table = split_table(crowd, split, {})
    file = tmp_path_factory.mktemp("split") / "split.csv"
    file.write_bytes(encode_table(table))
    again = read_split(file)
    assert split_hash(again) == split_hash(table)
    assert people_of(again, "train") == split.train
    assert people_of(again, "val") == split.val
