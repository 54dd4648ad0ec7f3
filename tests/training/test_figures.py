"""The grid of pictures in TensorBoard."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb

from maskcls.training import grid_image

NAMES = ("young", "old")


@pytest.mark.parametrize(
    ("count", "shown", "panels"), [(1, 1, 1), (5, 5, 6), (16, 16, 16), (20, 16, 16)]
)
def test_a_grid_shows_up_to_sixteen(count: int, shown: int, panels: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 8, 6, 3), dtype=np.uint8)
    labels = [index % 2 for index in range(count)]
    predictions = [index % 3 % 2 for index in range(count)]
    figure = grid_image(pixels, labels, predictions, NAMES)
    assert len(figure.axes) == panels
    for index, axis in enumerate(figure.axes[:shown]):
        [image] = axis.images
        np.testing.assert_array_equal(image.get_array(), pixels[index])
        label, prediction = labels[index], predictions[index]
        assert axis.get_title() == f"{NAMES[label]}\n→ {NAMES[prediction]}"
        assert (to_rgb(axis.title.get_color()) == (0, 0, 0)) == (label == prediction)
    assert all(not axis.images for axis in figure.axes[shown:])
    FigureCanvasAgg(figure).draw()  # with the fonts that there are, without a warning


def test_another_limit() -> None:
    pixels = np.zeros((9, 4, 4, 3), dtype=np.uint8)
    figure = grid_image(pixels, [0] * 9, [1] * 9, NAMES, limit=2)
    assert sum(bool(axis.images) for axis in figure.axes) == 2
