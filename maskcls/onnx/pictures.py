"""The pictures of an export: those that it is compared on, and those that int8 is calibrated on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from maskcls.data.profiles import Profile, locate, read_profiles
from maskcls.data.runs import labelled_pictures, people_of_run
from maskcls.errors import DataError, PictureError
from maskcls.evaluation.answers import Answers
from maskcls.images import read_image
from maskcls.labels import MULTI, Task
from maskcls.manifest import Manifest
from maskcls.onnx.card import Side
from maskcls.onnx.parity import Pictures, load_pictures
from maskcls.runtime.sources import list_pictures

CALIBRATION_PICTURES = 256


def pictures_to_compare_on(
    checkpoint: Path,
    manifest: Manifest,
    folder: Path | None,
    most: int,
    say: Callable[[str], None],
) -> tuple[Pictures, list[Profile], Side | None]:
    """At most `most` pictures of `folder`, or else of the run of a checkpoint; the people on them,
    where they are known; and the side of the split that these are of, None for those of `folder`.

    Raises:
        DataError: there are none, or none that can be read.
    """
    if folder is None:
        people, side = _people_to_compare_on(checkpoint, manifest, say)
        listed: Sequence[tuple[Path, int | None]] = labelled_pictures(people)
    else:
        people, side = [], None
        try:
            people = read_profiles(folder)
            listed = labelled_pictures(people)
        except DataError as error:
            if folder.is_dir() and locate(folder)[1].is_file():  # it is to have labels
                raise
            listed = [(source.path, None) for source in list_pictures(folder)]
            say(f"the pictures of {folder} have no labels: {error}")
    order = np.random.default_rng(0).permutation(len(listed))[:most]
    say(f"comparing with PyTorch on {len(order)} pictures")
    loaded = load_pictures([listed[index] for index in order], say)
    if not loaded.images:
        raise DataError(f"none of {len(order)} pictures to compare on can be read")
    return loaded, people, side


def _people_to_compare_on(
    checkpoint: Path, manifest: Manifest, say: Callable[[str], None]
) -> tuple[list[Profile], Side]:
    """Those who validated the run of a checkpoint, or, where nobody did, those who trained it."""
    way_out = "give pictures with --parity-images DIR"
    people = people_of_run(checkpoint, manifest, "val", way_out=way_out)
    if people:
        return people, "val"
    # An ensemble of folds: each person has trained some of it.
    say(
        f"nobody is new to all networks of {checkpoint}: the comparison, and what macro F1 it "
        "costs, are of people who trained it; --parity-images names others"
    )
    return people_of_run(checkpoint, manifest, "train", way_out=way_out), "train"


def answers_on(
    pictures: Pictures, people: Sequence[Profile], labels: np.ndarray, task: Task
) -> Answers | None:
    """What the files answered, `labels` of `task`; None where nobody knows what is right."""
    if pictures.truth is None:
        return None
    owners = {picture.path: person for person in people for picture in person.pictures}
    shown = [owners[path] for path in pictures.paths]
    return Answers(
        task,
        task.from_multi(pictures.truth),
        labels,
        MULTI.decode(pictures.truth),
        people=[person.person for person in shown],
        races=[person.race for person in shown],
    )


def calibration_pixels(checkpoint: Path, manifest: Manifest) -> np.ndarray:
    """Normalised training pictures, float32 (N, 3, H, W): never of people who validate.

    Raises:
        DataError: there are none, or none that can be read.
    """
    people = people_of_run(checkpoint, manifest, "train", way_out="int8 needs them")
    listed = labelled_pictures(people)
    order = np.random.default_rng(0).permutation(len(listed))[:CALIBRATION_PICTURES]
    spec = manifest.preprocess
    pixels = []
    for index in order:
        try:
            pixels.append(spec.resize(read_image(listed[index][0])))
        except PictureError:
            continue
    if not pixels:
        raise DataError(f"{checkpoint}: no training picture can be read to calibrate int8 on")
    return spec.normalise(np.stack(pixels))
