"""Scores of groups against scikit-learn."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score

from maskcls.evaluation.groups import FEW, Factor, Group, group_scores
from maskcls.evaluation.scoring import NO_ANSWER


def test_groups_score_as_scikit_learn_scores_their_pictures() -> None:
    rng = np.random.default_rng(0)
    truth, predicted = rng.integers(0, 6, (2, 400))
    predicted[rng.random(400) < 0.05] = NO_ANSWER
    sex = Factor(("male", "female", "nobody"), rng.integers(0, 2, 400))
    race = Factor.of(rng.choice(["백인", "Asian", "<b>"], 400).tolist())
    people = rng.integers(0, 40, 400).astype(str).tolist()
    groups = group_scores(truth, predicted, 6, [sex, race], people)
    assert [group.values for group in groups] == list(
        itertools.product(("male", "female"), ("<b>", "Asian", "백인"))
    )
    for group in groups:
        one, other = group.values
        rows = (sex.codes == sex.names.index(one)) & (race.codes == race.names.index(other))
        assert group.pictures == rows.sum()
        assert group.people == len({people[row] for row in np.flatnonzero(rows)})
        labels = np.unique(truth[rows])
        expected = f1_score(
            truth[rows], predicted[rows], labels=labels, average="macro", zero_division=0
        )
        assert group.macro_f1 == pytest.approx(expected)
        assert group.accuracy == pytest.approx(accuracy_score(truth[rows], predicted[rows]))


def test_answers_that_cannot_be_right_in_a_group_do_not_count_twice() -> None:
    truth, predicted = np.zeros(4, dtype=int), np.array([0, 0, 1, 2])
    [group] = group_scores(truth, predicted, 3, [Factor(("all",), np.zeros(4, dtype=int))])
    assert group.macro_f1 == pytest.approx(2 * 2 / (4 + 2))
    assert group.people is None


def test_few_people_make_a_group_unreliable() -> None:
    assert Group(("a",), 700, FEW - 1, 0.5, 0.5).unreliable
    assert not Group(("a",), 700, FEW, 0.5, 0.5).unreliable
    assert Group(("a",), FEW - 1, None, 0.5, 0.5).unreliable
    assert not Group(("a",), FEW, None, 0.5, 0.5).unreliable
