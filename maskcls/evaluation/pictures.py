"""Pictures of a score, drawn without a display: matplotlib's objects, never pyplot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from maskcls.files import replacing

DPI = 120


def confusion_figure(matrix: np.ndarray, class_names: Sequence[str], title: str) -> Figure:
    """A confusion matrix: counts (C, C), rows truth, columns prediction, or (C, C+1) where the last
    column counts pictures without an answer.

    Colour is the share of the row, so that rare classes are as readable as frequent ones; the
    number in a cell is its count, and cells without pictures stay blank.
    """
    matrix = np.asarray(matrix)
    rows, columns = matrix.shape
    if rows != len(class_names) or columns not in (rows, rows + 1):
        raise ValueError(f"matrix of shape {matrix.shape} for {len(class_names)} class names")
    column_names = [*class_names, "no answer"][:columns]
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)

    # Inches: room for the names, and cells that hold a count of five digits.
    figure = Figure(
        figsize=(3.2 + 0.46 * columns, 2.6 + 0.40 * rows), dpi=DPI, layout="constrained"
    )
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    figure.colorbar(image, ax=axes, label="share of the true class", fraction=0.05)
    axes.set_title(title)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.set_xticks(range(columns), column_names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(rows), class_names)
    for row, column in np.argwhere(matrix):
        axes.text(
            column,
            row,
            f"{int(matrix[row, column])}",
            ha="center",
            va="center",
            fontsize=8,
            color="white" if shares[row, column] > 0.72 else "black",
        )
    return figure


def plot_confusion(matrix: np.ndarray, class_names: Sequence[str], path: Path, title: str) -> None:
    """`confusion_figure` as a PNG file, whatever the suffix of `path`; replaces an older one."""
    figure = confusion_figure(matrix, class_names, title)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")
