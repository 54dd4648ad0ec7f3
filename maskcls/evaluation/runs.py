"""The report of trained networks on people who validated all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from maskcls.checkpoints import read_checkpoint
from maskcls.classifier import TorchClassifier
from maskcls.data.profiles import Profile
from maskcls.data.runs import labelled_pictures
from maskcls.evaluation.mistakes import describe, worst
from maskcls.evaluation.report import Answers, Report, Run, beliefs_of, read_history
from maskcls.images import read_image
from maskcls.labels import MULTI
from maskcls.manifest import Manifest
from maskcls.runtime.labelling import prepare


def report_runs(
    checkpoints: Sequence[Path],
    engine: TorchClassifier,
    people: Sequence[Profile],
    found: Mapping[str, np.ndarray],
    *,
    pictures: bool = True,
) -> Report:
    """`engine`: the networks of `checkpoints`, which lie in their run folders. `found`: path of a
    picture of these people → probabilities of the 18 classes (18,). `pictures`: False shows none.

    Raises:
        PictureError: a picture that could be read before cannot be read any more.
    """
    owners = {str(picture.path): person for person in people for picture in person.pictures}
    labels = {str(path): label for path, label in labelled_pictures(people)}
    names = list(found)
    truth = np.array([labels[name] for name in names])
    probabilities = np.stack([found[name] for name in names])
    chosen = worst(probabilities, truth)
    paths = [Path(names[place]) for place in chosen]
    pixels: list[np.ndarray] = []
    if pictures and paths:
        seen = [prepare(read_image(path), engine.specs) for path in paths]
        pixels = [np.stack(column) for column in zip(*seen, strict=True)]
    mistakes = describe(
        MULTI,
        [f"{path.parent.name}/{path.name}" for path in paths],
        truth[chosen],
        probabilities[chosen],
        engine if pixels else None,
        pixels,
    )
    answers = Answers(
        MULTI,
        truth,
        probabilities.argmax(axis=1),
        MULTI.decode(truth),
        people=[owners[name].person for name in names],
        races=[owners[name].race for name in names],
        beliefs=beliefs_of(MULTI, probabilities, truth),
    )
    runs = [_run(path) for path in checkpoints]
    return Report(
        f"Scores of {' and '.join(f'{p.parent.parent.name}/{p.parent.name}' for p in checkpoints)}",
        answers,
        runs,
        mistakes=mistakes,
        notes=[
            "Scored on the people who validated all of these runs. They chose the epochs, so "
            "strangers are scored a little lower."
        ],
    )


def _run(checkpoint: Path) -> Run:
    manifest = Manifest.from_json(read_checkpoint(checkpoint)["manifest"])
    folder = checkpoint.parent
    history = read_history(folder / "metrics.csv")
    return Run(manifest.task, manifest.model, str(folder), manifest.config, history)
