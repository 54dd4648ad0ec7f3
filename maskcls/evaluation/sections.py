"""The sections of `report.html` that tell about answers alone: scores, confusion matrices, classes,
groups of people, reliability."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from maskcls.evaluation.answers import Answers, Part
from maskcls.evaluation.charts import reliability_chart
from maskcls.evaluation.groups import FEW, Group
from maskcls.evaluation.page import chart, number, paragraph, row, share, table
from maskcls.evaluation.people import DRAWS, LEVEL, format_interval, if_perfect
from maskcls.evaluation.reliability import BINS, calibration_error, reliability
from maskcls.evaluation.scoring import NO_ANSWER, ClassScores
from maskcls.labels import ATTRIBUTES, MULTI


def answer_sections(answers: Answers) -> Iterator[str]:
    """All of them, in the order of the page. What is not there is left out, and they say so."""
    yield from _scores(answers)
    yield from _confusions(answers)
    yield from _classes(answers)
    yield from _groups(answers)
    yield from _reliability(answers)


def _scores(answers: Answers) -> Iterator[str]:
    yield "<h2>Scores</h2>"
    yield paragraph(
        "F1 of a class joins precision (of the pictures given this class, how many are it) and "
        "recall (of the pictures of this class, how many were found); 1 is perfect, 0 is nothing "
        "right. Macro F1 is the mean over the classes, so a rare class counts as much as a "
        "frequent one. Accuracy is the share of right answers."
    )
    whole, *parts = [(part.name, part.scores(), part.intervals()) for part in answers.parts()]
    _, scores, sure = whole
    shown = zip(("macro F1", "accuracy"), (scores.macro_f1, scores.accuracy), sure, strict=True)
    cards = "".join(
        f'<div class="card">{name}<b>{value:.4f}</b>{format_interval(interval)}</div>'
        for name, value, interval in shown
    )
    yield f'<div class="cards">{cards}</div>'
    if answers.people is not None:
        yield paragraph(
            f"The range is the {LEVEL:.0%} interval. The score is computed {DRAWS} times, each "
            "time for as many people as there are, drawn from these, some twice and some not at "
            f"all; {LEVEL:.0%} of the results lie in it. It tells about how far off the score of "
            "all people of this kind may be; the score of as many others varies more, by about 1.4 "
            "times, and the distance of two networks on the same people less. A class that nobody "
            "drawn has is left out of that result, or counts as 0 where somebody drawn is taken "
            "for it: with few people of a class the range is rough, and mostly too narrow."
        )
        if scores.accuracy == 1:
            count = len(set(answers.people))
            likely = 100 * (1 - (1 - LEVEL) ** (1 / count))
            yield paragraph(
                f"No mistake leaves no range. Of {count} people without one it can be said that "
                f"not more than {likely:.2g}% of others of their kind are "
                "likely to have one."
            )
    else:
        yield paragraph(
            "Without intervals: the file does not say who is on which picture, and pictures of one "
            "person are right or wrong together. ImageIDs with the person's folder in them "
            "(000001_female_Asian_45/mask1.jpg) do.",
            "out",
        )
    missing = int(np.count_nonzero(answers.predicted == NO_ANSWER))
    if missing:
        yield paragraph(f"{missing} pictures have no answer; they count as wrong.")
    if parts:
        header = ["attribute", "macro F1", "interval", "accuracy", "interval"]
        rows = [
            row(
                [name],
                [
                    share(each.macro_f1),
                    number(format_interval(f1)),
                    share(each.accuracy),
                    number(format_interval(accuracy)),
                ],
            )
            for name, each, (f1, accuracy) in parts
        ]
        yield table("By attribute", header, rows)
    if answers.task is MULTI and not missing:
        gains = if_perfect(answers.truth, answers.predicted).items()
        yield paragraph(
            "What holds the score down: were one attribute always right, and the others as they "
            f"are, macro F1 would be {', '.join(f'{f1:.4f} ({name})' for name, f1 in gains)}."
        )


def _confusions(answers: Answers) -> Iterator[str]:
    yield "<h2>Confusion matrices</h2>"
    yield paragraph(
        "A row is the true class, a column the answer, a cell the number of pictures. Framed cells "
        "on the diagonal are right. Darker: a larger share of the row, so that rare classes are as "
        "readable as frequent ones."
    )
    yield from map(_confusion, answers.parts())


def _confusion(part: Part) -> str:
    names, matrix = part.class_names, part.confusion()
    if not matrix[:, -1].any():
        matrix = matrix[:, :-1]
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    rows = []
    numbered = len(names) > 6  # columns are too narrow for names
    for label, counts in enumerate(matrix):
        cells = []
        for column, count in enumerate(counts):
            filled = float(shares[label, column])
            # White to the blue of matplotlib's "Blues"; its text turns white behind the middle.
            colour = [round(255 + filled * (end - 255)) for end in (8, 48, 107)]
            ink = "#fff" if filled > 0.65 else "#000"  # a contrast of 4.5 at least
            style = f"background:rgb({colour[0]},{colour[1]},{colour[2]});color:{ink}"
            kind = ' class="right"' if column == label else ""
            cells.append(f'<td{kind} style="{style}">{count or ""}</td>')
        shown = f"{label}: {names[label]}" if numbered else names[label]
        rows.append(row([shown], cells))
    columns = [str(label) for label in range(len(names))] if numbered else list(names)
    header = ["true \\ answer", *[*columns, "no answer"][: matrix.shape[1]]]
    return table(f"Confusion matrix: {part.name}", header, rows, "confusion")


def _classes(answers: Answers) -> Iterator[str]:
    yield "<h2>Classes</h2>"
    yield paragraph(
        "A class that is neither in the truth nor in the answers has dashes, and no part in macro "
        "F1. Low precision: others are taken for it. Low recall: it is taken for others."
    )
    whole, *_ = answers.parts()
    scores = whole.scores()
    header = ["class", "precision", "recall", "F1", "pictures"]
    rows = [
        row([f"{label}: {name}"], _class_cells(scores, label))
        for label, name in enumerate(whole.class_names)
    ]
    yield table("Scores of the classes", header, rows)


def _class_cells(scores: ClassScores, label: int) -> list[str]:
    values = (scores.precision[label], scores.recall[label], scores.f1[label])
    shown = [share(value) if scores.occurs[label] else number("–") for value in values]
    return [*shown, number(scores.support[label])]


def _groups(answers: Answers) -> Iterator[str]:
    yield "<h2>Groups</h2>"
    yield paragraph(
        "Is the network as good for some people as for others? Macro F1 here is the mean over the "
        "classes that the group's truth has. Compare groups of the same kind, and mind their size: "
        f"those in grey italics have fewer than {FEW} people, so their scores are mostly chance. "
        "Race is the field in the name of a person's folder, as whoever made the data filled it in."
    )
    factors = answers.factors()
    if "race" not in factors:
        yield paragraph(
            "Without race: the file does not say which folder pictures are from.", "out"
        )
    header = ["macro F1", "accuracy", "people", "pictures"]
    single = [_group_row(group, name) for name in factors for group in answers.groups(name)]
    yield table("One by one", ["", "group", *header], single, left=2)
    crossed = [list(ATTRIBUTES)] + ([list(factors)] if "race" in factors else [])
    for names in crossed:
        title = " × ".join(names)
        rows = [_group_row(group) for group in answers.groups(*names)]
        inner = table(title, [*names, *header], rows, left=len(names))
        yield f"<details><summary>{title}: {len(rows)} groups</summary>{inner}</details>"


def _group_row(group: Group, *names: str) -> str:
    people = "–" if group.people is None else str(group.people)
    cells = [share(group.macro_f1), share(group.accuracy), number(people), number(group.pictures)]
    return row([*names, *group.values], cells, "few" if group.unreliable else "")


def _reliability(answers: Answers) -> Iterator[str]:
    yield "<h2>Reliability</h2>"
    if not answers.beliefs:
        yield paragraph(
            "Left out: the predictions have no probabilities. maskcls-infer --probabilities adds "
            "them.",
            "out",
        )
        return
    yield paragraph(
        "Of the answers given with 80 % confidence 80 % should be right: the bars should reach the "
        "dashed line. Shorter bars: too sure of itself; longer ones: too modest. ECE, the expected "
        f"calibration error, is the mean distance of accuracy from confidence over {BINS} bins, "
        "weighted by their pictures; 0 is best. Grey: how many pictures a bar stands for. A bar of "
        "few pictures says little."
    )
    figures = []
    for name, (probabilities, labels) in answers.beliefs.items():
        bins = reliability(probabilities, labels)
        ece = calibration_error(bins)
        told = f"{name}: ECE {ece:.4f}"
        figures.append(chart(told, reliability_chart(f"Reliability diagram, {told}", bins)))
    yield f'<div class="charts">{"".join(figures)}</div>'
