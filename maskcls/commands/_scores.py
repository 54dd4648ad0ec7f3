"""Scores as text for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from maskcls.evaluation.people import Certainty, Interval
    from maskcls.evaluation.scoring import ClassScores, Scores


def format_certainty(sure: Certainty) -> str:
    """What lies below the scores of runs."""
    lines = format_intervals(sure.macro_f1, sure.accuracy, sure.people)
    lines += [
        f"macro F1 {score:.4f} if {attribute} were always right"
        for attribute, score in sure.if_perfect.items()
    ]
    return "\n".join(lines)


def format_intervals(macro_f1: Interval, accuracy: Interval, people: int) -> list[str]:
    """A line for either."""
    from maskcls.evaluation.people import LEVEL

    return [
        f"{name} {low:.4f} to {high:.4f} in {LEVEL:.0%} of draws of {people} people from these"
        for name, (low, high) in (("macro F1", macro_f1), ("accuracy", accuracy))
    ]


def format_scores(scores: Scores) -> str:
    """The report on the terminal: headline, attributes, one line per class."""
    from maskcls.labels import MULTI

    classes = scores.classes
    pictures = f"{scores.count} pictures"
    if scores.missing:
        pictures += f", {scores.missing} without an answer count as wrong"
    lines = [
        f"{MULTI.num_classes}-class macro F1 {classes.macro_f1:.4f}  "
        f"accuracy {classes.accuracy:.4f}  ({pictures})"
    ]
    for attribute, each in scores.attributes.items():
        lines.append(f"{attribute:>8} macro F1 {each.macro_f1:.4f}  accuracy {each.accuracy:.4f}")
    return "\n".join([*lines, "", *format_classes(classes, MULTI.class_names), ""])


def format_classes(classes: ClassScores, names: Sequence[str]) -> list[str]:
    """A line per class under a line of headings. A class that is in neither table shows dashes: it
    does not enter macro F1.
    """
    width = max(len(name) for name in names)
    lines = [f"label  {'name':<{width}}  precision  recall      F1  pictures"]
    for label, name in enumerate(names):
        precision, recall, f1 = (
            f"{values[label]:.4f}" if classes.occurs[label] else "-"
            for values in (classes.precision, classes.recall, classes.f1)
        )
        lines.append(
            f"{label:>5}  {name:<{width}}  {precision:>9}  {recall:>6}  {f1:>6}  "
            f"{classes.support[label]:>8}"
        )
    return lines
