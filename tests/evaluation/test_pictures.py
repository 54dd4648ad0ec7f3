"""The confusion matrix as a picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from maskcls.evaluation.pictures import confusion_figure, plot_confusion
from maskcls.labels import TASKS


@pytest.mark.parametrize("task", ["multi", "mask_gender", "age"])
def test_plot_confusion_writes_a_picture(tmp_path: Path, task: str) -> None:
    names = TASKS[task].class_names
    matrix = np.random.default_rng(0).integers(0, 500, (len(names), len(names)))
    path = tmp_path / "new" / "confusion.png"
    plot_confusion(matrix, names, path, "macro F1 0.5")
    plot_confusion(matrix, names, path, "macro F1 0.5")  # replaces
    with Image.open(path) as image:
        image.load()
        assert image.format == "PNG"
        assert all(300 <= side <= 1700 for side in image.size)
        assert len(image.convert("L").getcolors() or ()) > 10
    assert list(path.parent.iterdir()) == [path]


def test_counts_stand_in_the_cells_and_colour_is_the_share_of_the_row() -> None:
    figure = confusion_figure(np.array([[3, 1], [0, 0]]), ["a", "b"], "title")
    axes = figure.axes[0]
    assert [(text.get_position(), text.get_text()) for text in axes.texts] == [
        ((0, 0), "3"),
        ((1, 0), "1"),
    ]
    shares = axes.images[0].get_array()
    assert shares is not None
    assert shares.tolist() == [[0.75, 0.25], [0, 0]]  # a row without pictures is no 0/0
    assert axes.get_title() == "title"


def test_unanswered_pictures_have_a_column() -> None:
    figure = confusion_figure(np.array([[3, 1, 2], [0, 4, 0]]), ["a", "b"], "")
    labels = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert labels == ["a", "b", "no answer"]


@pytest.mark.parametrize("shape", [(3, 3), (2, 4), (2, 1)])
def test_names_must_fit_the_matrix(shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="2 class names"):
        confusion_figure(np.ones(shape, dtype=int), ["a", "b"], "")


def test_a_failing_write_leaves_the_old_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "confusion.png"
    path.write_bytes(b"old")

    def half(self: Figure, file: Path, **options: object) -> None:
        file.write_bytes(b"ha")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", half)
    with pytest.raises(OSError, match="No space left") as caught:
        plot_confusion(np.eye(2, dtype=int), ["a", "b"], path, "")
    assert caught.value.filename == str(path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
