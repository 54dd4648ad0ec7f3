"""Training targets that say how sure a label is."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from maskcls.labels import AGE_BOUNDS, Task


def age_group_shares(ages: np.ndarray, deviation: float) -> Tensor:
    """Ages in years (N,) → shares of the age groups (N, 3) float32, rows sum to 1.

    An age stands for a normal distribution of standard deviation `deviation` (years) about it: a
    person of 29 is half in the next group, one of 20 is not. Faces tell an age to some years at
    best, and a hard border teaches a network to tell 29 from 30.
    """
    # Whole years: the border lies between the last of one group and the first of the next.
    borders = torch.tensor([bound - 0.5 for bound in AGE_BOUNDS], dtype=torch.float64)
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
