"""What a search leaves for people: `best.yaml`, `trials.csv` and `search.html`."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from maskcls.evaluation.charts import line_chart
from maskcls.evaluation.page import chart, number, page, paragraph, row, share, table
from maskcls.files import write_atomic, write_rows
from maskcls.search.folder import BEST, PAGE, TRIALS, StudyFolder, settings_yaml

SHOWN = 20
"""Trials in the page's table; `trials.csv` has all."""


@dataclass(frozen=True)
class TrialResult:
    """A trial that has ended."""

    number: int  # from 1
    run: Path
    state: str  # complete, pruned or failed
    values: Mapping[str, Any]  # of the space's keys
    scores: Sequence[float]  # macro F1 on the validation people after each epoch
    reason: str  # why it failed

    @property
    def score(self) -> float | None:
        """That of its best epoch; None without any."""
        return max(self.scores, default=None)


def best_of(trials: Sequence[TrialResult]) -> TrialResult | None:
    """The trial with the best score among those that were trained to the end, of equals the first;
    None if there is none."""
    complete = [trial for trial in trials if trial.state == "complete"]
    return max(complete, key=lambda trial: max(trial.scores), default=None)


def flattery(trials: Sequence[TrialResult]) -> str:
    """How much the best score is to be believed."""
    return (
        f"the best of {len(trials)} scores on the same validation people flatters: some of it is "
        "luck with these people. Train it with other seeds or folds, and score it on people of no "
        "training"
    )


def write_results(
    folder: StudyFolder, trials: Sequence[TrialResult], importances: Mapping[str, float]
) -> None:
    """Writes the three files anew; `best.yaml` only where there is a best trial.

    Raises:
        OSError: one cannot be written.
    """
    text = io.StringIO()
    write_rows(text, _csv_rows(folder, trials))
    write_atomic(folder.path / TRIALS, text.getvalue().encode())
    best = best_of(trials)
    if best is not None:
        trial = folder.trial_config(best.number, best.values)
        config = replace(trial, model_dir=folder.config.model_dir)  # not among the trials
        lines = [
            f"# Trial {best.number} of {len(trials)}: macro F1 {best.score:.4f}.",
            f"# Careful: {flattery(trials)}.",
        ]
        content = "\n".join([*lines, settings_yaml(config)])
        write_atomic(folder.path / BEST, content.encode())
    title = f"Search: {folder.config.task}"
    body = _body(title, folder, trials, best, importances)
    write_atomic(folder.path / PAGE, page(title, body).encode())


def _csv_rows(folder: StudyFolder, trials: Sequence[TrialResult]) -> Iterator[Sequence[object]]:
    yield "trial", "state", "macro_f1", "epochs", *folder.space, "reason"
    for trial in trials:
        score = "" if trial.score is None else trial.score
        values = [text_of(trial.values[key]) for key in folder.space]
        yield trial.number, trial.state, score, len(trial.scores), *values, trial.reason


def _body(
    title: str,
    folder: StudyFolder,
    trials: Sequence[TrialResult],
    best: TrialResult | None,
    importances: Mapping[str, float],
) -> Iterator[str]:
    yield f"<h1>{title}</h1>"
    counts = {state: sum(trial.state == state for trial in trials) for state in _STATES}
    shown = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    yield paragraph(f"{len(trials)} trials: {shown}." if trials else "No trial has ended yet.")
    if best is None:
        return
    yield paragraph(f"Trial {best.number} is the best, with a macro F1 of {best.score:.4f}.")
    yield paragraph(f"Careful: {flattery(trials)}.", "warning")
    yield "<h2>Scores</h2>"
    scored = [(trial.number, trial.score) for trial in trials if trial.score is not None]
    highest = [
        (trial.number, leader.score)
        for count, trial in enumerate(trials, 1)
        if (leader := best_of(trials[:count])) is not None and leader.score is not None
    ]
    history = line_chart(
        "Macro F1 by trial", {"trial": scored, "best so far": highest}, "trial", best.number
    )
    yield chart("Macro F1 of each trial's best epoch, on the validation people", history)
    if importances:
        yield "<h2>What mattered</h2>"
        yield paragraph(
            "How much each setting tells the best trials from the others that were trained to the "
            "end (PED-ANOVA); the sum is 1. It says nothing of values that were not tried, and "
            "little after few trials."
        )
        rows = [row([key], [share(value)]) for key, value in importances.items()]
        yield table("Importance of the settings", ("setting", "importance"), rows)
    yield "<h2>Trials</h2>"
    ranked = sorted(trials, key=lambda trial: (trial.state != "complete", -(trial.score or 0)))
    rows = [
        row(
            [str(trial.number), trial.state],
            [
                number("–" if trial.score is None else f"{trial.score:.4f}"),
                number(len(trial.scores)),
                *(number(short(trial.values[key])) for key in folder.space),
            ],
        )
        for trial in ranked[:SHOWN]
    ]
    header = ("trial", "", "macro F1", "epochs", *folder.space)
    caption = "All trials" if len(ranked) <= SHOWN else f"{SHOWN} of {len(ranked)} trials"
    yield table(f"{caption}, the best first", header, rows, left=2)
    failed = [trial for trial in trials if trial.state == "failed"]
    if failed:
        yield "<h2>Failed</h2>"
        for trial in failed:
            yield paragraph(f"Trial {trial.number}: {trial.reason}")


_STATES = ("complete", "pruned", "failed")


def text_of(value: Any) -> str:
    """A setting's value with all its digits; a pair as options spell it."""
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def short(value: Any) -> str:
    """The same for people."""
    return f"{value:.4g}" if isinstance(value, float) else text_of(value)
