"""Training targets that say how sure a label is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from maskcls.labels import AGE_BOUNDS, Task

AGE_STEPS = (5, 10, 15, 20, 23, 26, 28, 30, 33, 36, 40, 45, 50, 55, 60, 65, 70, 80)
"""First years of the steps in which `age` is learnt, after the step from 0. The borders of the
groups are among them; near 30, where groups are taken for one another most, they are finest."""


def steps_per_group() -> tuple[int, ...]:
    """How many of the steps each age group is made of: the first so many are the first group."""
    groups = np.searchsorted(AGE_BOUNDS, (0, *AGE_STEPS), side="right")
    return tuple(np.bincount(groups).tolist())


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
    # Whole years: the border lies between the last of one group and the first of the next.
    borders = torch.tensor([bound - 0.5 for bound in bounds], dtype=torch.float64)
    below = torch.special.ndtr((borders - torch.from_numpy(ages).double()[:, None]) / deviation)
    edges = torch.nn.functional.pad(torch.nn.functional.pad(below, (0, 1), value=1.0), (1, 0))
    return edges.diff(dim=1).float()


def soft_targets(task: Task, labels: np.ndarray, ages: np.ndarray, deviation: float) -> Tensor:
    """Targets (N, C) float32 of a task with ages, rows sum to 1; other attributes stay certain.

    labels: classes of the task (N,); ages: years (N,).
    """
    classes = task.decode(np.arange(task.num_classes))
    truth = task.decode(labels)
    targets = age_group_shares(ages, deviation)[:, classes["age"]]
    for attribute in task.attributes:
        if attribute != "age":
            same = truth[attribute][:, None] == classes[attribute][None, :]  # (N, C)
            targets = targets * torch.from_numpy(same)
    return targets
