"""Training targets that say how sure a label is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from maskcls.labels import AGE_BOUNDS, ATTRIBUTES, Task

AGE_STEPS = (5, 10, 15, 20, 23, 26, 28, 30, 33, 36, 40, 45, 50, 55, 60, 65, 70, 80)
"""First years of the steps in which `age` is learnt, after the step from 0. The borders of the
groups are among them; near 30, where groups are taken for one another most, they are finest."""

BORDER_YEARS = 3
"""The last so many years of an age group are at its border: 27 to 29 and 57 to 59."""


def at_border(ages: np.ndarray) -> np.ndarray:
    """Which ages (N,) are in the last `BORDER_YEARS` of a group that has a next one: bool (N,)."""
    near: np.ndarray = np.any(_years_to_next(ages) <= BORDER_YEARS, axis=1)
    return near


def _years_to_next(ages: np.ndarray) -> np.ndarray:
    """(N, borders) whole years until each border, endless for those that are behind."""
    years = np.subtract.outer(AGE_BOUNDS, ages).T
    return np.where(years > 0, years, np.inf)


def border_shares(ages: np.ndarray) -> Tensor:
    """Ages in years (N,) → shares of the age groups (N, 3) float32, rows sum to 1.

    Of an age at a border a part goes to the next group: a half at the border itself, which lies
    between two whole years, and less with the distance, down to nothing `BORDER_YEARS` before it.
    All other ages are wholly in their group.
    """
    distance = torch.from_numpy(_years_to_next(ages)) - 0.5  # (N, borders)
    given = 0.5 * (1 - distance / BORDER_YEARS).clamp_min(0)
    before = torch.nn.functional.pad(given, (0, 1))
    after = torch.nn.functional.pad(given, (1, 0))
    return (age_group_shares(ages, 0.0).double() - before + after).float()


def steps_per_group() -> tuple[int, ...]:
    """How many of the steps each age group is made of: the first so many are the first group."""
    groups = np.searchsorted(AGE_BOUNDS, (0, *AGE_STEPS), side="right")
    return tuple(np.bincount(groups).tolist())


def step_centres() -> Tensor:
    """The mean of the whole years of each step, float32 (len(AGE_STEPS) + 1,). The last step has no
    end; it is taken for as long as the one before."""
    borders = np.array((0, *AGE_STEPS, 2 * AGE_STEPS[-1] - AGE_STEPS[-2]))
    return torch.from_numpy((borders[:-1] + borders[1:] - 1) / 2).float()


def age_group_shares(ages: np.ndarray, deviation: float) -> Tensor:
    """Ages in years (N,) → shares of the age groups (N, 3) float32, rows sum to 1.

    An age stands for a normal distribution of standard deviation `deviation` (years) about it: a
    person of 29 is half in the next group, one of 20 is not. Faces tell an age to some years at
    best, and a hard border teaches a network to tell 29 from 30.
    """
    return _shares(ages, deviation, AGE_BOUNDS)


def age_step_shares(ages: np.ndarray, deviation: float) -> Tensor:
    """As `age_group_shares`, of the finer `AGE_STEPS`: (N, len(AGE_STEPS) + 1)."""
    return _shares(ages, deviation, AGE_STEPS)


def _shares(ages: np.ndarray, deviation: float, bounds: Sequence[int]) -> Tensor:
    # Whole years: the border lies between the last of one group and the first of the next, so that
    # an age without a deviation is wholly on one side.
    borders = torch.tensor([bound - 0.5 for bound in bounds], dtype=torch.float64)
    distance = borders - torch.from_numpy(ages).double()[:, None]
    below = torch.special.ndtr(distance / max(deviation, 1e-6))
    edges = torch.nn.functional.pad(torch.nn.functional.pad(below, (0, 1), value=1.0), (1, 0))
    return edges.diff(dim=1).float()


def soft_targets(task: Task, labels: np.ndarray, ages: np.ndarray, deviation: float) -> Tensor:
    """Targets (N, C) float32 of a task with ages, rows sum to 1; other attributes stay certain.

    labels: classes of the task (N,); ages: years (N,).
    """
    return _with_others(task, labels, age_group_shares(ages, deviation))


def border_targets(task: Task, labels: np.ndarray, ages: np.ndarray) -> Tensor:
    """As `soft_targets`, of `border_shares`."""
    return _with_others(task, labels, border_shares(ages))


def _with_others(task: Task, labels: np.ndarray, age_groups: Tensor) -> Tensor:
    """Shares of the age groups (N, 3) → of the classes of a task (N, C)."""
    classes = task.decode(np.arange(task.num_classes))
    truth = task.decode(labels)
    targets = age_groups[:, classes["age"]]
    for attribute in task.attributes:
        if attribute != "age":
            same = truth[attribute][:, None] == classes[attribute][None, :]  # (N, C)
            targets = targets * torch.from_numpy(same)
    return targets


def auxiliary_sizes(task: Task) -> tuple[int, ...]:
    """What a network may learn beside its task: the number of classes of each attribute that the
    task does not answer; of `age`, the number of its steps."""
    return tuple(
        len(AGE_STEPS) + 1 if attribute == "age" else len(names)
        for attribute, names in ATTRIBUTES.items()
        if attribute not in task.attributes
    )


def auxiliary_targets(
    task: Task, attributes: Mapping[str, np.ndarray], ages: np.ndarray, deviation: float
) -> Tensor:
    """Targets (N, sum(auxiliary_sizes(task))) float32: a block per attribute, its rows sum to 1.

    attributes: attribute → classes (N,); ages: years (N,), spread by `deviation` (years; 0: not).
    """
    return torch.cat(
        [
            age_step_shares(ages, deviation)
            if attribute == "age"
            else torch.nn.functional.one_hot(torch.from_numpy(attributes[attribute]), len(names))
            for attribute, names in ATTRIBUTES.items()
            if attribute not in task.attributes
        ],
        dim=1,
    ).float()
