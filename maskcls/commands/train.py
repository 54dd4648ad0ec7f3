"""Train one branch, or both.

python cli/train.py --task all --data-dir data/train --model-dir runs
SM_CHANNEL_TRAIN=data/train SM_MODEL_DIR=runs python cli/train.py --task mask_gender
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import typing
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from maskcls.commands._run import (
    as_one,
    env_default,
    env_help,
    guarded,
    offer,
)
from maskcls.config import (
    CLASS_WEIGHT_NAMES,
    CRITERION_NAMES,
    OPTION_FIELDS,
    PEOPLE_FIELDS,
    PRESETS,
    WEIGHT_NAMES,
    TrainConfig,
    file_values,
    read_yaml,
    resolve,
)
from maskcls.errors import ConfigError, unknown
from maskcls.folds import FOLDS_FILE, is_group
from maskcls.labels import BRANCHES, TASKS
from maskcls.launch import command_line, refuse_several

ALL = "all"
SAMPLE_DIR = Path("runs") / "sample"
"""Of the built-in sample and, unless --model-dir says otherwise, of the runs on it. They lie apart
from runs on photos: --model runs must never take a network that knows cartoons only."""
ENVIRONMENT = {"data_dir": "SM_CHANNEL_TRAIN", "model_dir": "SM_MODEL_DIR"}
"""Option → the variable that is its default."""

METAVARS = {str: "NAME", int: "N", float: "X", "model_dir": "DIR", "cache": "DIR", "fixes": "FILE"}
OFFERED = {
    "weights": WEIGHT_NAMES,
    "class_weights": CLASS_WEIGHT_NAMES,
    "criterion": CRITERION_NAMES,
}
"""Option → what it may be among other things, for shell completion."""

EPILOG = """\
Values come from the preset of the task, then --config FILE, then the options given here. There are
two presets per task: one that fine-tunes ImageNet weights, and one from scratch, taken where there
are none (--weights none, or auto without a network). With --task all from scratch, age starts from
the network that has just learnt mask_gender on the same people.

With --folds N and no --fold, N networks are trained in place of one, each without the people of its
fold, into MODEL_DIR/<task>/<name>/fold0, fold1, …; at the end every person is scored by the network
that has not seen them.

examples:
  maskcls-train --task all --data-dir data/train            both branches, one after the other
  maskcls-train --task all --data-dir data/train --folds 5  five networks of each
  maskcls-train --task age --weights none --epochs 20       from scratch, on the built-in sample
  maskcls-train --task age --criterion cross_entropy:0.7,f1:0.3 --class-weights balanced
  maskcls-train --task age --tracker tensorboard,mlflow     needs pip install 'maskcls[mlflow]'
  maskcls-train --resume runs/age/exp                       go on after an interruption

A config file is YAML with these options as keys (dashes as underscores); a section named after a
task holds for that task alone:
  epochs: 20
  age:
    criterion: focal
"""


def build_parser() -> argparse.ArgumentParser:
    """The options of `maskcls-train`: the fields of `TrainConfig`, and what only a command has."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        description="Train networks on folders of people's pictures, each into a run folder with\n"
        "its config, checkpoints, metrics.csv and, unless --tracker says otherwise, TensorBoard\n"
        "events.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    task = parser.add_argument(
        "--task",
        default=None,
        metavar="TASK",
        help=f"{', '.join(TASKS)}, or {ALL}: {' and '.join(BRANCHES)}; default mask_gender",
    )
    offer(task, (*TASKS, ALL))
    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML file of these options")
    parser.add_argument(
        "--resume",
        type=Path,
        metavar="RUN",
        help="run folder, or group of folds, to go on with; keeps its config",
    )
    add_settings(parser)
    return parser


def add_settings(
    parser: argparse.ArgumentParser | argparse._ArgumentGroup, without: Collection[str] = ()
) -> None:
    """Adds the fields of `TrainConfig` as options, all but those `without`. What is not given is
    None."""
    hints = typing.get_type_hints(TrainConfig)
    preset = {key for start in PRESETS.values() for values in start.values() for key in values}
    for field in OPTION_FIELDS:
        if field.name in without:
            continue
        help = field.metadata["help"]
        if field.metadata["choices"]:
            help += f": {', '.join(field.metadata['choices'])}"
        if field.name in ENVIRONMENT:
            help += f"; {env_help(ENVIRONMENT[field.name])}"
            help += "; else the built-in sample" if field.name == "data_dir" else ""
        elif field.name in preset:
            help += " (the preset says)"
        elif field.default not in (None, False, ()):
            help += f" (default {field.default})"
        flag = f"--{field.name.replace('_', '-')}"
        kind = _kind(hints[field.name])
        if kind is bool:
            parser.add_argument(flag, action="store_true", default=None, help=help)
        elif field.name == "data_dir":
            parser.add_argument(flag, action="append", metavar="DIR", help=help)
        elif kind is tuple:
            parser.add_argument(flag, nargs=2, type=float, metavar=("H", "W"), help=help)
        else:
            metavar = METAVARS.get(field.name) or METAVARS[kind]
            action = parser.add_argument(flag, type=kind, metavar=metavar, help=help)
            offer(action, field.metadata["choices"] or OFFERED.get(field.name, ()))


@guarded
@as_one
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    args = vars(build_parser().parse_args(argv))
    task, file, run = (args.pop(name) for name in ("task", "config", "resume"))
    flags = {name: value for name, value in args.items() if value is not None}
    values = read_yaml(file) if file else {}
    # An error ends the command with a line of its own; Ignite would log it before that.
    logging.getLogger("ignite").setLevel(logging.CRITICAL)
    if run is not None:
        return _resume(run, task, values, flags)

    task = task or values.get("task") or "mask_gender"
    if task not in (*TASKS, ALL):
        raise ConfigError(unknown("task", str(task), (*TASKS, ALL)))
    tasks = BRANCHES if task == ALL else (task,)
    for name in tasks:  # all of it is checked before the first hour of training
        if check_values(name, values, flags, file).all_folds:
            refuse_several("--folds without --fold")
    given = {name: file_values(values, name) | flags for name in tasks}
    places = default_places(all(given[name].get("data_dir") for name in tasks))

    # torch is imported only now: --help and a mistyped option answer at once.
    from maskcls.classifier import lacking_tasks
    from maskcls.training import train
    from maskcls.training.folds import discard_group, is_begun, start_group
    from maskcls.training.interruption import end_by
    from maskcls.training.presets import choose_configs, follow

    wanted = {
        name: {key: value for key, value in places.items() if key not in given[name]} | flags
        for name in tasks
    }
    before: tuple[TrainConfig, Path] | None = None
    groups: list[Path] = []
    try:
        for config in choose_configs(values, wanted):
            name = config.task
            if before is not None:
                config = follow(config, before, values, wanted[name])
            if config.all_folds:  # all groups are there before the first hour of training
                groups.append(start_group(config))
                before = config, groups[-1]
                continue
            result = train(config)
            before = config, result.folder / "best.pt"
            print(
                f"{name}: best macro F1 {result.best_score:.4f} on the validation people after "
                f"{result.epochs} epochs → {result.folder / 'best.pt'}"
            )
            if result.signal is not None and name != tasks[-1]:
                print(f"interrupted; {tasks[-1]} was not begun")
                end_by(result.signal)
        if groups:
            _train_groups(groups)
            return 0
    except BaseException:
        if not any(map(is_begun, groups)):
            for group in groups:
                discard_group(group)
        raise
    lacking = lacking_tasks(Path(config.model_dir), config.task)
    if lacking:
        same = ["--config", str(file)] if file else []
        for name in ("weights", *PEOPLE_FIELDS):  # it is to learn from the same people
            if name != "data_dir" and name in flags:
                same += [f"--{name.replace('_', '-')}", str(flags[name])]
        for folder in config.data_dir:
            same += ["--data-dir", folder]
        words = ["maskcls-train", "--task", lacking[0], *same, "--model-dir", config.model_dir]
    else:
        words = ["maskcls-infer", "--model", config.model_dir, "--images", "DIR"]
        words += ["--out", "output.csv"]
    print(f"next: {command_line(words)}")
    return 0


def _train_groups(groups: Sequence[Path], changes: Mapping[str, Any] | None = None) -> None:
    """Trains what is missing of groups of folds, and scores everybody by the network that has not
    seen them."""
    from maskcls.commands._folds import score_folds
    from maskcls.evaluation.oof import OOF_FILE
    from maskcls.training.folds import group_is_finished, is_begun, train_group

    done = all(group_is_finished(group) and (group / OOF_FILE).is_file() for group in groups)
    try:
        for group in groups:
            results = train_group(group, changes)
            scores = ", ".join(f"{result.best_score:.4f}" for result in results)
            print(f"best macro F1 on the validation people of each fold: {scores} → {group}")
        if done:
            command = command_line(["maskcls-evaluate", "--oof", *groups])
            names = " ".join(map(str, groups))
            print(f"{names} is finished; its scores: {command}")
            return
        score_folds(groups)
        words = ["maskcls-combine", *groups, "--model-dir", groups[0].parents[1]]
        print(f"next: {command_line(words)}")
    except (KeyboardInterrupt, SystemExit):
        if any(map(is_begun, groups)):
            for group in groups:
                if not (group_is_finished(group) and (group / OOF_FILE).is_file()):
                    command = command_line(["maskcls-train", "--resume", group])
                    print(f"interrupted; go on with: {command}")
        raise


def check_values(
    task: str, values: dict[str, Any], flags: dict[str, Any], file: Path | None
) -> TrainConfig:
    """The config on the preset that these weights will have, as far as that is known yet.

    Raises:
        ConfigError: a value that does not fit; names the file where the file brought it.
    """
    try:
        return _resolve_early(task, values, flags)
    except ConfigError as error:
        _resolve_early(task, {}, flags)  # raises where the file is not to blame
        raise ConfigError(f"{file}: {error}") from None


def _resolve_early(task: str, values: dict[str, Any], flags: dict[str, Any]) -> TrainConfig:
    weights = (file_values(values, task) | flags).get("weights", TrainConfig.weights)
    if weights != "auto":
        return resolve(task, "scratch" if weights == "none" else "imagenet", values, flags)
    try:
        return resolve(task, "scratch", values, flags)
    except ConfigError:
        with contextlib.suppress(ConfigError):
            return resolve(task, "imagenet", values, flags)
        raise


def _resume(run: Path, task: str | None, values: dict[str, Any], flags: dict[str, Any]) -> int:
    from maskcls.errors import CheckpointError
    from maskcls.training import resume

    config_file = run / (FOLDS_FILE if is_group(run) else "config.yaml")
    if not config_file.is_file():
        raise CheckpointError(f"{run}: not a run folder (no config.yaml in it)")
    own = str(read_yaml(config_file).get("task"))
    if task not in (None, own):
        raise CheckpointError(f"{run}: is a run of task {own}, not {task}")
    changes = file_values(values, own) | flags
    if is_group(run):
        _train_groups([run], changes)
        return 0
    result = resume(run, changes)
    print(f"{own}: best macro F1 {result.best_score:.4f} → {result.folder / 'best.pt'}")
    return 0


def default_places(has_data: bool) -> dict[str, Any]:
    """Where data and runs lie if neither file nor flags say: the environment's folders, and for
    data the built-in sample."""
    places: dict[str, Any] = {}
    if (models := env_default(ENVIRONMENT["model_dir"])) is not None:
        places["model_dir"] = str(models)
    if (data := env_default(ENVIRONMENT["data_dir"])) is not None:
        places["data_dir"] = (str(data),)
    elif not has_data:
        from maskcls.data.sample import ensure_sample
        from maskcls.files import locked

        data = SAMPLE_DIR / "data"
        print(f"no --data-dir: training on the built-in sample of drawn faces in {data}")
        places = {"model_dir": str(SAMPLE_DIR)} | places
        with locked(SAMPLE_DIR / ".lock", lambda: print(f"waiting for {data} to be drawn")):
            places["data_dir"] = (str(ensure_sample(data) / "train"),)
    return places


def _kind(hint: Any) -> type:
    """The type that an option's text is parsed to."""
    members = [kind for kind in typing.get_args(hint) if kind is not type(None)] or [hint]
    kind: Any = members[0] if typing.get_origin(hint) is not tuple else hint
    found: type = typing.get_origin(kind) or kind
    return found
