"""What each ingredient of a recipe is worth on your data.

    python benchmarks/ingredients.py
    python benchmarks/ingredients.py --data-dir data/train --runs runs/ingredients --json gains.json
    python benchmarks/ingredients.py --data-dir data/train --only preset mixup --seeds 1 2 3

For each seed the preset from scratch is trained, and then again with one thing changed at a time,
for the same number of epochs on the same people. The score is macro F1 of the 18 classes on the
validation people, of both networks together; where an ingredient is of one network only, the other
one is the preset's. `age` starts from the preset's mask_gender throughout, so that a row shows one
change. The gain has its interval from people drawn anew, the same ones for both sides of the
difference.

Finished trainings in --runs are kept, so the same command goes on after an interruption.

How to read it: benchmarks/README.md. All options: python benchmarks/ingredients.py --help
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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

    from maskcls.evaluation.people import Interval
    from maskcls.evaluation.runs import CommonAnswers
    from maskcls.training import RunResult

PRESET = "preset"
Flags = Mapping[str, Any]
BOTH: dict[str, Flags] = {
    "cross entropy": {"criterion": "cross_entropy"},
    "focal loss": {"criterion": "focal"},
    "F1 in the loss": {"criterion": "label_smoothing:0.7,f1:0.3"},
    "no class weights": {"class_weights": "none"},
    "balanced class weights": {"class_weights": "balanced"},
    "sampling": {"class_weights": "none", "sampling": "sqrt"},
    "mixup": {"mixup": 0.3},
    "CutMix of half faces": {"cutmix": 0.3},
    "CutMix, rare partners": {"cutmix": 0.3, "mix_rare": True},
    "no RandAugment": {"augmentation": "BestAugmentation"},
    "erasing": {"erasing": 0.25},
    "no averaged weights": {"ema_decay": 0.0},
    "no mirror images": {"tta": "none"},
    "calibration for macro F1": {"calibration": "macro_f1"},
}
ONE: dict[str, tuple[str, Flags]] = {
    "groups, not exact ages": ("age", {"soften_age": 0.0}),
    "border ages dropped": ("age", {"border_ages": "drop"}),
    "border ages softened": ("age", {"soften_age": 0.0, "border_ages": "soften"}),
    "ordinal ages": ("age", {"age_loss": "ordinal"}),
    "expected age": ("age", {"age_loss": "expected"}),
    "age learns the others": ("age", {"auxiliary": 0.5}),
    "mask_gender learns no ages": ("mask_gender", {"auxiliary": 0.0}),
}
VARIANTS: dict[str, dict[str, Flags]] = {
    PRESET: {},
    **{name: dict.fromkeys(BRANCHES, flags) for name, flags in BOTH.items()},
    **{name: {task: flags} for name, (task, flags) in ONE.items()},
}
"""Ingredient → task → what is changed in its preset. `--layer-decay` is for pretrained weights."""


GIVEN = ("model", "height", "width", "epochs", "batch_size", "precision")
"""Options that all trainings have alike."""


@dataclass(frozen=True, eq=False)
class _Scored:
    answers: CommonAnswers
    macro_f1: float
    tasks: Mapping[str, float]  # macro F1 of each network


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
    rows: dict[str, list[dict[str, Any]]] = {}
    for seed in args.seeds:
        base = train_and_score(args, folder, PRESET, seed)
        rows.setdefault(PRESET, []).append(figures_of(base, base))
        for name in names:
            if VARIANTS[name].keys() & set(args.tasks):
                scored = train_and_score(args, folder, name, seed)
                rows.setdefault(name, []).append(figures_of(scored, base))
                print(format_row(name, rows[name]))
    return {
        "data": [folder.name for folder in args.data_dir],
        "seeds": args.seeds,
        "tasks": args.tasks,
        **{name: getattr(args, name) for name in GIVEN},
        "cores": usable_cores(),
        "processor": processor(),
        "python": platform.python_version(),
        "variants": rows,
    }


def train_and_score(args: argparse.Namespace, folder: Path, name: str, seed: int) -> _Scored:
    """Both networks of an ingredient, trained where they are not there yet."""
    import torch

    from maskcls.classifier import TorchClassifier
    from maskcls.evaluation.runs import answer_common_people
    from maskcls.evaluation.scoring import confusion_matrix, scores_from_confusion
    from maskcls.labels import TASKS

    runs = {}
    for task in BRANCHES:
        changed = name if task in VARIANTS[name] and task in args.tasks else PRESET
        runs[task] = train_one(args, folder, task, changed, seed)
    require_same_people([*runs.values(), run_folder(folder, BRANCHES[0], PRESET, seed)])
    checkpoints = [run / "best.pt" for run in runs.values()]
    engine = TorchClassifier(checkpoints, torch.device("cpu"))
    answers = answer_common_people(checkpoints, engine)

    def macro_f1(truth: np.ndarray, predicted: np.ndarray, count: int) -> float:
        return scores_from_confusion(confusion_matrix(truth, predicted, count)).macro_f1

    tasks = {
        name: macro_f1(
            TASKS[name].from_multi(answers.truth),
            TASKS[name].from_multi(answers.predicted),
            TASKS[name].num_classes,
        )
        for name in BRANCHES
    }
    whole = macro_f1(answers.truth, answers.predicted, MULTI.num_classes)
    return _Scored(answers, whole, tasks)


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
    """The run folder of one training; of `age`, from the preset's mask_gender of that seed.

    Raises:
        ConfigError: a training of other settings or data lies there.
    """
    from maskcls.config import differences, read_yaml, resolve
    from maskcls.training import resume, train
    from maskcls.training.run import is_finished

    run = run_folder(folder, task, name, seed)
    before = run_folder(folder, BRANCHES[0], PRESET, seed) / "best.pt"
    flags = {
        **{option: value for option in GIVEN if (value := getattr(args, option)) is not None},
        **VARIANTS[name].get(task, {}),
        "data_dir": tuple(str(one) for one in args.data_dir),
        "model_dir": str(run.parents[1]),
        "name": run.name,
        "seed": seed,
        "weights": "none" if task == BRANCHES[0] else str(before),
    }
    config = resolve(task, "scratch" if task == BRANCHES[0] else "branch", flags=flags)
    if not (run / "last.pt").is_file():
        return _ended(train(config, folder=run))
    stored = read_yaml(run / "config.yaml")
    before = {**stored, "weights": config.weights}  # of age, a path that may have moved
    if config.precision == "auto":  # the training there has what that came to
        before["precision"] = "auto"
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


def figures_of(scored: _Scored, base: _Scored) -> dict[str, Any]:
    """The scores of one seed, and what they are above the preset's."""
    return {
        "macro_f1": scored.macro_f1,
        "tasks": dict(scored.tasks),
        "gain": scored.macro_f1 - base.macro_f1,
        "interval": gain_interval(scored.answers, base.answers),
    }


def gain_interval(found: CommonAnswers, base: CommonAnswers) -> Interval:
    """Of the gain, with people drawn anew, the same ones on both sides."""
    import numpy as np

    from maskcls.evaluation.people import DRAWS, LEVEL, drawn_confusions
    from maskcls.evaluation.scoring import scores_of_many

    sides = [
        scores_of_many(
            drawn_confusions(one.truth, one.predicted, one.whose, MULTI.num_classes, DRAWS)
        )[0]
        for one in (found, base)
    ]
    outside = (1 - LEVEL) / 2
    low, high = np.quantile(sides[0] - sides[1], (outside, 1 - outside))
    return float(low), float(high)


def format_table(figures: dict[str, Any]) -> str:
    lines = [
        f"{figures['cores']} cores, {figures['processor']}; seeds "
        f"{', '.join(map(str, figures['seeds']))}",
        "",
        "| ingredient | 18 classes | gain | its 95 % interval | mask_gender | age |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    lines += [format_row(name, rows) for name, rows in figures["variants"].items()]
    return "\n".join(lines)


def format_row(name: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Means over the seeds, and the interval of each."""

    def mean(values: Sequence[float]) -> float:
        return sum(values) / len(values)

    intervals = "; ".join(
        f"{low:+.3f} to {high:+.3f}" for low, high in (r["interval"] for r in rows)
    )
    tasks = " | ".join(f"{mean([row['tasks'][task] for row in rows]):.3f}" for task in BRANCHES)
    gain = mean([row["gain"] for row in rows])
    is_preset = name == PRESET
    return (
        f"| {name} | {mean([row['macro_f1'] for row in rows]):.3f} | "
        f"{'' if is_preset else f'{gain:+.3f}'} | {'' if is_preset else intervals} | {tasks} |"
    )


if __name__ == "__main__":
    raise SystemExit(main())
