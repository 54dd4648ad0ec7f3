"""The calibration of a run: fitted to the answers of each evaluation, kept in its checkpoints."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ignite.engine import Engine
from torch import Tensor

from maskcls.evaluation.calibration import (
    balancing_bias,
    calibrated,
    fit_shift,
    fit_temperature,
    quality,
)
from maskcls.manifest import Calibration, Manifest

METRICS = (
    "temperature",
    "shift",
    "nll",
    "ece",
    "calibrated_macro_f1",
    "calibrated_nll",
    "calibrated_ece",
)
"""What a calibrated run measures besides, after each epoch."""


@dataclass
class ValidationCalibration:
    """Handlers that collect the answers of an evaluation and fit a calibration to them.

    What early stopping and the best checkpoint follow stays the score of the answers as they are:
    one that is fitted to the same people would rise by chance. It takes no random numbers from
    torch or numpy that others use.
    """

    kind: str  # temperature or macro_f1
    counts: np.ndarray  # (C,) training pictures per class
    people: Sequence[str]  # whose picture each of the data set is
    found: Calibration | None = None  # of the last evaluation; None where an answer is no number
    _outputs: list[Mapping[str, Tensor]] = field(default_factory=list)

    def collect(self, engine: Engine) -> None:
        """At the end of a step."""
        output: dict[str, Tensor] = engine.state.output  # type: ignore[assignment]
        if engine.state.iteration == 1:
            self._outputs = []
        self._outputs.append({name: value.cpu() for name, value in output.items()})

    def fit(self, engine: Engine) -> None:
        """At the end of an evaluation; adds what came of it to its metrics."""
        logits, labels, indices = (
            np.concatenate([output[name].numpy() for output in self._outputs])
            for name in ("logits", "target", "indices")
        )
        people = [self.people[index] for index in indices.tolist()]
        self.found, metrics = calibrate(self.kind, logits, labels, people, self.counts)
        engine.state.metrics.update(metrics)


def calibrate(
    kind: str,
    logits: np.ndarray,
    labels: np.ndarray,
    people: Sequence[str],
    counts: np.ndarray,
) -> tuple[Calibration | None, dict[str, float]]:
    """Answers of validation people → a calibration, and what it is and does: `temperature`,
    `shift`, `nll`, `ece`, and `calibrated_macro_f1`, `calibrated_nll`, `calibrated_ece`.

    kind: `temperature`, or `macro_f1`, which adds the best share of `balancing_bias`. logits (N,
    C), of which one that is no finite number makes all of the above nan; labels (N,), `people` (N),
    counts (C,) training pictures per class.
    """
    if not np.isfinite(logits).all():
        return None, dict.fromkeys(METRICS, math.nan)
    temperature = fit_temperature(logits, labels)
    bias = balancing_bias(counts)
    shift = 0.0 if kind == "temperature" else fit_shift(logits / temperature, labels, people, bias)
    found = Calibration(temperature, tuple((shift * bias).tolist()))
    before, after = quality(logits, labels), quality(calibrated(logits, found), labels)
    values = (temperature, shift, before.nll, before.ece, after.macro_f1, after.nll, after.ece)
    return found, dict(zip(METRICS, values, strict=True))


def describe(manifest: Manifest) -> str:
    """What a run says at its end of the calibration in its best checkpoint."""
    if manifest.calibration is None:
        return "no calibration: some of the answers to validation pictures are no numbers"
    found: Mapping[str, Any] = manifest.metrics
    return (
        f"calibration, fitted on the validation people and measured on them: temperature "
        f"{found['temperature']:.2f}, shift {found['shift']:.1f}; "
        f"macro F1 {found['macro_f1']:.4f} → {found['calibrated_macro_f1']:.4f}, "
        f"log loss {found['nll']:.4f} → {found['calibrated_nll']:.4f}, "
        f"calibration error {found['ece']:.4f} → {found['calibrated_ece']:.4f}"
    )
