"""How sure a score is, and what holds it down: people drawn anew, and attributes taken as known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from maskcls.evaluation.scoring import confusion_matrix, scores_from_confusion, scores_of_many
from maskcls.labels import ATTRIBUTES, MULTI

DRAWS = 2000  # of people, as many as there are
LEVEL = 0.95

Interval = tuple[float, float]


@dataclass(frozen=True)
class Certainty:
    """What a score of the 18 classes is worth."""

    people: int
    macro_f1: Interval  # LEVEL of the scores of people drawn anew lie in it
    accuracy: Interval
    if_perfect: Mapping[str, float]  # attribute → macro F1 of the 18 classes, were it always right


def certainty(truth: np.ndarray, predicted: np.ndarray, people: Sequence[str]) -> Certainty:
    """Labels of the 18 classes (N,), true and predicted, and whose picture each is (N).

    The interval is the percentile bootstrap over people (Efron 1979, doi:10.1214/aos/1176344552): a
    person's pictures are right or wrong together, so pictures drawn one by one would look surer
    than they are.
    """
    macro_f1, accuracy = intervals(truth, predicted, people, MULTI.num_classes)
    return Certainty(
        people=len(set(people)),
        macro_f1=macro_f1,
        accuracy=accuracy,
        if_perfect={name: _if_perfect(truth, predicted, name) for name in ATTRIBUTES},
    )


def intervals(
    truth: np.ndarray, predicted: np.ndarray, people: Sequence[str], num_classes: int
) -> tuple[Interval, Interval]:
    """Those of macro F1 and accuracy; arguments as of `certainty`, for labels 0..num_classes-1.
    A prediction may be `NO_ANSWER`."""
    names, whose = np.unique(np.asarray(people), return_inverse=True)
    # A matrix per person; NO_ANSWER, -1, falls into the last column.
    cells = np.zeros((len(names), num_classes, num_classes + 1), dtype=np.int64)
    np.add.at(cells, (whose, truth, predicted), 1)
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=DRAWS)
    matrices = (drawn @ cells.reshape(len(names), -1)).reshape(DRAWS, *cells.shape[1:])
    macro_f1, accuracy = scores_of_many(matrices)
    return _interval(macro_f1), _interval(accuracy)


def _interval(values: np.ndarray) -> Interval:
    outside = (1 - LEVEL) / 2
    low, high = np.quantile(values, (outside, 1 - outside))
    return float(low), float(high)


def _if_perfect(truth: np.ndarray, predicted: np.ndarray, attribute: str) -> float:
    digits = MULTI.decode(predicted) | {attribute: MULTI.decode(truth)[attribute]}
    matrix = confusion_matrix(truth, MULTI.encode(**digits), MULTI.num_classes)
    return scores_from_confusion(matrix).macro_f1
