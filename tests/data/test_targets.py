"""Soft targets: shares of the age groups from exact ages."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from maskcls.data.targets import (
    AGE_STEPS,
    age_group_shares,
    age_step_shares,
    at_border,
    auxiliary_sizes,
    auxiliary_targets,
    border_shares,
    border_targets,
    soft_targets,
    step_centres,
    steps_per_group,
)
from maskcls.labels import AGE_BOUNDS, TASKS, AgeLabels

ages = st.lists(st.integers(0, 100), min_size=1, max_size=20)
deviations = st.floats(0.01, 20)


def below(border: float, age: int, deviation: float) -> float:
    return 0.5 * (1 + math.erf((border - age) / deviation / math.sqrt(2)))


@given(ages, deviations)
def test_shares_are_the_normal_distribution_between_the_borders(
    years: list[int], deviation: float
) -> None:
    shares = age_group_shares(np.array(years), deviation)
    for age, row in zip(years, shares, strict=True):
        young, middle = below(29.5, age, deviation), below(59.5, age, deviation)
        assert row.tolist() == pytest.approx([young, middle - young, 1 - middle], abs=1e-6)


@given(ages)
def test_a_tiny_deviation_gives_the_group_itself(years: list[int]) -> None:
    shares = age_group_shares(np.array(years), 0.01)
    assert shares.argmax(dim=1).tolist() == [int(AgeLabels.from_number(age)) for age in years]
    assert shares.max(dim=1).values.min() > 0.999


def test_the_last_years_of_a_group_with_a_next_one_are_at_its_border() -> None:
    assert np.flatnonzero(at_border(np.arange(100))).tolist() == [27, 28, 29, 57, 58, 59]


def test_a_half_goes_to_the_next_group_at_the_border_and_less_before_it() -> None:
    years = np.array([26, 27, 28, 29, 30, 45, 56, 57, 58, 59, 60, 90])
    # 2.5, 1.5 and 0.5 of 3 years before the border: 0.5 * (1 - 2.5 / 3) = 1 / 12, 3 / 12, 5 / 12.
    given = np.array([0, 1, 3, 5, 0, 0, 0, 1, 3, 5, 0, 0]) / 12
    group = np.array([0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 2, 2])
    expected = np.zeros((12, 3))
    expected[range(12), group] = 1 - given
    expected[range(12), np.minimum(group + 1, 2)] += given
    shares = border_shares(years)
    assert shares.dtype == torch.float32
    np.testing.assert_allclose(shares.numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("name", ["age", "multi"])
def test_border_targets_soften_the_age_alone(name: str) -> None:
    task = TASKS[name]
    labels = np.arange(task.num_classes)
    young = task.decode(labels)["age"] == 0
    targets = border_targets(task, labels, np.array([28, 45, 70])[task.decode(labels)["age"]])
    assert torch.allclose(targets.sum(dim=1), torch.ones(len(labels)))
    for label, row in zip(labels, targets, strict=True):
        expected = torch.zeros(task.num_classes)
        if young[label]:  # the middle group is the next class
            expected[label], expected[label + 1] = 0.75, 0.25
        else:
            expected[label] = 1
        torch.testing.assert_close(row, expected)


@pytest.mark.parametrize("name", ["age", "multi"])
@given(data=st.data())
def test_other_attributes_stay_certain(name: str, data: st.DataObject) -> None:
    task = TASKS[name]
    labels = np.array(data.draw(st.lists(st.integers(0, task.num_classes - 1), min_size=1)))
    years = np.array([(22, 45, 70)[digit] for digit in task.decode(labels)["age"]])
    targets = soft_targets(task, labels, years, 4.0)
    assert targets.shape == (len(labels), task.num_classes)
    assert torch.allclose(targets.sum(dim=1), torch.ones(len(labels)))
    assert targets.argmax(dim=1).tolist() == labels.tolist()
    classes = task.decode(np.arange(task.num_classes))
    for row, label in zip(targets, labels, strict=True):
        for attribute, digit in task.decode(int(label)).items():
            if attribute != "age":
                assert row[torch.from_numpy(classes[attribute] != digit)].sum() == 0


def test_steps_make_up_the_groups() -> None:
    starts = np.array([0, *AGE_STEPS])
    groups = [int(AgeLabels.from_number(int(start))) for start in starts]
    assert steps_per_group() == tuple(groups.count(group) for group in range(3))
    assert set(AGE_BOUNDS) <= set(AGE_STEPS)  # no step is in two groups


@given(ages, deviations)
def test_the_steps_of_a_group_sum_to_its_share(years: list[int], deviation: float) -> None:
    steps = age_step_shares(np.array(years), deviation)
    assert steps.shape == (len(years), len(AGE_STEPS) + 1)
    groups = torch.stack([part.sum(dim=1) for part in steps.split(steps_per_group(), dim=1)], 1)
    assert torch.allclose(groups, age_group_shares(np.array(years), deviation), atol=1e-6)


def test_the_centre_of_a_step_is_the_mean_of_its_years() -> None:
    steps = age_step_shares(np.arange(90), 0.0)  # a year is in one of them
    expected = steps.T @ torch.arange(90.0) / steps.sum(dim=0)
    torch.testing.assert_close(step_centres(), expected)


@pytest.mark.parametrize("deviation", [2.0, 4.0, 8.0])
def test_the_mean_over_the_steps_is_the_age(deviation: float) -> None:
    years = np.arange(15, 70)
    mean = age_step_shares(years, deviation) @ step_centres()
    np.testing.assert_allclose(mean.numpy(), years, atol=1.0)


@given(ages)
def test_without_a_deviation_an_age_is_in_one_step(years: list[int]) -> None:
    steps = age_step_shares(np.array(years), 0.0)
    starts = (0, *AGE_STEPS)
    assert set(steps.unique().tolist()) <= {0.0, 1.0}
    assert steps.argmax(dim=1).tolist() == [
        max(index for index, start in enumerate(starts) if start <= age) for age in years
    ]


SIZES = {
    "mask_gender": [len(AGE_STEPS) + 1],
    "age": [3, 2],
    "mask": [2, len(AGE_STEPS) + 1],
    "gender": [3, len(AGE_STEPS) + 1],
    "multi": [],
}


@pytest.mark.parametrize("name", [name for name in TASKS if name != "multi"])
def test_what_is_learnt_beside_a_task_is_the_other_attributes(name: str) -> None:
    attributes = {"mask": np.array([0, 1, 2]), "gender": np.array([1, 0, 1])}
    years = np.array([22, 45, 70])
    blocks = {
        "mask": torch.eye(3),
        "gender": torch.tensor([[0.0, 1], [1, 0], [0, 1]]),
        "age": age_step_shares(years, 4.0),
    }
    targets = auxiliary_targets(
        TASKS[name], attributes | {"age": np.array([0, 1, 2])}, years, deviation=4.0
    )
    assert targets.dtype == torch.float32
    own = TASKS[name].attributes
    expected = [block for attribute, block in blocks.items() if attribute not in own]
    assert torch.equal(targets, torch.cat(expected, dim=1))
    assert [part.shape[1] for part in expected] == SIZES[name]


def test_sizes_of_what_is_learnt_beside() -> None:
    assert {name: list(auxiliary_sizes(task)) for name, task in TASKS.items()} == SIZES


def test_a_class_that_does_not_occur_keeps_its_place() -> None:
    attributes = {"mask": np.array([0, 0]), "gender": np.array([0, 0]), "age": np.array([0, 0])}
    targets = auxiliary_targets(TASKS["age"], attributes, np.array([20, 20]), deviation=0.0)
    assert targets.tolist() == [[1, 0, 0, 1, 0]] * 2
