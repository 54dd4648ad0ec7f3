"""Scores of groups of folds, as `maskcls-train` and `maskcls-evaluate` say them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskcls.commands._scores import (
    format_certainty,
    format_classes,
    format_intervals,
    format_scores,
)

if TYPE_CHECKING:
    from maskcls.evaluation.out_of_fold import FoldScores, OutOfFold
    from maskcls.evaluation.scoring import Scores


def score_folds(
    groups: Sequence[Path],
) -> tuple[dict[str, Any], Scores | None, list[OutOfFold]]:
    """Answers everybody of each group by the network that has not seen them, writes each group's
    `oof.csv` and prints what the answers are worth.

    Returns:
        What `--json` holds; the scores of the 18 classes, where the groups answer these; and what
        was answered.

    Raises:
        CheckpointError: not a group, a fold that is not trained, or groups that do not answer
            every attribute once.
        DataError: pictures that are gone, groups of other pictures, folds that are no partition.
    """
    import numpy as np

    from maskcls.devices import resolve_device
    from maskcls.evaluation.out_of_fold import (
        answer_out_of_fold,
        combine_out_of_fold,
        require_folds,
        score_out_of_fold,
        write_out_of_fold,
    )
    from maskcls.evaluation.people import certainty
    from maskcls.evaluation.scoring import score_answers
    from maskcls.folds import read_group
    from maskcls.labels import get_task, require_all_attributes

    for group in groups:
        require_folds(group)
    if len(groups) > 1:  # better said before the work than after it
        require_all_attributes([get_task(read_group(group).task) for group in groups], groups)
    found = []
    values: dict[str, Any] = {}
    for group in groups:
        answers = answer_out_of_fold(group, resolve_device("auto"))
        scores = score_out_of_fold(answers)
        found.append(answers)
        values[answers.task.name] = _values(answers, scores)
        print(_format(answers, scores))
        print(f"wrote {write_out_of_fold(answers)}")
    if not answers_all(groups):
        [own] = values.values()
        return own, None, found
    labels, probabilities = combine_out_of_fold(found)
    names = [str(Path(*place)) for place in found[0].places]
    truth = dict(zip(names, labels.tolist(), strict=True))
    chosen = probabilities.argmax(axis=1)
    whole = score_answers(truth, dict(zip(names, chosen.tolist(), strict=True)))
    sure = certainty(np.asarray(labels), chosen, found[0].people)
    print(
        f"\n18 classes of {sure.people} people, each answered by networks that have not seen them"
    )
    print(format_scores(whole))
    print(format_certainty(sure))
    whole_values = whole.to_dict() | sure.to_dict()
    whole_values["caveats"] = [caveat for answers in found for caveat in answers.caveats]
    whole_values["groups"] = values
    return whole_values, whole, found


def answers_all(groups: Sequence[Path]) -> bool:
    """Whether these answer the 18 classes: several groups, which have to, or one of `multi`.

    Raises:
        CheckpointError: not a group.
    """
    from maskcls.folds import read_group
    from maskcls.labels import MULTI

    return len(groups) > 1 or read_group(groups[0]).task == MULTI.name


def _values(found: OutOfFold, scores: FoldScores) -> dict[str, Any]:
    return {
        "task": found.task.name,
        "folds": len(scores.folds),
        "people": len(set(found.people)),
        "count": len(found.labels),
        "macro_f1": scores.classes.macro_f1,
        "accuracy": scores.classes.accuracy,
        "intervals": {"macro_f1": scores.macro_f1, "accuracy": scores.accuracy},
        "fold_macro_f1": list(scores.folds),
        "per_class": scores.classes.to_list(found.task.class_names),
        "confusion": scores.confusion.tolist(),
        "caveats": found.caveats,
    }


def _format(found: OutOfFold, scores: FoldScores) -> str:
    people = len(set(found.people))
    each = ", ".join(f"{score:.4f}" for score in scores.folds)
    return "\n".join(
        [
            f"{found.task.name}: out-of-fold macro F1 {scores.classes.macro_f1:.4f}  accuracy "
            f"{scores.classes.accuracy:.4f}  ({len(found.labels)} pictures)",
            *format_intervals(scores.macro_f1, scores.accuracy, people),
            f"macro F1 of each fold's people: {each}",
            "",
            *format_classes(scores.classes, found.task.class_names),
            "",
        ]
    )
