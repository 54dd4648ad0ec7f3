"""Scores of groups of people: is a network as good for some as for others?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from maskcls.evaluation.scoring import confusion_with_missing, scores_from_confusion

FEW = 10
"""People of a group below which its score is mostly chance."""


@dataclass(frozen=True, eq=False)
class Factor:
    """What pictures are grouped by: the names of its values, and which one each picture has."""

    names: Sequence[str]
    codes: np.ndarray  # (N,) int, index into `names`

    @classmethod
    def of(cls, values: Sequence[str]) -> Factor:
        """A value per picture; the names are in alphabetical order."""
        names, codes = np.unique(np.asarray(values, dtype=np.str_), return_inverse=True)
        return cls(names.tolist(), codes)


@dataclass(frozen=True)
class Group:
    """The score of the pictures that share the values of some factors."""

    values: tuple[str, ...]  # a name per factor
    pictures: int
    people: int | None  # None where it is not known who is on the pictures
    macro_f1: float
    accuracy: float

    @property
    def unreliable(self) -> bool:
        """Whether it has few people. (Where they are not known: so few pictures.)"""
        return (self.pictures if self.people is None else self.people) < FEW


def group_scores(
    truth: np.ndarray,
    predicted: np.ndarray,
    num_classes: int,
    factors: Sequence[Factor],
    people: Sequence[str] | None = None,
) -> list[Group]:
    """The groups that occur, in the order of the factors' names.

    truth, predicted: (N,) classes; a prediction may be `NO_ANSWER`. Macro F1 is the mean over the
    classes in the truth of the group, scikit-learn's `f1_score(labels=…, average="macro")`: most
    classes cannot occur in a group, and a wrong answer that is one of them would count twice, as a
    miss and as a class of its own with an F1 of 0.
    """
    codes = np.stack([factor.codes for factor in factors], axis=1)
    whose = None if people is None else np.asarray(people, dtype=np.str_)
    groups = []
    for combination in np.unique(codes, axis=0):
        rows = (codes == combination).all(axis=1)
        matrix = confusion_with_missing(truth[rows], predicted[rows], num_classes)
        scores = scores_from_confusion(matrix)
        groups.append(
            Group(
                tuple(f.names[code] for f, code in zip(factors, combination, strict=True)),
                pictures=int(rows.sum()),
                people=None if whose is None else len(np.unique(whose[rows])),
                macro_f1=scores.macro_f1_of_true,
                accuracy=scores.accuracy,
            )
        )
    return groups
