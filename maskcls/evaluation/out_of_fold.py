"""Answers about everybody by networks that have not seen them: each person of a group of folds is
answered by the one network whose validation people they were among.

GROUP/oof.csv, as `maskcls.evaluation.oof` reads it, and beside it oof.csv.json
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from maskcls.checkpoints import find_checkpoint, is_finished, read_manifest
from maskcls.classifier import BEST, TorchClassifier
from maskcls.data.profiles import Profile, locate
from maskcls.data.runs import data_folders, labelled_pictures, people_of_run, split_beside
from maskcls.data.splits import encode_table, people_of
from maskcls.data.targets import AGE_STEPS, steps_per_group
from maskcls.errors import CheckpointError, DataError
from maskcls.evaluation.oof import COLUMNS, OOF_FILE
from maskcls.evaluation.people import Interval, intervals
from maskcls.evaluation.scoring import ClassScores, confusion_matrix, scores_from_confusion
from maskcls.files import write_atomic, write_rows
from maskcls.folds import fold_folders
from maskcls.labels import Task, combine, require_all_attributes, softmax
from maskcls.manifest import Manifest
from maskcls.models import answer_in_steps
from maskcls.provenance import ModelFile, Provenance, fingerprint, names_all, write_provenance
from maskcls.runtime import Source
from maskcls.runtime.labelling import Decoded, decoded_batches

BATCH = 32  # pictures at once
Place = tuple[str, str]
"""The data folder as the training was told it, and where in its images a picture lies."""


@dataclass(frozen=True, eq=False)
class OutOfFold:
    """Everybody's pictures (N) and what was answered about them."""

    group: Path
    manifests: tuple[Manifest, ...]  # of the folds' networks
    places: Sequence[Place]
    paths: Sequence[Path]
    people: Sequence[str]
    races: Sequence[str]
    folds: np.ndarray  # (N,) int, which fold's network answered
    labels: np.ndarray  # (N,) int, classes of the task
    probabilities: np.ndarray  # (N, C) float32
    ages: np.ndarray | None  # (N, S) float32, of the steps of `AGE_STEPS`; None: not learnt
    multi_labels: np.ndarray  # (N,) int, of the 18 classes
    provenance: Provenance

    @property
    def task(self) -> Task:
        return self.manifests[0].get_task()

    @property
    def answers(self) -> np.ndarray:
        """The most probable classes (N,)."""
        found: np.ndarray = self.probabilities.argmax(axis=1)
        return found

    @property
    def caveats(self) -> list[str]:
        """Why its scores flatter, a sentence each; none where nothing does."""
        seen = self.provenance.seen_in_training
        if seen is None:
            return [
                f"a network of {self.task.name} does not say whom all it, or what it started from, "
                "was trained on; if people whom it answers are among them, the scores flatter"
            ]
        if not seen:
            return []
        return [
            f"{seen} of the pictures are in the training of the network of {self.task.name} that "
            "answers them, in another person's folder; the scores flatter, and maskcls-data check "
            "names them"
        ]


@dataclass(frozen=True, eq=False)
class FoldScores:
    """What the answers are worth."""

    confusion: np.ndarray  # (C, C)
    classes: ClassScores
    macro_f1: Interval  # of people drawn anew
    accuracy: Interval
    folds: tuple[float, ...]  # macro F1 of each fold's people alone


@dataclass(frozen=True, eq=False)
class _Answered:
    """A picture and what was answered about it."""

    place: Place
    path: Path
    owner: Profile
    multi_label: int  # of the 18 classes
    probabilities: np.ndarray  # (C,)
    ages: np.ndarray | None  # (S,) of the steps in which ages were learnt


@dataclass(frozen=True, eq=False)
class _Fold:
    """What a fold's network answered about the people who validated it."""

    manifest: Manifest
    models: Sequence[ModelFile]
    tells_all: bool  # whether it says whom all it was trained on
    answered: Sequence[_Answered]  # without pictures that cannot be read
    unreadable: int
    seen: int  # of those that were answered, in the training of the network


def answer_out_of_fold(
    group: Path, device: torch.device, say: Callable[[str], None] = print
) -> OutOfFold:
    """Asks each network of a group about the people who validated it. Pictures that cannot be read
    are left out, as validation did.

    Raises:
        CheckpointError: not a group, or a fold without a network.
        DataError: the pictures are gone; the folds do not validate each person once; a network has
            seen people whom it should answer.
    """
    checkpoints = require_folds(group)
    _require_partition(group, checkpoints)
    folds = [_answer_fold(fold, path, device) for fold, path in enumerate(checkpoints)]
    answered = [picture for fold in folds for picture in fold.answered]
    if not answered:
        raise DataError(f"{group}: none of the pictures of its people can be read")
    unreadable, seen = sum(fold.unreadable for fold in folds), sum(fold.seen for fold in folds)
    if unreadable:
        say(f"warning: {unreadable} unreadable pictures are skipped")
    known = seen > 0 or all(fold.tells_all for fold in folds)
    multi_labels = np.array([picture.multi_label for picture in answered])
    ages = [picture.ages for picture in answered if picture.ages is not None]
    found = OutOfFold(
        group=group,
        manifests=tuple(fold.manifest for fold in folds),
        places=[picture.place for picture in answered],
        paths=[picture.path for picture in answered],
        people=[picture.owner.person for picture in answered],
        races=[picture.owner.race for picture in answered],
        folds=np.repeat(np.arange(len(folds)), [len(fold.answered) for fold in folds]),
        labels=folds[0].manifest.get_task().from_multi(multi_labels),
        probabilities=np.stack([picture.probabilities for picture in answered]),
        ages=np.stack(ages) if len(ages) == len(answered) else None,
        multi_labels=multi_labels,
        provenance=Provenance(
            len(answered),
            unreadable,
            seen if known else None,
            tuple(model for fold in folds for model in fold.models),
        ),
    )
    for caveat in found.caveats:
        say(f"warning: {caveat}")
    return found


def _answer_fold(fold: int, checkpoint: Path, device: torch.device) -> _Fold:
    """
    Raises:
        DataError: the pictures are gone; the network has seen people whom it should answer.
    """
    manifest = read_manifest(checkpoint)
    # A fold's calibration was fitted on the people who are answered here.
    engine = TorchClassifier([checkpoint], device, complete=False, calibrated=False)
    profiles = people_of_run(checkpoint, manifest, "val")
    _refuse_seen(checkpoint, engine, profiles)
    steps = answer_in_steps(engine.network(0))
    roots = {locate(path)[0]: str(path) for path in data_folders(checkpoint, manifest)}
    owners = {picture.path: p for p in profiles for picture in p.pictures}
    labels = dict(labelled_pictures(profiles))
    sources = [Source(str(path), path) for path in labels]
    answered: list[_Answered] = []
    seen = 0
    with tqdm(total=len(sources), desc=f"fold {fold}", unit="img", disable=None) as bar:
        for batch in decoded_batches(engine.specs, sources, BATCH, 2, engine.trained_on):
            good = [picture for picture in batch if not picture.error]
            for picture, (shares, ages) in zip(good, _ask(engine, steps, good), strict=True):
                path = picture.source.path
                owner = owners[path]
                place = roots[owner.folder.parent], f"{owner.folder.name}/{path.name}"
                answered.append(_Answered(place, path, owner, labels[path], shares, ages))
            seen += sum(picture.seen for picture in good)
            bar.update(len(batch))
    return _Fold(
        manifest,
        engine.models,
        names_all(engine.trained_on),
        answered,
        unreadable=len(sources) - len(answered),
        seen=seen,
    )


def _ask(
    engine: TorchClassifier, steps: Sequence[int] | None, pictures: Sequence[Decoded]
) -> list[tuple[np.ndarray, np.ndarray | None]]:
    """Of each picture the probabilities of the classes (C,), and of steps of ages (S,) if the
    network answers in the usual ones. `steps`: into how many it divides each class; None: it
    answers classes."""
    if not pictures:
        return []
    probabilities = softmax(engine.logits(0, np.stack([one.pixels[0] for one in pictures])))
    if steps is None:
        return [(shares, None) for shares in probabilities]
    classes = np.add.reduceat(probabilities, np.cumsum((0, *steps[:-1])), axis=1)
    usual = steps == steps_per_group()
    return [
        (shares, ages if usual else None)
        for shares, ages in zip(classes, probabilities, strict=True)
    ]


def write_out_of_fold(found: OutOfFold) -> Path:
    """Writes `oof.csv`, and beside it how it was made; returns its path."""
    classes = range(found.task.num_classes)
    years = () if found.ages is None else (0, *AGE_STEPS)
    columns = (*(f"p_{label}" for label in classes), *(f"age_{first}" for first in years))
    rows: list[Sequence[object]] = [(*COLUMNS, *columns)]
    ages = np.empty((len(found.places), 0)) if found.ages is None else found.ages
    for place, person, fold, label, answer, shares, of_years in zip(
        found.places,
        found.people,
        found.folds.tolist(),
        found.labels.tolist(),
        found.answers.tolist(),
        found.probabilities,
        ages,
        strict=True,
    ):
        rows.append((*place, person, fold, label, answer, *map(str, (*shares, *of_years))))
    text = io.StringIO()
    write_rows(text, rows)
    file = found.group / OOF_FILE
    write_atomic(file, encode_table(text.getvalue()))
    write_provenance(file, found.provenance, _description(found))
    return file


def score_out_of_fold(found: OutOfFold) -> FoldScores:
    """Of all answers together, and of each fold's."""
    count = found.task.num_classes
    matrix = partial(confusion_matrix, num_classes=count)
    confusion = matrix(found.labels, found.answers)
    macro_f1, accuracy = intervals(found.labels, found.answers, found.people, count)
    each = []
    for fold in range(len(found.manifests)):
        own = found.folds == fold
        part = matrix(found.labels[own], found.answers[own])
        each.append(scores_from_confusion(part).macro_f1)
    return FoldScores(confusion, scores_from_confusion(confusion), macro_f1, accuracy, tuple(each))


def combine_out_of_fold(found: Sequence[OutOfFold]) -> tuple[np.ndarray, np.ndarray]:
    """Groups that together answer every attribute → labels (N,) and probabilities (N, 18) of the 18
    classes, in the order of the first group's pictures.

    Raises:
        CheckpointError: an attribute that none answers, or two do.
        DataError: the groups are not of the same pictures and labels.
    """
    require_all_attributes([each.task for each in found], [each.group for each in found])
    first = found[0]
    parts = {each.task.name: each.probabilities[rows_as_of(first, each)] for each in found}
    return first.multi_labels, combine(parts)


def rows_as_of(first: OutOfFold, other: OutOfFold) -> np.ndarray:
    """Where `other` has the pictures of `first`, in the order of these: int (N,).

    Raises:
        DataError: the groups are not of the same pictures and labels.
    """
    pictures = _files(first.places)
    rows = {file: row for row, file in enumerate(_files(other.places))}
    if rows.keys() != set(pictures):
        raise DataError(
            f"{first.group} and {other.group}: not trained on the same pictures; they have "
            f"{len(rows.keys() & set(pictures))} of {len(pictures)} and {len(rows)} in common"
        )
    order = np.array([rows[file] for file in pictures])
    for row in np.flatnonzero(other.multi_labels[order] != first.multi_labels).tolist():
        raise DataError(
            f"{first.group} and {other.group}: trained with different labels of "
            f"{first.places[row][1]}"
        )
    return order


def _files(places: Sequence[Place]) -> list[tuple[Path, str]]:
    """The same data folder is told in several ways."""
    roots = {root: Path(root).resolve() for root in {root for root, _ in places}}
    return [(roots[root], inside) for root, inside in places]


def require_folds(group: Path) -> list[Path]:
    """The best checkpoint of each fold.

    Raises:
        CheckpointError: not a group, or a fold that is not trained to its end.
    """
    folders = fold_folders(group)
    for folder in folders:
        # Without its last checkpoint, as where somebody copied the best ones, it counts as trained.
        begun = find_checkpoint(folder / "last.pt") is not None
        if find_checkpoint(folder / BEST) is None or (begun and not is_finished(folder)):
            raise CheckpointError(
                f"{folder}: is not trained {'to its end ' if begun else ''}yet; go on with "
                f"maskcls-train --resume {group}"
            )
    return [folder / BEST for folder in folders]


def _require_partition(group: Path, checkpoints: Sequence[Path]) -> None:
    """
    Raises:
        DataError: the folds do not validate each person of the data once.
    """
    everybody: set[str] = set()
    answered: list[str] = []
    for checkpoint in checkpoints:
        table = split_beside(checkpoint)
        answered += people_of(table, "val")
        everybody |= people_of(table, "val") | people_of(table, "train")
    if len(answered) != len(everybody) or set(answered) != everybody:
        raise DataError(
            f"{group}: its {len(checkpoints)} folds validate {len(answered)} times one of "
            f"{len(everybody)} people, not each of them once; are they of different data?"
        )


def _refuse_seen(checkpoint: Path, engine: TorchClassifier, profiles: Sequence[Profile]) -> None:
    """
    Raises:
        DataError: the network was trained on some of these people.
    """
    seen = engine.trained_on or frozenset()
    known = sorted(p.person for p in profiles if fingerprint(p.person) in seen)
    if known:
        raise DataError(
            f"{checkpoint}: was trained on {len(known)} of the people who validate its fold, "
            f"first: {known[0]}; train the group anew"
        )


def _description(found: OutOfFold) -> dict[str, Any]:
    """What `oof.csv.json` says besides the provenance."""
    manifests = [manifest.without_places() for manifest in found.manifests]
    first = manifests[0]
    return {
        "task": found.task.name,
        "classes": list(found.task.class_names),
        "folds": len(manifests),
        "config": {k: v for k, v in first.config.items() if k not in ("fold", "weights")},
        "fixes": [dict(fix) for fix in found.manifests[0].fixes],
        "split_hashes": [manifest.split_hash for manifest in manifests],
        "git_revision": first.git_revision,
        "versions": dict(first.versions),
    }
