"""Optimisers and learning rates."""

from __future__ import annotations

import math

import torch
from torch import nn

from maskcls.config import TrainConfig


def create_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """The optimiser by name. Weight matrices decay, biases and norms do not."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, fused=True)
    if config.optimizer == "adam":
        return torch.optim.Adam(groups, lr=config.lr, fused=True)
    return torch.optim.SGD(
        groups, lr=config.lr, momentum=config.momentum, nesterov=config.momentum > 0, fused=True
    )


def get_lr(optimizer: torch.optim.Optimizer) -> float:
    """The present learning rate of the first parameter group."""
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
        """Tells the optimiser the rate of this step."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(step)

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
