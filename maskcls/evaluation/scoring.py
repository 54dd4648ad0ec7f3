"""The score: macro F1 and accuracy, from one confusion matrix.

`scores_from_confusion` defines the score. Training feeds it the matrix of its validation set,
`maskcls-evaluate` that of a prediction file, and it agrees with scikit-learn's
`f1_score(average="macro")`: the mean over the classes in the truth or in the predictions.

Where networks or groups of people are compared with each other, the mean is over the classes in the
truth alone, `macro_f1_of_true`: which others are predicted differs between them. An epoch is chosen
by the score itself.
"""

from __future__ import annotations

import csv
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from maskcls.errors import DataError
from maskcls.labels import ATTRIBUTES, MULTI, Task

COLUMNS = ("ImageID", "ans")
NO_ANSWER = -1
"""The answer to a picture that was not labelled: wrong, whatever the truth is."""


@dataclass(frozen=True, eq=False)  # arrays have no single truth value for ==
class ClassScores:
    """Scores of one classification. The arrays are (C,), one entry per class."""

    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    support: np.ndarray  # int64, pictures of the class in the truth
    occurs: np.ndarray  # bool, the class is in the truth or in the predictions
    macro_f1: float
    accuracy: float

    @property
    def macro_f1_of_true(self) -> float:
        """The mean over the classes in the truth alone, of which there is one at least."""
        return float(self.f1[self.support > 0].mean())

    def to_list(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """Plain values of each class, for JSON. `names` (C)."""
        return [
            {
                "label": label,
                "name": name,
                "precision": float(self.precision[label]),
                "recall": float(self.recall[label]),
                "f1": float(self.f1[label]),
                "support": int(self.support[label]),
            }
            for label, name in enumerate(names)
        ]


@dataclass(frozen=True, eq=False)
class Scores:
    """Scores of a prediction file."""

    count: int  # pictures of the truth
    missing: int  # of these, pictures without an answer
    confusion: np.ndarray  # (18, 19) int64; the last column counts pictures without an answer
    classes: ClassScores  # of the 18 classes
    attributes: Mapping[str, ClassScores]  # of mask, gender, age

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON. `confusion` is square, rows truth, columns prediction: what a row
        lacks to its class's support are the pictures without an answer.
        """
        classes = self.classes
        return {
            "macro_f1": classes.macro_f1,
            "accuracy": classes.accuracy,
            **{
                attribute: {"macro_f1": scores.macro_f1, "accuracy": scores.accuracy}
                for attribute, scores in self.attributes.items()
            },
            "per_class": classes.to_list(MULTI.class_names),
            "count": self.count,
            "missing": self.missing,
            "confusion": self.confusion[:, : MULTI.num_classes].tolist(),
        }


def confusion_matrix(truth: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """Two integer arrays (N,) of labels 0..num_classes-1 → counts (C, C) int64, rows truth, columns
    prediction.

    Raises:
        ValueError: the arrays differ in length, or a label is out of range.
    """
    truth, predicted = np.asarray(truth, dtype=np.int64), np.asarray(predicted, dtype=np.int64)
    if truth.ndim != 1 or truth.shape != predicted.shape:
        raise ValueError(f"labels of shapes {truth.shape} and {predicted.shape}, not (N,) twice")
    for labels in (truth, predicted):
        if np.any(labels < 0) or np.any(labels >= num_classes):
            raise ValueError(
                f"labels {labels.min()}..{labels.max()} are not in 0..{num_classes - 1}"
            )
    cells = np.bincount(truth * num_classes + predicted, minlength=num_classes**2)
    return cells.reshape(num_classes, num_classes).astype(np.int64)


def scores_from_confusion(matrix: np.ndarray) -> ClassScores:
    """Counts (C, C), rows truth, columns prediction → scores.

    A column beyond the classes, (C, C+1), holds pictures without an answer: each is a miss for its
    own class (recall falls) and a false alarm for none.

    A class without pictures or without predictions scores 0 where the quotient is undefined. Macro
    F1 is the mean over the classes that occur in the truth or in the predictions. It and accuracy
    are nan for a matrix without counts.
    """
    hits = np.diagonal(matrix)
    support = matrix.sum(axis=1)
    predicted = matrix[:, : len(matrix)].sum(axis=0)
    f1, occurs = _f1(matrix)
    count = int(support.sum())
    return ClassScores(
        precision=_quotient(hits, predicted),
        recall=_quotient(hits, support),
        f1=f1,
        support=support,
        occurs=occurs,
        macro_f1=float(f1[occurs].mean()) if count else float("nan"),
        accuracy=float(hits.sum() / count) if count else float("nan"),
    )


def scores_of_many(matrices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Macro F1 (D,) and accuracy (D,) of many matrices (D, C, C) or (D, C, C+1), none of them
    without counts, as `scores_from_confusion` has them of each."""
    f1, occurs = _f1(matrices)
    hits = np.diagonal(matrices, axis1=1, axis2=2).sum(axis=1)
    return f1.sum(axis=1) / occurs.sum(axis=1), hits / matrices.sum(axis=(1, 2))


def macro_f1_of_true(matrices: np.ndarray) -> np.ndarray:
    """Macro F1 (D,) of matrices (D, C, C) or (D, C, C+1) over the classes that the truth of each
    has: the same for all answers about the same pictures, so that two can be compared."""
    f1, _ = _f1(matrices)
    present = matrices.sum(axis=2) > 0
    means: np.ndarray = (f1 * present).sum(axis=1) / present.sum(axis=1)
    return means


def _f1(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Counts (…, C, C) or (…, C, C+1) → F1 (…, C), 0 for a class that does not occur, and whether
    it occurs (…, C)."""
    hits = np.diagonal(matrix, axis1=-2, axis2=-1)
    taken = matrix.sum(axis=-1) + matrix[..., : matrix.shape[-2]].sum(axis=-2)
    return _quotient(2 * hits, taken), taken > 0


def read_answers(path: Path, *, allow_empty: bool = False) -> dict[str, int]:
    """A table `ImageID,ans` (CSV in UTF-8; other columns are ignored) → 18-class label per picture,
    in row order. ImageIDs are in Unicode NFC, so that names written on macOS and on Linux match.

    An empty `ans` reads as `NO_ANSWER` where `allow_empty` is set: predictions may lack one, the
    truth may not.

    Raises:
        DataError: no such file, not a CSV in UTF-8, a missing column, no rows, a row with cells
            missing or left over, an `ans` that is not a class, an ImageID that is empty or repeats.
    """
    answers: dict[str, int] = {}
    first_lines: dict[str, int] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            header = reader.fieldnames
            if header is None:
                raise DataError(f"{path}: the file is empty; it needs the header ImageID,ans")
            lacking = [name for name in COLUMNS if name not in header]
            if lacking:
                raise DataError(
                    f"{path}, line 1: no column {' or '.join(lacking)} in {','.join(header)!r}; "
                    "the header is ImageID,ans"
                )
            for row in reader:
                where = f"{path}, line {reader.line_num}"
                if None in row or None in row.values():
                    raise DataError(
                        f"{where}: not {len(header)} cells as in the header; first cell "
                        f"{row[header[0]]!r}"
                    )
                image_id = unicodedata.normalize("NFC", row["ImageID"])
                if not image_id:
                    raise DataError(f"{where}: ImageID is empty; ans is {row['ans']!r}")
                if image_id in answers:
                    raise DataError(
                        f"{where}: ImageID {image_id!r} stands in line {first_lines[image_id]} too"
                    )
                answers[image_id] = _parse_answer(row["ans"], where, allow_empty)
                first_lines[image_id] = reader.line_num
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not a CSV table in UTF-8: {error}") from None
    if not answers:
        raise DataError(f"{path}: no rows under the header")
    return answers


def score_answers(truth: Mapping[str, int], predicted: Mapping[str, int]) -> Scores:
    """Predictions against the truth, both ImageID → 18-class label, joined on the ImageID.

    Every picture of the truth counts. One that has no prediction, or `NO_ANSWER`, is wrong in all
    three attributes: a miss for its class, a false alarm for none (`scores_from_confusion`).

    Raises:
        DataError: predictions for pictures that are not in the truth.
    """
    strangers = [image_id for image_id in predicted if image_id not in truth]
    if strangers:
        raise DataError(
            f"{len(strangers)} of {len(predicted)} predictions are for pictures that are not in "
            f"the ground truth, first: {strangers[0]!r}; is it the ground truth of these pictures?"
        )
    labels = np.array(list(truth.values()), dtype=np.int64)
    answers = np.array([predicted.get(image_id, NO_ANSWER) for image_id in truth], dtype=np.int64)
    confusion = confusion_with_missing(labels, answers, MULTI.num_classes)
    true_digits, digits = MULTI.decode(labels), decode_answers(MULTI, answers)
    return Scores(
        count=len(labels),
        missing=int(np.count_nonzero(answers == NO_ANSWER)),
        confusion=confusion,
        classes=scores_from_confusion(confusion),
        attributes={
            attribute: scores_from_confusion(
                confusion_with_missing(true_digits[attribute], digits[attribute], len(names))
            )
            for attribute, names in ATTRIBUTES.items()
        },
    )


def decode_answers(task: Task, predicted: np.ndarray) -> dict[str, np.ndarray]:
    """Classes of a task (N,) → per attribute (N,); both are `NO_ANSWER` where there is none."""
    answered = predicted != NO_ANSWER
    # Something must be decoded where nothing was answered.
    digits = task.decode(np.where(answered, predicted, 0))
    return {name: np.where(answered, digit, NO_ANSWER) for name, digit in digits.items()}


def confusion_with_missing(
    truth: np.ndarray, predicted: np.ndarray, num_classes: int
) -> np.ndarray:
    """(C, C+1): pictures whose prediction is `NO_ANSWER` are in the last column."""
    with_missing = np.where(predicted == NO_ANSWER, num_classes, predicted)
    # "No answer" is one more class; its row is empty, because the truth always has an answer.
    return confusion_matrix(truth, with_missing, num_classes + 1)[:num_classes]


def _quotient(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole, and 0 where whole is 0."""
    quotient: np.ndarray = np.divide(part, whole, out=np.zeros(whole.shape), where=whole > 0)
    return quotient


def _parse_answer(text: str, where: str, allow_empty: bool) -> int:
    text = text.strip()
    if not text and allow_empty:
        return NO_ANSWER
    # int() alone would take "1_0", "+1" and the digits of other scripts.
    if not re.fullmatch("[0-9]{1,3}", text) or int(text) >= MULTI.num_classes:
        raise DataError(
            f"{where}: ans {text!r} is not a whole number from 0 to {MULTI.num_classes - 1}"
        )
    return int(text)
