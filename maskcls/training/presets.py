"""Which preset a training takes: the one that fits what its network starts from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from maskcls.config import PEOPLE_FIELDS, PRESETS, TrainConfig, file_values, resolve
from maskcls.folds import start_of
from maskcls.weights import find_start, model_of


def choose_config(
    task: str,
    file: Mapping[str, Any],
    flags: Mapping[str, Any],
    before: tuple[TrainConfig, Path] | None = None,
    say: Callable[[str], None] = print,
) -> TrainConfig:
    """The config of a training: `file` and `flags` as of `maskcls.config.resolve`, on the preset
    that fits.

    `before`: a training that has just ended, and its best checkpoint. A network that would start at
    random starts from that instead, where it is the same network and the same people train.

    Raises:
        ConfigError: a value that does not fit.
        WeightsError: weights that cannot be had.
        CheckpointError: weights from a file that cannot be read.
    """
    config = _choose(task, file, flags, say)
    if before is not None and _can_follow(config, before[0]):
        config = resolve(task, "branch", file, {**flags, "weights": str(before[1])})
        say(f"{task} starts from what {before[0].task} has learnt on the same people")
    return config


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
