"""The class code, its digits and the texts they come from."""

from __future__ import annotations

import math
import re
from pathlib import PurePath

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from maskcls.errors import CheckpointError, ConfigError, DataError
from maskcls.labels import (
    ATTRIBUTES,
    BRANCHES,
    MASK_OF_STEM,
    MAX_AGE,
    MULTI,
    TASKS,
    AgeLabels,
    GenderLabels,
    MaskLabels,
    Task,
    combine,
    get_task,
    require_all_attributes,
    softmax,
)

tasks = st.sampled_from(list(TASKS.values()))

# As the competition wrote it down: class → mask, gender, age.
COMPETITION = [
    (mask, gender, age)
    for mask in ("worn", "incorrect", "not worn")
    for gender in ("male", "female")
    for age in ("<30", "30-59", ">=60")
]


def test_class_codes_are_those_of_the_competition() -> None:
    for label, names in enumerate(COMPETITION):
        digits = MULTI.decode(label)
        mask, gender, age = digits.values()
        assert label == mask * 6 + gender * 3 + age
        assert tuple(ATTRIBUTES[name][digit] for name, digit in digits.items()) == names
        assert MULTI.class_names[label] == ", ".join(names)
    assert MULTI.num_classes == 18
    assert [TASKS[name].num_classes for name in BRANCHES] == [6, 3]


@given(tasks, st.data())
def test_decode_is_the_inverse_of_encode(task: Task, data: st.DataObject) -> None:
    label = data.draw(st.integers(0, task.num_classes - 1))
    assert task.encode(**task.decode(label)) == label
    labels = np.arange(task.num_classes)
    assert np.array_equal(task.encode(**task.decode(labels)), labels)


@given(tasks, st.integers(0, MULTI.num_classes - 1))
def test_from_multi_keeps_the_attributes(task: Task, label: int) -> None:
    digits = MULTI.decode(label)
    assert task.decode(task.from_multi(label)) == {name: digits[name] for name in task.attributes}


@given(tasks, st.data())
def test_marginals_sum_over_the_other_attributes(task: Task, data: st.DataObject) -> None:
    shape = (data.draw(st.integers(0, 4)), task.num_classes)
    joint = data.draw(arrays(np.float64, shape, elements=st.floats(0, 1)))
    marginals = task.marginals(joint)
    assert tuple(marginals) == task.attributes
    for name, marginal in marginals.items():
        assert marginal.shape == (len(joint), len(ATTRIBUTES[name]))
        assert np.allclose(marginal.sum(axis=1), joint.sum(axis=1))
        digits = task.decode(np.arange(task.num_classes))[name]
        for digit in range(marginal.shape[1]):
            assert np.allclose(marginal[:, digit], joint[:, digits == digit].sum(axis=1))


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_labels_out_of_range_are_refused(task: Task) -> None:
    for label in (-1, task.num_classes, np.array([0, task.num_classes])):
        with pytest.raises(ValueError, match=rf"not in 0\.\.{task.num_classes - 1}$"):
            task.decode(label)
    zeros = dict.fromkeys(task.attributes, 0)
    for name, size in zip(task.attributes, task.sizes, strict=True):
        for digit in (-1, size):
            with pytest.raises(ValueError, match=rf"{name} label {digit} .*in 0\.\.{size - 1}$"):
                task.encode(**(zeros | {name: digit}))


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("mask1.jpg", MaskLabels.MASK),
        ("mask5.PNG", MaskLabels.MASK),
        ("incorrect_mask.jpeg", MaskLabels.INCORRECT),
        ("normal.jpg", MaskLabels.NORMAL),
        ("some/folder/normal", MaskLabels.NORMAL),
    ],
)
def test_mask_from_filename(name: str, label: MaskLabels) -> None:
    assert MaskLabels.from_filename(name) is label


@pytest.mark.parametrize("name", ["mask6.jpg", "mask.jpg", "normal_2.jpg", "Normal.jpg", "", "m"])
def test_other_filenames_are_refused(name: str) -> None:
    with pytest.raises(DataError, match="picture name .*incorrect_mask"):
        MaskLabels.from_filename(name)


def test_every_person_has_seven_pictures() -> None:
    assert [list(MASK_OF_STEM.values()).count(label) for label in MaskLabels] == [5, 1, 1]


@pytest.mark.parametrize("text", ["female", "FEMALE", " Female\t"])
def test_gender_from_str(text: str) -> None:
    assert GenderLabels.from_str(text) is GenderLabels.FEMALE


@pytest.mark.parametrize("text", ["", "f", "femal", "0", "남성"])
def test_other_genders_are_refused(text: str) -> None:
    with pytest.raises(DataError, match="gender .*known: male, female"):
        GenderLabels.from_str(text)


@pytest.mark.parametrize(
    ("age", "group"),
    [(0, 0), (29, 0), (30, 1), (59, 1), (60, 2), (MAX_AGE, 2), ("030", 1), (" 60 ", 2)],
)
def test_age_groups(age: int | str, group: int) -> None:
    assert AgeLabels.from_number(age) == group


@pytest.mark.parametrize("age", [-1, MAX_AGE + 1, "", "3O", "29.5", "1e1", "٣٠", "+30", "1_0"])
def test_other_ages_are_refused(age: int | str) -> None:
    with pytest.raises(DataError, match=f"from 0 to {MAX_AGE}"):
        AgeLabels.from_number(age)


def test_unknown_task_names_the_nearest() -> None:
    assert get_task("age") is TASKS["age"]
    with pytest.raises(ConfigError, match="task .*did you mean 'mask_gender'"):
        get_task("mask-gender")


@given(arrays(np.float32, (3, 4), elements=st.floats(-1000, 1000, width=32)))
def test_softmax_is_shares_that_keep_the_order(logits: np.ndarray) -> None:
    shares = softmax(logits)
    assert shares.dtype == np.float32
    np.testing.assert_allclose(shares.sum(axis=1), 1, rtol=1e-5)
    powers = [[math.exp(value - max(row)) for value in row] for row in logits.tolist()]
    expected = [[value / sum(row) for value in row] for row in powers]
    np.testing.assert_allclose(shares, expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    "names", [("mask_gender", "age"), ("age", "mask_gender"), ("age", "gender", "mask"), ("multi",)]
)
def test_independent_networks_combine_to_the_18_classes(names: tuple[str, ...]) -> None:
    rng = np.random.default_rng(0)
    parts = {name: rng.dirichlet(np.ones(TASKS[name].num_classes), size=5) for name in names}
    joint = combine(parts)
    assert joint.shape == (5, MULTI.num_classes)
    for label in range(MULTI.num_classes):
        factors = [part[:, TASKS[name].from_multi(label)] for name, part in parts.items()]
        np.testing.assert_allclose(joint[:, label], np.prod(factors, axis=0))


def test_networks_answer_everything_once() -> None:
    def check(*names: str) -> None:
        files = [PurePath(f"{name}.pt") for name in names]
        require_all_attributes([TASKS[name] for name in names], files)

    for names in (("mask_gender", "age"), ("age", "gender", "mask"), ("multi",)):
        check(*names)
    for names, reason in (
        (("mask_gender",), "mask_gender.pt (mask_gender): none answers age; give one of each of "
         "mask_gender and age, or the folder that holds them"),
        (("age", "gender"), "age.pt (age), gender.pt (gender): none answers mask;"),
        (("mask_gender", "age", "mask"), "mask.pt (mask): more than one answers mask;"),
        (("multi", "age"), "more than one answers age;"),
        ((), ": none answers mask;"),
    ):  # fmt: skip
        with pytest.raises(CheckpointError, match=re.escape(reason)):
            check(*names)
