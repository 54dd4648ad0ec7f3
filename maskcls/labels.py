"""Labels: the three attributes of a face, the tasks built from them, and the 18-class code.

The class of the competition is `mask * 6 + gender * 3 + age`: a mixed-radix number whose digits are
the attributes in the order of `ATTRIBUTES`. Every count and every name in the project comes from
this table.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import PurePath
from typing import Any

import numpy as np

from maskcls.errors import CheckpointError, ConfigError, DataError, unknown


class MaskLabels(IntEnum):
    """How the mask is worn, coded as in the competition."""

    MASK = 0
    INCORRECT = 1
    NORMAL = 2

    @classmethod
    def from_filename(cls, name: str) -> MaskLabels:
        """The label of a picture file in a person's folder: `mask1.jpg` … `mask5.png`,
        `incorrect_mask.jpeg`, `normal.jpg`.

        Raises:
            DataError: the name is none of these.
        """
        stem = PurePath(name).stem
        try:
            return MASK_OF_STEM[stem]
        except KeyError:
            raise DataError(unknown("picture name", stem, MASK_OF_STEM)) from None


class GenderLabels(IntEnum):
    """Gender as the data set records it."""

    MALE = 0
    FEMALE = 1

    @classmethod
    def from_str(cls, value: str) -> GenderLabels:
        """`male` or `female`, in any case.

        Raises:
            DataError: any other text.
        """
        try:
            return cls[value.strip().upper()]
        except KeyError:
            raise DataError(unknown("gender", value, ("male", "female"))) from None


class AgeLabels(IntEnum):
    """Age group: under 30, 30 to 59, 60 or over."""

    YOUNG = 0
    MIDDLE = 1
    OLD = 2

    @classmethod
    def from_number(cls, value: int | str) -> AgeLabels:
        """The group of an age in years.

        Raises:
            DataError: the value is not a whole number from 0 to 130.
        """
        text = str(value).strip()
        if not re.fullmatch(r"[0-9]{1,3}", text) or int(text) > MAX_AGE:
            raise DataError(f"age {value!r} is not a whole number from 0 to {MAX_AGE}")
        return cls(sum(int(text) >= bound for bound in AGE_BOUNDS))


AGE_BOUNDS = (30, 60)  # years; the first age of the second and of the third group
MAX_AGE = 130  # years; above it the cell is a mistake

MASK_OF_STEM = {f"mask{number}": MaskLabels.MASK for number in range(1, 6)} | {
    "incorrect_mask": MaskLabels.INCORRECT,
    "normal": MaskLabels.NORMAL,
}
"""The seven pictures of a person: file stem → mask label."""


ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "mask": ("worn", "incorrect", "not worn"),
    "gender": ("male", "female"),
    "age": ("<30", "30-59", ">=60"),
}
"""Attribute → class names. The order is the order of the digits in the 18-class code."""


def probability_column(attribute: str, value: str) -> str:
    """The column of a prediction file that holds the probability of an attribute's class."""
    return f"{attribute}: {value}"


@dataclass(frozen=True)
class Task:
    """What one network learns: one attribute, or several as one combined class.

    The class of a task is the mixed-radix number of its attributes, most significant first, so
    `mask_gender` has the classes `mask * 2 + gender`.
    """

    name: str
    attributes: tuple[str, ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Classes per attribute."""
        return tuple(len(ATTRIBUTES[attribute]) for attribute in self.attributes)

    @property
    def num_classes(self) -> int:
        return math.prod(self.sizes)

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(
            ", ".join(
                ATTRIBUTES[attribute][digit] for attribute, digit in self.decode(label).items()
            )
            for label in range(self.num_classes)
        )

    def encode(self, **digits: Any) -> Any:
        """Attribute labels (ints or integer arrays, those of other attributes are ignored) → class.

        Raises:
            ValueError: a label outside its attribute's range.
        """
        label: Any = 0
        for attribute, size in zip(self.attributes, self.sizes, strict=True):
            digit = digits[attribute]
            if np.any(np.less(digit, 0)) or np.any(np.greater_equal(digit, size)):
                raise ValueError(f"{attribute} label {digit!r} is not in 0..{size - 1}")
            label = label * size + digit
        return label

    def decode(self, label: Any) -> dict[str, Any]:
        """Class (int or integer array) → attribute labels. The inverse of `encode`.

        Raises:
            ValueError: a class outside the task's range.
        """
        if np.any(np.less(label, 0)) or np.any(np.greater_equal(label, self.num_classes)):
            raise ValueError(f"class {label!r} of {self.name} is not in 0..{self.num_classes - 1}")
        digits: dict[str, Any] = {}
        for attribute, size in zip(reversed(self.attributes), reversed(self.sizes), strict=True):
            label, digits[attribute] = label // size, label % size
        return {attribute: digits[attribute] for attribute in self.attributes}

    def from_multi(self, label: Any) -> Any:
        """18-class label → this task's class."""
        return self.encode(**MULTI.decode(label))

    def marginals(self, probabilities: np.ndarray) -> dict[str, np.ndarray]:
        """Class probabilities (N, num_classes) → per attribute (N, classes of the attribute)."""
        joint = probabilities.reshape(len(probabilities), *self.sizes)
        axes = range(1, joint.ndim)
        return {
            attribute: joint.sum(axis=tuple(axis for axis in axes if axis != position))
            for position, attribute in zip(axes, self.attributes, strict=True)
        }

    @property
    def joint_shape(self) -> tuple[int, ...]:
        """Shape of its class probabilities in the grid of all attributes: 1 for an attribute that
        it does not answer. `mask_gender` has (3, 2, 1)."""
        return tuple(
            len(names) if attribute in self.attributes else 1
            for attribute, names in ATTRIBUTES.items()
        )


def combine(parts: Mapping[str, np.ndarray]) -> np.ndarray:
    """Class probabilities of tasks that together answer every attribute once → those of the
    18 classes: task → (N, its classes) becomes (N, 18). Networks are taken as independent."""
    grid: Any = 1
    for name, probabilities in parts.items():
        grid = grid * probabilities.reshape(-1, *TASKS[name].joint_shape)
    joined: np.ndarray = np.asarray(grid).reshape(len(grid), MULTI.num_classes)
    return joined


def softmax(logits: np.ndarray) -> np.ndarray:
    """Logits (N, C) → probabilities (N, C), float32."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares: np.ndarray = (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)
    return shares


def require_all_attributes(tasks: Sequence[Task], files: Sequence[PurePath]) -> None:
    """Networks that label pictures answer every attribute, and none twice.

    Raises:
        CheckpointError: they do not; names the files.
    """
    answered = [name for task in tasks for name in task.attributes]
    for attribute in ATTRIBUTES:
        if answered.count(attribute) != 1:
            shown = ", ".join(f"{p} ({t.name})" for p, t in zip(files, tasks, strict=True))
            how = "none answers" if attribute not in answered else "more than one answers"
            raise CheckpointError(
                f"{shown}: {how} {attribute}; give one of each of {' and '.join(BRANCHES)}, "
                "or the folder that holds them"
            )


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("mask_gender", ("mask", "gender")),
        Task("age", ("age",)),
        Task("mask", ("mask",)),
        Task("gender", ("gender",)),
        Task("multi", tuple(ATTRIBUTES)),
    )
}
MULTI = TASKS["multi"]
BRANCHES = ("mask_gender", "age")
"""The two networks of the project; `--task all` trains these."""


def get_task(name: str) -> Task:
    """The task of that name.

    Raises:
        ConfigError: no such task; names the nearest.
    """
    try:
        return TASKS[name]
    except KeyError:
        raise ConfigError(unknown("task", name, TASKS)) from None
