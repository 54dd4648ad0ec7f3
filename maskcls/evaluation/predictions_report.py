"""`report.html` of a prediction file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from maskcls.data.profiles import parse_folder_name
from maskcls.errors import DataError
from maskcls.evaluation.answers import Answers
from maskcls.evaluation.reliability import read_probabilities
from maskcls.evaluation.report import Report
from maskcls.evaluation.scoring import NO_ANSWER
from maskcls.labels import MULTI
from maskcls.provenance import read_provenance


def report_predictions(
    gt: Path,
    pred: Path,
    truth: Mapping[str, int],
    predicted: Mapping[str, int],
    notes: Sequence[str],
) -> Report:
    """`truth` and `predicted`: as `read_answers` reads the two files.

    ImageIDs with a person's folder in them (`000001_female_Asian_45/mask1.jpg`) tell who is on a
    picture. Probabilities are taken from the file where it has them.

    Raises:
        DataError: see `read_probabilities`.
    """
    labels = np.array(list(truth.values()), dtype=np.int64)
    attributes = MULTI.decode(labels)
    people, races = _people_in(truth)
    beliefs = {}
    for name, values in read_probabilities(pred).items():
        known = [place for place, image_id in enumerate(truth) if image_id in values]
        if known:
            rows = np.stack([values[image_id] for image_id in truth if image_id in values])
            beliefs[name] = rows, attributes[name][known]
    provenance = read_provenance(pred)
    models = provenance.models if provenance is not None else ()
    return Report(
        f"Scores of {pred.name}",
        Answers(
            MULTI,
            labels,
            np.array([predicted.get(image_id, NO_ANSWER) for image_id in truth], dtype=np.int64),
            attributes,
            people,
            races,
            beliefs,
        ),
        facts={
            "Predictions": str(pred),
            "Truth": str(gt),
            **{f"Network, {model.task}": model.path for model in models},
        },
        notes=notes,
    )


def _people_in(image_ids: Iterable[str]) -> tuple[list[str] | None, list[str] | None]:
    """Folder and race of each picture, if all of the ImageIDs tell."""
    people, races = [], []
    for image_id in image_ids:
        folder = PurePosixPath(image_id.replace("\\", "/")).parent.name
        try:
            _, _, race, _ = parse_folder_name(folder)
        except DataError:
            return None, None
        people.append(folder)
        races.append(race)
    return people, races
