"""What a study is about, in files of its folder; nothing here needs Optuna or PyTorch.

STUDY/  config.yaml  space.yaml  split.csv  study.journal  runs/<task>/trial-001/ …
        best.yaml  trials.csv  search.html
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from maskcls.config import TrainConfig, differences, read_yaml, with_changes
from maskcls.errors import ConfigError, StudyError
from maskcls.files import write_atomic
from maskcls.search.space import Space, parse_space

CONFIG, SPACE, SPLIT, JOURNAL = "config.yaml", "space.yaml", "split.csv", "study.journal"
PRUNER_NAMES = ("median", "hyperband", "none")
BEST, TRIALS, PAGE = "best.yaml", "trials.csv", "search.html"


@dataclass(frozen=True)
class StudyFolder:
    """The folder of a study, the config that its trials share, and what they differ in."""

    path: Path
    config: TrainConfig
    space: Space

    def run_name(self, number: int) -> str:
        """The name of a trial's run."""
        return f"trial-{number:03d}"

    def run(self, number: int) -> Path:
        """The run folder of a trial."""
        return self.path / "runs" / self.config.task / self.run_name(number)

    def trial_config(self, number: int, values: Mapping[str, Any]) -> TrainConfig:
        """
        Raises:
            ConfigError: values that do not go together.
        """
        places = {"model_dir": str(self.path / "runs"), "name": self.run_name(number)}
        return TrainConfig.from_dict(self.config.to_dict() | dict(values) | places)

    def check_people(self, number: int) -> None:
        """All trials have the same people on either side; the first says who they are.

        Raises:
            StudyError: this one has others. Its run is removed.
        """
        own, first = (self.run(number) / SPLIT).read_bytes(), self.path / SPLIT
        if not first.exists():
            write_atomic(first, own)
        elif first.read_bytes() != own:
            shutil.rmtree(self.run(number))
            raise StudyError(
                f"{self.path}: the data have changed since the study began, so its scores cannot "
                "be compared with new ones; give it the old data, or begin another study"
            )


def settings_yaml(config: TrainConfig) -> str:
    """A config without the name of a run, as `cli/train.py --config` takes it."""
    values = config.to_dict()
    del values["name"]
    if config.model_dir == TrainConfig().model_dir:  # else runs on the built-in sample lie apart
        del values["model_dir"]
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def is_study(folder: Path) -> bool:
    """Whether a study has begun there."""
    return (folder / SPACE).is_file()


def _is_empty(folder: Path) -> bool:
    """But for what a study that was killed at its very beginning leaves."""
    return all(path.name == CONFIG or path.name.startswith(".") for path in folder.iterdir())


def study_task(folder: Path) -> str:
    """The task that a study is of.

    Raises:
        StudyError: its files are damaged.
    """
    return _read_config(folder).task


def create_study_folder(folder: Path, config: TrainConfig, space: str, where: str) -> StudyFolder:
    """`space`: the text of a space file. `where`: its name, for messages.

    Raises:
        ConfigError: a space that does not fit.
        StudyError: a folder that holds something else.
        OSError: the folder cannot be written.
    """
    parsed = parse_space(space, config, where)
    if folder.is_dir() and not _is_empty(folder):
        raise StudyError(f"{folder}: holds other files; name a new folder for the study")
    write_atomic(folder / CONFIG, settings_yaml(config).encode())
    write_atomic(folder / SPACE, space.encode())  # the last: with it, it is a study
    return StudyFolder(folder, config, parsed)


def _read_config(folder: Path) -> TrainConfig:
    try:
        return TrainConfig.from_dict(read_yaml(folder / CONFIG))
    except ConfigError as error:
        raise StudyError(f"{folder}: a damaged study: {error}") from None


def open_study_folder(
    folder: Path, given: Mapping[str, Any], space: str | None, where: str
) -> StudyFolder:
    """Goes on with a study. `given`: config values of this call. Those of the machine may differ
    from the study's, and the data may have moved. `space`: of this call, or None.

    Raises:
        StudyError: the study has other settings or another space, or its files are damaged.
        ConfigError: a value or a space that does not fit.
    """
    stored = _read_config(folder)
    try:
        text = (folder / SPACE).read_text(encoding="utf-8")
        parsed = parse_space(text, stored, str(folder / SPACE))
    except (ConfigError, ValueError) as error:  # ValueError: not UTF-8
        raise StudyError(f"{folder}: a damaged study: {error}") from None
    wanted = with_changes(stored, given)
    different = differences(wanted, stored.to_dict(), "the study")
    if different:
        raise StudyError(
            f"{folder}: cannot go on with another config: {'; '.join(different)}. "
            "Leave these options away, or begin another study"
        )
    if space is not None and parse_space(space, stored, where) != parsed:
        raise StudyError(
            f"{folder}: cannot go on with another space than its {SPACE}: {where} differs. "
            "Leave --space away, or begin another study"
        )
    return StudyFolder(folder, wanted, parsed)
