"""`report.html`: what a run or an evaluation came to, on one page that needs no network."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from html import escape
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from maskcls.data.profiles import parse_folder_name
from maskcls.errors import DataError
from maskcls.evaluation.charts import line_chart, reliability_chart
from maskcls.evaluation.groups import FEW, Factor, Group, group_scores, scores_of
from maskcls.evaluation.mistakes import Mistake
from maskcls.evaluation.page import (
    chart,
    facts,
    number,
    page,
    paragraph,
    picture,
    row,
    share,
    table,
)
from maskcls.evaluation.people import DRAWS, LEVEL, Interval, intervals
from maskcls.evaluation.reliability import (
    BINS,
    calibration_error,
    read_probabilities,
    reliability,
)
from maskcls.evaluation.scoring import NO_ANSWER, ClassScores, confusion_with_missing
from maskcls.files import write_atomic
from maskcls.labels import ATTRIBUTES, MULTI, Task
from maskcls.provenance import read_provenance

REPORT = "report.html"
"""Its name in a run folder."""

Belief = tuple[np.ndarray, np.ndarray]
"""Class probabilities (M, C) and true classes (M,)."""


@dataclass(frozen=True, eq=False)
class Answers:
    """Labelled pictures and what was answered."""

    task: Task
    truth: np.ndarray  # (N,) classes of the task
    predicted: np.ndarray  # (N,); `NO_ANSWER` where there is none
    attributes: Mapping[str, np.ndarray]  # all of `ATTRIBUTES` → (N,), the true ones
    people: Sequence[str] | None = None  # whose picture each is (N); None where it is not known
    races: Sequence[str] | None = None  # (N), as in the folders' names
    beliefs: Mapping[str, Belief] = field(default_factory=dict)  # what they are about → the numbers


@dataclass(frozen=True)
class Run:
    """A training whose network gave the answers."""

    task: str
    model: str
    folder: str
    config: Mapping[str, Any]
    history: Sequence[Mapping[str, float]]  # rows of metrics.csv; see `read_history`


@dataclass(frozen=True, eq=False)
class Report:
    """All that the page shows. What is not there is left out, and the page says so."""

    title: str
    answers: Answers
    runs: Sequence[Run] = ()
    facts: Mapping[str, str] = field(default_factory=dict)  # more lines under the title
    mistakes: Sequence[Mistake] | None = None  # the worst first; None where they are not known
    notes: Sequence[str] = ()  # what to bear in mind about the scores
    made: datetime = field(default_factory=lambda: datetime.now(UTC))


def write_report(report: Report, path: Path) -> None:
    """The page as a file, whole or not at all.

    Raises:
        OSError: it cannot be written; names `path`.
    """
    # A file name that is no UTF-8 is shown with escapes.
    write_atomic(path, render(report).encode("utf-8", errors="backslashreplace"))


def read_history(path: Path) -> list[dict[str, float]]:
    """The rows of a run's `metrics.csv`; none where there is no such table."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = [
                {name: float(value) for name, value in cells.items()}
                for cells in csv.DictReader(file)
            ]
    except (OSError, ValueError, TypeError, csv.Error):
        return []
    return rows if all(row.keys() >= {"epoch", "macro_f1"} for row in rows) else []


def beliefs_of(task: Task, probabilities: np.ndarray, truth: np.ndarray) -> dict[str, Belief]:
    """What the probabilities (N, C) say of the task and of each of its attributes."""
    digits = task.decode(truth)
    found = {name: (values, digits[name]) for name, values in task.marginals(probabilities).items()}
    if len(task.attributes) == 1:
        return found
    return {_whole(task): (probabilities, truth)} | found


def _whole(task: Task) -> str:
    """How the page calls a task beside its attributes."""
    several = len(task.attributes) > 1
    return f"all {task.num_classes} classes" if several else task.attributes[0]


def report_predictions(
    gt: Path,
    pred: Path,
    truth: Mapping[str, int],
    predicted: Mapping[str, int],
    notes: Sequence[str],
) -> Report:
    """Of a prediction file: `truth` and `predicted` as `read_answers` reads the two files.

    ImageIDs with a person's folder in them (`000001_female_Asian_45/mask1.jpg`) tell who is on a
    picture. Probabilities are taken from the file where it has them.

    Raises:
        DataError: see `read_probabilities`.
    """
    labels = np.array(list(truth.values()), dtype=np.int64)
    attributes = MULTI.decode(labels)
    people, races = _people_in(truth)
    beliefs = {}
    for name, values in read_probabilities(pred).items():
        known = [place for place, image_id in enumerate(truth) if image_id in values]
        if known:
            rows = np.stack([values[image_id] for image_id in truth if image_id in values])
            beliefs[name] = rows, attributes[name][known]
    provenance = read_provenance(pred)
    models = provenance.models if provenance is not None else ()
    return Report(
        f"Scores of {pred.name}",
        Answers(
            MULTI,
            labels,
            np.array([predicted.get(image_id, NO_ANSWER) for image_id in truth], dtype=np.int64),
            attributes,
            people,
            races,
            beliefs,
        ),
        facts={
            "Predictions": str(pred),
            "Truth": str(gt),
            **{f"Network, {model.task}": model.path for model in models},
        },
        notes=notes,
    )


def _people_in(image_ids: Iterable[str]) -> tuple[list[str] | None, list[str] | None]:
    """Folder and race of each picture, if all of the ImageIDs tell."""
    people, races = [], []
    for image_id in image_ids:
        folder = PurePosixPath(image_id.replace("\\", "/")).parent.name
        try:
            _, _, race, _ = parse_folder_name(folder)
        except DataError:
            return None, None
        people.append(folder)
        races.append(race)
    return people, races


def render(report: Report) -> str:
    """The page as text."""
    parts = [
        _head(report),
        ["<main>"],
        _scores(report),
        _confusions(report.answers),
        _classes(report.answers),
        _groups(report.answers),
        _reliability(report.answers),
        _curves(report.runs),
        _mistakes(report),
        _configs(report.runs),
        ["</main>"],
    ]
    return page(report.title, (line for part in parts for line in part))


def _head(report: Report) -> Iterator[str]:
    answers = report.answers
    yield f"<header><h1>{escape(report.title)}</h1>"
    people = f"{len(set(answers.people))} people, " if answers.people is not None else ""
    yield facts(
        {
            "Made": f"{report.made:%Y-%m-%d %H:%M} {report.made.tzname() or ''}",
            **{f"Network, {run.task}": f"{run.model}, {run.folder}" for run in report.runs},
            **report.facts,
            "Scored on": f"{people}{len(answers.truth)} pictures",
        }
    )
    if any(mistake.views for mistake in report.mistakes or ()):
        yield paragraph(
            "Privacy: this file holds pictures of people and the names of their folders. Treat it "
            "like the pictures themselves, and do not pass it on without the right to. "
            "maskcls-evaluate with --no-pictures makes one without pictures.",
            "warning",
        )
    elif report.mistakes:
        yield paragraph(
            "Privacy: this file holds the names of people's folders, which may say who they are.",
            "warning",
        )
    for note in report.notes:
        yield paragraph(note)
    yield "</header>"


def _scores(report: Report) -> Iterator[str]:
    answers = report.answers
    yield "<h2>Scores</h2>"
    yield paragraph(
        "F1 of a class joins precision (of the pictures given this class, how many are it) and "
        "recall (of the pictures of this class, how many were found); 1 is perfect, 0 is nothing "
        "right. Macro F1 is the mean over the classes, so a rare class counts as much as a "
        "frequent one. Accuracy is the share of right answers."
    )
    whole, *parts = [
        (name, scores_of(truth, predicted, classes), _intervals(answers, truth, predicted, classes))
        for name, truth, predicted, classes in _parts(answers)
    ]
    _, scores, sure = whole
    shown = zip(("macro F1", "accuracy"), (scores.macro_f1, scores.accuracy), sure, strict=True)
    cards = "".join(
        f'<div class="card">{name}<b>{value:.4f}</b>{_interval(interval)}</div>'
        for name, value, interval in shown
    )
    yield f'<div class="cards">{cards}</div>'
    if answers.people is not None:
        yield paragraph(
            f"The range is the {LEVEL:.0%} interval. The score is computed {DRAWS} times, each "
            "time for as many people as there are, drawn from these, some twice and some not at "
            f"all; {LEVEL:.0%} of the results lie in it. It tells about how far off the score of "
            "all people of this kind may be, so a difference that is much smaller says little; the "
            "score of as many others varies more, by about 1.4 times. A class that nobody drawn "
            "has is left out of that result, or counts as 0 where somebody drawn is taken for it: "
            "with few people of a class the range is rough, and mostly too narrow."
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
                    number(_interval(f1)),
                    share(each.accuracy),
                    number(_interval(accuracy)),
                ],
            )
            for name, each, (f1, accuracy) in parts
        ]
        yield table("By attribute", header, rows)


def _parts(answers: Answers) -> Iterator[tuple[str, np.ndarray, np.ndarray, int]]:
    """The task, then its attributes where it has several: name, truth, predictions, classes."""
    task = answers.task
    yield _whole(task), answers.truth, answers.predicted, task.num_classes
    if len(task.attributes) > 1:
        answered = answers.predicted != NO_ANSWER
        # Something must be decoded where nothing was answered.
        found = task.decode(np.where(answered, answers.predicted, 0))
        for name, truth in task.decode(answers.truth).items():
            yield name, truth, np.where(answered, found[name], NO_ANSWER), len(ATTRIBUTES[name])


def _intervals(
    answers: Answers, truth: np.ndarray, predicted: np.ndarray, classes: int
) -> tuple[Interval | None, Interval | None]:
    if answers.people is None:
        return None, None
    return intervals(truth, predicted, answers.people, classes)


def _interval(interval: Interval | None) -> str:
    return "–" if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}"


def _confusions(answers: Answers) -> Iterator[str]:
    yield "<h2>Confusion matrices</h2>"
    yield paragraph(
        "A row is the true class, a column the answer, a cell the number of pictures. Framed cells "
        "on the diagonal are right. Darker: a larger share of the row, so that rare classes are as "
        "readable as frequent ones."
    )
    for name, truth, predicted, classes in _parts(answers):
        names = ATTRIBUTES.get(name, answers.task.class_names)
        yield _confusion(name, names, truth, predicted, classes)


def _confusion(
    name: str, names: Sequence[str], truth: np.ndarray, predicted: np.ndarray, classes: int
) -> str:
    matrix = confusion_with_missing(truth, predicted, predicted != NO_ANSWER, classes)
    if not matrix[:, -1].any():
        matrix = matrix[:, :-1]
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    rows = []
    numbered = classes > 6  # columns are too narrow for names
    for label, counts in enumerate(matrix):
        cells = []
        for column, count in enumerate(counts):
            part = float(shares[label, column])
            # White to the blue of matplotlib's "Blues"; its text turns white behind the middle.
            colour = [round(255 + part * (end - 255)) for end in (8, 48, 107)]
            ink = "#fff" if part > 0.65 else "#000"  # a contrast of 4.5 at least
            style = f"background:rgb({colour[0]},{colour[1]},{colour[2]});color:{ink}"
            kind = ' class="right"' if column == label else ""
            cells.append(f'<td{kind} style="{style}">{count or ""}</td>')
        shown = f"{label}: {names[label]}" if numbered else names[label]
        rows.append(row([shown], cells))
    columns = [str(label) for label in range(classes)] if numbered else list(names)
    header = ["true \\ answer", *[*columns, "no answer"][: matrix.shape[1]]]
    return table(f"Confusion matrix: {name}", header, rows, "confusion")


def _classes(answers: Answers) -> Iterator[str]:
    yield "<h2>Classes</h2>"
    yield paragraph(
        "A class that is neither in the truth nor in the answers has dashes, and no part in macro "
        "F1. Low precision: others are taken for it. Low recall: it is taken for others."
    )
    task = answers.task
    scores = scores_of(answers.truth, answers.predicted, task.num_classes)
    header = ["class", "precision", "recall", "F1", "pictures"]
    rows = [
        row([f"{label}: {name}"], _class_cells(scores, label))
        for label, name in enumerate(task.class_names)
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
    factors = {name: Factor(ATTRIBUTES[name], codes) for name, codes in answers.attributes.items()}
    if answers.races is None:
        yield paragraph(
            "Without race: the file does not say which folder pictures are from.", "out"
        )
    else:
        factors["race"] = Factor.of(answers.races)

    def scored(names: Sequence[str]) -> list[Group]:
        return group_scores(
            answers.truth,
            answers.predicted,
            answers.task.num_classes,
            [factors[name] for name in names],
            answers.people,
        )

    header = ["macro F1", "accuracy", "people", "pictures"]
    single = [_group_row(group, name) for name in factors for group in scored([name])]
    yield table("One by one", ["", "group", *header], single, left=2)
    crossed = [list(ATTRIBUTES)] + ([list(factors)] if "race" in factors else [])
    for names in crossed:
        title = " × ".join(names)
        rows = [_group_row(group) for group in scored(names)]
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


def _curves(runs: Sequence[Run]) -> Iterator[str]:
    yield "<h2>Learning curves</h2>"
    if not any(run.history for run in runs):
        yield paragraph("Left out: there is no metrics.csv of a run.", "out")
        return
    yield paragraph(
        "One point per epoch; the dotted upright line is the epoch that was kept, the one with the "
        "best macro F1 on the validation people. Training loss that falls while validation loss "
        "rises: the network learns its training people by heart. Both still falling at the end: "
        "more epochs may help. (The two losses need not be on one scale: augmentation and softened "
        "targets make training harder.)"
    )
    for run in runs:
        if not run.history:
            yield paragraph(f"{run.task}: no metrics.csv in {run.folder}.", "out")
            continue
        yield f"<h3>{escape(run.task)}</h3>"
        best = max(run.history, key=_rank)["epoch"]
        losses = {"training": "train_loss", "validation": "val_loss"}
        scores = {
            name.replace("_f1", " F1"): name
            for name in run.history[0]
            if name == "accuracy" or name.endswith("_f1")
        }
        figures = [
            chart(caption, line_chart(f"{run.task}: {caption}", _series(run, names), "epoch", best))
            for caption, names in (("loss", losses), ("scores on the validation people", scores))
        ]
        yield f'<div class="charts">{"".join(figures)}</div>'


def _rank(line: Mapping[str, float]) -> tuple[float, float]:
    """What the best checkpoint follows: macro F1, NaN as the worst; of equals the later epoch."""
    score = line["macro_f1"]
    return (-math.inf if math.isnan(score) else score), line["epoch"]


def _series(run: Run, names: Mapping[str, str]) -> dict[str, list[tuple[float, float]]]:
    return {
        shown: [(line["epoch"], line[name]) for line in run.history if name in line]
        for shown, name in names.items()
    }


def _mistakes(report: Report) -> Iterator[str]:
    yield "<h2>The worst mistakes</h2>"
    if report.mistakes is None:
        yield paragraph(
            "Left out: a prediction file does not say where its pictures lie. maskcls-evaluate RUN "
            "RUN --report shows those of the validation people.",
            "out",
        )
        return
    wrong = int(np.count_nonzero(report.answers.truth != report.answers.predicted))
    yield paragraph(
        f"{len(report.mistakes)} of {wrong} wrong answers: the surest first. Below each stand "
        "the truth → the answer, with the probabilities that they were given. Look for wrong "
        "labels as well: a network that is very sure is sometimes right."
    )
    if any(mistake.views for mistake in report.mistakes):
        yield paragraph(
            "The second picture shows where the network looked: what is bright raised the score of "
            "its wrong answer most (Grad-CAM, Selvaraju et al. 2017). It is as coarse as the "
            "network's last feature map: a hint, not a proof."
        )
    figures = "".join(map(_mistake, report.mistakes))
    yield f'<div class="mistakes">{figures}</div>'


def _mistake(mistake: Mistake) -> str:
    pictures = []
    for place, view in enumerate(mistake.views):
        if place == 0:
            pictures.append(picture(view.pixels, f"face, truly {mistake.truth}"))
        pictures.append(picture(overlay(view.pixels, view.heat), f"where {view.task} looked"))
    pair = f'<div class="pair">{"".join(pictures)}</div>' if pictures else ""
    networks = ", ".join(view.task for view in mistake.views)
    return (
        f"<figure>{pair}<figcaption>{escape(mistake.truth)} ({mistake.truth_probability:.1%}) → "
        f"<strong>{escape(mistake.predicted)}</strong> ({mistake.predicted_probability:.1%})"
        f"<br>{escape(mistake.name)}{f'<br>wrong: {escape(networks)}' if networks else ''}"
        "</figcaption></figure>"
    )


def overlay(pixels: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """A picture, uint8 (H, W, 3), in grey under a heat map (H, W) from 0 to 1 → uint8 (H, W, 3).

    The colours grow lighter with the heat, so they can be read without colour vision.
    """
    from matplotlib import colormaps

    grey = pixels.astype(np.float32).mean(axis=2, keepdims=True) / 255
    colours = colormaps["inferno"](heat)[..., :3]
    mixed = 0.45 * grey + 0.55 * colours
    blended: np.ndarray = (mixed * 255).round().clip(0, 255).astype(np.uint8)
    return blended


def _configs(runs: Sequence[Run]) -> Iterator[str]:
    yield "<h2>Config</h2>"
    if not runs:
        yield paragraph("Left out: a prediction file does not hold it.", "out")
    for run in runs:
        rows = [
            row([name], [f"<td>{escape(_value(value))}</td>"]) for name, value in run.config.items()
        ]
        inner = table(f"Config of {run.task}", ["setting", "value"], rows, "config", left=2)
        summary = f"{escape(run.task)}: {len(rows)} settings"
        yield f"<details><summary>{summary}</summary>{inner}</details>"


def _value(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return "–" if value is None else str(value)
