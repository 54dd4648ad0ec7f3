"""What may be put right about a trained network's answers without training it: how sure they are,
and which way they lean. Both are fitted on people that it was not trained on.

Logits and probabilities are (N, C), labels (N,) classes 0..C-1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from maskcls.evaluation.people import drawn_confusions
from maskcls.evaluation.reliability import expected_calibration_error
from maskcls.evaluation.scoring import confusion_matrix, macro_f1_of_true, scores_from_confusion
from maskcls.labels import softmax
from maskcls.manifest import Calibration

COLDEST, HOTTEST = 0.1, 10.0  # where a few people would have a temperature go to 0 or without end
STEPS = 50  # of bisection: 1 / temperature to 1e-14
SHIFTS = tuple(sorted((step / 10 for step in range(-10, 11)), key=abs))
"""What is tried, the smallest first: of equals it is taken."""
DRAWS = 200  # of people, as many as there are


@dataclass(frozen=True)
class Quality:
    """How good answers are."""

    macro_f1: float
    nll: float  # mean of -log of the probability of the truth
    ece: float  # `expected_calibration_error`


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature, from `COLDEST` to `HOTTEST`, whose `softmax(logits / temperature)` has the
    smallest negative log-likelihood. It makes no other class the most probable.

    Guo et al. 2017, arXiv:1706.04599. The likelihood is convex in 1 / temperature: its slope is
    bisected. 1 where no temperature is better than another.
    """
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    truth = shifted[np.arange(len(labels)), labels]

    def slope(inverse: float) -> float:
        powers = np.exp(inverse * shifted)
        expected = (powers * shifted).sum(axis=1) / powers.sum(axis=1)
        return float((expected - truth).mean())

    low, high = 1 / HOTTEST, 1 / COLDEST
    if slope(1.0) == 0:
        return 1.0
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return 2 / (low + high)


def balancing_bias(counts: np.ndarray) -> np.ndarray:
    """Per class (C,), what takes the training's class shares out of logits: `log uniform - log
    share`. 0 for a class that nobody was trained on, whose share says nothing.

    counts: (C,) training pictures. Menon et al. 2021, arXiv:2007.07314 (logit adjustment).
    """
    present = counts > 0
    shares = np.where(present, counts, 1) / counts.sum()
    return np.where(present, -np.log(present.sum() * shares), 0.0)


def fit_shift(
    logits: np.ndarray, labels: np.ndarray, people: Sequence[str], bias: np.ndarray
) -> float:
    """How much of `bias` (C,) to add to logits for macro F1: one of `SHIFTS`. 1 is all of it,
    towards rare classes; below 0 it goes the other way, as after class weights that went too far.

    The best is that of the mean score over draws of people, since a person's pictures are not
    independent. 0 is among them, so that mean never falls. That it is one number from a coarse
    list, not one for each class, keeps it from learning the validation people by heart; where a
    class has few of them, it is a rough number all the same.
    """
    scores = []
    for shift in SHIFTS:
        predicted = (logits + shift * bias).argmax(axis=1)
        matrices = drawn_confusions(labels, predicted, people, logits.shape[1], DRAWS)
        scores.append(macro_f1_of_true(matrices).mean())
    return SHIFTS[int(np.argmax(scores))]


def calibrated(logits: np.ndarray, calibration: Calibration) -> np.ndarray:
    """Logits (N, C) as they are when the network labels."""
    changed: np.ndarray = logits / calibration.temperature + np.array(calibration.bias)
    return changed


def quality(logits: np.ndarray, labels: np.ndarray) -> Quality:
    """Scores of answers against the truth."""
    chosen = logits.argmax(axis=1)
    shares = softmax(logits.astype(np.float64))
    truth = np.maximum(shares[np.arange(len(labels)), labels], np.finfo(np.float32).tiny)
    return Quality(
        scores_from_confusion(confusion_matrix(labels, chosen, logits.shape[1])).macro_f1,
        float(-np.log(truth).mean()),
        expected_calibration_error(shares, labels),
    )
