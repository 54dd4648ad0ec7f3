"""What a training optimises: what a network learns besides its classes, what these weigh, and the
loss."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from maskcls.config import TrainConfig
from maskcls.data.loaders import SAMPLING_POWERS
from maskcls.data.mixing import Mixing
from maskcls.data.targets import (
    age_step_shares,
    auxiliary_sizes,
    auxiliary_targets,
    border_targets,
    soft_targets,
    step_centres,
    steps_per_group,
)
from maskcls.errors import CheckpointError, ConfigError
from maskcls.losses import (
    AuxiliaryLoss,
    balanced_weights,
    create_age_criterion,
    create_criterion,
    step_weights,
)
from maskcls.training.data import TrainingData


class Objective:
    """Of a config on its data."""

    def __init__(
        self, config: TrainConfig, data: TrainingData, weights: Tensor | None = None
    ) -> None:
        """`weights`: those of the classes that a resumed run began with.

        Raises:
            ConfigError: the option's weights cannot be had.
        """
        self.config = config
        self.data = data
        self.task = data.dataset.task
        # Exact ages say more than their group: a network that is to answer the group learns them.
        self.steps = steps_per_group() if config.soften_age and self.task.name == "age" else None
        self.beside = auxiliary_sizes(self.task) if config.auxiliary else ()
        labels = torch.from_numpy(data.dataset.labels)
        self.counts = torch.bincount(  # (C,) training pictures per class
            labels[torch.tensor(data.train.indices)], minlength=self.task.num_classes
        )
        self.class_weights = (
            class_weights(config.class_weights, self.counts) if weights is None else weights
        )

    def refuse_other_weights(self, folder: Path) -> None:
        """Of a run in that folder that goes on. The file of its weights may be gone.

        Raises:
            CheckpointError: the option gives other class weights than the run began with.
        """
        before, option = self.class_weights, self.config.class_weights
        if before is None:
            return
        with suppress(ConfigError):
            now = class_weights(option, self.counts)
            if now is None or not torch.equal(now, before):
                raise CheckpointError(
                    f"{folder}: class_weights {option}: the run began with {before.tolist()}; put "
                    "them back, or start a new run without --resume"
                )

    def criterion(self) -> nn.Module:
        """What is minimised: the loss of all that is learnt."""
        config = self.config
        criterion = self._criterion(self.class_weights, self.steps)
        if self.steps is not None:
            weights = step_weights(self.class_weights, self.steps)
            criterion = create_age_criterion(config.age_loss, criterion, step_centres(), weights)
        if self.beside:
            own = sum(self.steps or [1] * self.task.num_classes)
            criterion = AuxiliaryLoss(criterion, (own, *self.beside), config.auxiliary)
        return criterion

    def validation_criterion(self) -> nn.Module:
        """What `val_loss` is: of the classes alone, which is all that is answered."""
        known = self.class_weights
        if known is not None:  # a class that nobody trains on weighs 0: a mean over it alone is nan
            known = known.where(known > 0, 1.0)
        return self._criterion(known, None)

    def soft_targets(self) -> Tensor | None:
        """What each picture teaches, where that is more than its class."""
        data, years = self.data.dataset, self.config.soften_age
        own = None
        if self.steps is not None:
            own = age_step_shares(data.ages, years)
        elif years and "age" in self.task.attributes:
            own = soft_targets(self.task, data.labels, data.ages, years)
        elif self.config.border_ages == "soften" and "age" in self.task.attributes:
            own = border_targets(self.task, data.labels, data.ages)
        if own is None and (self.beside or self._mixes):
            own = one_hot(torch.from_numpy(data.labels), self.task.num_classes).float()
        if own is None or not self.beside:
            return own
        beside = auxiliary_targets(self.task, data.attributes, data.ages, years)
        return torch.cat([own, beside], dim=1)

    def mixing(self) -> Mixing | None:
        """What mixes the pictures of a batch, where any are."""
        config = self.config
        if not self._mixes:
            return None
        # Of what sampling has left of it: partners come from the batch.
        power = SAMPLING_POWERS[config.sampling] - 1
        rarity = (self.counts.clamp_min(1).double() ** power)[
            torch.from_numpy(self.data.dataset.labels)
        ]
        return Mixing(
            config.mixup, config.cutmix, config.seed, rarity.numpy() if config.mix_rare else None
        )

    @property
    def _mixes(self) -> bool:
        return self.config.mixup + self.config.cutmix > 0

    def _criterion(self, weights: Tensor | None, steps: tuple[int, ...] | None) -> nn.Module:
        return create_criterion(
            self.config.criterion,
            class_weights=weights,
            steps=steps,
            focal_gamma=self.config.focal_gamma,
            focal_alpha=self.config.focal_alpha,
            label_smoothing=self.config.label_smoothing,
        )


def class_weights(option: str, counts: Tensor) -> Tensor | None:
    """`none`, `balanced`, `sqrt`, or a file with one weight per class and line → (C,) float32.

    Raises:
        ConfigError: no such file, or not one number above 0 per class.
    """
    if option == "none":
        return None
    if option in ("balanced", "sqrt"):
        return balanced_weights(counts, power=1.0 if option == "balanced" else 0.5)
    try:
        values = [float(line) for line in Path(option).read_text("utf-8").split()]
    except FileNotFoundError:
        raise ConfigError(
            f"class_weights {option!r}: neither none, balanced or sqrt, nor a file"
        ) from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"class_weights {option}: {error}") from None
    if len(values) != len(counts) or not all(0 < value < float("inf") for value in values):
        raise ConfigError(
            f"class_weights {option}: needs {len(counts)} numbers above 0, has {values}"
        )
    return torch.tensor(values, dtype=torch.float32)
