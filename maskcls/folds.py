"""A group of folds: runs of one task that together validate each person once, in one folder.

MODEL_DIR/<task>/<name>/  folds.yaml  fold0/  fold1/  …  oof.csv

Each fold is an ordinary run folder. `folds.yaml` is what they have in common: a config that names
no fold.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from maskcls.config import TrainConfig, read_yaml, to_yaml
from maskcls.errors import CheckpointError, ConfigError
from maskcls.files import write_atomic

FOLDS_FILE = "folds.yaml"


def is_group(path: Path) -> bool:
    """Whether it is the folder of a group."""
    return (path / FOLDS_FILE).is_file()


def fold_folder(group: Path, fold: int) -> Path:
    """The run folder of a fold, from 0."""
    return group / f"fold{fold}"


def fold_folders(group: Path) -> list[Path]:
    """The run folders of all folds, in order, be they there yet or not.

    Raises:
        CheckpointError: as `read_group`.
    """
    return [fold_folder(group, fold) for fold in range(read_group(group).folds or 0)]


def write_group(group: Path, config: TrainConfig) -> None:
    """Makes a folder that exists a group. `config` names `folds` and no `fold`."""
    write_atomic(group / FOLDS_FILE, to_yaml(config).encode())


def read_group(group: Path) -> TrainConfig:
    """What its folds have in common.

    Raises:
        CheckpointError: not a group, or a damaged one.
    """
    if not is_group(group):
        raise CheckpointError(f"{group}: not a group of folds (no {FOLDS_FILE} in it)")
    try:
        config = TrainConfig.from_dict(read_yaml(group / FOLDS_FILE))
    except ConfigError as error:
        raise CheckpointError(f"{group / FOLDS_FILE}: {error}") from None
    if not config.all_folds:
        raise CheckpointError(f"{group / FOLDS_FILE}: names no folds, or one of them")
    return config


def fold_config(config: TrainConfig, fold: int) -> TrainConfig:
    """The config of one fold. Where the group starts from another group, its folds start from the
    same folds there: those networks have not seen the people who validate here either."""
    return dataclasses.replace(
        config, fold=fold, name=f"fold{fold}", weights=start_of(config.weights, fold)
    )


def start_of(weights: str, fold: int) -> str:
    """`--weights` of one fold: as it is, or of a group that fold's best checkpoint."""
    group = Path(weights)
    return str(fold_folder(group, fold) / "best.pt") if is_group(group) else weights
