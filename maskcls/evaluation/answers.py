"""What was answered about labelled pictures, and how reports and model cards take it apart: by
attribute, and by groups of people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from maskcls.evaluation.groups import Factor, Group, group_scores
from maskcls.evaluation.people import Interval, intervals
from maskcls.evaluation.scoring import (
    ClassScores,
    confusion_with_missing,
    decode_answers,
    scores_from_confusion,
)
from maskcls.labels import ATTRIBUTES, Task

Belief = tuple[np.ndarray, np.ndarray]
"""Class probabilities (M, C) and true classes (M,)."""


@dataclass(frozen=True, eq=False)
class Part:
    """Answers of one kind: the classes of a task, or those of one of its attributes."""

    name: str
    class_names: Sequence[str]  # (C)
    truth: np.ndarray  # (N,) classes
    predicted: np.ndarray  # (N,); `NO_ANSWER` where there is none
    people: Sequence[str] | None  # whose picture each is (N); None where it is not known

    def confusion(self) -> np.ndarray:
        """(C, C+1), as `confusion_with_missing` has it."""
        return confusion_with_missing(self.truth, self.predicted, len(self.class_names))

    def scores(self) -> ClassScores:
        return scores_from_confusion(self.confusion())

    def intervals(self) -> tuple[Interval | None, Interval | None]:
        """Those of macro F1 and accuracy; None where the people are not known."""
        if self.people is None:
            return None, None
        return intervals(self.truth, self.predicted, self.people, len(self.class_names))


@dataclass(frozen=True, eq=False)
class Answers:
    """Labelled pictures and what was answered."""

    task: Task
    truth: np.ndarray  # (N,) classes of the task
    predicted: np.ndarray  # (N,); `NO_ANSWER` where there is none
    attributes: Mapping[str, np.ndarray]  # all of `ATTRIBUTES` → (N,), the true ones
    people: Sequence[str] | None = None  # whose picture each is (N); None where it is not known
    races: Sequence[str] | None = None  # (N), as in the folders' names
    beliefs: Mapping[str, Belief] = field(default_factory=dict)  # what they are about → the numbers

    def parts(self) -> list[Part]:
        """The task, then its attributes where it has several."""
        task = self.task
        parts = [Part(_whole(task), task.class_names, self.truth, self.predicted, self.people)]
        if len(task.attributes) > 1:
            found = decode_answers(task, self.predicted)
            parts += [
                Part(name, ATTRIBUTES[name], truth, found[name], self.people)
                for name, truth in task.decode(self.truth).items()
            ]
        return parts

    def factors(self) -> dict[str, Factor]:
        """What the pictures can be grouped by: the attributes, and `race` where it is known."""
        factors = {name: Factor(ATTRIBUTES[name], codes) for name, codes in self.attributes.items()}
        return factors if self.races is None else factors | {"race": Factor.of(self.races)}

    def groups(self, *names: str) -> list[Group]:
        """The scores of pictures that share the values of these factors."""
        factors = self.factors()
        return group_scores(
            self.truth,
            self.predicted,
            self.task.num_classes,
            [factors[name] for name in names],
            self.people,
        )


def beliefs_of(task: Task, probabilities: np.ndarray, truth: np.ndarray) -> dict[str, Belief]:
    """What the probabilities (N, C) say of the task and of each of its attributes."""
    digits = task.decode(truth)
    found = {name: (values, digits[name]) for name, values in task.marginals(probabilities).items()}
    if len(task.attributes) == 1:
        return found
    return {_whole(task): (probabilities, truth)} | found


def _whole(task: Task) -> str:
    """How a task is called beside its attributes."""
    several = len(task.attributes) > 1
    return f"all {task.num_classes} classes" if several else task.attributes[0]
