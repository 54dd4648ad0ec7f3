"""The worst mistakes: wrong answers that a network was most sure of, and where it looked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from maskcls.labels import TASKS, Task

LIMIT = 24
"""Of the mistakes that a report shows: it costs seconds, and nobody looks at more."""


@dataclass(frozen=True, eq=False)
class View:
    """What a network that was wrong saw."""

    task: str
    pixels: np.ndarray  # uint8 (H, W, 3)
    heat: np.ndarray  # float32 (H, W), 0..1: where it looked for its answer


@dataclass(frozen=True, eq=False)
class Viewer:
    """A network that answered the pictures (M), or networks that answered some each."""

    task: str
    pixels: np.ndarray  # uint8 (M, H, W, 3)
    heats: Callable[[np.ndarray, np.ndarray], np.ndarray]
    """Where it looked: which of the pictures (K,), and for which classes of its task (K,) → float32
    (K, H, W), 0..1."""


@dataclass(frozen=True, eq=False)
class Mistake:
    """A wrong answer."""

    name: str  # of the picture: its folder and file
    truth: str
    predicted: str
    truth_probability: float
    predicted_probability: float
    views: tuple[View, ...] = ()  # of the networks that were wrong; none without pictures


def worst(probabilities: np.ndarray, truth: np.ndarray, limit: int = LIMIT) -> np.ndarray:
    """The pictures whose wrong answer has the highest probability, that first: indices (M,).

    Class probabilities (N, C), true classes (N,).
    """
    predicted = probabilities.argmax(axis=1)
    wrong = np.flatnonzero(predicted != truth)
    sure = probabilities[wrong, predicted[wrong]]
    return wrong[np.argsort(-sure, kind="stable")][:limit]


def describe(
    task: Task,
    names: Sequence[str],
    truth: np.ndarray,
    probabilities: np.ndarray,
    viewers: Sequence[Viewer] = (),
) -> list[Mistake]:
    """Mistakes from the probabilities (M, C) of their pictures, true classes (M,) and names (M).

    With `viewers`, which together answer `task`, they have views.
    """
    predicted = probabilities.argmax(axis=1)
    views: list[list[View]] = [[] for _ in names]
    for viewer in viewers:
        own, answered = (
            TASKS[viewer.task].encode(**task.decode(labels)) for labels in (truth, predicted)
        )
        wrong = np.flatnonzero(own != answered)
        heats = viewer.heats(wrong, answered[wrong])
        for place, heat in zip(wrong, heats, strict=True):
            views[place].append(View(viewer.task, viewer.pixels[place], heat))
    return [
        Mistake(
            name,
            task.class_names[truth[place]],
            task.class_names[predicted[place]],
            float(probabilities[place, truth[place]]),
            float(probabilities[place, predicted[place]]),
            tuple(views[place]),
        )
        for place, name in enumerate(names)
    ]
