"""Score a prediction file against the ground truth, or runs on the people who validated them.

python cli/evaluate.py --gt gt.csv --pred output.csv --json score.json
python cli/evaluate.py runs/mask_gender/exp runs/age/exp --report report.html
SM_GROUND_TRUTH_DIR=data/eval SM_OUTPUT_DATA_DIR=out python cli/evaluate.py
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskcls.commands._folds import answers_all, score_folds
from maskcls.commands._run import env_default, env_help, guarded
from maskcls.commands._scores import format_certainty, format_scores
from maskcls.errors import ConfigError, DataError

if TYPE_CHECKING:
    from maskcls.evaluation.report import Report
    from maskcls.evaluation.runs import CommonAnswers
    from maskcls.evaluation.scoring import Scores

GT_VARIABLE, GT_FILE = "SM_GROUND_TRUTH_DIR", "gt.csv"
PRED_VARIABLE, PRED_FILE = "SM_OUTPUT_DATA_DIR", "output.csv"

EPILOG = """\
Both tables are CSV with the columns ImageID,ans; ans is mask * 6 + gender * 3 + age, 0 to 17.
Every picture of the ground truth counts: one without a prediction, or with an empty ans, is wrong.

Runs are scored together, on the people who validated all of them: with intervals from people drawn
anew, and with what the score would be if one of the attributes were always right.

--against holds them against other runs, on the people who validated all of these: the gain in macro
F1, and an interval of it, which is narrower than that of a score.

Of a group of folds (maskcls-train --folds N) each person is answered by the one network that has
not seen them. GROUP/oof.csv holds the answers, with the probabilities: data_dir,path,person,fold,
label,answer,p_0,p_1,… with the classes of the task, and age_0,age_5,… of networks that learnt exact
ages. These people chose the epochs of the network that answers them, so strangers are scored a
little lower.

examples:
  maskcls-infer    --model runs --images data/eval --out output.csv
  maskcls-evaluate --gt data/eval/gt.csv --pred output.csv --json score.json
  maskcls-evaluate runs/mask_gender/exp runs/age/exp --report report.html
  maskcls-evaluate runs/mask_gender/exp runs/age/exp2 --against runs/mask_gender/exp runs/age/exp
  maskcls-evaluate --oof runs/mask_gender/folds runs/age/folds --report oof.html

score.json holds macro_f1 and accuracy of the 18 classes, the same for mask, gender and age,
per_class, count, missing, confusion (rows truth, columns prediction), and seen_in_training; of runs
people, intervals, if_perfect and caveats in its place, and with --against also against, which has
the runs, their macro_f1 and caveats, the gain over the classes that these people have, and its
interval; of groups of folds also groups, which has the scores of each. Of one group alone it holds
those.

report.html is one page that needs no network: scores, confusion matrices, groups of people,
reliability; of runs and of groups of folds also learning curves, the config and the worst mistakes
with their pictures. Of a prediction file it shows reliability if maskcls-infer wrote it with
--probabilities.
"""


def build_parser() -> argparse.ArgumentParser:
    """The options of `maskcls-evaluate`."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        description="Score a prediction file against the ground truth, or runs on the people who\n"
        "validated them: macro F1 and accuracy of the 18 classes and of mask, gender and age,\n"
        "per-class scores, a confusion matrix.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "runs",
        type=Path,
        nargs="*",
        metavar="RUN",
        help="run folders, or their MODEL_DIR, to score on their validation people",
    )
    parser.add_argument(
        "--against",
        type=Path,
        nargs="+",
        metavar="RUN",
        help="runs to hold them against, on the people who validated all",
    )
    parser.add_argument(
        "--oof",
        type=Path,
        nargs="+",
        metavar="GROUP",
        help="groups of folds: every person is scored by the network that has not seen them",
    )
    parser.add_argument(
        "--gt",
        type=Path,
        metavar="FILE",
        help=f"ground truth, or a folder with {GT_FILE}; {env_help(GT_VARIABLE, GT_FILE)}",
    )
    parser.add_argument(
        "--pred",
        type=Path,
        metavar="FILE",
        help=f"predictions, or a folder with {PRED_FILE}; {env_help(PRED_VARIABLE, PRED_FILE)}",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the scores there too")
    parser.add_argument(
        "--report", type=Path, metavar="FILE.html", help="write a page about the scores there"
    )
    parser.add_argument(
        "--no-pictures", action="store_true", help="no pictures of people in the report"
    )
    picture = parser.add_mutually_exclusive_group()
    picture.add_argument(
        "--confusion",
        type=Path,
        metavar="FILE.png",
        help="picture of the confusion matrix; default: confusion.png beside the predictions",
    )
    picture.add_argument("--no-confusion", action="store_true", help="write no picture")
    parser.add_argument(
        "--allow-seen",
        action="store_true",
        help="score although the model was trained on some of these people",
    )
    return parser


@guarded
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    args = build_parser().parse_args(argv)
    if args.confusion is not None and args.confusion.suffix.lower() != ".png":
        raise ConfigError(f"--confusion {args.confusion}: the picture is a PNG; name it FILE.png")
    if args.report is not None:
        _check_report(args.report)
    elif args.no_pictures:
        raise ConfigError("--no-pictures: goes with --report FILE.html, which is missing")
    if bool(args.runs) + bool(args.oof) + bool(args.gt or args.pred) > 1:
        raise ConfigError("give either runs, or --gt and --pred, or --oof")
    if args.against and not args.runs:
        raise ConfigError("--against: holds runs against runs; name some before it")
    if args.allow_seen and (args.runs or args.oof):
        raise ConfigError("--allow-seen: is for --gt and --pred; runs are scored as they are")
    if args.oof:
        _score_folds(args)
    elif args.runs:
        _score_runs(args)
    else:
        _score_files(args)
    return 0


def _score_files(args: argparse.Namespace) -> None:
    from maskcls.evaluation.scoring import read_answers, score_answers

    gt = _table(args.gt, "--gt", GT_VARIABLE, GT_FILE)
    pred = _table(args.pred, "--pred", PRED_VARIABLE, PRED_FILE)
    truth = read_answers(gt)
    predicted = read_answers(pred, allow_empty=True)
    seen = _seen_in_training(pred, allow_seen=args.allow_seen)
    if not any(truth.values()):
        print(f"note: every ans in {gt} is 0; is it an info.csv to fill in?", file=sys.stderr)
    scores = score_answers(truth, predicted)
    print(format_scores(scores))
    confusion = None if args.no_confusion else args.confusion or pred.with_name("confusion.png")
    _write(scores, scores.to_dict() | {"seen_in_training": seen}, args.json, confusion)
    if args.report is not None:
        from maskcls.evaluation.predictions_report import report_predictions

        notes = []
        if seen:
            notes.append(
                f"{seen} of the pictures are of people, or are pictures, that the model was "
                "trained on: the score flatters it."
            )
        elif seen is None:
            notes.append("It is not known whether the model was trained on these people.")
        _write_report(report_predictions(gt, pred, truth, predicted, notes), args.report)


def _score_runs(args: argparse.Namespace) -> None:
    from maskcls.classifier import TorchClassifier, find_checkpoints
    from maskcls.devices import resolve_device
    from maskcls.evaluation.people import certainty
    from maskcls.evaluation.runs import answer_common_people, common_people, report_runs
    from maskcls.evaluation.scoring import score_answers

    checkpoints = find_checkpoints(args.runs)
    others = find_checkpoints(args.against) if args.against else []
    engine = TorchClassifier(checkpoints, resolve_device("auto"))
    answered = answer_common_people(checkpoints, engine, common_people([*checkpoints, *others]))
    if answered.unreadable:
        print(f"warning: {answered.unreadable} unreadable pictures are skipped")
    for caveat in answered.caveats:
        print(f"warning: {caveat}")
    truth, predicted = (
        dict(zip(answered.names, labels.tolist(), strict=True))
        for labels in (answered.truth, answered.predicted)
    )
    scores = score_answers(truth, predicted)
    sure = certainty(answered.truth, answered.predicted, answered.whose)
    named = ", ".join(str(path.parent) for path in (*checkpoints, *others))
    print(f"{sure.people} people validated {named}")
    print(format_scores(scores))
    print(format_certainty(sure))
    values = scores.to_dict() | sure.to_dict() | {"caveats": answered.caveats}
    if others:
        values["against"] = _hold_against(others, answered)
    _write(scores, values, args.json, None if args.no_confusion else args.confusion)
    if args.report is not None:
        pictures = not args.no_pictures
        _write_report(report_runs(checkpoints, engine, answered, pictures=pictures), args.report)


def _hold_against(others: Sequence[Path], answered: CommonAnswers) -> dict[str, Any]:
    """What was answered against other runs on the same pictures, as plain values for JSON; says
    it too."""
    from maskcls.classifier import TorchClassifier
    from maskcls.devices import resolve_device
    from maskcls.evaluation.people import LEVEL, Pair, mean_gain
    from maskcls.evaluation.runs import answer_common_people
    from maskcls.evaluation.scoring import confusion_matrix, scores_from_confusion
    from maskcls.labels import MULTI

    engine = TorchClassifier(others, resolve_device("auto"))
    base = answer_common_people(others, engine, answered.people)
    for caveat in base.caveats:
        print(f"warning: {caveat}")
    sides = Pair(answered.truth, answered.predicted, base.predicted, answered.whose)
    gain, (low, high) = mean_gain([sides], MULTI.num_classes)
    matrix = confusion_matrix(base.truth, base.predicted, MULTI.num_classes)
    macro_f1 = scores_from_confusion(matrix).macro_f1
    runs = [str(path.parent) for path in others]
    print(
        f"macro F1 {macro_f1:.4f} of {', '.join(runs)}: a gain of {gain:+.4f}, {low:+.4f} to "
        f"{high:+.4f} in {LEVEL:.0%} of draws of these people"
    )
    return {
        "runs": runs,
        "macro_f1": macro_f1,
        "gain": gain,
        "interval": (low, high),
        "caveats": base.caveats,
    }


def _score_folds(args: argparse.Namespace) -> None:
    if args.confusion is not None and not answers_all(args.oof):
        raise ConfigError("--confusion: of the 18 classes; give groups of both branches with --oof")
    values, scores, found = score_folds(args.oof)
    _write(scores, values, args.json, None if args.no_confusion else args.confusion)
    if args.report is not None:
        from maskcls.devices import resolve_device
        from maskcls.evaluation.folds_report import report_folds

        pictures = not args.no_pictures
        _write_report(report_folds(found, resolve_device("auto"), pictures=pictures), args.report)


def _check_report(file: Path) -> None:
    """
    Raises:
        ConfigError: a report cannot be written there; better said before the work than after it.
    """
    if file.suffix.lower() != ".html":
        raise ConfigError(f"--report {file}: the report is a page; name it FILE.html")
    if file.is_dir():
        raise ConfigError(f"--report {file}: is a folder; name a file in it")
    # Folders that are missing are made: what counts is the first one that is there.
    above = next(folder for folder in file.absolute().parents if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise ConfigError(f"--report {file}: {above} is no folder that can be written to")


def _write(
    scores: Scores | None, values: dict[str, Any], file: Path | None, confusion: Path | None
) -> None:
    """What was asked for, on the disk: `values` as JSON, and a picture of the scores."""
    from maskcls.files import replacing
    from maskcls.labels import MULTI

    if file is not None:
        with replacing(file) as temporary:
            text = json.dumps(values, indent=1) + "\n"
            temporary.write_text(text, "utf-8")
        print(f"wrote {file}")
    if confusion is not None and scores is not None:
        from maskcls.evaluation.pictures import plot_confusion

        columns = None if scores.missing else MULTI.num_classes
        title = f"macro F1 {scores.classes.macro_f1:.4f}, accuracy {scores.classes.accuracy:.4f}"
        plot_confusion(scores.confusion[:, :columns], MULTI.class_names, confusion, title)
        print(f"wrote {confusion}")


def _write_report(report: Report, file: Path) -> None:
    from maskcls.evaluation.report import write_report

    write_report(report, file)
    print(f"wrote {file}")


def _table(option: Path | None, flag: str, variable: str, file: str) -> Path:
    """The file an option names, directly or by its folder.

    Raises:
        ConfigError: neither the option nor the variable is given.
    """
    path = option if option is not None else env_default(variable)
    if path is None:
        raise ConfigError(f"{flag} is missing: give a file, or a folder with {file} in ${variable}")
    # The variable always means a folder, so that a folder that is missing is named with its file.
    return path / file if option is None or path.is_dir() else path


def _seen_in_training(pred: Path, *, allow_seen: bool) -> int | None:
    """How many of the labelled pictures show people of the training split; None if unknown.

    Raises:
        DataError: some do, and `allow_seen` is not set.
    """
    from maskcls.provenance import provenance_path, read_provenance

    provenance = read_provenance(pred)
    if provenance is None or provenance.seen_in_training is None:
        why = (
            f"no {provenance_path(pred).name} that belongs to {pred}"
            if provenance is None
            else "the models do not say who they were trained on"
        )
        print(
            f"note: cannot tell whether the model was trained on these people: {why}",
            file=sys.stderr,
        )
        return None
    seen = provenance.seen_in_training
    if seen:
        found = (
            f"{pred}: {seen} of {provenance.pictures} pictures are of people, or are pictures, "
            "that the model was trained on"
        )
        if not allow_seen:
            raise DataError(
                f"{found}. It knows them by heart, and the score would promise more than strangers "
                "get. Label pictures of other people, or score these with --allow-seen"
            )
        print(f"warning: {found}; the score flatters the model", file=sys.stderr)
    return seen
