"""Out-of-fold predictions of classifiers that are imperfect in a known way: calibrated on each
picture, and wrong about all pictures of a person together.

What a picture shows of an attribute is the truth, plus a part that all pictures of the person
share, plus one of its own; the probabilities are the posterior of the truth given what it shows.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from maskcls.data.fixes import Fix
from maskcls.data.profiles import Profile
from maskcls.labels import AGE_BOUNDS, TASKS, Task, softmax

YEARS = np.arange(101)


def class_answers(
    rng: np.random.Generator,
    truth: np.ndarray,
    classes: int,
    *,
    pictures: int = 7,
    clear: float = 1.5,
    shared: float = 1.0,
    lean: Sequence[float] = (),
) -> np.ndarray:
    """True classes (N,) → probabilities (N, pictures, C). `clear`: how far classes lie apart, in
    deviations of a picture's own part; `shared`: deviation of what pictures have in common.
    `lean`: added to the logits, which are calibrated no more."""
    means = np.eye(classes)[truth] * clear
    common = rng.normal(0, shared, (len(truth), 1, classes))
    seen = means[:, None] + common + rng.normal(0, 1, (len(truth), pictures, classes))
    shares = np.bincount(truth, minlength=classes) / len(truth)
    logits = clear * seen / (1 + shared**2) + np.log(shares)
    if len(lean):
        logits = logits + np.array(lean)
    return softmax(logits.reshape(-1, classes)).reshape(logits.shape)


def age_answers(
    rng: np.random.Generator,
    ages: np.ndarray,
    *,
    pictures: int = 7,
    shared: float = 4.0,
    own: float = 4.0,
    years: Sequence[int] = (0, *AGE_BOUNDS),
) -> np.ndarray:
    """True ages (N,) in years → probabilities of steps of ages (N, pictures, S). `shared`, `own`:
    deviations in years of how old people look; `years`: the first of each step, by default of each
    age group."""
    looks = ages[:, None] + rng.normal(0, shared, (len(ages), 1))
    looks = looks + rng.normal(0, own, (len(ages), pictures))
    shares = np.bincount(ages, minlength=len(YEARS)) / len(ages)
    likelihood = np.exp(-((looks[..., None] - YEARS) ** 2) / (2 * (shared**2 + own**2)))
    posterior = likelihood * (shares + 1e-6)
    posterior /= posterior.sum(axis=-1, keepdims=True)
    return np.add.reduceat(posterior, years, axis=-1)


def answers(
    rng: np.random.Generator, task: Task, truth: Sequence[Profile], **clear: float
) -> list[np.ndarray]:
    """For each person the probabilities (pictures, C) of a classifier that is nearly always right,
    or as `clear` says for an attribute."""
    counts = [len(one.pictures) for one in truth]
    joint = np.ones((sum(counts), 1))
    for attribute, size in zip(task.attributes, task.sizes, strict=True):
        if attribute == "mask":
            masks = np.array([picture.mask for one in truth for picture in one.pictures])
            far = clear.get("mask", 7)
            found = class_answers(rng, masks, size, pictures=1, clear=far, shared=0)[:, 0]
        else:
            labels = [one.gender if attribute == "gender" else one.age_group for one in truth]
            far = clear.get(attribute, 5)
            each = class_answers(
                rng, np.array(labels), size, pictures=max(counts), clear=far, shared=0.5
            )
            found = np.concatenate([part[:n] for part, n in zip(each, counts, strict=True)])
        joint = (joint[:, :, None] * found[:, None, :]).reshape(len(joint), -1)
    return np.split(joint, np.cumsum(counts)[:-1])


def write_oof(
    file: Path,
    task_name: str,
    data_dir: Path,
    labelled: Sequence[Profile],
    probabilities: Sequence[np.ndarray],
    fixes: Sequence[Fix] = (),
    years: Sequence[int] = (),
    ages: Sequence[np.ndarray] | None = None,
) -> Path:
    """An `oof.csv` with its JSON: people as they are labelled, their pictures' answers, and the
    corrections behind the labels. `years`, `ages`: the steps of ages and what is answered of them,
    for each person (pictures, S)."""
    task = TASKS[task_name]
    rows: list[Sequence[object]] = [
        ("data_dir", "path", "person", "fold", "label", "answer")
        + tuple(f"p_{label}" for label in range(task.num_classes))
        + tuple(f"age_{first}" for first in years)
    ]
    if ages is None:
        ages = [np.empty((len(person.pictures), 0)) for person in labelled]
    for number, (person, shares, old) in enumerate(zip(labelled, probabilities, ages, strict=True)):
        for picture, row, steps in zip(person.pictures, shares, old, strict=True):
            label = task.encode(mask=picture.mask, gender=person.gender, age=person.age_group)
            rows.append(
                (
                    *(data_dir, f"{person.folder.name}/{picture.path.name}", person.person),
                    *(number % 5, int(label), int(row.argmax())),
                    *(f"{share:.6f}" for share in (*row, *steps)),
                )
            )
    with file.open("w", encoding="utf-8", newline="") as table:
        csv.writer(table).writerows(rows)
    described = {"task": task_name, "fixes": [asdict(fix) for fix in fixes]}
    file.with_name(file.name + ".json").write_text(json.dumps(described), "utf-8")
    return file
