"""Optimisers and learning rates."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from maskcls.config import TrainConfig


def create_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """The optimiser by name. Weight matrices decay, biases and norms do not.

    With a `layer_decay` below 1 each layer has groups of its own, the classifier's first: their
    rate is `lr * layer_decay ** depth`, of which they hold the factor as `lr_scale`.
    """
    groups: list[dict[str, Any]] = []
    layers = network_layers(model)[::-1] if config.layer_decay < 1 else [list(model.parameters())]
    for depth, layer in enumerate(layers):
        trained = [parameter for parameter in layer if parameter.requires_grad]
        scale = config.layer_decay**depth
        shared = {"lr": config.lr * scale, "lr_scale": scale}
        groups += [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay}
            | shared,
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0} | shared,
        ]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, fused=True)
    if config.optimizer == "adam":
        return torch.optim.Adam(groups, lr=config.lr, fused=True)
    return torch.optim.SGD(
        groups, lr=config.lr, momentum=config.momentum, nesterov=config.momentum > 0, fused=True
    )


def network_layers(model: nn.Module) -> list[list[nn.Parameter]]:
    """A network's parameters layer by layer, from the pictures to the classifier, in the order of
    its own modules. A layer is a convolution or a linear layer of the trunk with the norm behind
    it, or a whole block. Howard and Ruder 2018 (arXiv:1801.06146) train layers so the slower, the
    further they are from the classifier: what they have learnt is the more general.
    """
    layers: list[list[nn.Parameter]] = []
    for part in _parts(model):
        parameters = list(part.parameters())
        if not layers or any(parameter.ndim > 1 for parameter in parameters):
            layers.append(parameters)
        else:
            layers[-1] += parameters
    return layers


def _parts(module: nn.Module) -> Iterator[nn.Module]:
    """The modules of a network that are no mere lists of modules."""
    for child in module.children():
        if isinstance(child, nn.Sequential | nn.ModuleList):
            yield from _parts(child)
        else:
            yield child


def get_lr(optimizer: torch.optim.Optimizer) -> float:
    """The present learning rate of the first parameter group; with layers, the classifier's."""
    return float(optimizer.param_groups[0]["lr"])


class Schedule:
    """Linear warm-up, then cosine to zero, or constant until the score stops rising (plateau).

    The rate is a function of the step and of the number of plateaus so far; only the plateau's
    memory is state.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, config: TrainConfig, steps_per_epoch: int
    ) -> None:
        self.optimizer = optimizer
        self.kind = config.schedule
        self.peak = config.lr
        self.total = config.epochs * steps_per_epoch
        self.warmup = min(round(config.warmup_epochs * steps_per_epoch), self.total)
        self.patience = config.plateau_patience
        self.best = -math.inf
        self.bad_epochs = 0
        self.plateaus = 0

    def rate(self, step: int) -> float:
        """The learning rate of step 1 … total."""
        if step <= self.warmup:
            return self.peak * step / self.warmup
        if self.kind == "cosine":
            # From the peak at the end of the warm-up to nearly nothing at the last step.
            done = (step - self.warmup - 1) / max(1, self.total - self.warmup)
            return self.peak * (1 + math.cos(math.pi * done)) / 2
        return self.peak * 0.1**self.plateaus

    def set_rate(self, step: int) -> None:
        """Tells the optimiser the rate of this step, each group its part of it."""
        for group in self.optimizer.param_groups:
            # The state of a run from before layers had rates of their own brings no scale.
            group["lr"] = self.rate(step) * group.get("lr_scale", 1.0)

    def epoch_ended(self, score: float) -> None:
        """Counts epochs without a better score; a NaN score is no better one."""
        if self.kind != "plateau":
            return
        if score > self.best:
            self.best, self.bad_epochs = score, 0
            return
        self.bad_epochs += 1
        if self.bad_epochs > self.patience:
            self.plateaus, self.bad_epochs = self.plateaus + 1, 0

    def state_dict(self) -> dict[str, float | int]:
        return {"best": self.best, "bad_epochs": self.bad_epochs, "plateaus": self.plateaus}

    def load_state_dict(self, state: dict[str, float | int]) -> None:
        self.best = float(state["best"])
        self.bad_epochs = int(state["bad_epochs"])
        self.plateaus = int(state["plateaus"])
