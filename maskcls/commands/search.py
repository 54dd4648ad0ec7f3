"""Search for the settings of a training.

python cli/search.py --task age --data-dir data/train --study studies/age --trials 20
python cli/search.py --study studies/age --trials 40
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from maskcls.commands._run import as_one, guarded
from maskcls.commands.train import add_settings, check_values, default_places
from maskcls.config import MACHINE_FIELDS, PLACE_FIELDS, file_values, read_yaml
from maskcls.errors import ConfigError, StudyError, unknown
from maskcls.labels import TASKS
from maskcls.launch import command_line, refuse_several
from maskcls.search.folder import (
    PRUNER_NAMES,
    StudyFolder,
    create_study_folder,
    is_study,
    open_study_folder,
    study_task,
)
from maskcls.search.space import default_space

EPILOG = """\
Each trial is a training of --epochs epochs with settings from the space; the first one has the
config as it is. All have the same people, so their scores can be compared. A trial that falls
behind is ended early (--pruner). What is tried comes from --space, or for a new study from a space
of its own, which lies in STUDY/space.yaml to be copied and changed:

  lr: {low: 0.0005, high: 0.01, log: true}     log: drawn by its order of magnitude
  mixup: {low: 0.0, high: 0.4, step: 0.1}
  epochs: {low: 6, high: 20}                   whole numbers
  class_weights: [none, sqrt, balanced]        a choice

The keys are the options of the training, with _ for -. Options and --config hold for what the
space leaves out.

examples:
  maskcls-search --task age --data-dir data/train --study studies/age --trials 30
  maskcls-search --study studies/age --trials 60       go on; also after an interruption
  maskcls-search --task age --data-dir data/train --study studies/own --space my.yaml --minutes 120
  maskcls-train --config studies/age/best.yaml         train with what it found
"""


def build_parser() -> argparse.ArgumentParser:
    """The options of `maskcls-search`: its own, and those of `maskcls-train`."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        description="Try settings of a training, keep what scores best on the validation people,\n"
        "and write it to STUDY/best.yaml. A second call goes on.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    own = parser.add_argument_group("the search")
    own.add_argument(
        "--study", type=Path, metavar="DIR", required=True, help="its folder, new or to go on with"
    )
    own.add_argument(
        "--trials", type=int, metavar="N", help="end when the study has so many, earlier calls' too"
    )
    own.add_argument(
        "--minutes", type=float, metavar="X", help="begin no trial after so many minutes"
    )
    own.add_argument(
        "--space", type=Path, metavar="FILE", help="YAML file of what is tried; see below"
    )
    own.add_argument(
        "--pruner",
        choices=PRUNER_NAMES,
        default="median",
        help="which trials end early: median, those below the median of the others at their epoch; "
        "hyperband, most after few epochs; none (default median)",
    )
    own.add_argument(
        "--only-best",
        action="store_true",
        help="remove the checkpoints of all trials but the best; their metrics stay",
    )
    own.add_argument("--task", metavar="TASK", help=f"{', '.join(TASKS)}; default mask_gender")
    own.add_argument("--config", type=Path, metavar="FILE", help="YAML file of the options below")
    add_settings(parser.add_argument_group("the training"), without=("model_dir", "name"))
    return parser


@guarded
@as_one
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    args = vars(build_parser().parse_args(argv))
    refuse_several("a search")
    study, trials, minutes, space, pruner, only_best, task, file = (
        args.pop(name)
        for name in (
            *("study", "trials", "minutes", "space", "pruner", "only_best", "task", "config"),
        )
    )
    flags = {name: value for name, value in args.items() if value is not None}
    _check_ends(trials, minutes)
    values = read_yaml(file) if file else {}
    text = _read_space(space) if space else None
    # A failed trial has a line of its own; Ignite would log it before that.
    logging.getLogger("ignite").setLevel(logging.CRITICAL)

    # Optuna and torch are imported only now: --help and a mistyped option answer at once.
    from maskcls.search.results import best_of, flattery
    from maskcls.search.study import search

    folder = _study(study, task, values, flags, file, text, space)
    try:
        ended = search(
            folder,
            trials=trials,
            minutes=minutes,
            pruner=pruner,
            only_best=only_best,
        )
    except (KeyboardInterrupt, SystemExit):
        words = ["maskcls-search", "--study", study]
        words += ["--trials", trials] if trials is not None else []
        words += ["--minutes", f"{minutes:g}"] if minutes is not None else []
        words += ["--pruner", pruner] if pruner != "median" else []
        words += ["--only-best"] if only_best else []
        for name in sorted(flags.keys() & (MACHINE_FIELDS | PLACE_FIELDS)):  # not in the study
            for value in flags[name] if name == "data_dir" else [flags[name]]:
                words += [f"--{name.replace('_', '-')}", value]
        print(f"interrupted; go on with: {command_line(words)}")
        raise
    best = best_of(ended)
    if best is None:
        raise StudyError(f"{study}: no trial was trained to its end, so there is no best one")
    print(
        f"best: trial {best.number} of {len(ended)}, macro F1 {best.score:.4f} on the validation "
        f"people → {study / 'best.yaml'}, {study / 'search.html'}"
    )
    print(f"warning: {flattery(ended)}")
    print(f"next: {command_line(['maskcls-train', '--config', study / 'best.yaml'])}")
    return 0


def _check_ends(trials: int | None, minutes: float | None) -> None:
    """
    Raises:
        ConfigError: there is no end, or it has passed.
    """
    if trials is None and minutes is None:
        raise ConfigError("a search needs an end: --trials 20, --minutes 60, or both")
    if trials is not None and trials < 1:
        raise ConfigError(f"--trials {trials}: must be 1 or more")
    if minutes is not None and not 0 < minutes < float("inf"):
        raise ConfigError(f"--minutes {minutes}: must be above 0")


def _read_space(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {getattr(error, 'strerror', None) or error}") from None


def _study(
    folder: Path,
    task: str | None,
    values: dict[str, Any],
    flags: dict[str, Any],
    file: Path | None,
    space: str | None,
    space_file: Path | None,
) -> StudyFolder:
    """The study in the folder, or a new one there."""
    if is_study(folder):
        own = study_task(folder)
        if (task or values.get("task") or own) != own:
            raise StudyError(f"{folder}: is a study of task {own}, not {task or values['task']}")
        given = file_values(values, own) | flags
        return open_study_folder(folder, given, space, str(space_file))
    task = task or values.get("task") or "mask_gender"
    if task not in list(TASKS):  # a list in a file has no hash
        raise ConfigError(f"{unknown('task', str(task), TASKS)} (a study is of one task)")
    check_values(task, values, flags, file)
    given = file_values(values, task) | flags
    places = default_places(bool(given.get("data_dir")))
    missing = {key: value for key, value in places.items() if key not in given}
    from maskcls.devices import settled
    from maskcls.training import choose_config

    config = settled(choose_config(task, values, missing | flags))
    if config.all_folds:
        raise ConfigError("folds without fold: a trial is one training; say which fold with --fold")
    if space is None:
        space, space_file = default_space(config), Path("the built-in space")
        print(f"what is tried, in {folder / 'space.yaml'}:")
        print("".join(f"  {line}\n" for line in space.splitlines()), end="")
    return create_study_folder(folder, config, space, str(space_file))
