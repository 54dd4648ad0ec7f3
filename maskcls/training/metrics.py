"""What is measured on the validation people after each epoch."""

from __future__ import annotations

from collections.abc import Mapping

import ignite.distributed as idist
import numpy as np
from ignite.engine import Engine
from ignite.metrics import ConfusionMatrix, Loss, MetricsLambda
from torch import Tensor, nn

from maskcls.evaluation.scoring import scores_from_confusion
from maskcls.labels import ATTRIBUTES, Task


def attach_metrics(evaluator: Engine, task: Task, criterion: nn.Module) -> None:
    """Fills `evaluator.state.metrics` with `val_loss`, `macro_f1`, `accuracy`, `confusion` (C, C)
    and, for a task of several attributes, `mask_f1`, `gender_f1`, `age_f1`.

    Several processes each have the answers to all pictures, and Ignite adds up what they count: of
    the confusion matrix the first counts for all; of `val_loss`, whose weights are a whole batch's,
    sum and number are both as many times too large.
    """
    matrix = ConfusionMatrix(task.num_classes, output_transform=_counted)
    matrix.attach(evaluator, "confusion")
    MetricsLambda(lambda counts: scores_from_confusion(_counts(counts)).macro_f1, matrix).attach(
        evaluator, "macro_f1"
    )
    MetricsLambda(lambda counts: scores_from_confusion(_counts(counts)).accuracy, matrix).attach(
        evaluator, "accuracy"
    )
    if len(task.attributes) > 1:
        for attribute in task.attributes:
            MetricsLambda(
                lambda counts, name=attribute: (
                    scores_from_confusion(attribute_confusion(task, _counts(counts), name)).macro_f1
                ),
                matrix,
            ).attach(evaluator, f"{attribute}_f1")
    Loss(criterion, output_transform=lambda output: (output["logits"], output["target"])).attach(
        evaluator, "val_loss"
    )


def _counted(output: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    rows = slice(None) if idist.get_rank() == 0 else slice(0)
    return output["logits"][rows], output["target"][rows]


def attribute_confusion(task: Task, matrix: np.ndarray, attribute: str) -> np.ndarray:
    """A task's confusion matrix (C, C) → that of one of its attributes."""
    digits = task.decode(np.arange(task.num_classes))[attribute]
    size = len(ATTRIBUTES[attribute])
    merged = np.zeros((size, size), dtype=matrix.dtype)
    np.add.at(merged, (digits[:, None], digits[None, :]), matrix)
    return merged


def _counts(matrix: Tensor) -> np.ndarray:
    counts: np.ndarray = matrix.cpu().numpy().astype(np.int64)
    return counts
