"""The losses against torch, numpy and scikit-learn, and their gradients on extreme logits."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import f1_score
from sklearn.utils.class_weight import compute_class_weight

from maskcls.config import CRITERION_NAMES
from maskcls.errors import ConfigError
from maskcls.losses import (
    AuxiliaryLoss,
    ExpectedAgeLoss,
    F1Loss,
    FocalLoss,
    LabelSmoothingLoss,
    OrdinalLoss,
    WeightedSum,
    balanced_weights,
    create_age_criterion,
    create_criterion,
    criterion_entrypoint,
    is_criterion,
)

CLASSES = 6


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits, targets and class weights, float64."""
    rng = np.random.default_rng(0)
    logits = torch.from_numpy(rng.normal(0, 3, (40, CLASSES)))
    return (
        logits,
        torch.from_numpy(rng.integers(0, CLASSES, 40)),
        torch.tensor([0.5, 1, 2, 3, 0.1, 1], dtype=torch.float64),
    )


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


# --- focal -------------------------------------------------------------------------------------


@pytest.mark.parametrize("weighted", [True, False])
def test_focal_with_gamma_0_is_cross_entropy(batch: tuple[torch.Tensor, ...], weighted: bool):
    logits, target, weight = batch
    chosen = weight if weighted else None
    expected = F.cross_entropy(logits, target, weight=chosen)
    torch.testing.assert_close(FocalLoss(gamma=0.0, weight=chosen)(logits, target), expected)


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize(("gamma", "alpha"), [(2.0, None), (0.5, 0.25), (5.0, 4.0)])
def test_focal_equals_the_paper(
    batch: tuple[torch.Tensor, ...], gamma: float, alpha: float | None, weighted: bool
) -> None:
    logits, target, weight = batch
    log_p = log_softmax(logits.numpy())[np.arange(len(target)), target.numpy()]
    terms = -(alpha or 1) * (1 - np.exp(log_p)) ** gamma * log_p
    share = weight.numpy()[target.numpy()] if weighted else np.ones(len(target))
    loss = FocalLoss(gamma, alpha, weight if weighted else None)(logits, target)
    assert loss.item() == pytest.approx((terms * share).sum() / share.sum(), rel=1e-9)


# --- label smoothing ---------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_label_smoothing_equals_its_definition(
    batch: tuple[torch.Tensor, ...], smoothing: float
) -> None:
    logits, target, _ = batch
    truth = np.eye(CLASSES)[target.numpy()] * (1 - smoothing) + smoothing / CLASSES
    expected = -(truth * log_softmax(logits.numpy())).sum(axis=1).mean()
    loss = LabelSmoothingLoss(smoothing)(logits, target)
    assert loss.item() == pytest.approx(expected, rel=1e-12)


def test_label_smoothing_weighs_classes_as_torch_does(batch: tuple[torch.Tensor, ...]) -> None:
    logits, target, weight = batch
    plain = LabelSmoothingLoss(0.0, weight)(logits, target)
    torch.testing.assert_close(plain, F.cross_entropy(logits, target, weight=weight))
    expected = torch.nn.CrossEntropyLoss(weight, label_smoothing=0.3)(logits, target)
    assert LabelSmoothingLoss(0.3, weight)(logits, target) == expected


# --- F1 ----------------------------------------------------------------------------------------


def hard(labels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.eye(CLASSES)[labels] * 200)


@given(
    st.lists(
        st.tuples(st.integers(0, CLASSES - 1), st.integers(0, CLASSES - 1)),
        min_size=1,
        max_size=40,
    )
)
def test_f1_loss_on_hard_answers_is_one_minus_sklearns(pairs: list[tuple[int, int]]) -> None:
    truth, predicted = np.array(pairs).T
    expected = f1_score(truth, predicted, labels=np.unique(truth), average="macro", zero_division=0)
    loss = F1Loss()(hard(predicted), torch.from_numpy(truth)).item()
    assert loss == pytest.approx(1 - expected, abs=1e-6)


def test_f1_loss_of_perfect_answers_is_0_even_with_absent_classes() -> None:
    labels = np.array([0, 0, 3])
    assert F1Loss()(hard(labels), torch.from_numpy(labels)).item() == pytest.approx(0, abs=1e-6)
    wrong = F1Loss()(hard(labels[::-1].copy()), torch.from_numpy(labels)).item()
    assert wrong > 0.5


def test_f1_loss_weighs_classes() -> None:
    truth, predicted = np.array([0, 0, 1, 1]), np.array([0, 0, 0, 1])
    f1 = f1_score(truth, predicted, average=None)  # of classes 0 and 1
    weight = torch.tensor([3.0, 1, 1, 1, 1, 1], dtype=torch.float64)
    expected = 1 - (3 * f1[0] + f1[1]) / 4
    loss = F1Loss(weight=weight)(hard(predicted), torch.from_numpy(truth)).item()
    assert loss == pytest.approx(expected, abs=1e-6)


def test_f1_of_classes_that_are_learnt_in_steps() -> None:
    steps, weights = [2, 1, 3], torch.tensor([3.0, 1.0, 2.0], dtype=torch.float64)
    logits = torch.randn(8, sum(steps), dtype=torch.float64, generator=torch.manual_seed(0))
    shares = torch.eye(sum(steps), dtype=torch.float64)[[0, 1, 0, 1, 2, 2, 0, 1]]
    shares[0] = torch.tensor([0.6, 0.3, 0.1, 0, 0, 0])
    shares[1] = torch.tensor([0.5, 0.5 - 1e-6, 0, 1e-6, 0, 0])  # a trace: no third class in here

    def of_classes(values: torch.Tensor) -> torch.Tensor:
        return torch.stack([part.sum(1) for part in values.split(steps, 1)], 1)

    truth, answers = of_classes(shares), of_classes(logits.softmax(1))
    f1 = 2 * (truth * answers).sum(0) / (truth.sum(0) + answers.sum(0))
    expected = 1 - (3 * f1[0] + f1[1]) / 4
    loss = create_criterion("f1", class_weights=weights, steps=steps)(logits, shares)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
    # Beside it in a sum, another loss is that of the steps.
    both = create_criterion("cross_entropy:2,f1:1", class_weights=weights, steps=steps)
    own = torch.nn.functional.cross_entropy(
        logits, shares, weights.repeat_interleave(torch.tensor(steps))
    )
    assert both(logits, shares).item() == pytest.approx((2 * own + loss).item())


def test_f1_of_one_picture_between_all_classes() -> None:
    shares = torch.tensor([[0.4, 0.35, 0.25]])
    perfect = F1Loss()(shares.log(), shares).item()
    assert perfect == pytest.approx(1 - 2 * 0.4 * 0.4 / 0.8, abs=1e-6)


def test_f1_loss_learns() -> None:
    torch.manual_seed(0)
    target = torch.arange(12) % 3
    logits = torch.zeros(12, 3, requires_grad=True)
    for _ in range(200):
        loss = F1Loss()(logits, target)
        (gradient,) = torch.autograd.grad(loss, logits)
        logits = (logits - 5 * gradient).detach().requires_grad_()
    assert (logits.argmax(dim=1) == target).all()


# --- all of them -------------------------------------------------------------------------------

extreme = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 8), st.just(3)),
    elements=st.floats(-1e4, 1e4, width=32) | st.sampled_from([0.0, 1e4, -1e4, 88.0, -104.0]),
)


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("name", [*CRITERION_NAMES, "cross_entropy:0.7,f1:0.3", "focal:2"])
@given(values=extreme, data=st.data())
@settings(max_examples=40)
def test_loss_and_gradient_are_finite(
    name: str, weighted: bool, values: np.ndarray, data: st.DataObject
) -> None:
    target = torch.tensor(
        data.draw(st.lists(st.integers(0, 2), min_size=len(values), max_size=len(values)))
    )
    logits = torch.from_numpy(values).requires_grad_()
    weights = torch.tensor([0.5, 1.0, 8.0]) if weighted else None
    gamma = data.draw(st.sampled_from([0.0, 0.5, 1.0, 2.0]))
    loss = create_criterion(name, class_weights=weights, focal_gamma=gamma)(logits, target)
    loss.backward()
    assert loss.shape == ()
    assert loss.isfinite() and loss >= -1e-5
    assert logits.grad is not None and logits.grad.isfinite().all()


@pytest.mark.parametrize("name", [*CRITERION_NAMES, "cross_entropy:0.7,f1:0.3"])
def test_class_weights_reach_every_term_and_move_with_it(
    name: str, batch: tuple[torch.Tensor, ...]
) -> None:
    logits, target, weight = batch
    plain = create_criterion(name)(logits, target)
    weighted = create_criterion(name, class_weights=weight)
    assert weighted(logits, target).item() != pytest.approx(plain.item(), rel=1e-3)
    moved = weighted.to(torch.float32)  # what .to(device) does as well
    assert all(buffer.dtype == torch.float32 for buffer in moved.buffers())
    assert list(moved.buffers())


def test_weighted_sum_is_the_sum(batch: tuple[torch.Tensor, ...]) -> None:
    logits, target, weight = batch
    loss = create_criterion(
        "cross_entropy:0.7, f1:0.3,focal:2", class_weights=weight, focal_gamma=1.5, focal_alpha=0.5
    )
    expected = (
        0.7 * F.cross_entropy(logits, target, weight=weight)
        + 0.3 * F1Loss(weight=weight)(logits, target)
        + 2 * FocalLoss(1.5, 0.5, weight)(logits, target)
    )
    torch.testing.assert_close(loss(logits, target), expected)


def test_a_single_weighted_term_keeps_its_weight(batch: tuple[torch.Tensor, ...]) -> None:
    logits, target, _ = batch
    loss = create_criterion("cross_entropy:0.5")
    assert isinstance(loss, WeightedSum)
    torch.testing.assert_close(loss(logits, target), F.cross_entropy(logits, target) / 2)
    assert type(create_criterion("cross_entropy:1")) is torch.nn.CrossEntropyLoss


def test_options_reach_their_loss(batch: tuple[torch.Tensor, ...]) -> None:
    logits, target, _ = batch
    smooth = create_criterion("label_smoothing", label_smoothing=0.4)(logits, target)
    assert smooth == F.cross_entropy(logits, target, label_smoothing=0.4)
    focal = create_criterion("focal", focal_gamma=3.0, focal_alpha=2.0)(logits, target)
    assert focal == FocalLoss(3.0, 2.0)(logits, target)
    usual = create_criterion("focal")(logits, target)  # gamma 2, the paper's
    assert usual == FocalLoss()(logits, target) == FocalLoss(2.0)(logits, target)


# --- names -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CRITERION_NAMES)
def test_every_name_makes_a_loss(name: str) -> None:
    assert is_criterion(name)
    loss = criterion_entrypoint(name)()
    assert loss(torch.zeros(2, 3), torch.tensor([0, 1])).ndim == 0


def test_unknown_names() -> None:
    assert not is_criterion("hinge")
    with pytest.raises(ConfigError, match="criterion 'focl'; did you mean 'focal'"):
        criterion_entrypoint("focl")
    with pytest.raises(ConfigError, match="'cross-entropy'; did you mean 'cross_entropy'"):
        create_criterion("cross-entropy:0.5,f1:0.5")


# --- class weights -----------------------------------------------------------------------------


@given(st.lists(st.integers(1, 10_000), min_size=1, max_size=18))
def test_balanced_weights_are_sklearns(counts: list[int]) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    expected = compute_class_weight("balanced", classes=np.arange(len(counts)), y=labels)
    weights = balanced_weights(torch.tensor(counts))
    assert weights.dtype == torch.float32
    np.testing.assert_allclose(weights.numpy(), expected, rtol=1e-6)
    np.testing.assert_allclose(
        balanced_weights(torch.tensor(counts), power=0.5).numpy(), expected**0.5, rtol=1e-6
    )


def test_an_absent_class_weighs_nothing_and_changes_no_other() -> None:
    weights = balanced_weights(torch.tensor([30, 0, 10]))
    assert weights[1] == 0
    assert torch.equal(weights[[0, 2]], balanced_weights(torch.tensor([30, 10])))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", ["cross_entropy", "focal", "label_smoothing", "f1"])
def test_certain_shares_are_worth_their_classes(name: str, weighted: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(12, 3, generator=generator)
    target = torch.arange(12) % 3
    weights = torch.tensor([0.5, 1.0, 1.5]) if weighted else None  # their mean over target is 1
    criterion = create_criterion(name, class_weights=weights)
    shares = torch.nn.functional.one_hot(target, 3).float()
    assert float(criterion(logits, shares)) == pytest.approx(float(criterion(logits, target)), 1e-5)


def test_focal_of_shares_is_the_sum_over_classes() -> None:
    logits = torch.tensor([[1.0, -0.5, 0.2]])
    shares = torch.tensor([[0.2, 0.5, 0.3]])
    p = logits.softmax(dim=1)
    expected = float((-shares * (1 - p) ** 2 * p.log()).sum())
    assert float(FocalLoss(gamma=2.0)(logits, shares)) == pytest.approx(expected, 1e-5)


def test_what_is_learnt_beside_adds_its_cross_entropy() -> None:
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(10, 3 + 2 + 4, generator=rng, dtype=torch.float64, requires_grad=True)
    target = torch.cat(
        [torch.rand(10, size, generator=rng, dtype=torch.float64).softmax(1) for size in (3, 2, 4)],
        dim=1,
    )
    own = LabelSmoothingLoss(0.1, torch.tensor([1.0, 2, 3], dtype=torch.float64))
    loss = AuxiliaryLoss(own, (3, 2, 4), 0.5)(logits, target)
    log_p = [part.log_softmax(1) for part in logits.split([3, 2, 4], 1)]
    beside = [-(target[:, 3:5] * log_p[1]).sum(1).mean(), -(target[:, 5:] * log_p[2]).sum(1).mean()]
    torch.testing.assert_close(loss, own(logits[:, :3], target[:, :3]) + 0.5 * sum(beside))
    loss.backward()
    assert (logits.grad.abs().sum(dim=0) > 0).all()


# --- ages --------------------------------------------------------------------------------------

# Three steps with probabilities 0.5, 0.3, 0.2; the truth is 0, 0.75, 0.25 of them.
STEP_LOGITS = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64).log()
STEP_SHARES = torch.tensor([[0.0, 0.75, 0.25]], dtype=torch.float64)


def test_ordinal_loss_by_hand() -> None:
    # At or above the second step: truth 1, answer 0.5; the third: truth 0.25, answer 0.2.
    expected = -(math.log(0.5) + 0.25 * math.log(0.2) + 0.75 * math.log(0.8)) / 2
    logits = STEP_LOGITS.clone().requires_grad_()
    loss = OrdinalLoss()(logits, STEP_SHARES)
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    loss.backward()
    # With q the answer and t the truth, dL/dq = (q - t) / (q (1 - q)) / 2, and a step s moves q by
    # p_s ([s is at or above] - q).
    slopes = (0.5 - 1) / 0.25 / 2, (0.2 - 0.25) / 0.16 / 2
    gradient = [
        0.5 * (slopes[0] * (0 - 0.5) + slopes[1] * (0 - 0.2)),
        0.3 * (slopes[0] * (1 - 0.5) + slopes[1] * (0 - 0.2)),
        0.2 * (slopes[0] * (1 - 0.5) + slopes[1] * (1 - 0.2)),
    ]
    assert logits.grad is not None
    assert logits.grad[0].tolist() == pytest.approx(gradient, rel=1e-9)
    again = (STEP_LOGITS + 100).expand(3, 3)  # only differences of logits count
    torch.testing.assert_close(OrdinalLoss()(again, STEP_SHARES.expand(3, 3)), loss.detach())


def test_expected_age_loss_by_hand() -> None:
    centres = torch.tensor([10.0, 25, 40], dtype=torch.float64)
    # Expected age 0.5 * 10 + 0.3 * 25 + 0.2 * 40 = 20.5; the true one is 28.75: 8.25 years.
    own = -(0.75 * math.log(0.3) + 0.25 * math.log(0.2))
    logits = STEP_LOGITS.clone().requires_grad_()
    loss = ExpectedAgeLoss(torch.nn.CrossEntropyLoss(), centres, 0.5)(logits, STEP_SHARES)
    assert loss.item() == pytest.approx(own + 0.5 * 8.25, rel=1e-12)
    loss.backward()
    # The distribution's part is p - t; a step moves the expected age by p_s (its centre - 20.5).
    gradient = [0.5 - 0.5 * 0.5 * (10 - 20.5), 0.3 - 0.75 - 0.5 * 0.3 * (25 - 20.5)]
    gradient.append(0.2 - 0.25 - 0.5 * 0.2 * (40 - 20.5))
    assert logits.grad is not None
    assert logits.grad[0].tolist() == pytest.approx(gradient, rel=1e-9)


@pytest.mark.parametrize("loss", ["ordinal", "expected"])
def test_the_truth_has_the_least_loss_of_ages(loss: str) -> None:
    rng = torch.Generator().manual_seed(0)
    shares = torch.rand(20, 6, generator=rng, dtype=torch.float64).softmax(dim=1)
    centres = torch.arange(6, dtype=torch.float64) * 7
    criterion = create_age_criterion(loss, torch.nn.CrossEntropyLoss(), centres)
    at_truth = shares.log().requires_grad_()
    least = criterion(at_truth, shares)
    for step in range(5):
        other = shares.log() + 0.2 * torch.randn(20, 6, generator=rng, dtype=torch.float64)
        assert criterion(other, shares) > least, step
    if loss == "ordinal":  # the distance has a corner there
        least.backward()
        assert at_truth.grad is not None and at_truth.grad.abs().max() < 1e-12


def test_a_far_miss_costs_more_than_a_near_one() -> None:
    shares = torch.eye(5)[[0]]
    answers = torch.eye(5) * 8  # the same cross entropy wherever the answer is wrong
    centres = torch.arange(5.0) * 10
    for loss in ("ordinal", "expected"):
        criterion = create_age_criterion(loss, torch.nn.CrossEntropyLoss(), centres)
        costs = [criterion(answer[None], shares).item() for answer in answers]
        assert costs == sorted(costs) and len(set(costs)) == 5


@pytest.mark.parametrize("loss", ["ordinal", "expected"])
def test_losses_of_ages_weigh_pictures_by_their_shares(loss: str) -> None:
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, generator=rng)
    shares = torch.tensor([[1.0, 0, 0, 0], [0, 0, 0.5, 0.5]])
    weight = torch.tensor([2.0, 9, 1, 3])  # the pictures weigh 2 and 2
    centres = torch.arange(4.0)
    own = torch.nn.CrossEntropyLoss(weight)
    plain = create_age_criterion(loss, own, centres)(logits, shares)
    weighted = create_age_criterion(loss, own, centres, weight)(logits, shares)
    term = plain if loss == "ordinal" else plain - own(logits, shares)
    assert weighted.item() == pytest.approx((plain + term).item(), rel=1e-5)


@pytest.mark.parametrize("scale", [0.0, 1e3, 1e6])
@pytest.mark.parametrize("loss", ["ordinal", "expected"])
def test_losses_of_ages_are_finite_on_extreme_logits(loss: str, scale: float) -> None:
    rng = torch.Generator().manual_seed(0)
    logits = (torch.randn(8, 19, generator=rng) * scale).requires_grad_()
    shares = torch.eye(19)[torch.randint(19, (8,), generator=rng)]
    centres = torch.arange(19.0)
    value = create_age_criterion(loss, torch.nn.CrossEntropyLoss(), centres)(logits, shares)
    value.backward()
    assert value.isfinite() and value >= -1e-5
    assert logits.grad is not None and logits.grad.isfinite().all()


def test_names_of_losses_of_ages() -> None:
    own = torch.nn.CrossEntropyLoss()
    assert create_age_criterion("distribution", own, torch.zeros(3)) is own
    with pytest.raises(ConfigError, match="did you mean 'ordinal'"):
        create_age_criterion("ordinl", own, torch.zeros(3))
