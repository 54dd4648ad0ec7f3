"""Training and validation people: disjoint, stratified by gender x age group, reproducible.

The split is by person, never by picture: a person on both sides makes validation read 0.9 where
strangers score 0.6.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from maskcls.data.profiles import Profile
from maskcls.errors import ConfigError, DataError
from maskcls.files import write_rows
from maskcls.labels import AgeLabels

SPLIT_COLUMNS = ("person", "gender", "age", "pictures", "content", "side")


@dataclass(frozen=True)
class Split:
    """Which people train and which validate; keys are `Profile.person`."""

    train: frozenset[str]
    val: frozenset[str]


def split_people(
    profiles: Sequence[Profile],
    *,
    val_ratio: float = 0.2,
    fold: int | None = None,
    folds: int | None = None,
    seed: int = 0,
) -> Split:
    """Each person on exactly one side, without replacement, strata as even as whole people allow.

    With `folds`, fold `fold` (0 … folds - 1) validates and the others train; the folds of one seed
    partition the people. Without, about `val_ratio` of the people validate. The order of
    `profiles` plays no part.

    Raises:
        ConfigError: an impossible ratio or fold.
        DataError: too few people to have both sides.
    """
    people = sorted({profile.person for profile in profiles})
    if len(people) < 2:
        raise DataError(f"{len(people)} person in the data: a training needs at least 2")
    ranks = _stratified_order(profiles, seed)
    if folds is not None or fold is not None:
        if folds is None or fold is None or not 2 <= folds or not 0 <= fold < folds:
            raise ConfigError(f"fold {fold} of folds {folds}: needs folds >= 2, 0 <= fold < folds")
        if folds > len(people):
            raise ConfigError(f"folds {folds}: there are only {len(people)} people")
        val = frozenset(person for rank, person in enumerate(ranks) if rank % folds == fold)
    else:
        if not 0 < val_ratio < 1:
            raise ConfigError(f"val_ratio {val_ratio}: must be above 0 and below 1")
        # Evenly spaced ranks of the stratified order: each stratum gives its share, and the total
        # is exact, where rounding stratum by stratum would drift.
        count = min(max(1, round(len(people) * val_ratio)), len(people) - 1)
        chosen = (np.arange(count) + 0.5) * len(people) / count
        val = frozenset(ranks[int(rank)] for rank in chosen)
    return Split(train=frozenset(people) - val, val=val)


def _stratified_order(profiles: Sequence[Profile], seed: int) -> list[str]:
    """People sorted by stratum, in random order within; every k-th of it is a stratified sample."""
    # Sorted, so that of a person whose labels differ between two data folders the same one counts
    # whichever folder is named first.
    strata = sorted((p.person, (int(p.gender), int(p.age_group))) for p in profiles)
    stratum = dict(strata)
    people = sorted(stratum)
    shuffled = np.random.default_rng(seed).permutation(len(people))
    return sorted(
        (people[index] for index in shuffled), key=lambda person: stratum[person]
    )  # sorted() is stable: the shuffle stands within a stratum


def split_table(profiles: Sequence[Profile], split: Split, digests: Mapping[str, str]) -> str:
    """The text of `split.csv`: a row per person, with a hash of labels and pictures.

    `digests`: picture path (str) → content digest; "" for a picture that could not be read.
    """
    table: list[Sequence[object]] = [SPLIT_COLUMNS]
    for person, parts in sorted(_by_person(profiles).items()):
        side = "val" if person in split.val else "train"
        table.append((person, *_facts(parts), _content(parts, digests), side))
    text = io.StringIO()
    write_rows(text, table)
    return text.getvalue()


def changed_people(
    table: str, side: str, profiles: Sequence[Profile], digests: Mapping[str, str] | None = None
) -> list[str]:
    """The people of one side in the text of a `split.csv` who are not in `profiles` any more, or
    with another gender, age or number of pictures; with the `digests` of their pictures, as of
    `split_table`, also those who have another picture, or one of another mask."""
    people = _by_person(profiles)
    changed = []
    for row in csv.DictReader(io.StringIO(table, newline="")):
        if row["side"] != side:
            continue
        parts = people.get(row["person"], [])
        now = tuple(map(str, _facts(parts))) if parts else ()
        if now != (row["gender"], row["age"], row["pictures"]) or (
            digests is not None and _content(parts, digests) != row["content"]
        ):
            changed.append(row["person"])
    return changed


def _content(parts: Sequence[Profile], digests: Mapping[str, str]) -> str:
    """What names a person's pictures and their masks, and gender and age of each where the folders
    of that name differ in them."""
    facts = {(part.gender, part.age) for part in parts}
    pictures = sorted(
        f"{digests[str(picture.path)]} {int(picture.mask)}"
        + (f" {int(part.gender)} {part.age}" if len(facts) > 1 else "")
        for part in parts
        for picture in part.pictures
    )
    return hashlib.sha256("\n".join(pictures).encode()).hexdigest()


def _by_person(profiles: Sequence[Profile]) -> dict[str, list[Profile]]:
    people: dict[str, list[Profile]] = {}
    for profile in profiles:
        people.setdefault(profile.person, []).append(profile)
    return people


def _facts(parts: Sequence[Profile]) -> tuple[str, int, int]:
    """Gender, age and number of pictures of a person, from all folders of that name."""
    first = min(parts, key=lambda part: (part.gender, part.age))
    return first.gender.name.lower(), first.age, sum(len(part.pictures) for part in parts)


def encode_table(table: str) -> bytes:
    """The bytes of `split.csv`: a folder's name that is no UTF-8 stays as it lies on the disk."""
    return table.encode(errors="surrogateescape")


def read_split(path: Path) -> str:
    """The text of a `split.csv`, as `split_table` made it.

    Raises:
        OSError: it cannot be read.
    """
    # Not read_text: it changes the ends of lines, and with them names and the hash.
    return path.read_bytes().decode(errors="surrogateescape")


def rows_of_split(table: str, *, sides: bool = True) -> dict[str, tuple[str, ...]]:
    """Of the text of a `split.csv`: person → all else that its row says, with or without the
    side."""
    columns = [name for name in SPLIT_COLUMNS if sides or name != "side"]
    return {
        row.get("person") or "": tuple(row.get(name) or "" for name in columns)
        for row in csv.DictReader(io.StringIO(table, newline=""))
    }


def people_of(table: str, side: str) -> set[str]:
    """The people of one side, `train` or `val`, in the text of a `split.csv`."""
    rows = csv.DictReader(io.StringIO(table, newline=""))
    return {row["person"] for row in rows if row["side"] == side}


def side_sizes(table: str) -> dict[str, dict[tuple[str, int], tuple[int, int]]]:
    """Of the text of a `split.csv`: side, `train` or `val` → (gender, age group) → people and
    pictures."""
    sizes: dict[str, dict[tuple[str, int], tuple[int, int]]] = {"train": {}, "val": {}}
    for row in csv.DictReader(io.StringIO(table, newline="")):
        group = row["gender"], int(AgeLabels.from_number(row["age"]))
        people, pictures = sizes[row["side"]].get(group, (0, 0))
        sizes[row["side"]][group] = people + 1, pictures + int(row["pictures"])
    return sizes


def split_hash(table: str) -> str:
    """What a checkpoint remembers of `split.csv`: people, labels, pictures' content and sides."""
    return hashlib.sha256(encode_table(table)).hexdigest()
