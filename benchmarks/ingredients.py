"""What each ingredient of a recipe is worth on your data.

    python benchmarks/ingredients.py
    python benchmarks/ingredients.py --data-dir data/train --runs runs/ingredients --json gains.json
    python benchmarks/ingredients.py --data-dir data/train --only preset mixup --seeds 1 2 3

For each seed the preset from scratch is trained, and then again with one thing changed at a time,
for the same number of epochs on the same people. The score is macro F1 of the 18 classes on the
validation people, of both networks together; where an ingredient is of one network only, the other
one is the preset's. What does the same takes turns: sampling is without class weights, and border
ages are softened in place of all ages. `age` starts from the preset's mask_gender, also where that
network has changed, so that a row shows one change; what another start does to it has a row too.
The gain has its interval from people drawn anew, the same ones for both sides of the difference.

Over several seeds, each with other validation people, figures are means, and the gain of each is
told beside them.

Two rows need no training: calibration is fitted on four fifths of these people at a time, and
scored on the others; mirror images are left out of what the preset's networks answer to.

Finished trainings in --runs are kept, so the same command goes on after an interruption.

How to read it: benchmarks/README.md. All options: python benchmarks/ingredients.py --help
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this clone, installed or not

from benchmarks.shared import processor, require_positive, write_figures
from maskcls.commands._run import guarded
from maskcls.errors import ConfigError
from maskcls.labels import BRANCHES, MULTI
from maskcls.runtime.engines import usable_cores

if TYPE_CHECKING:
    import numpy as np

    from maskcls.evaluation.runs import CommonAnswers
    from maskcls.labels import Task
    from maskcls.training import RunResult

PRESET = "preset"
MIRROR = "no mirror images"
CALIBRATIONS = {"temperature scaling": "temperature", "calibration for macro F1": "macro_f1"}
PARTS = 5  # of the people, each calibrated by the others
Flags = Mapping[str, Any]
BOTH: dict[str, Flags] = {
    "cross entropy": {"criterion": "cross_entropy"},
    "focal loss": {"criterion": "focal"},
    "F1 in the loss": {"criterion": "label_smoothing:0.7,f1:0.3"},
    "no class weights": {"class_weights": "none"},
    "balanced class weights": {"class_weights": "balanced"},
    "sampling by square roots": {"class_weights": "none", "sampling": "sqrt"},
    "balanced sampling": {"class_weights": "none", "sampling": "balanced"},
    "mixup": {"mixup": 0.3},
    "CutMix of half faces": {"cutmix": 0.3},
    "CutMix, rare partners": {"cutmix": 0.3, "mix_rare": True},
    "no augmentation": {"augmentation": "BaseAugmentation", "erasing": 0.0},
    "BestAugmentation": {"augmentation": "BestAugmentation", "erasing": 0.0},
    "erasing": {"erasing": 0.25},
    "no averaged weights": {"ema_decay": 0.0},
    MIRROR: {"tta": "none"},
}
ONE: dict[str, tuple[str, Flags]] = {
    "groups, not exact ages": ("age", {"soften_age": 0.0}),
    "border ages dropped": ("age", {"border_ages": "drop"}),
    "border ages softened": ("age", {"soften_age": 0.0, "border_ages": "soften"}),
    "ordinal ages": ("age", {"age_loss": "ordinal"}),
    "expected age": ("age", {"age_loss": "expected"}),
    "age learns the others": ("age", {"auxiliary": 0.5}),
    "smaller steps in earlier layers": ("age", {"layer_decay": 0.8}),
    "mask_gender learns no ages": ("mask_gender", {"auxiliary": 0.0}),
}
STARTS = {"the same, and age starts there": "mask_gender learns no ages"}
"""Ingredient → whose mask_gender it has, and `age` starts from in place of the preset's."""
VARIANTS: dict[str, dict[str, Flags]] = {
    PRESET: {},
    **{name: dict.fromkeys(BRANCHES, flags) for name, flags in BOTH.items()},
    **{name: {task: flags} for name, (task, flags) in ONE.items()},
    **{name: {BRANCHES[0]: ONE[other][1], BRANCHES[1]: {}} for name, other in STARTS.items()},
    **{name: dict.fromkeys(BRANCHES, {}) for name in CALIBRATIONS},
}
"""Ingredient → task → what is changed in its preset. `layer_decay` is for weights that have learnt
something, as those that `age` starts from."""


GIVEN = ("model", "height", "width", "epochs", "batch_size", "precision")
"""Options that all trainings have alike."""


@dataclass(frozen=True, eq=False)
class _Scored:
    answers: CommonAnswers
    checkpoints: Sequence[Path]
    macro_f1: float
    tasks: Mapping[str, float]  # macro F1 of each network
    calibration_error: Mapping[str, float]  # of each network

    @property
    def revisions(self) -> list[str]:
        """Which versions of the project trained them."""
        from maskcls.checkpoints import read_manifest

        return sorted({read_manifest(path).git_revision for path in self.checkpoints})


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Measure what each ingredient of a recipe is worth on your data.",
        epilog="example:\n  python benchmarks/ingredients.py --data-dir data/train --seeds 1 2 3",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--data-dir",
        type=Path,
        nargs="+",
        default=[Path("runs/demo/sample/train")],
        metavar="DIR",
        help="default: runs/demo/sample/train",
    )
    parser.add_argument(
        "--only",
        nargs="+",
        choices=VARIANTS,
        default=list(VARIANTS),
        metavar="NAME",
        help=f"of: {', '.join(VARIANTS)}; default: all",
    )
    parser.add_argument(
        "--tasks",
        nargs="+",
        choices=BRANCHES,
        default=list(BRANCHES),
        help="whose trainings change; default: both",
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[42], metavar="N")
    parser.add_argument("--model", metavar="NAME", help="default: the preset's")
    parser.add_argument("--height", type=int, metavar="N", help="default: the preset's")
    parser.add_argument("--width", type=int, metavar="N", help="default: the preset's")
    parser.add_argument("--epochs", type=int, metavar="N", help="default: each preset's")
    parser.add_argument("--batch-size", type=int, metavar="N", help="default: the preset's")
    parser.add_argument("--precision", metavar="NAME", help="default: the preset's")
    parser.add_argument("--runs", type=Path, metavar="DIR", help="keep the trainings there")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    return parser


@guarded
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns its exit code."""
    args = build_parser().parse_args(argv)
    require_positive(args, "height", "width", "epochs", "batch_size")
    with tempfile.TemporaryDirectory() as scratch:
        figures = measure(args, args.runs or Path(scratch))
    print(format_table(figures))
    write_figures(args.json, figures)
    return 0


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All figures, as plain values."""
    names = [name for name in VARIANTS if name in args.only and name != PRESET]
    seeds: dict[str, list[_Scored]] = {PRESET: []}  # ingredient → its score with each seed
    for seed in args.seeds:
        base = train_and_score(args, folder, PRESET, seed)
        seeds[PRESET].append(base)
        for name in names:
            if VARIANTS[name].keys() & set(args.tasks):
                if name in CALIBRATIONS:
                    scored = score_calibrated(base, args.tasks, CALIBRATIONS[name])
                elif name == MIRROR:
                    scored = score_without_mirror(base, args.tasks)
                else:
                    scored = train_and_score(args, folder, name, seed)
                seeds.setdefault(name, []).append(scored)
                print(format_row(name, figures_of([scored], [base]), ()))
    return {
        "data": [folder.name for folder in args.data_dir],
        "seeds": args.seeds,
        "tasks": args.tasks,
        **{name: getattr(args, name) for name in GIVEN},
        "cores": usable_cores(),
        "processor": processor(),
        "python": platform.python_version(),
        "variants": {
            name: {
                **figures_of(found, seeds[PRESET]),
                "seeds": [
                    figures_of([one], [base])
                    for one, base in zip(found, seeds[PRESET], strict=True)
                ],
            }
            for name, found in seeds.items()
        },
    }


def train_and_score(args: argparse.Namespace, folder: Path, name: str, seed: int) -> _Scored:
    """Both networks of an ingredient, trained where they are not there yet."""
    import torch

    from maskcls.classifier import TorchClassifier
    from maskcls.evaluation.runs import answer_common_people

    runs = {}
    for task in BRANCHES:
        changed = name if task in VARIANTS[name] and task in args.tasks else PRESET
        if task == BRANCHES[0]:
            changed = STARTS.get(changed, changed)
        runs[task] = train_one(args, folder, task, changed, seed)
    require_same_people([*runs.values(), run_folder(folder, BRANCHES[0], PRESET, seed)])
    checkpoints = [run / "best.pt" for run in runs.values()]
    engine = TorchClassifier(checkpoints, torch.device("cpu"))
    return score(answer_common_people(checkpoints, engine), checkpoints)


def score(answers: CommonAnswers, checkpoints: Sequence[Path]) -> _Scored:
    """Macro F1 of the 18 classes, and of each network's own; each network's calibration error."""
    from maskcls.evaluation.reliability import expected_calibration_error
    from maskcls.evaluation.scoring import confusion_matrix, scores_from_confusion
    from maskcls.labels import TASKS

    def macro_f1(task: Task) -> float:
        labels = (task.from_multi(side) for side in (answers.truth, answers.predicted))
        return scores_from_confusion(confusion_matrix(*labels, task.num_classes)).macro_f1

    own = {name: macro_f1(TASKS[name]) for name in BRANCHES}
    errors = {
        name: expected_calibration_error(
            probabilities_of(answers, TASKS[name]), TASKS[name].from_multi(answers.truth)
        )
        for name in BRANCHES
    }
    return _Scored(answers, checkpoints, macro_f1(MULTI), own, errors)


def probabilities_of(answers: CommonAnswers, task: Task) -> np.ndarray:
    """Of the task's classes (N, C), out of those of the 18."""
    import numpy as np

    own = task.from_multi(np.arange(MULTI.num_classes))  # the task's class of each of the 18
    probabilities: np.ndarray = answers.probabilities @ np.eye(task.num_classes)[own]
    return probabilities


def score_calibrated(base: _Scored, tasks: Sequence[str], kind: str) -> _Scored:
    """The same networks with a calibration of that kind: on a fifth of the people by the other
    four."""
    import numpy as np

    from maskcls.checkpoints import read_manifest
    from maskcls.data.runs import labelled_pictures, people_of_run
    from maskcls.evaluation.calibration import calibrated
    from maskcls.labels import TASKS, combine, softmax
    from maskcls.training.calibration import calibrate

    found = base.answers
    part_of = {person: rank % PARTS for rank, person in enumerate(sorted(set(found.whose)))}
    parts = np.array([part_of[person] for person in found.whose])
    answers = {}
    for name, checkpoint in zip(BRANCHES, base.checkpoints, strict=True):
        task = TASKS[name]
        logits = np.log(np.maximum(probabilities_of(found, task), np.finfo(np.float32).tiny))
        if name in tasks:
            manifest = read_manifest(checkpoint)
            learnt = labelled_pictures(people_of_run(checkpoint, manifest, "train"))
            classes = task.from_multi(np.array([label for _, label in learnt]))
            counts = np.bincount(classes, minlength=task.num_classes)
            labels = task.from_multi(found.truth)
            before = logits.copy()
            for part in range(PARTS):
                rest = parts != part
                people = [person for person, other in zip(found.whose, rest, strict=True) if other]
                fitted, _ = calibrate(kind, before[rest], labels[rest], people, counts)
                if fitted is not None:
                    logits[~rest] = calibrated(before[~rest], fitted)
        answers[name] = softmax(logits)
    return score(replace(found, probabilities=combine(answers)), base.checkpoints)


def score_without_mirror(base: _Scored, tasks: Sequence[str]) -> _Scored:
    """The same networks, answering to the picture alone."""
    import torch

    from maskcls.classifier import TorchClassifier
    from maskcls.evaluation.runs import answer_common_people
    from maskcls.models import Answer

    engine = TorchClassifier(base.checkpoints, torch.device("cpu"))
    for index, task in enumerate(engine.tasks):
        network = engine.network(index)
        assert isinstance(network, Answer)
        if task in tasks:
            network.tta = "none"
    return score(answer_common_people(base.checkpoints, engine), base.checkpoints)


def run_folder(folder: Path, task: str, name: str, seed: int) -> Path:
    """Where a training is kept."""
    return folder / f"seed{seed}" / task / "-".join(name.replace(",", "").lower().split())


def require_same_people(runs: Sequence[Path]) -> None:
    """
    Raises:
        ConfigError: the data have changed between two of the trainings.
    """
    from maskcls.data.splits import read_split

    tables = [read_split(run / "split.csv") for run in runs]
    for run, table in zip(runs, tables, strict=True):
        if table != tables[-1]:
            raise ConfigError(
                f"{run}: has other people or pictures than {runs[-1]}; the data have changed. Give "
                "another folder as --runs"
            )


def train_one(args: argparse.Namespace, folder: Path, task: str, name: str, seed: int) -> Path:
    """The run folder of one training; of `age`, from a mask_gender of that seed.

    Raises:
        ConfigError: a training of other settings or data lies there.
    """
    from maskcls.checkpoints import is_finished
    from maskcls.config import differences, read_yaml, resolve
    from maskcls.devices import resolve_device, resolve_precision
    from maskcls.training import resume, train

    run = run_folder(folder, task, name, seed)
    weights = "none"
    if task == BRANCHES[1]:
        start = STARTS.get(name, PRESET)
        weights = str(train_one(args, folder, BRANCHES[0], start, seed) / "best.pt")
    flags = {
        **{option: value for option in GIVEN if (value := getattr(args, option)) is not None},
        **VARIANTS[name].get(task, {}),
        "data_dir": tuple(str(one) for one in args.data_dir),
        "model_dir": str(run.parents[1]),
        "name": run.name,
        "seed": seed,
        "weights": weights,
    }
    config = resolve(task, "scratch" if task == BRANCHES[0] else "branch", flags=flags)
    if not (run / "last.pt").is_file():
        return _ended(train(config, folder=run))
    stored = read_yaml(run / "config.yaml")
    before = {**stored, "weights": config.weights}  # of age, a path that may have moved
    if config.precision == "auto":  # the training there has what that came to
        config = replace(config, precision=resolve_precision("auto", resolve_device("auto")).name)
    different = differences(config, before, "the training there")
    if stored["data_dir"] != config.to_dict()["data_dir"]:
        different.append(f"data_dir ({', '.join(stored['data_dir'])} there)")
    if different:
        raise ConfigError(f"{run}: {'; '.join(different)}. Give another folder as --runs")
    return run if is_finished(run) else _ended(resume(run))


def _ended(result: RunResult) -> Path:
    """The run folder, unless a signal asked to end here."""
    from maskcls.training.interruption import end_by

    if result.signal is not None:
        end_by(result.signal)
    return result.folder


def figures_of(seeds: Sequence[_Scored], bases: Sequence[_Scored]) -> dict[str, Any]:
    """The scores, and what they are above the preset's: means over seeds, and their intervals."""
    import numpy as np

    from maskcls.evaluation.people import Pair, mean_gain, mean_interval

    answers = [one.answers for one in seeds]
    sides = [(one.truth, one.predicted, one.whose) for one in answers]
    gain, interval = mean_gain(
        [
            Pair(found.truth, found.predicted, base.answers.predicted, found.whose)
            for found, base in zip(answers, bases, strict=True)
        ],
        MULTI.num_classes,
    )

    def mean(values: list[float]) -> float:
        return float(np.mean(values))

    return {
        "macro_f1": mean([one.macro_f1 for one in seeds]),
        "macro_f1_interval": mean_interval(sides, MULTI.num_classes),
        "tasks": {task: mean([one.tasks[task] for one in seeds]) for task in BRANCHES},
        "calibration_error": {
            task: mean([one.calibration_error[task] for one in seeds]) for task in BRANCHES
        },
        "gain": gain,
        "interval": interval,
        "revisions": sorted({revision for one in seeds for revision in one.revisions}),
    }


def format_table(figures: dict[str, Any]) -> str:
    several = len(figures["seeds"]) > 1
    lines = [
        f"{figures['cores']} cores, {figures['processor']}; seeds "
        f"{', '.join(map(str, figures['seeds']))}",
        "",
        "| ingredient | 18 classes | 95 % interval | gain | 95 % interval | mask_gender | age "
        f"| their calibration errors |{' gain of each seed |' if several else ''}",
        f"|---|---:|---:|---:|---:|---:|---:|---:|{'---:|' if several else ''}",
    ]
    lines += [
        format_row(name, row, row["seeds"] if several else ())
        for name, row in figures["variants"].items()
    ]
    revisions = {r for row in figures["variants"].values() for r in row["revisions"]}
    if len(revisions) > 1:
        lines += ["", f"note: trained by {len(revisions)} versions: {', '.join(sorted(revisions))}"]
    return "\n".join(lines)


def format_row(name: str, row: Mapping[str, Any], seeds: Sequence[Mapping[str, Any]]) -> str:
    low, high = row["macro_f1_interval"]
    cells = [name, f"{row['macro_f1']:.3f}", f"{low:.3f}–{high:.3f}"]
    if name == PRESET:
        cells += ["", ""]
    else:
        low, high = row["interval"]
        cells += [f"{row['gain']:+.3f}", f"{low:+.3f} to {high:+.3f}"]
    cells += [f"{row['tasks'][task]:.3f}" for task in BRANCHES]
    cells.append(", ".join(f"{row['calibration_error'][task]:.3f}" for task in BRANCHES))
    if seeds:
        of_each = ", ".join(f"{seed['gain']:+.3f}" for seed in seeds)
        cells.append("" if name == PRESET else of_each)
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    raise SystemExit(main())
