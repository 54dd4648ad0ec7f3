"""Whether a network is as sure as it is right: reliability diagram and calibration error."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from maskcls.data.profiles import nfc
from maskcls.errors import DataError
from maskcls.labels import ATTRIBUTES, probability_column

BINS = 15


@dataclass(frozen=True)
class Bin:
    """Answers of about the same confidence, which is the probability of the class answered."""

    low: float  # above this
    high: float  # up to this
    count: int
    confidence: float  # mean; 0 where the bin is empty
    accuracy: float  # share of right answers; 0 where the bin is empty


def reliability(probabilities: np.ndarray, labels: np.ndarray, bins: int = BINS) -> list[Bin]:
    """Class probabilities (N, C) and true classes (N,) → bins of equal width over 0..1.

    Raises:
        ValueError: shapes that do not fit, no pictures, or a probability outside 0..1.
    """
    probabilities, labels = np.asarray(probabilities, dtype=np.float64), np.asarray(labels)
    if probabilities.ndim != 2 or labels.shape != probabilities.shape[:1] or not len(labels):
        raise ValueError(f"probabilities {probabilities.shape} for labels {labels.shape}")
    # float32 softmax and rounded files: a sum of probabilities may be above 1 by a rounding.
    if not np.all((probabilities >= 0) & (probabilities <= 1 + 1e-4)):
        raise ValueError("probabilities that are not from 0 to 1")
    confidence = probabilities.max(axis=1).clip(max=1)
    right = probabilities.argmax(axis=1) == labels
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    count = np.bincount(place, minlength=bins)
    filled = np.maximum(count, 1)
    means = np.bincount(place, confidence, bins) / filled
    shares = np.bincount(place, right, bins) / filled
    return [
        Bin(i / bins, (i + 1) / bins, int(count[i]), float(means[i]), float(shares[i]))
        for i in range(bins)
    ]


def expected_calibration_error(
    probabilities: np.ndarray, labels: np.ndarray, bins: int = BINS
) -> float:
    """How far confidence and accuracy lie apart, bin by bin, weighted by the pictures: 0 is best.

    Class probabilities (N, C), true classes (N,). Naeini et al. 2015
    (doi:10.1609/aaai.v29i1.9602), with the 15 bins of Guo et al. 2017 (arXiv:1706.04599).

    Raises:
        ValueError: as `reliability`.
    """
    return calibration_error(reliability(probabilities, labels, bins))


def calibration_error(bins: Sequence[Bin]) -> float:
    """`expected_calibration_error` of bins that are there already."""
    gaps = sum(each.count * abs(each.accuracy - each.confidence) for each in bins)
    return gaps / sum(each.count for each in bins)


def read_probabilities(path: Path) -> dict[str, dict[str, np.ndarray]]:
    """The columns that `maskcls-infer --probabilities` adds: attribute → ImageID → (its classes,).

    Empty where the file has no such columns. Pictures without an answer are left out. ImageIDs are
    as `read_answers` gives them, which has found the file to be a table.

    Raises:
        DataError: a cell that is not a probability; or some of the columns, and not all.
    """
    columns = {
        name: [probability_column(name, value) for value in values]
        for name, values in ATTRIBUTES.items()
    }
    every = [column for part in columns.values() for column in part]
    found: dict[str, dict[str, np.ndarray]] = {name: {} for name in columns}
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        there = set(reader.fieldnames or ()) & set(every)
        if not there:
            return {}
        if lacking := [column for column in every if column not in there]:
            raise DataError(f"{path}: has probabilities, but no column {', '.join(lacking)!r}")
        for row in reader:
            if not row["ans"].strip():
                continue
            for name, part in columns.items():
                try:
                    values = np.array([float(row[column]) for column in part])
                except ValueError as error:
                    raise DataError(f"{path}, line {reader.line_num}: {error}") from None
                if not np.all((values >= 0) & (values <= 1)):
                    raise DataError(
                        f"{path}, line {reader.line_num}: {name} {values.tolist()} are not "
                        "probabilities from 0 to 1"
                    )
                found[name][nfc(row["ImageID"])] = values
    return found
