"""What the checkpoints of a training hold besides states: its manifest, and who and what trains."""

from __future__ import annotations

import dataclasses
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from maskcls.config import TrainConfig
from maskcls.data.splits import split_hash
from maskcls.manifest import Manifest
from maskcls.models import model_args
from maskcls.provenance import versions
from maskcls.training.calibration import ValidationCalibration
from maskcls.training.data import TrainingData
from maskcls.training.objective import Objective

VERSIONS = ("maskcls", "torch", "torchvision", "pytorch-ignite", "efficientnet_pytorch")


def checkpoint_extra(
    config: TrainConfig,
    data: TrainingData,
    objective: Objective,
    seen: frozenset[int],
    calibration: ValidationCalibration | None,
) -> Callable[[Mapping[str, float]], dict[str, Any]]:
    """The metrics of an epoch → what its checkpoints hold. `seen`: by the network at the start."""
    spec = data.dataset.spec
    manifest = Manifest(
        task=config.task,
        class_names=objective.task.class_names,
        preprocess=spec,
        model=config.model,
        model_args=model_args(config.model, spec.size, objective.steps, sum(objective.beside)),
        config=config.to_dict(),
        split_hash=split_hash(data.table),
        fixes=tuple(dataclasses.asdict(fix) for fix in data.fixes),
        git_revision=_git_revision(),
        versions=versions(VERSIONS),
    )
    constant: dict[str, Any] = {
        "seen": torch.tensor(sorted(seen | data.fingerprints()), dtype=torch.int64),
        "pictures": data.pictures_digest(),
    }
    if objective.class_weights is not None:
        constant["class_weights"] = objective.class_weights

    def extra(metrics: Mapping[str, float]) -> dict[str, Any]:
        found = None if calibration is None else calibration.found
        own = dataclasses.replace(manifest, metrics=metrics, calibration=found)
        return {"manifest": own.to_json(), **constant}

    return extra


def _git_revision() -> str:
    """Of the clone that this file lies in; empty where it is installed from a wheel."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
