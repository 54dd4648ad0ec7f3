"""Which preset a training takes: the one that fits what its network starts from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from maskcls.config import PEOPLE_FIELDS, PRESETS, TrainConfig, file_values, resolve
from maskcls.errors import WeightsError
from maskcls.folds import start_of
from maskcls.labels import get_task
from maskcls.manifest import ENSEMBLE
from maskcls.training.objective import class_weights
from maskcls.weights import find_start, model_of


def choose_config(
    task: str,
    file: Mapping[str, Any],
    flags: Mapping[str, Any],
    say: Callable[[str], None] = print,
) -> TrainConfig:
    """The config of a training: `file` and `flags` as of `maskcls.config.resolve`, on the preset
    that fits.

    Raises:
        ConfigError: a value that does not fit.
        WeightsError: weights that cannot be had.
        CheckpointError: weights from a file that cannot be read.
    """
    config = _choose(task, file, flags, say)
    class_weights(config.class_weights, torch.ones(get_task(task).num_classes))  # its file
    return config


def choose_configs(
    file: Mapping[str, Any],
    flags: Mapping[str, Mapping[str, Any]],
    say: Callable[[str], None] = print,
) -> list[TrainConfig]:
    """As `choose_config`, of trainings one after the other: `flags` of each task, in their order.
    All is checked before the first one's hour of training.

    Raises:
        MaskclsError: as `choose_config`.
    """
    configs = [choose_config(task, file, own, say) for task, own in flags.items()]
    for config in configs[1:]:
        follow(config, (configs[0], Path()), file, flags[config.task], lambda _: None)
    return configs


def follow(
    config: TrainConfig,
    before: tuple[TrainConfig, Path],
    file: Mapping[str, Any],
    flags: Mapping[str, Any],
    say: Callable[[str], None] = print,
) -> TrainConfig:
    """The config of a training that comes after another one, `before`: its config and its best
    checkpoint. A network that would start at random starts from that instead, where it is the same
    network and the same people train.

    Raises:
        ConfigError: a value that does not fit.
    """
    if not _can_follow(config, before[0]):
        return config
    say(f"{config.task} starts from what {before[0].task} has learnt on the same people")
    return resolve(config.task, "branch", file, {**flags, "weights": str(before[1])})


def _choose(
    task: str, file: Mapping[str, Any], flags: Mapping[str, Any], say: Callable[[str], None]
) -> TrainConfig:
    given = {**file_values(file, task), **flags}
    weights = given.get("weights", TrainConfig.weights)
    if given.get("folds") is not None and given.get("fold") is None:
        weights = start_of(weights, 0)
    model = given.get("model", PRESETS["imagenet"][task]["model"])
    start = find_start(weights, model, say)
    if start is None:
        return resolve(task, "scratch", file, {**flags, "weights": "none"})
    if weights == "auto":
        return resolve(task, "imagenet", file, {**flags, "weights": "imagenet"})
    own = model_of(start)  # one of our checkpoints says which network it is
    if own == ENSEMBLE:
        raise WeightsError(
            f"{start}: is an ensemble, which no network can start from; take one of its networks, "
            "or a soup of them"
        )
    if own is not None and "model" not in given:
        flags = {**flags, "model": own}
    return resolve(task, "imagenet", file, flags)


def _can_follow(config: TrainConfig, first: TrainConfig) -> bool:
    """Whether a branch that would start at random can start from the one before it. The same
    people must validate in both: a network that has seen them would flatter itself."""
    return (
        config.weights == first.weights == "none"
        and config.model == first.model
        and all(getattr(config, name) == getattr(first, name) for name in PEOPLE_FIELDS)
    )
