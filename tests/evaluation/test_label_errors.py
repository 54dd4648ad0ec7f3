"""Doubting labels: how many of those made wrong on purpose come first, for classifiers that are
imperfect in a known way; and what each step does."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from maskcls.data.targets import AGE_STEPS
from maskcls.evaluation.label_errors import (
    age_agreement,
    age_groups,
    calibrate_to_labels,
    find_swaps,
    judge,
    median_steps,
    middle_years,
    pool,
    refine_ages,
    thresholds,
)
from maskcls.labels import AGE_BOUNDS
from tests.evaluation.synthetic import age_answers, class_answers

PEOPLE = 400
SEEDS = range(6)
GROUPS = (0, *AGE_BOUNDS)


def pooled(answers: np.ndarray) -> np.ndarray:
    """Probabilities (N, pictures, C) → logits (N, C)."""
    people, pictures, classes = answers.shape
    return pool(answers.reshape(-1, classes), np.repeat(np.arange(people), pictures), people)


def doubts(answers: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Probabilities (N, pictures, C) of people who are labelled so (N,) → doubts (N,)."""
    return judge(calibrate_to_labels(pooled(answers), labels), labels).doubt


def age_doubts(answers: np.ndarray, ages: np.ndarray, years: Sequence[int] = GROUPS) -> np.ndarray:
    """Of people who are labelled with these ages (N,); the answers (N, pictures, S) are of these
    steps of ages."""
    labels, groups = age_groups(ages), age_groups(np.array(years))
    answered = np.stack([answers[..., groups == group].sum(axis=-1) for group in range(3)], axis=-1)
    probabilities = calibrate_to_labels(pooled(answered), labels)
    shares = refine_ages(probabilities, pooled(answers), years)
    support = (shares * age_agreement(ages, years)).sum(axis=1)
    return judge(probabilities, labels, support).doubt


def recall(doubt: np.ndarray, wrong: np.ndarray, share: float = 0.1) -> float:
    """How many of the wrong ones (N,) bool are among the first 10 %."""
    first = np.argsort(-doubt, kind="stable")[: int(share * len(doubt))]
    return float(wrong[first].sum() / wrong.sum())


def made_wrong(rng: np.random.Generator) -> np.ndarray:
    wrong = np.zeros(PEOPLE, dtype=bool)
    wrong[rng.choice(PEOPLE, PEOPLE // 20, replace=False)] = True
    return wrong


# --- the requirement: 5 % made wrong, 70 % of them in the first 10 % ----------------------------


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("lean", [(), (2.0, -2.0), (-2.0, 2.0)])
def test_wrong_genders_come_first(seed: int, lean: tuple[float, ...]) -> None:
    rng = np.random.default_rng(seed)
    truth = (rng.random(PEOPLE) < 0.6).astype(int)
    answers = class_answers(rng, truth, 2, clear=2.5, lean=lean)
    # Imperfect: of pictures, some are answered wrongly, and several of most people who are.
    right = answers.argmax(axis=2) == truth[:, None]
    assert lean or 0.80 < right.mean() < 0.93
    wrong = made_wrong(rng)
    assert recall(doubts(answers, np.where(wrong, 1 - truth, truth)), wrong) >= 0.7


def ages_of_people(rng: np.random.Generator) -> np.ndarray:
    """Half the people are 25 to 34, and 30 is a border: a wrong age is often nearly right."""
    ages = rng.gamma(5, 4.4, PEOPLE).astype(int) + 15
    old = rng.random(PEOPLE) < 0.1
    return np.where(old, rng.integers(60, 76, PEOPLE), ages).clip(18, 75)


def ages_made_wrong(rng: np.random.Generator, ages: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """True ages (N,) → labelled ages, and which of them are wrong."""
    groups, wrong, labelled = age_groups(ages), made_wrong(rng), ages.copy()
    for person in np.flatnonzero(wrong):
        group = rng.choice([each for each in range(3) if each != groups[person]])
        labelled[person] = rng.choice(ages[groups == group])
    return labelled, wrong


@pytest.mark.parametrize("seed", SEEDS)
def test_wrong_ages_come_first(seed: int) -> None:
    rng = np.random.default_rng(seed)
    ages = ages_of_people(rng)
    answers = age_answers(rng, ages)
    assert 0.7 < (answers.argmax(axis=2) == age_groups(ages)[:, None]).mean() < 0.9
    labelled, wrong = ages_made_wrong(rng, ages)
    assert recall(age_doubts(answers, labelled), wrong) >= 0.7


def test_more_wrong_ages_come_first_where_answers_tell_years() -> None:
    """Of people who look years older or younger than they are: a mean of 12 such draws."""
    years = (0, *AGE_STEPS)
    found: dict[Sequence[int], list[float]] = {GROUPS: [], years: []}
    for seed in range(12):
        rng = np.random.default_rng(seed)
        ages = ages_of_people(rng)
        answers = age_answers(rng, ages, shared=6, years=years)
        labelled, wrong = ages_made_wrong(rng, ages)
        groups = np.add.reduceat(answers, [years.index(first) for first in GROUPS], axis=2)
        for steps, given in ((GROUPS, groups), (years, answers)):
            found[steps].append(recall(age_doubts(given, labelled, steps), wrong))
    assert np.mean(found[years]) > np.mean(found[GROUPS]) + 0.05


def test_doubt_of_answers_that_say_nothing_finds_nothing() -> None:
    """That the recall above is the method's, not the test's."""
    rng = np.random.default_rng(0)
    truth = (rng.random(PEOPLE) < 0.6).astype(int)
    answers = class_answers(rng, truth, 2, clear=2.5)
    wrong = made_wrong(rng)
    labels = np.where(wrong, 1 - truth, truth)
    assert recall(doubts(rng.permutation(answers), labels), wrong) < 0.5


# --- the steps ----------------------------------------------------------------------------------


def test_pictures_are_pooled_without_being_counted() -> None:
    one = np.array([[0.9, 0.1]])
    assert pool(one, np.zeros(1, dtype=int), 1) == pytest.approx(
        pool(np.repeat(one, 7, axis=0), np.zeros(7, dtype=int), 1)
    )
    # A picture that is sure beyond measure does not outvote six others.
    odd = np.array([[0.0, 1.0]] + [[0.9, 0.1]] * 6)
    [[first, second]] = pool(odd, np.zeros(7, dtype=int), 1)
    assert first > second


def test_calibration_takes_out_lean_and_excess() -> None:
    rng = np.random.default_rng(0)
    truth = (rng.random(20_000) < 0.3).astype(int)
    fair = class_answers(rng, truth, 2, pictures=1, shared=0)[:, 0]
    leaning = 3 * np.log(fair) + np.array([0.0, 2.0])
    again = calibrate_to_labels(leaning, truth)
    assert np.abs(again - fair).max() < 0.05
    assert again.mean(axis=0) == pytest.approx([0.7, 0.3], abs=0.01)


def test_calibration_of_a_class_that_nobody_has() -> None:
    shares = calibrate_to_labels(
        np.log([[0.7, 0.2, 0.1], [0.2, 0.7, 0.1]] * 20), np.array([0, 1] * 20)
    )
    assert np.isfinite(shares).all()
    assert shares.argmax(axis=1).tolist() == [0, 1] * 20


def test_a_label_is_contradicted_where_its_rival_is_as_sure_as_usual() -> None:
    probabilities = np.array([[0.9, 0.1], [0.7, 0.3], [0.2, 0.8], [0.4, 0.6], [0.15, 0.85]])
    labels = np.array([0, 0, 1, 1, 0])
    limits = thresholds(probabilities, labels)
    assert limits == pytest.approx([(0.9 + 0.7 + 0.15) / 3, (0.8 + 0.6) / 2])
    judged = judge(probabilities, labels)
    assert judged.contradicted.tolist() == [False, False, False, False, True]
    assert judged.rival.tolist() == [1, 1, 0, 0, 1]
    assert judged.doubt == pytest.approx([0.1, 0.3, 0.2, 0.4, 0.85])
    # As probable as that is not enough where those who are labelled so are answered more surely.
    labels = np.array([0, 0, 1, 0, 1])
    assert not judge(probabilities, labels).contradicted[3]
    assert np.isinf(thresholds(probabilities, np.zeros(5, dtype=int))[1])


def test_ages_agree_with_the_group_next_door() -> None:
    ages = np.array([20, 29, 30, 33, 45, 58, 60, 75])
    agreement = age_agreement(ages)
    groups = age_groups(ages)
    assert (agreement[np.arange(len(ages)), groups] == 1).all()
    assert agreement[1, 1] == agreement[2, 0] > 0.8  # 29 and 30 look alike
    assert agreement[1, 1] > agreement[3, 0] > agreement[0, 1]
    assert agreement[0, 1] < 1e-4
    assert agreement[0, 2] == pytest.approx(0)
    supports = age_agreement(np.array([29, 20])) @ [0.03, 0.95, 0.02]
    surely = np.tile([0.03, 0.95, 0.02], (2, 1))
    close, far = judge(surely, np.zeros(2, dtype=int), supports).doubt
    assert close < 0.3 < 0.9 < far


def test_one_age_for_a_whole_group_tells_no_years() -> None:
    """As where everybody of the oldest group is labelled 60."""
    ages = np.array([60] * 10 + [59, 58, 20])
    agreement = age_agreement(ages)
    assert (agreement[:10] == [0, 0, 1]).all()
    assert agreement[10, 2] > 0.8 and agreement[11, 2] > 0.5
    assert age_agreement(ages)[0] @ [0.02, 0.97, 0.01] == pytest.approx(0.01)
    years = (0, 25, 30, 59, 60, 70)
    assert (age_agreement(ages, years)[:10] == [0, 0, 0, 0, 1, 1]).all()
    # Of few people it may be chance, and of two ages it is none.
    for others in ([60] * 9, [60] * 10 + [61]):
        assert age_agreement(np.array([*others, 59]))[0, 1] > 0.8


def test_ages_of_the_same_group_agree_by_half() -> None:
    years = (0, 20, 28, 30, 40, 60)
    young, border = age_agreement(np.array([22, 29]), years)
    assert young.tolist()[1:3] == [1, 0.5]  # 28 is six years from 22
    assert young[0] == 0.5  # 19 is three: more than by years alone
    assert border.tolist()[:3] == [0.5, pytest.approx(0.607, abs=1e-3), 1]  # 27 is two from 29
    assert border[3] == pytest.approx(0.882, abs=1e-3)  # 30 is one
    assert border[4] < 1e-6
    assert age_agreement(np.array([22]), years, own_group=1)[0, :3].tolist() == [1, 1, 1]


def test_steps_share_out_what_their_group_has() -> None:
    rng = np.random.default_rng(0)
    years = (0, 10, 30, 60, 65)
    groups = rng.dirichlet(np.ones(3), 50)
    logits = rng.normal(0, 2, (50, 5))
    shares = refine_ages(groups, logits, years)
    assert np.add.reduceat(shares, [0, 2, 3], axis=1) == pytest.approx(groups)
    ratio = np.exp(logits[:, 0] - logits[:, 1])
    assert shares[:, 0] / shares[:, 1] == pytest.approx(ratio, rel=1e-4)
    # Where groups are all there is, nothing changes.
    assert refine_ages(groups, logits[:, :3], (0, *AGE_BOUNDS)) == pytest.approx(groups)


def test_the_median_of_a_group_is_a_year_of_it() -> None:
    years = (0, 10, 20, 30, 60, 70)
    shares = np.array([[0.1, 0.1, 0.3, 0.2, 0.05, 0.25], [0.3, 0.1, 0.1, 0.3, 0.1, 0.1]])
    steps = median_steps(shares, years)
    assert steps.tolist() == [[2, 3, 5], [0, 3, 4]]
    assert middle_years(years)[steps].tolist() == [[24, 44, 70], [4, 44, 64]]


def test_swaps_are_pairs_of_one_person() -> None:
    sure = {0: [0.98, 0.01, 0.01], 1: [0.02, 0.96, 0.02], 2: [0.05, 0.05, 0.9]}
    taken = [2, 1, 1, 2, 0, 1, 1, 2]
    labels = np.array([1, 2, 1, 1, 0, 2, 2, 1])
    owners = ["a", "a", "b", "b", "b", "c", "d", "d"]
    probabilities = np.array([sure[each] for each in taken])
    found = find_swaps(probabilities, labels, owners)
    # b is taken for 2 where nothing is labelled 2, and c has one picture.
    assert sorted((swap.one, swap.other) for swap in found) == [(0, 1), (6, 7)]
    own = probabilities[0, 1] * probabilities[1, 2]
    other = probabilities[0, 2] * probabilities[1, 1]
    assert found[0].doubt == pytest.approx(other / (own + other))


def test_no_picture_is_swapped_twice() -> None:
    """Two worn masks look like the one picture that is worn incorrectly: the surer is the pair."""
    probabilities = np.array([[0.1, 0.9, 0.0], [0.3, 0.7, 0.0], [0.8, 0.2, 0.0]])
    [swap] = find_swaps(probabilities, np.array([0, 0, 1]), ["a"] * 3)
    assert (swap.one, swap.other) == (0, 2)
