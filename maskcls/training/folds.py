"""Training a group of folds, one after the other; see `maskcls.folds`."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from maskcls.checkpoints import find_checkpoint, is_finished
from maskcls.config import MACHINE_FIELDS, TrainConfig, read_yaml, with_changes
from maskcls.devices import settled
from maskcls.errors import CheckpointError
from maskcls.folds import (
    FOLDS_FILE,
    fold_config,
    fold_folder,
    fold_folders,
    is_group,
    read_group,
    write_group,
)
from maskcls.launch import command_line, refuse_several
from maskcls.training.interruption import end_by
from maskcls.training.paths import increment_path
from maskcls.training.run import RunResult, refuse_differences, resume, train


def start_group(config: TrainConfig) -> Path:
    """A new group, of which nothing is trained yet. `config` names `folds` and no `fold`.

    Raises:
        ConfigError: several processes of torchrun.
        ProviderError: a device or a precision that cannot be had.
    """
    refuse_several("a group of folds")
    group = increment_path(Path(config.model_dir) / config.task / config.name)
    write_group(group, dataclasses.replace(settled(config), name=group.name))
    return group


def is_begun(group: Path) -> bool:
    """Whether anything of it is trained."""
    return [path.name for path in group.iterdir()] != [FOLDS_FILE]


def discard_group(group: Path) -> None:
    """Removes a group that was not begun."""
    (group / FOLDS_FILE).unlink()
    for folder in (group, group.parent):
        with contextlib.suppress(OSError):  # something else lies in it
            folder.rmdir()


def train_group(
    group: Path,
    changes: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = print,
) -> list[RunResult]:
    """Trains what is missing of a group: a fold that is finished is left as it is, one that was
    begun goes on, the others start. `changes`: config values of this call, as of `resume`.

    Raises:
        KeyboardInterrupt, SystemExit: a signal, also one that came too late to end a fold.
        MaskclsError: as `train` and `resume`.
        CheckpointError: not a group, or another config; the people, pictures or labels are not
            those of the folds before; the fold of another group that one starts from is not
            finished.
        ConfigError: several processes of torchrun.
    """
    refuse_several("a group of folds")
    config = read_group(group)
    changes = changes or {}
    wanted = with_changes(config, changes)
    refuse_differences(group, wanted, config.to_dict())
    may_differ = MACHINE_FIELDS | {"data_dir", "fixes"}
    here = {name: value for name, value in changes.items() if name in may_differ}
    results = []
    for fold, folder in enumerate(fold_folders(group)):
        say(f"{config.task}: fold {fold}, {fold + 1} of {config.folds}")
        try:
            if find_checkpoint(folder / "last.pt") is not None:
                results.append(resume(folder, here, say))
            else:
                if is_group(Path(config.weights)):
                    _require_start(Path(config.weights), fold)
                before = fold_folder(group, 0) if fold else None
                results.append(train(fold_config(wanted, fold), say, folder, alike=before))
        finally:
            _note_places(group, wanted, folder)
        if results[-1].signal is not None:
            end_by(results[-1].signal)
    return results


def _note_places(group: Path, wanted: TrainConfig, fold: Path) -> None:
    """Where the data are now, so that the next folds find them: once a fold has found there what
    it is trained on, which its own config says."""
    if wanted != read_group(group) and (fold / "config.yaml").is_file():
        own = read_yaml(fold / "config.yaml")
        places = wanted.to_dict()
        if all(own.get(name) == places[name] for name in ("data_dir", "fixes")):
            write_group(group, wanted)


def group_is_finished(group: Path) -> bool:
    """Whether all of its folds are.

    Raises:
        CheckpointError: not a group, or a checkpoint of it cannot be read.
    """
    return all(is_finished(folder) for folder in fold_folders(group))


def _require_start(other: Path, fold: int) -> None:
    """
    Raises:
        CheckpointError: that fold of the other group is not finished.
    """
    start = fold_folder(other, fold)
    if not is_finished(start):
        raise CheckpointError(
            f"{start}: is not finished, and fold {fold} starts from it; go on with it first: "
            f"{command_line(['maskcls-train', '--resume', other])}"
        )
