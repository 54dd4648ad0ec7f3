"""`report.html`: what a run or an evaluation came to, on one page that needs no network."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from maskcls.evaluation.answers import Answers
from maskcls.evaluation.charts import line_chart
from maskcls.evaluation.mistakes import Mistake
from maskcls.evaluation.page import (
    chart,
    facts,
    format_time,
    page,
    paragraph,
    picture,
    privacy,
    row,
    table,
    write_page,
)
from maskcls.evaluation.sections import answer_sections

REPORT = "report.html"
"""Its name in a run folder."""


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
    write_page(path, render(report))


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


def render(report: Report) -> str:
    """The page as text."""
    parts = [
        _head(report),
        ["<main>"],
        answer_sections(report.answers),
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
            "Made": format_time(report.made),
            **{f"Network, {run.task}": f"{run.model}, {run.folder}" for run in report.runs},
            **report.facts,
            "Scored on": f"{people}{len(answers.truth)} pictures",
        }
    )
    if report.mistakes:
        yield privacy(any(mistake.views for mistake in report.mistakes), "maskcls-evaluate")
    for note in report.notes:
        yield paragraph(note)
    yield "</header>"


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
