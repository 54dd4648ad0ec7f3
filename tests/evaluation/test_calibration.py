"""Calibrations against truths that are known, grids that are searched, and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import f1_score, log_loss

from maskcls.evaluation import calibration
from maskcls.evaluation.calibration import (
    COLDEST,
    HOTTEST,
    SHIFTS,
    balancing_bias,
    calibrated,
    fit_shift,
    fit_temperature,
    quality,
)
from maskcls.evaluation.reliability import expected_calibration_error
from maskcls.labels import softmax
from maskcls.manifest import Calibration
from maskcls.training.calibration import calibrate

SHARES = np.array([0.7, 0.22, 0.08])


def drawn_labels(rng: np.random.Generator, shares: np.ndarray) -> np.ndarray:
    """One label a row of (N, C), each as probable as it says."""
    picked: np.ndarray = (shares.cumsum(axis=1) < rng.random((len(shares), 1))).sum(axis=1)
    return np.minimum(picked, shares.shape[1] - 1)


def log_likelihood(logits: np.ndarray, labels: np.ndarray, temperature: float) -> float:
    z = logits.astype(np.float64) / temperature
    z -= z.max(axis=1, keepdims=True)
    chosen = z[np.arange(len(labels)), labels]
    return float((np.log(np.exp(z).sum(axis=1)) - chosen).mean())


def imbalanced(seed: int, people: int = 150) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Log posteriors of points around the corners of a triangle, with rare classes: exact, so that
    nothing but the shares of the classes can be put right. The seven pictures of a person are
    alike."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(rng.choice(3, size=people, p=SHARES), 7)
    centres = np.eye(3) * 1.2
    noise = np.repeat(rng.normal(size=(people, 3)), 7, axis=0) + rng.normal(size=(len(labels), 3))
    points = centres[labels] + noise / np.sqrt(2)
    distances = ((points[:, None] - centres) ** 2).sum(axis=2)
    names = [f"person {number // 7}" for number in range(len(labels))]
    return -distances / 2 + np.log(SHARES), labels, names


# --- temperature -------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_a_known_temperature_is_found(temperature: float) -> None:
    rng = np.random.default_rng(0)
    true = rng.normal(0, 1.5, size=(20_000, 4))
    labels = drawn_labels(rng, softmax(true))
    assert fit_temperature(true * temperature, labels) == pytest.approx(temperature, rel=0.03)


@pytest.mark.parametrize(("seed", "classes"), [(0, 2), (1, 3), (2, 6), (3, 18)])
def test_no_temperature_of_a_grid_is_better(seed: int, classes: int) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3, size=(60, classes)).astype(np.float32)
    labels = drawn_labels(rng, softmax(logits / 3))
    found = fit_temperature(logits, labels)
    grid = np.geomspace(COLDEST, HOTTEST, 1001)
    values = [log_likelihood(logits, labels, temperature) for temperature in grid]
    assert COLDEST < found < HOTTEST
    assert log_likelihood(logits, labels, found) <= min(values) + 1e-12
    assert found == pytest.approx(grid[int(np.argmin(values))], rel=0.006)  # a step of the grid
    shifted = logits + rng.normal(0, 5, size=(60, 1)).astype(np.float32)  # the same answers
    assert fit_temperature(shifted, labels) == pytest.approx(found, rel=1e-5)


def test_a_temperature_has_limits() -> None:
    logits = np.eye(3)[[0, 1, 2, 0]] * 2
    assert fit_temperature(logits, np.array([0, 1, 2, 0])) == pytest.approx(COLDEST)  # all right
    assert fit_temperature(logits, np.array([1, 2, 0, 1])) == pytest.approx(HOTTEST)  # all wrong
    assert fit_temperature(logits[:1], np.array([0])) == pytest.approx(COLDEST)
    assert fit_temperature(np.zeros((4, 3)), np.array([0, 1, 2, 0])) == 1  # all are as good
    huge = logits * 1e30
    assert fit_temperature(huge, np.array([0, 1, 2, 1])) == pytest.approx(HOTTEST)


# --- shift -------------------------------------------------------------------------------------


def test_what_takes_the_shares_of_classes_out() -> None:
    bias = balancing_bias(np.array([8, 2, 0]))
    # Two classes are there: half each instead of 0.8 and 0.2.
    np.testing.assert_allclose(bias, [np.log(0.5 / 0.8), np.log(0.5 / 0.2), 0])
    shares = softmax(np.log([[0.8, 0.2]]) + bias[:2])
    np.testing.assert_allclose(shares, [[0.5, 0.5]])


def test_rare_classes_gain_on_strangers() -> None:
    bias = balancing_bias(SHARES * 1000)
    shift = fit_shift(*imbalanced(0), bias)
    assert shift > 0
    for seed in (1, 2, 3):
        logits, labels, _ = imbalanced(seed, people=2000)
        scores = [
            f1_score(labels, (logits + by * bias).argmax(axis=1), average="macro")
            for by in (0, shift)
        ]
        assert scores[1] > scores[0] + 0.01


def test_where_classes_are_as_frequent_nothing_shifts() -> None:
    logits, labels, people = imbalanced(0)
    bias = balancing_bias(np.array([50, 50, 50]))
    np.testing.assert_array_equal(bias, 0)
    assert fit_shift(logits, labels, people, bias) == 0


def test_of_equals_the_smallest_shift_is_taken() -> None:
    """Answers so clear that no shift changes them."""
    labels = np.array([0, 1, 2, 0, 1, 2])
    people = [f"person {number}" for number in range(6)]
    assert fit_shift(np.eye(3)[labels] * 50, labels, people, balancing_bias(SHARES)) == 0
    assert SHIFTS[0] == 0 and list(map(abs, SHIFTS)) == sorted(map(abs, SHIFTS))


@pytest.mark.parametrize("seed", [0, 1])
def test_the_shift_is_the_best_of_people_drawn_by_hand(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "DRAWS", 12)
    logits, labels, people = imbalanced(seed, people=25)
    bias = balancing_bias(SHARES)
    names, whose = np.unique(people, return_inverse=True)
    rng = np.random.default_rng(0)
    scores = np.zeros(len(SHIFTS))
    for times in rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=12):
        rows = np.repeat(np.arange(len(labels)), times[whose])
        for place, shift in enumerate(SHIFTS):
            predicted = (logits + shift * bias).argmax(axis=1)
            drawn = np.unique(labels[rows])  # the same classes for every shift
            score = f1_score(labels[rows], predicted[rows], labels=drawn, average="macro")
            scores[place] += score / 12
    found = SHIFTS.index(fit_shift(logits, labels, people, bias))
    assert scores[found] == pytest.approx(scores.max())
    assert scores[found] >= scores[0]  # of no shift


def test_a_class_of_one_person_is_worth_finding() -> None:
    """Twelve people of a class, seven of another, one of the third, who is found with a shift that
    takes four of the first for her. In draws without her nobody can find her."""
    labels = np.repeat([0, 1, 2], [12, 7, 1])
    logits = 9.0 * np.eye(3)[labels]
    logits[-1] = (0, 1, 0.55)
    logits[:4] = (1, 0, 0.55)
    people = [str(index) for index in range(20)]
    assert fit_shift(logits, labels, people, np.array([0.0, 0.0, 1.0])) > 0


def test_the_fit_is_the_same_every_time_and_takes_nobodys_random_numbers() -> None:
    logits, labels, people = imbalanced(4, people=30)
    bias = balancing_bias(SHARES)
    np.random.seed(3)
    before = np.random.get_state()[1].tolist()  # type: ignore[union-attr, index]
    first = fit_shift(logits, labels, people, bias), fit_temperature(logits, labels)
    np.random.random()
    assert (fit_shift(logits, labels, people, bias), fit_temperature(logits, labels)) == first
    np.random.seed(3)
    fit_shift(logits, labels, people, bias)
    assert np.random.get_state()[1].tolist() == before  # type: ignore[union-attr, index]


@pytest.mark.parametrize("only", [[0], [0, 2]])
def test_classes_that_are_absent_do_no_harm(only: list[int]) -> None:
    """From the validation people or from the training."""
    logits, labels, people = imbalanced(0, people=40)
    keep = np.isin(labels, only)
    names = [person for person, kept in zip(people, keep, strict=True) if kept]
    bias = balancing_bias(np.where(np.isin(range(3), only), 100, 0))
    assert np.isfinite(bias).all()
    for each in (bias, balancing_bias(SHARES)):
        assert fit_shift(logits[keep], labels[keep], names, each) in SHIFTS
    assert COLDEST <= fit_temperature(logits[keep], labels[keep]) <= HOTTEST


# --- what it is measured by --------------------------------------------------------------------


def test_a_calibration_is_applied_as_written() -> None:
    logits = np.array([[2.0, 4.0], [1.0, 0.0]])
    changed = calibrated(logits, Calibration(2.0, (0.5, -1.0)))
    np.testing.assert_allclose(changed, [[1.5, 1.0], [1.0, -1.0]])


def test_probabilities_that_are_true_have_little_calibration_error() -> None:
    rng = np.random.default_rng(0)
    shares = softmax(rng.normal(0, 2, size=(20_000, 5)))
    labels = drawn_labels(rng, shares)
    assert expected_calibration_error(shares, labels) < 0.02
    bolder = softmax(np.log(shares) * 3)
    assert expected_calibration_error(bolder, labels) > 0.1


def test_the_quality_is_scikit_learns() -> None:
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 2, size=(200, 6)).astype(np.float32)
    labels = rng.integers(0, 6, 200)
    found = quality(logits, labels)
    assert found.macro_f1 == pytest.approx(f1_score(labels, logits.argmax(1), average="macro"))
    shares = softmax(logits.astype(np.float64)).astype(np.float64)
    shares /= shares.sum(axis=1, keepdims=True)
    assert found.nll == pytest.approx(log_loss(labels, shares), rel=1e-5)
    assert found.ece == expected_calibration_error(softmax(logits.astype(np.float64)), labels)
    sure = quality(np.array([[0.0, 1e6]]), np.array([0]))
    assert np.isfinite(sure.nll) and sure.nll > 80


def test_a_calibration_is_put_together_of_its_steps() -> None:
    """The shift is fitted to answers of the right temperature, and all is measured after both."""
    logits, labels, people = imbalanced(0)
    logits = 3 * logits
    counts = np.array([700, 220, 80])
    bias = balancing_bias(counts)
    found, metrics = calibrate("macro_f1", logits, labels, people, counts)
    assert found is not None
    assert found.temperature == pytest.approx(3, rel=0.2)
    scaled = logits / found.temperature
    shift = fit_shift(scaled, labels, people, bias)
    assert shift not in (0, fit_shift(logits, labels, people, bias))
    assert found.bias == pytest.approx(tuple(shift * bias))
    after = softmax(scaled + shift * bias)
    assert metrics == pytest.approx(
        {
            "temperature": found.temperature,
            "shift": shift,
            "nll": log_likelihood(logits, labels, 1.0),
            "ece": expected_calibration_error(softmax(logits), labels),
            "calibrated_macro_f1": f1_score(labels, after.argmax(axis=1), average="macro"),
            "calibrated_nll": log_likelihood(scaled + shift * bias, labels, 1.0),
            "calibrated_ece": expected_calibration_error(after, labels),
        },
        rel=1e-5,
    )
    assert metrics["ece"] > 2 * metrics["calibrated_ece"]
