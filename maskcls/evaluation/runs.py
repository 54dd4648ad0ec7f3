"""Trained networks on people who validated all of them: their answers, and the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from maskcls.checkpoints import read_manifest
from maskcls.classifier import TorchClassifier
from maskcls.data.profiles import Profile
from maskcls.data.runs import labelled_pictures, people_of_run
from maskcls.errors import DataError
from maskcls.evaluation.answers import Answers, beliefs_of
from maskcls.evaluation.caveats import caveats
from maskcls.evaluation.mistakes import Viewer, describe, worst
from maskcls.evaluation.report import Report, Run, read_history
from maskcls.images import read_image
from maskcls.labels import MULTI
from maskcls.runtime import Source
from maskcls.runtime.labelling import decoded_batches, predict, prepare


@dataclass(frozen=True, eq=False)
class CommonAnswers:
    """What networks answer together about the pictures (N) of people who validated all of them."""

    people: list[Profile]
    names: list[str]  # (N) the pictures' paths
    probabilities: np.ndarray  # (N, 18)
    truth: np.ndarray  # (N,) of the 18 classes
    whose: list[str]  # (N) the person
    unreadable: int  # pictures that are left out, as validation did
    caveats: list[str]  # why the scores flatter

    @property
    def predicted(self) -> np.ndarray:
        """The most probable classes (N,)."""
        found: np.ndarray = self.probabilities.argmax(axis=1)
        return found


def answer_common_people(
    checkpoints: Sequence[Path], engine: TorchClassifier, people: list[Profile] | None = None
) -> CommonAnswers:
    """`engine`: the networks of `checkpoints`, which lie in their run folders and together answer
    every attribute. `people`: who validated them, and others perhaps; default: `common_people`.

    Raises:
        DataError: nobody validated all of them, their pictures are gone or cannot be read, or runs
            hold different labels of somebody.
    """
    if people is None:
        people = common_people(checkpoints)
    labels = {str(path): label for path, label in labelled_pictures(people)}
    sources = [Source(name, Path(name)) for name in labels]
    names: list[str] = []
    probabilities: list[np.ndarray] = []  # of a batch each
    known = 0
    with tqdm(total=len(sources), desc="answering", unit="img", disable=None) as bar:
        for batch in decoded_batches(engine.specs, sources, 32, 2, engine.trained_on):
            good = [picture for picture in batch if not picture.error]
            if good:
                names += [picture.source.image_id for picture in good]
                probabilities.append(predict(engine, good))
                known += sum(picture.seen for picture in good)
            bar.update(len(batch))
    if not names:
        raise DataError(f"none of the {len(sources)} pictures of their people can be read")
    whose = {str(p.path): person.person for person in people for p in person.pictures}
    return CommonAnswers(
        people,
        names,
        np.concatenate(probabilities),
        np.array([labels[name] for name in names]),
        [whose[name] for name in names],
        len(sources) - len(names),
        caveats(engine, [person.person for person in people], known),
    )


def common_people(checkpoints: Sequence[Path]) -> list[Profile]:
    """Those who validated all runs, as the first run knows them.

    Raises:
        DataError: there are none, of one run or of all together, or runs hold different labels of
            one.
    """
    sides = [people_of_run(path, read_manifest(path), "val") for path in checkpoints]
    known = [
        {
            p.person: (p.gender, p.age, sorted((x.path.name, x.mask) for x in p.pictures))
            for p in side
        }
        for side in sides
    ]
    for path, side in zip(checkpoints, sides, strict=True):
        if not side:
            raise DataError(
                f"{path.parent}: each person has trained one of its networks; label pictures of "
                "other people with maskcls-infer, and score them with maskcls-evaluate --gt … "
                "--pred …"
            )
    common = set(known[0]).intersection(*known[1:])
    if not common:
        raise DataError(
            "nobody validated all of these runs; train them with the same --seed and --val-ratio, "
            "or the same --fold"
        )
    for person in sorted(common):
        if any(labels[person] != known[0][person] for labels in known):
            raise DataError(
                f"{person}: these runs were trained with different labels of this person"
            )
    return [person for person in sides[0] if person.person in common]


def report_runs(
    checkpoints: Sequence[Path],
    engine: TorchClassifier,
    answered: CommonAnswers,
    *,
    pictures: bool = True,
) -> Report:
    """`engine`: the networks of `checkpoints`, which lie in their run folders and answered.
    `pictures`: False shows none.

    Raises:
        PictureError: a picture that could be read before cannot be read any more.
    """
    races = {person.person: person.race for person in answered.people}
    probabilities, truth = answered.probabilities, answered.truth
    chosen = worst(probabilities, truth)
    paths = [Path(answered.names[place]) for place in chosen]
    viewers: list[Viewer] = []
    if pictures and paths:
        seen = [prepare(read_image(path), engine.specs) for path in paths]
        columns = (np.stack(column) for column in zip(*seen, strict=True))
        viewers = [engine.viewer(index, column) for index, column in enumerate(columns)]
    mistakes = describe(
        MULTI,
        [f"{path.parent.name}/{path.name}" for path in paths],
        truth[chosen],
        probabilities[chosen],
        viewers,
    )
    answers = Answers(
        MULTI,
        truth,
        answered.predicted,
        MULTI.decode(truth),
        people=answered.whose,
        races=[races[person] for person in answered.whose],
        beliefs=beliefs_of(MULTI, probabilities, truth),
    )
    runs = [described(path) for path in checkpoints]
    return Report(
        f"Scores of {' and '.join(f'{p.parent.parent.name}/{p.parent.name}' for p in checkpoints)}",
        answers,
        runs,
        mistakes=mistakes,
        notes=[
            "Scored on the people who validated all of these runs. They chose the epochs, so "
            "strangers are scored a little lower.",
            *answered.caveats,
        ],
    )


def described(checkpoint: Path, name: str | None = None) -> Run:
    """The training of a checkpoint that lies in its run folder. `name`: default: its task."""
    manifest = read_manifest(checkpoint)
    folder = checkpoint.parent
    history = read_history(folder / "metrics.csv")
    return Run(name or manifest.task, manifest.model, str(folder), manifest.config, history)
