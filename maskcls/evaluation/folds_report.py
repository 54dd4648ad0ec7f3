"""`report.html` of groups of folds: everybody, answered by networks that have not seen them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from maskcls.classifier import TorchClassifier
from maskcls.evaluation.answers import Answers, beliefs_of
from maskcls.evaluation.mistakes import Viewer, describe, worst
from maskcls.evaluation.out_of_fold import (
    OutOfFold,
    combine_out_of_fold,
    require_folds,
    rows_as_of,
)
from maskcls.evaluation.report import Report
from maskcls.evaluation.runs import described
from maskcls.images import read_image
from maskcls.labels import MULTI
from maskcls.runtime.labelling import prepare


def report_folds(
    found: Sequence[OutOfFold], device: torch.device, *, pictures: bool = True
) -> Report:
    """Of one group, or of groups that together answer every attribute. `pictures`: False shows
    none.

    Raises:
        CheckpointError, DataError: as `combine_out_of_fold`.
        PictureError: a picture that could be read before cannot be read any more.
    """
    first = found[0]
    if len(found) == 1:
        task, truth, probabilities = first.task, first.labels, first.probabilities
    else:
        task, (truth, probabilities) = MULTI, combine_out_of_fold(found)
    chosen = worst(probabilities, truth)
    viewers: list[Viewer] = []
    if pictures and len(chosen):
        viewers = [_viewer(each, rows_as_of(first, each)[chosen], device) for each in found]
    mistakes = describe(
        task,
        [first.places[row][1] for row in chosen],
        truth[chosen],
        probabilities[chosen],
        viewers,
    )
    answers = Answers(
        task,
        truth,
        probabilities.argmax(axis=1),
        MULTI.decode(first.multi_labels),
        people=first.people,
        races=first.races,
        beliefs=beliefs_of(task, probabilities, truth),
    )
    names = (f"{each.task.name}/{each.group.resolve().name}" for each in found)
    return Report(
        f"Scores of {' and '.join(names)}",
        answers,
        [
            described(checkpoint, f"{each.task.name}, fold {fold}")
            for each in found
            for fold, checkpoint in enumerate(require_folds(each.group))
        ],
        mistakes=mistakes,
        notes=[
            "Each person is answered by the one network of a group that has not seen them, without "
            "its calibration. They chose its epoch, so strangers are scored a little lower.",
            *(caveat for each in found for caveat in each.caveats),
        ],
    )


def _viewer(group: OutOfFold, rows: np.ndarray, device: torch.device) -> Viewer:
    """The networks of a group before the pictures in these of its rows (M,), each before those that
    it answered.

    Raises:
        PictureError: a picture that cannot be read.
    """
    spec = group.manifests[0].preprocess
    pixels = np.stack([prepare(read_image(group.paths[row]), [spec])[0] for row in rows])
    checkpoints = require_folds(group.group)

    def heats(places: np.ndarray, classes: np.ndarray) -> np.ndarray:
        found = np.zeros((len(places), *pixels.shape[1:3]), dtype=np.float32)
        folds = group.folds[rows[places]]
        for fold in np.unique(folds):
            engine = TorchClassifier([checkpoints[fold]], device, complete=False, calibrated=False)
            own = folds == fold
            found[own] = engine.grad_cam(0, pixels[places[own]], classes[own])
        return found

    return Viewer(group.task.name, pixels, heats)
