"""What validation reports, against scikit-learn and a plain recount."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from sklearn import metrics
from torch import nn

from maskcls.labels import ATTRIBUTES, TASKS
from maskcls.training.metrics import attach_metrics, attribute_confusion

CASES = [
    (task, present, seed)
    for task in TASKS
    for present, seed in (("all", 0), ("half", 1), ("one", 2))
]


def draw(task: str, present: str, seed: int, count: int = 97) -> tuple[np.ndarray, torch.Tensor]:
    """Random classes, of which some never occur, and logits."""
    classes = TASKS[task].num_classes
    rng = np.random.default_rng((seed, classes))
    occur = {"all": classes, "half": (classes + 1) // 2, "one": 1}[present]
    truth = rng.choice(rng.permutation(classes)[:occur], size=count)
    return truth, torch.from_numpy(rng.standard_normal((count, classes)).astype(np.float32))


@pytest.mark.parametrize(("name", "present", "seed"), CASES)
def test_ignite_reports_what_scikit_learn_does(name: str, present: str, seed: int) -> None:
    task = TASKS[name]
    truth, logits = draw(name, present, seed)
    target = torch.from_numpy(truth)
    criterion = nn.CrossEntropyLoss()
    evaluator = Engine(lambda engine, part: {"logits": logits[part], "target": target[part]})
    attach_metrics(evaluator, task, criterion)
    parts = [torch.from_numpy(part) for part in np.array_split(np.arange(len(truth)), 5)]
    for _ in range(2):  # the second run starts its counts anew
        evaluator.run(parts)
        found = evaluator.state.metrics
        predicted = logits.argmax(dim=1).numpy()
        assert found["macro_f1"] == pytest.approx(
            metrics.f1_score(truth, predicted, average="macro", zero_division=0)
        )
        assert found["accuracy"] == pytest.approx(metrics.accuracy_score(truth, predicted))
        assert found["val_loss"] == pytest.approx(float(criterion(logits, target)), rel=1e-5)
        np.testing.assert_array_equal(
            found["confusion"].numpy(),
            metrics.confusion_matrix(truth, predicted, labels=range(task.num_classes)),
        )
        reported = {key for key in found if key.endswith("_f1")} - {"macro_f1"}
        several = task.attributes if len(task.attributes) > 1 else ()
        assert reported == {f"{attribute}_f1" for attribute in several}
        for attribute in several:
            assert found[f"{attribute}_f1"] == pytest.approx(
                metrics.f1_score(
                    task.decode(truth)[attribute],
                    task.decode(predicted)[attribute],
                    average="macro",
                    zero_division=0,
                )
            )


@pytest.mark.parametrize("name", TASKS)
def test_attribute_confusion_is_a_recount(name: str) -> None:
    task = TASKS[name]
    truth, logits = draw(name, "all", 3, count=400)
    predicted = logits.argmax(dim=1).numpy()
    matrix = metrics.confusion_matrix(truth, predicted, labels=range(task.num_classes))
    for attribute in task.attributes:
        expected = np.zeros((len(ATTRIBUTES[attribute]),) * 2, dtype=int)
        for one, other in zip(truth, predicted, strict=True):
            expected[task.decode(int(one))[attribute], task.decode(int(other))[attribute]] += 1
        np.testing.assert_array_equal(attribute_confusion(task, matrix, attribute), expected)
