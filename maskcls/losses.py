"""Losses by name. All take logits (N, C) and answer a scalar.

Targets are classes (N,) int64, or shares of the classes (N, C) float32 whose rows sum to 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskcls.config import AGE_LOSS_NAMES, CRITERION_NAMES, parse_criterion
from maskcls.errors import ConfigError, unknown

LEAST = 0.5
"""Pictures of a class in a batch, from which on it occurs: softened ages leave a trace anywhere."""
YEAR_WEIGHT = 0.1
"""Of `ExpectedAgeLoss`: ten years off cost as much as one nat of the distribution's loss."""


class FocalLoss(nn.Module):
    """Cross entropy in which well-classified pictures count less: `-alpha (1 - p)^gamma log p`.

    `weight` (C,) weighs the classes as in `nn.CrossEntropyLoss`: the mean is over the weights, so
    that gamma 0 and alpha None is exactly cross entropy. Lin et al. 2017, arXiv:1708.02002.
    """

    def __init__(
        self, gamma: float = 2.0, alpha: float | None = None, weight: Tensor | None = None
    ) -> None:
        super().__init__()
        self.gamma = gamma
        self.alpha = alpha
        self.weight: Tensor | None
        self.register_buffer("weight", weight)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        log_p = F.log_softmax(logits, dim=1)  # (N, C)
        # The base is kept off 0, where the gradient of a power below 1 is infinite.
        factor = (1 - log_p.exp()).clamp_min(1e-8) ** self.gamma if self.gamma else 1.0
        loss = -factor * log_p * (1.0 if self.alpha is None else self.alpha)
        shares = _shares(target, logits)
        if self.weight is not None:
            shares = shares * self.weight
        # As torch's cross entropy: classes are averaged over their weights, shares over pictures.
        total = len(target) if target.is_floating_point() else shares.sum()
        return (shares * loss).sum() / total


class LabelSmoothingLoss(nn.Module):
    """Cross entropy against targets that give `smoothing` of their mass to all classes evenly.

    Szegedy et al. 2016, arXiv:1512.00567. `weight` (C,) weighs classes as in `nn.CrossEntropyLoss`.
    """

    def __init__(self, smoothing: float = 0.1, weight: Tensor | None = None) -> None:
        super().__init__()
        self.smoothing = smoothing
        self.weight: Tensor | None
        self.register_buffer("weight", weight)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(logits, target, weight=self.weight, label_smoothing=self.smoothing)


class F1Loss(nn.Module):
    """One minus the macro F1 of soft counts: probabilities stand where hard counts would.

    Means over the classes of which the batch's targets have half a picture or more; an absent class
    has no F1 to improve. `weight` (C,) weighs the classes' F1. `steps` (C): logits and targets are
    of so many neighbouring steps of each class, which are added up; by default one.
    """

    def __init__(
        self,
        epsilon: float = 1e-7,
        weight: Tensor | None = None,
        steps: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.weight: Tensor | None
        self.register_buffer("weight", weight)
        self.steps = None if steps is None else list(steps)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        probabilities = self._of_classes(logits.softmax(dim=1))  # (N, C)
        truth = self._of_classes(_shares(target, logits))
        counts = truth.sum(dim=0)
        hits = (truth * probabilities).sum(dim=0)  # (C,), soft true positives
        f1 = 2 * hits / (counts + probabilities.sum(dim=0) + self.epsilon)
        # Of a single softened picture, no class may have half.
        weight = (counts >= counts.max().clamp(max=LEAST)).to(probabilities.dtype)
        if self.weight is not None:
            weight = weight * self.weight
        return 1 - (weight * f1).sum() / weight.sum()

    def _of_classes(self, shares: Tensor) -> Tensor:
        """(N, sum(steps)) → (N, C)."""
        if self.steps is None:
            return shares
        parts = torch.split(shares, self.steps, dim=1)
        return torch.stack([part.sum(dim=1) for part in parts], dim=1)


class WeightedSum(nn.Module):
    """A weighted sum of losses."""

    def __init__(self, losses: Sequence[nn.Module], weights: Sequence[float]) -> None:
        super().__init__()
        self.losses = nn.ModuleList(losses)
        self.weights = tuple(weights)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        terms = [
            weight * loss(logits, target)
            for loss, weight in zip(self.losses, self.weights, strict=True)
        ]
        return torch.stack(terms).sum()


class OrdinalLoss(nn.Module):
    """Ordered classes as questions: at or above each of them but the first, or below? The mean
    binary cross entropy of the answers, so that a far miss costs more than a near one.

    Logits (N, C) and targets are those of a distribution, and so is the network: the probability of
    "at or above" is the sum of its softmax from there on. (Cao et al. 2020, arXiv:1901.07884, give
    each question an own output; sums are in order by themselves as well.) Targets are shares.
    `weight` (C,): a picture weighs the mean of it over its shares.
    """

    def __init__(self, weight: Tensor | None = None) -> None:
        super().__init__()
        self.weight: Tensor | None
        self.register_buffer("weight", weight)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        whole = logits.logsumexp(dim=1, keepdim=True)
        below = logits.logcumsumexp(dim=1)[:, :-1] - whole  # (N, C - 1), log-probabilities
        above = logits.flip(1).logcumsumexp(dim=1).flip(1)[:, 1:] - whole
        truth = target.flip(1).cumsum(dim=1).flip(1)[:, 1:]  # the share that is at or above
        loss = -(truth * above + (1 - truth) * below).mean(dim=1)  # (N,)
        return (loss * _picture_weights(target, self.weight)).mean()


class ExpectedAgeLoss(nn.Module):
    """A loss of the distribution over steps of age, and beside it the distance in years between the
    expected age and the true one, both of them means over `centres` (C,). Gao et al. 2018,
    doi:10.24963/ijcai.2018/99.

    The true age is taken from the targets, which are shares (N, C): so both terms are least at the
    same answer, and mixed pictures have mixed ages. `strength`: what a year costs. `weight` (C,): a
    picture weighs the mean of it over its shares.
    """

    def __init__(
        self,
        own: nn.Module,
        centres: Tensor,
        strength: float = YEAR_WEIGHT,
        weight: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.own = own
        self.strength = strength
        self.centres: Tensor
        self.register_buffer("centres", centres)
        self.weight: Tensor | None
        self.register_buffer("weight", weight)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        years = ((logits.softmax(dim=1) - target) @ self.centres).abs()  # (N,)
        own: Tensor = self.own(logits, target)
        return own + self.strength * (years * _picture_weights(target, self.weight)).mean()


def create_age_criterion(
    age_loss: str, own: nn.Module, centres: Tensor, weight: Tensor | None = None
) -> nn.Module:
    """The loss of a network that learns steps of age: `distribution` is `own`, `ordinal` is
    `OrdinalLoss` in its place, `expected` is `ExpectedAgeLoss` around it.

    centres, weight: (C,) of the steps.

    Raises:
        ConfigError: no such loss; names the nearest.
    """
    if age_loss not in AGE_LOSS_NAMES:
        raise ConfigError(unknown("age_loss", age_loss, AGE_LOSS_NAMES))
    if age_loss == "ordinal":
        return OrdinalLoss(weight)
    return own if age_loss == "distribution" else ExpectedAgeLoss(own, centres, weight=weight)


class AuxiliaryLoss(nn.Module):
    """The loss of a task, and `weight` times the cross entropy of what is learnt beside it.

    Logits and targets are (N, sum(sizes)): first the task's, then a block for each other attribute.
    Targets are shares; each block's sum to 1.
    """

    def __init__(self, own: nn.Module, sizes: Sequence[int], weight: float) -> None:
        super().__init__()
        self.own = own
        self.sizes = list(sizes)
        self.weight = weight

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        answers, truths = (torch.split(part, self.sizes, dim=1) for part in (logits, target))
        beside = [F.cross_entropy(*pair) for pair in zip(answers[1:], truths[1:], strict=True)]
        own: Tensor = self.own(answers[0], truths[0])
        return own + self.weight * torch.stack(beside).sum()


def _picture_weights(target: Tensor, weight: Tensor | None) -> Tensor:
    """Shares (N, C) → what each picture weighs, (N,): the mean of the classes' weights."""
    return target.sum(dim=1) if weight is None else target @ weight


def _shares(target: Tensor, logits: Tensor) -> Tensor:
    """Targets of either kind → shares (N, C) in the type of the logits."""
    if target.is_floating_point():
        return target.to(logits.dtype)
    return F.one_hot(target, logits.shape[1]).to(logits.dtype)


_CRITERIA: dict[str, Callable[..., nn.Module]] = {
    "cross_entropy": nn.CrossEntropyLoss,
    "focal": FocalLoss,
    "label_smoothing": LabelSmoothingLoss,
    "f1": F1Loss,
}


def is_criterion(name: str) -> bool:
    """Whether a loss has that name."""
    return name in _CRITERIA


def criterion_entrypoint(name: str) -> Callable[..., nn.Module]:
    """What creates the loss of that name.

    Raises:
        ConfigError: no such loss; names the nearest.
    """
    if not is_criterion(name):
        raise ConfigError(unknown("criterion", name, CRITERION_NAMES))
    return _CRITERIA[name]


def create_criterion(
    criterion: str,
    *,
    class_weights: Tensor | None = None,
    steps: Sequence[int] | None = None,
    focal_gamma: float = 2.0,
    focal_alpha: float | None = None,
    label_smoothing: float = 0.1,
) -> nn.Module:
    """A loss by name, or a weighted sum such as `cross_entropy:0.7,f1:0.3`.

    `class_weights`: (C,) float32, given to every term. `steps` (C): the network learns so many
    neighbouring steps of each class; F1 is that of the classes, any other term that of the steps,
    each with the weight of its class.

    Raises:
        ConfigError: an unknown name, or a weight that is no positive number.
    """
    weight = step_weights(class_weights, steps)
    own: dict[str, dict[str, Any]] = {
        "focal": {"gamma": focal_gamma, "alpha": focal_alpha},
        "label_smoothing": {"smoothing": label_smoothing},
        "f1": {"weight": class_weights, "steps": steps},
    }
    terms = parse_criterion(criterion)
    losses = [
        criterion_entrypoint(name)(**{"weight": weight, **own.get(name, {})}) for name in terms
    ]
    if list(terms.values()) == [1.0]:
        return losses[0]
    return WeightedSum(losses, list(terms.values()))


def step_weights(weights: Tensor | None, steps: Sequence[int] | None) -> Tensor | None:
    """Weights of classes (C,) → of their steps (sum(steps),)."""
    if weights is None or steps is None:
        return weights
    return weights.repeat_interleave(torch.tensor(steps))


def balanced_weights(counts: Tensor, power: float = 1.0) -> Tensor:
    """Class weights `(n / (C_present * count)) ** power` (C,) float32, scikit-learn's "balanced" at
    power 1. A class that does not occur weighs nothing.

    counts: (C,) pictures per class.
    """
    counts = counts.to(torch.float64)
    present = counts > 0
    weights = counts.sum() / (present.sum() * counts.clamp_min(1)).to(torch.float64)
    return (weights**power * present).to(torch.float32)
