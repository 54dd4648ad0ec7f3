"""Pictures of a training, for its trackers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def grid_image(
    pixels: np.ndarray,
    labels: Sequence[int],
    predictions: Sequence[int],
    class_names: Sequence[str],
    limit: int = 16,
) -> Figure:
    """A grid of pictures, each under its true and its predicted class; mistakes in red.

    pixels: uint8 (N, H, W, 3), 0–255. The first `limit` are shown.
    """
    count = min(limit, len(pixels))
    columns = max(1, math.ceil(math.sqrt(count)))
    rows = max(1, math.ceil(count / columns))
    figure = Figure(figsize=(2.4 * columns, 3.2 * rows), layout="constrained")
    axes = np.asarray(figure.subplots(rows, columns, squeeze=False)).ravel()
    for axis in axes:
        axis.axis("off")
    for axis, image, label, prediction in zip(
        axes, pixels[:count], labels, predictions, strict=False
    ):
        axis.imshow(image)
        axis.set_title(
            f"{class_names[label]}\n→ {class_names[prediction]}",
            fontsize=9,
            color="black" if label == prediction else "firebrick",
        )
    return figure


def to_pixels(figure: Figure) -> np.ndarray:
    """A figure as it looks: uint8 (H, W, 3)."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    rgba = np.asarray(canvas.buffer_rgba())  # type: ignore[no-untyped-call]
    return rgba[..., :3].copy()
