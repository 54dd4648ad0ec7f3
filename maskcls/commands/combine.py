"""Make one network of several of a task.

python cli/combine.py runs/age/folds --model-dir runs --name ensemble
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from maskcls.commands._run import env_default, env_help, guarded
from maskcls.errors import CheckpointError
from maskcls.folds import is_group
from maskcls.manifest import COMBINATIONS, ENSEMBLE

EPILOG = """\
ensemble     asks all of them and averages their probabilities: the best score, at the price of all
soup         has the mean of their weights: the price of one. It needs networks that began alike:
             of one pretrained start, or of one run's settings
greedy-soup  the same, but leaves out each that lowers macro F1 on people whom none was trained on

What comes of it is a run folder, MODEL_DIR/<task>/<name>, for maskcls-infer, maskcls-evaluate and
maskcls-export like any other. Runs of several tasks give one for each. Whom one of them has trained
on, the whole has: of a group of folds that is everybody.

examples:
  maskcls-combine runs/mask_gender/folds runs/age/folds --name ensemble
  maskcls-combine runs/age/exp runs/age/exp2 runs/age/exp3 --how greedy-soup
  maskcls-export --model-dir runs --out onnx        then exports the newest, as one file
"""


def build_parser() -> argparse.ArgumentParser:
    """The options of `maskcls-combine`."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        description="Make one network of several of a task.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "runs",
        type=Path,
        nargs="+",
        metavar="RUN",
        help="run folders, checkpoints, or groups of folds",
    )
    parser.add_argument(
        "--how", default=ENSEMBLE, choices=COMBINATIONS, help=f"see below (default {ENSEMBLE})"
    )
    parser.add_argument(
        "--model-dir",
        type=Path,
        metavar="DIR",
        help=f"where the folder goes; {env_help('SM_MODEL_DIR')}, else runs",
    )
    parser.add_argument("--name", metavar="NAME", help="of the folder; default: --how")
    return parser


@guarded
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    args = build_parser().parse_args(argv)
    from maskcls.checkpoints import find_checkpoint, read_manifest
    from maskcls.classifier import BEST
    from maskcls.devices import resolve_device
    from maskcls.evaluation.out_of_fold import require_folds
    from maskcls.training.combine import combine_runs

    tasks: dict[str, list[Path]] = {}
    for run in args.runs:
        checkpoint = run / BEST if run.is_dir() else run
        if not is_group(run) and find_checkpoint(checkpoint) is None:
            raise CheckpointError(f"{run}: no run folder, checkpoint or group of folds")
        for file in require_folds(run) if is_group(run) else [checkpoint]:
            tasks.setdefault(read_manifest(file).task, []).append(file)
    models = args.model_dir or env_default("SM_MODEL_DIR") or Path("runs")
    for task, checkpoints in tasks.items():
        found = combine_runs(
            checkpoints, args.how, models, args.name or args.how, resolve_device("auto")
        )
        scored = "all of these people trained one of them: score it on others"
        if found.scores is not None:
            chosen = ["their epochs"]
            if found.calibrated:
                chosen.insert(0, "their calibrations")
            if found.greedy:
                chosen.insert(0, "they themselves")
            scored = (
                f"macro F1 {found.scores.macro_f1:.4f}, accuracy {found.scores.accuracy:.4f} on "
                f"people whom none has trained on; {' and '.join(chosen)} were chosen by them: it "
                "flatters"
            )
        print(f"{task}: {len(found.members)} of {len(checkpoints)} networks; {scored}")
        print(f"wrote {found.folder / BEST}")
    print(f"next: maskcls-export --model-dir {models} --out onnx")
    return 0
