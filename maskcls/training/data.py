"""The pictures of a training: who trains, who validates, and what a run remembers of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch.utils.data import Subset

from maskcls.config import TrainConfig
from maskcls.data.datasets import Item, MaskSplitByProfileDataset
from maskcls.data.fixes import Fix, read_fixes
from maskcls.data.splits import Split, read_split, rows_of_split, split_hash
from maskcls.data.targets import at_border
from maskcls.errors import CheckpointError, DataError, WeightsError
from maskcls.labels import get_task
from maskcls.manifest import Manifest
from maskcls.provenance import fingerprint, names_all


@dataclass(frozen=True)
class TrainingData:
    """One data set, split by person."""

    dataset: MaskSplitByProfileDataset
    train: Subset[Item]
    val: Subset[Item]
    people: Split
    table: str  # the text of `split.csv`
    fixes: tuple[Fix, ...]
    left_out: tuple[int, ...]  # pictures of the training side that nothing is learnt from

    def fingerprints(self) -> frozenset[int]:
        """Who and what is trained on, so that a score on them is noticed."""
        pictures = map(self.digest, self.train.indices)
        return frozenset(map(fingerprint, [*self.people.train, *pictures]))

    def pictures_digest(self) -> str:
        """Of the training pictures in their order, which batches go by."""
        order = "\n".join(map(self.digest, self.train.indices))
        return hashlib.sha256(order.encode()).hexdigest()

    def describe(self) -> str:
        """How many pictures of how many people."""
        others = len({self.dataset.people[index] for index in self.left_out})
        border = (
            f" ({len(self.left_out)} of {others} others left out, at the border of an age group)"
        )
        return (
            f"{len(self.train)} pictures of {len(self.people.train) - others} people"
            f"{border if others else ''}, validating on {len(self.val)} of "
            f"{len(self.people.val)} others"
        )

    def digest(self, index: int) -> str:
        """Of the content of a picture of the data set."""
        return self.dataset.digests[str(self.dataset.paths[index])]


def load_data(config: TrainConfig, say: Callable[[str], None]) -> TrainingData:
    """
    Raises:
        ConfigError, DataError, PictureError: there is nothing to train or to validate on.
    """
    task = get_task(config.task)
    fixes = tuple(read_fixes(Path(config.fixes))) if config.fixes else ()
    dataset = MaskSplitByProfileDataset(
        [Path(folder) for folder in config.data_dir],
        config.preprocess(),
        task=task,
        fixes=fixes,
        cache=config.cache,
        workers=config.workers,
        strict=config.strict,
        say=say,
    )
    if dataset.unreadable:
        shown = "\n  ".join(dataset.unreadable[:5])
        say(f"warning: {len(dataset.unreadable)} unreadable pictures are skipped:\n  {shown}")
    pictures, validation, people = dataset.split(
        val_ratio=config.val_ratio, fold=config.fold, folds=config.folds, seed=config.seed
    )
    left_out: list[int] = []
    if config.border_ages == "drop" and "age" in task.attributes:
        own = np.array(pictures.indices)
        border = at_border(dataset.ages[own])
        left_out, pictures = own[border].tolist(), Subset(dataset, own[~border].tolist())
    for name, side in (("training", pictures), ("validation", validation)):
        present = set(dataset.labels[side.indices].tolist())
        absent = [text for label, text in enumerate(task.class_names) if label not in present]
        if absent:
            say(f"warning: no {name} picture is {' or '.join(absent)}")
    if len(pictures) < 2:
        without = f" that border_ages {config.border_ages} keeps" if left_out else ""
        count = ("no", "one")[len(pictures)]
        raise DataError(f"{count} readable training picture{without}: a training needs at least 2")
    table = dataset.split_table(people)
    return TrainingData(dataset, pictures, validation, people, table, fixes, tuple(left_out))


def load_same_data(
    folder: Path, config: TrainConfig, manifest: Manifest, say: Callable[[str], None]
) -> TrainingData:
    """
    Raises:
        CheckpointError: not the data that the run in the folder was trained on.
        DataError: as `load_data`.
    """
    data = load_data(config, say)
    if split_hash(data.table) != manifest.split_hash:
        difference = _difference(folder, data.table) or "its split.csv has changed"
        raise CheckpointError(
            f"{folder}: was trained on other data than {_places(config)}: {difference}. Give the "
            "data of the run, or start a new one without --resume"
        )
    return data


def require_alike(folder: Path, config: TrainConfig, data: TrainingData) -> None:
    """
    Raises:
        CheckpointError: not the people, pictures and labels of the run in the folder, on whichever
            side.
    """
    if difference := _difference(folder, data.table, sides=False):
        raise CheckpointError(
            f"{folder}: was trained on other data than {_places(config)}: {difference}. Give the "
            "same data, or start a new group of folds"
        )


def _difference(folder: Path, table: str, *, sides: bool = True) -> str:
    """In a few words, how a split differs from the one in a run's folder; "" where it does not.
    Without `sides`, it does not matter who validates."""
    try:
        old = rows_of_split(read_split(folder / "split.csv"), sides=sides)
    except OSError:
        return "its split.csv cannot be read"
    new = rows_of_split(table, sides=sides)
    if old == new:
        return ""
    changed = sum(old[person] != new[person] for person in old.keys() & new.keys())
    return (
        f"{len(old.keys() - new.keys())} people are gone, {len(new.keys() - old.keys())} are new, "
        f"{changed} changed"
    )


def _places(config: TrainConfig) -> str:
    fixes = f" with {config.fixes}" if config.fixes else ""
    return f"{', '.join(config.data_dir)}{fixes}"


def tell_seen(
    start: Path,
    seen: frozenset[int],
    data: TrainingData,
    is_fold: bool,
    say: Callable[[str], None],
) -> None:
    """Warns of a start that has seen people who validate here, be it in a folder of another name,
    or does not say whom it has seen.

    Raises:
        WeightsError: of a fold, whose score is to be out of fold.
    """
    if not names_all(seen):
        say(
            f"warning: {start}: does not say whom all it, or what it started from, was trained on. "
            "If people who validate here are among them, the score will flatter"
        )
    people = {person for person in data.people.val if fingerprint(person) in seen}
    # One that lies on both sides here, too, is a fault of the data and not of the start.
    left_out = {fingerprint(data.digest(index)) for index in data.left_out}
    elsewhere = seen - data.fingerprints() - left_out
    pictures = [index for index in data.val.indices if fingerprint(data.digest(index)) in elsewhere]
    known = sorted(people | {data.dataset.people[index] for index in pictures})
    if not known:
        return
    found = (
        f"{start}: was trained on {len(known)} of the {len(data.people.val)} people who validate "
        f"here, first: {known[0]}"
    )
    if is_fold:
        raise WeightsError(
            f"{found}; start from a network that has not seen them, or with --weights none"
        )
    say(f"warning: {found}. The score will flatter; the same --seed and --val-ratio may help")
