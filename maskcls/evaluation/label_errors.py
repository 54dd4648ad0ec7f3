"""Which labels do out-of-fold predictions contradict, and how much?

A fact, such as a person's gender or how the mask is worn on a picture, has one label and one or
several pictures. Probabilities are (N, C), labels (N,) classes 0..C-1.

The method is confident learning (Northcutt et al. 2021, doi:10.1613/jair.1.12125) on calibrated
answers: a label is contradicted where another class is as probable as it usually is for those who
are labelled so. What ranks facts is how little their own label is supported.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from maskcls.evaluation.calibration import fit_temperature
from maskcls.labels import AGE_BOUNDS, softmax

FLOOR = 1e-3
"""Of a picture's probabilities: no single picture, however sure its answer, outvotes the others."""
ROUNDS = 30
"""Of fitting: shares and temperature in turns; they settle in a few."""
AGREEMENT_DEVIATION = 2.0
"""Of the normal curve, in years, by which a labelled age agrees with the group beyond a border: one
year from it 0.88, three years 0.32, five years 0.04. Faces tell an age to some years at best."""
OWN_GROUP = 0.5
"""By which a labelled age agrees with other ages of its group, at least: a label that is years off
and right as a group."""
ONE_AGE = 10
"""People of a group, at least, whose one common age stands for the group and tells no years: in the
competition's data everybody of the oldest group is 60, which would lie a year from the border."""


@dataclass(frozen=True, eq=False)
class Judgement:
    """What calibrated answers say of the labels of N facts."""

    probabilities: np.ndarray  # (N, C) calibrated
    doubt: np.ndarray  # (N,) 0..1: 1 - the support of the label
    rival: np.ndarray  # (N,) the most probable class other than the label
    contradicted: np.ndarray  # (N,) bool


def pool(probabilities: np.ndarray, facts: np.ndarray, count: int) -> np.ndarray:
    """The answers (M, C) to the pictures of each fact, facts (M,) 0..count-1, as one: logits
    (count, C), the mean of the logarithms.

    Not their sum, which takes the pictures of one person for independent: seven pictures are wrong
    together, and the sum would be seven times as sure. How sure the mean may be is left to
    `calibrate_to_labels`.
    """
    logs = np.log(np.maximum(probabilities, FLOOR))
    sums = np.zeros((count, probabilities.shape[1]))
    np.add.at(sums, facts, logs)
    return sums / np.bincount(facts, minlength=count)[:, None]


def calibrate_to_labels(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Logits (N, C) → probabilities (N, C) that are as sure as the labels bear out, and whose means
    are the shares of the labels.

    One temperature, and a bias for each class: class weights in training, or few epochs, make a
    network lean, and then everybody of one class would look wrongly labelled. That some labels are
    wrong hardly matters to so few numbers, fitted to all of them.
    """
    classes = logits.shape[1]
    # One more in each class: one that nobody is labelled with is rare, not impossible.
    shares = (np.bincount(labels, minlength=classes) + 1) / (len(labels) + classes)
    bias, temperature = np.zeros(classes), 1.0
    for _ in range(ROUNDS):
        temperature = fit_temperature(logits + bias, labels)
        means = softmax((logits + bias) / temperature).mean(axis=0)
        bias += temperature * np.log(shares / np.maximum(means, np.finfo(np.float64).tiny))
    return softmax((logits + bias) / temperature)


def judge(
    probabilities: np.ndarray, labels: np.ndarray, support: np.ndarray | None = None
) -> Judgement:
    """`probabilities`: from `calibrate_to_labels`. `support` (N,), 0..1: of each label, by default
    its own probability.

    A label is contradicted where its rival reaches its threshold, the mean probability of that
    class over those who are labelled so, and its support is below one half.
    """
    rows = np.arange(len(labels))
    if support is None:
        support = probabilities[rows, labels]
    others = probabilities.copy()
    others[rows, labels] = -1
    rival = others.argmax(axis=1)
    doubt = np.clip(1 - support, 0, 1)
    sure = probabilities[rows, rival] >= thresholds(probabilities, labels)[rival]
    return Judgement(probabilities, doubt, rival, sure & (doubt > 0.5))


def thresholds(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(C,) mean probability of each class over those who are labelled so; endless for a class that
    nobody is labelled with, of which nothing can be known."""
    counts = np.bincount(labels, minlength=probabilities.shape[1])
    own = probabilities[np.arange(len(labels)), labels]
    sums = np.bincount(labels, own, minlength=len(counts))
    means: np.ndarray = np.divide(sums, counts, out=np.full(len(counts), np.inf), where=counts > 0)
    return means


def age_agreement(
    ages: np.ndarray, years: Sequence[int] = (0, *AGE_BOUNDS), own_group: float = OWN_GROUP
) -> np.ndarray:
    """Labelled ages in whole years (N,) → how far each step of ages agrees with them (N, S), 0..1:
    1 for their own, and less the more years lie between the age and the step; see
    `AGREEMENT_DEVIATION`, and for whom no other group agrees `ONE_AGE`.

    `years` (S): the first of each step; the borders of the groups are among them. By default the
    steps are the groups. `own_group`: how far the other steps of their group agree at least.
    """
    first = np.array((-np.inf, *years[1:]))  # of each step
    last = np.array((*years[1:], np.inf)) - 1
    between = np.maximum(np.maximum(first - ages[:, None], ages[:, None] - last), 0)
    groups = age_groups(ages)
    own = groups[:, None] == age_groups(np.array(years))  # (N, S)
    agreement: np.ndarray = np.exp(-((between / AGREEMENT_DEVIATION) ** 2) / 2)
    agreement = np.maximum(agreement, own_group * own)
    for group in range(len(AGE_BOUNDS) + 1):
        alike = groups == group
        if alike.sum() >= ONE_AGE and np.ptp(ages[alike]) == 0:
            agreement[alike] = own[alike]
    return agreement


def age_groups(ages: np.ndarray) -> np.ndarray:
    """Whole years (N,) → the classes of their groups (N,)."""
    found: np.ndarray = np.searchsorted(AGE_BOUNDS, ages, side="right")
    return found


def refine_ages(probabilities: np.ndarray, logits: np.ndarray, years: Sequence[int]) -> np.ndarray:
    """Calibrated probabilities of the age groups (N, 3), each shared out among its steps as their
    logits (N, S) say: (N, S). `years` (S): the first of each step."""
    groups = age_groups(np.array(years))
    shares = np.empty_like(logits)
    for group in range(probabilities.shape[1]):
        own = groups == group
        shares[:, own] = softmax(logits[:, own]) * probabilities[:, group, None]
    return shares


def median_steps(shares: np.ndarray, years: Sequence[int]) -> np.ndarray:
    """Probabilities of steps of ages (N, S) → the step in which the median of each group lies
    (N, 3). `years` (S): the first of each step."""
    groups = age_groups(np.array(years))
    found = np.empty((len(shares), len(AGE_BOUNDS) + 1), dtype=np.int64)
    for group in range(found.shape[1]):
        own = np.flatnonzero(groups == group)
        below = shares[:, own].cumsum(axis=1)
        found[:, group] = own[(below >= below[:, -1:] / 2).argmax(axis=1)]
    return found


def middle_years(years: Sequence[int]) -> np.ndarray:
    """The first years of steps of ages (S) → their middles, whole years (S,). The last step has no
    end; its first year stands for it."""
    middles: np.ndarray = (np.array(years) + np.array((*years[1:], years[-1] + 1)) - 1) // 2
    return middles


@dataclass(frozen=True)
class Swap:
    """Two facts whose labels look swapped."""

    one: int
    other: int
    doubt: (
        float  # 0.5..1: the probability that they are, if either both labels are right or both not
    )


def find_swaps(probabilities: np.ndarray, labels: np.ndarray, owners: Sequence[str]) -> list[Swap]:
    """Pairs of facts (N) of one owner, each taken for what the other is labelled; the surest first,
    and no fact in two of them."""
    taken = probabilities.argmax(axis=1)
    of_owner: dict[str, list[int]] = {}
    for place in np.flatnonzero(taken != labels).tolist():
        of_owner.setdefault(owners[place], []).append(place)
    pairs = []
    for places in of_owner.values():
        for one, other in itertools.combinations(places, 2):
            if taken[one] == labels[other] and taken[other] == labels[one]:
                rows = [one, other]
                as_labelled = probabilities[rows, labels[rows]].prod()
                as_taken = probabilities[rows, labels[[other, one]]].prod()
                pairs.append(Swap(one, other, float(as_taken / (as_taken + as_labelled))))
    found: list[Swap] = []
    used: set[int] = set()
    for pair in sorted(pairs, key=lambda pair: (-pair.doubt, pair.one, pair.other)):
        if not used & {pair.one, pair.other}:
            used |= {pair.one, pair.other}
            found.append(pair)
    return found
