"""How sure a score is, and what holds it down: people drawn anew, and attributes taken as known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from maskcls.evaluation.scoring import (
    confusion_matrix,
    macro_f1_of_true,
    scores_from_confusion,
    scores_of_many,
)
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

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "people": self.people,
            "intervals": {"macro_f1": self.macro_f1, "accuracy": self.accuracy},
            "if_perfect": dict(self.if_perfect),
        }


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
        if_perfect=if_perfect(truth, predicted),
    )


def if_perfect(truth: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Labels of the 18 classes (N,), true and predicted → attribute → the macro F1 of the 18
    classes, were it always right and the others as they are."""
    return {name: _if_perfect(truth, predicted, name) for name in ATTRIBUTES}


def intervals(
    truth: np.ndarray, predicted: np.ndarray, people: Sequence[str], num_classes: int
) -> tuple[Interval, Interval]:
    """Those of macro F1 and accuracy; arguments as of `certainty`, for labels 0..num_classes-1.
    A prediction may be `NO_ANSWER`."""
    matrices = drawn_confusions(truth, predicted, people, num_classes, DRAWS)
    macro_f1, accuracy = scores_of_many(matrices)
    return _interval(macro_f1), _interval(accuracy)


def mean_interval(
    sides: Sequence[tuple[np.ndarray, np.ndarray, Sequence[str]]], num_classes: int
) -> Interval:
    """That of the mean macro F1 of several splits of the same people, who are drawn anew for all
    together. `sides`: truth, predicted and people of each, as of `intervals`."""
    everybody = [person for _, _, people in sides for person in people]
    with np.errstate(invalid="ignore"):  # a draw may have nobody of a side
        drawn = [
            scores_of_many(drawn_confusions(*side, num_classes, DRAWS, everybody))[0]
            for side in sides
        ]
    return _interval(np.nanmean(drawn, axis=0))


class Pair(NamedTuple):
    """Two answers to the same pictures (N)."""

    truth: np.ndarray
    predicted: np.ndarray
    base: np.ndarray  # what `predicted` is held against
    people: Sequence[str]  # whose picture each is


def mean_gain(pairs: Sequence[Pair], num_classes: int) -> tuple[float, Interval]:
    """How much higher than `base` the macro F1 of `predicted` is, over the classes in the truth;
    of several pairs, as of several splits of the same people, the mean. The interval is of people
    drawn anew, the same ones for both sides and for all pairs: much narrower than that of a score,
    as both sides find the same people hard.
    """
    everybody = [person for pair in pairs for person in pair.people]
    gains, drawn = [], []
    for pair in pairs:
        sides = (pair.predicted, pair.base)
        whole = np.stack([confusion_matrix(pair.truth, side, num_classes) for side in sides])
        gains.append(np.subtract(*macro_f1_of_true(whole)))
        with np.errstate(invalid="ignore"):  # a draw may have nobody of a pair
            scores = [
                macro_f1_of_true(
                    drawn_confusions(pair.truth, side, pair.people, num_classes, DRAWS, everybody)
                )
                for side in sides
            ]
        drawn.append(scores[0] - scores[1])
    return float(np.mean(gains)), _interval(np.nanmean(drawn, axis=0))


def format_interval(interval: Interval | None) -> str:
    """As tables have it; a dash where there is none."""
    return "–" if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}"


def drawn_confusions(
    truth: np.ndarray,
    predicted: np.ndarray,
    people: Sequence[str],
    classes: int,
    draws: int,
    everybody: Sequence[str] | None = None,
) -> np.ndarray:
    """Labels (N,), true and predicted, and whose picture each is (N) → confusion matrices (draws,
    classes, classes + 1) int64 of as many people, drawn anew with replacement. The same people are
    drawn every time, whatever was predicted. `NO_ANSWER` counts in the last column. `everybody`:
    whom to draw from, where others than `people` are drawn alike."""
    names = np.unique(np.asarray(people if everybody is None else everybody))
    whose = np.searchsorted(names, np.asarray(people))
    cells = np.zeros((len(names), classes, classes + 1))  # a matrix per person
    np.add.at(cells, (whose, truth, predicted), 1)  # -1, NO_ANSWER, is the last column
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=draws)
    # Whole numbers in float64: exact, and multiplied many times faster than integers.
    matrices = drawn.astype(np.float64) @ cells.reshape(len(names), -1)
    return matrices.reshape(draws, *cells.shape[1:]).astype(np.int64)


def _interval(values: np.ndarray) -> Interval:
    outside = (1 - LEVEL) / 2
    low, high = np.quantile(values, (outside, 1 - outside))
    return float(low), float(high)


def _if_perfect(truth: np.ndarray, predicted: np.ndarray, attribute: str) -> float:
    digits = MULTI.decode(predicted) | {attribute: MULTI.decode(truth)[attribute]}
    matrix = confusion_matrix(truth, MULTI.encode(**digits), MULTI.num_classes)
    return scores_from_confusion(matrix).macro_f1
