"""Intervals over people against scikit-learn and plain resampling, and scores with known parts."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score

from maskcls.evaluation.people import Pair, certainty, intervals, mean_gain, mean_interval
from maskcls.evaluation.scoring import NO_ANSWER
from maskcls.labels import ATTRIBUTES, MULTI

PEOPLE = [f"person {number}" for number in range(40)]


def draw(wrong: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Seven pictures a person; the people that are not recognised are wrong in all of them."""
    rng = np.random.default_rng(seed)
    truth, predicted, people = [], [], []
    for person in PEOPLE:
        gender, age = rng.integers(2), rng.integers(3)
        taken = (gender, age) if rng.random() > wrong else (1 - gender, (age + 1) % 3)
        for mask in (0, 0, 0, 0, 0, 1, 2):
            truth.append(int(MULTI.encode(mask=mask, gender=gender, age=age)))
            predicted.append(int(MULTI.encode(mask=mask, gender=taken[0], age=taken[1])))
            people.append(person)
    order = rng.permutation(len(truth))
    return np.array(truth)[order], np.array(predicted)[order], [people[i] for i in order]


def test_the_interval_is_that_of_people_drawn_by_hand() -> None:
    truth, predicted, people = draw(wrong=0.3)
    found = certainty(truth, predicted, people)
    assert found.people == len(PEOPLE)
    rng = np.random.default_rng(5)
    whose = np.array([PEOPLE.index(person) for person in people])
    rows = [np.flatnonzero(whose == number) for number in range(len(PEOPLE))]
    f1, accuracy = [], []
    for _ in range(800):
        chosen = np.concatenate([rows[number] for number in rng.integers(len(PEOPLE), size=40)])
        f1.append(f1_score(truth[chosen], predicted[chosen], average="macro", zero_division=0))
        accuracy.append(accuracy_score(truth[chosen], predicted[chosen]))
    assert found.macro_f1 == pytest.approx(np.quantile(f1, (0.025, 0.975)), abs=0.03)
    assert found.accuracy == pytest.approx(np.quantile(accuracy, (0.025, 0.975)), abs=0.03)


def test_people_are_less_sure_than_as_many_pictures_of_one_each() -> None:
    truth, predicted, people = draw(wrong=0.3)
    low, high = certainty(truth, predicted, people).accuracy
    alone = certainty(truth, predicted, [str(number) for number in range(len(truth))]).accuracy
    assert low < accuracy_score(truth, predicted) < high
    assert high - low > 2 * (alone[1] - alone[0])  # about the square root of seven


def test_unanswered_pictures_are_wrong() -> None:
    truth, predicted, people = draw(wrong=0.0)
    missing = np.array([person in PEOPLE[:20] for person in people])
    _, (low, high) = intervals(truth, np.where(missing, NO_ANSWER, predicted), people, 18)
    assert low < 0.5 < high  # half of the people
    assert 0.2 < high - low < 0.4  # of 40: about four times 0.08


def test_all_right_is_certain() -> None:
    truth, _, people = draw(wrong=0.0)
    found = certainty(truth, truth, people)
    assert found.macro_f1 == found.accuracy == (1, 1)
    assert found.if_perfect == dict.fromkeys(ATTRIBUTES, 1.0)


def test_what_a_perfect_attribute_is_worth() -> None:
    rng = np.random.default_rng(1)
    truth = rng.integers(0, MULTI.num_classes, 500)
    digits = MULTI.decode(truth)
    wrong_age = MULTI.encode(**(digits | {"age": rng.integers(0, 3, 500)}))
    found = certainty(truth, wrong_age, [str(number) for number in range(500)])
    score = f1_score(truth, wrong_age, average="macro")
    assert found.if_perfect["age"] == 1
    assert found.if_perfect["mask"] == found.if_perfect["gender"] == pytest.approx(score)


def test_equal_labels_give_equal_intervals() -> None:
    labels = draw(wrong=0.2)
    assert certainty(*labels) == certainty(*labels)


def test_a_gain_is_in_its_interval_where_an_answer_is_of_nobodys_class() -> None:
    """Ten people, five of class 0 and five of class 3; one is taken for class 1, which none has."""
    truth = np.repeat([0, 3], 5)
    people = [str(index) for index in range(10)]
    wrong = np.where(np.arange(10) == 0, 1, truth)
    gain, (low, high) = mean_gain([Pair(truth, wrong, truth, people)], 18)
    assert gain == pytest.approx((8 / 9 + 1) / 2 - 1)
    assert low <= gain <= high


def test_the_interval_of_one_split_is_that_of_its_people() -> None:
    rng = np.random.default_rng(0)
    truth, predicted = rng.integers(0, 3, (2, 60))
    people = [str(index // 4) for index in range(60)]
    assert (
        mean_interval([(truth, predicted, people)], 18)
        == (intervals(truth, predicted, people, 18)[0])
    )
    gain, (low, high) = mean_gain([Pair(truth, predicted, predicted, people)], 18)
    assert gain == low == high == 0
