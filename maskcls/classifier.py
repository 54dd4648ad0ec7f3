"""Trained networks as one classifier, on PyTorch; and which files in a folder those are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from maskcls.checkpoints import find_checkpoint
from maskcls.errors import CheckpointError
from maskcls.evaluation.gradcam import grad_cam
from maskcls.evaluation.mistakes import Viewer
from maskcls.folds import is_group
from maskcls.labels import BRANCHES, TASKS, combine, require_all_attributes, softmax
from maskcls.manifest import ENSEMBLE, is_greedy, networks_within
from maskcls.models import Answer, Ensemble, channels_last, open_trained
from maskcls.preprocessing import PreprocessSpec
from maskcls.provenance import ModelFile, seen_by_all

BEST = "best.pt"
COMPLETE = (BRANCHES, ("multi",), ("mask", "gender", "age"))
"""Sets of tasks that answer all attributes, those in fewest networks after the branches."""


class TorchClassifier:
    """Checkpoints that together answer mask, gender and age; see `maskcls.runtime.Engine`.

    `complete`: False takes any networks, which `logits` then asks one by one. `calibrated`: False
    takes their answers as they were before `--calibration` changed them; members of an ensemble
    keep theirs.

    Raises:
        CheckpointError: one that cannot be read, an attribute that none answers, or two do.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        device: torch.device,
        *,
        complete: bool = True,
        calibrated: bool = True,
    ) -> None:
        self._device = device
        self.provider = device.type
        self.lanes = 1
        networks = [open_trained(path) for path in paths]
        manifests = [network.manifest for network in networks]
        self._networks = [
            Answer(
                channels_last(network.model),
                network.manifest if calibrated else replace(network.manifest, calibration=None),
            )
            .to(device)
            .eval()
            for network in networks
        ]
        self._tasks = [manifest.get_task() for manifest in manifests]
        self.tasks = tuple(task.name for task in self._tasks)
        self.calibrated: tuple[str, ...] = tuple(  # tasks whose network, or a member of it, is
            manifest.task
            for manifest in manifests
            if any(one.calibration is not None for one in networks_within(manifest))
            and (calibrated or manifest.model == ENSEMBLE)
        )
        self.greedy: tuple[str, ...] = tuple(  # tasks whose network has a greedy soup in it
            manifest.task for manifest in manifests if is_greedy(manifest)
        )
        if complete:
            require_all_attributes(self._tasks, paths)
        self.specs: tuple[PreprocessSpec, ...] = tuple(m.preprocess for m in manifests)
        self.models = tuple(
            ModelFile(network.manifest.task, str(network.source), network.sha256)
            for network in networks
        )
        self.trained_on = seen_by_all(network.seen for network in networks)
        self._norms = [
            tuple(
                torch.tensor(values, device=device).view(1, 3, 1, 1) * 255
                for values in (spec.mean, spec.std)
            )
            for spec in self.specs
        ]

    def network(self, index: int) -> nn.Module:
        """One of the networks: normalised float32 (N, 3, H, W) → logits; see `Answer`."""
        return self._networks[index]

    @torch.inference_mode()
    def logits(self, index: int, pixels: np.ndarray) -> np.ndarray:
        """What one of the networks answers: uint8 (N, H, W, 3) → float32 (N, its classes)."""
        answer: Tensor = self._networks[index](self._normalised(index, pixels))
        return answer.cpu().numpy()

    def grad_cam(self, index: int, pixels: np.ndarray, classes: np.ndarray) -> np.ndarray:
        """Where one of the networks looked for these of its classes (N,): uint8 (N, H, W, 3) →
        float32 (N, H, W), 0..1; see `maskcls.evaluation.gradcam`. Mirror images have no part. Of an
        ensemble it is the mean of its members' maps."""
        heat = np.zeros(pixels.shape[:3], dtype=np.float32)
        models = _plain_models(self._networks[index])
        for start in range(0, len(pixels), 8):  # gradients take more memory than answers
            part = slice(start, start + 8)
            images = self._normalised(index, pixels[part])
            chosen = torch.from_numpy(classes[part]).to(self._device)
            maps = [grad_cam(model, images, chosen) for model in models]
            heat[part] = torch.stack(maps).mean(dim=0).cpu().numpy()
        return heat

    def viewer(self, index: int, pixels: np.ndarray) -> Viewer:
        """One of the networks before the pictures of mistakes: uint8 (M, H, W, 3)."""

        def heats(places: np.ndarray, classes: np.ndarray) -> np.ndarray:
            return self.grad_cam(index, pixels[places], classes)

        return Viewer(self.tasks[index], pixels, heats)

    def _normalised(self, index: int, pixels: np.ndarray) -> Tensor:
        mean, std = self._norms[index]
        images = torch.from_numpy(pixels).to(self._device).permute(0, 3, 1, 2)
        return (images.to(torch.float32) - mean) / std

    def predict(self, pixels: Sequence[np.ndarray]) -> np.ndarray:
        """uint8 (N, H, W, 3) per network → probabilities of the 18 classes, float32 (N, 18)."""
        return combine(
            {
                task.name: softmax(self.logits(index, batch))
                for index, (task, batch) in enumerate(zip(self._tasks, pixels, strict=True))
            }
        )


def _plain_models(answer: nn.Module) -> list[nn.Module]:
    """The networks of it that see the picture itself and no mirror image: one, or the members of an
    ensemble."""
    if not isinstance(answer, Answer):
        return [answer]
    members = answer.model.members if isinstance(answer.model, Ensemble) else [answer.model]
    return [model for member in members for model in _plain_models(member)]


def find_checkpoints(paths: Sequence[Path]) -> list[Path]:
    """The checkpoint files that `--model` names.

    Each path is a checkpoint, a run folder, or a MODEL_DIR, of which the newest best checkpoints
    are taken: of both branches, or else of the tasks that answer all attributes in fewest networks.

    Raises:
        CheckpointError: no such file, a group of folds, or no runs that together answer all
            attributes.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_file():
            found.append(path)
        elif find_checkpoint(path / BEST) is not None:
            found.append(path / BEST)
        elif is_group(path):
            raise CheckpointError(
                f"{path}: is a group of folds; make one network of them with maskcls-combine {path}"
            )
        elif path.is_dir():
            found += _newest(path)
        else:
            raise CheckpointError(f"no such checkpoint or folder: {path}")
    return found


def _newest(model_dir: Path) -> list[Path]:
    """
    Raises:
        CheckpointError: no set of runs that answers all attributes.
    """
    newest = {task: run / BEST for task in TASKS if (run := _newest_run(model_dir, task))}
    for tasks in COMPLETE:
        if all(task in newest for task in tasks):
            return [newest[task] for task in tasks]
    have = ", ".join(newest) or "none"
    raise CheckpointError(
        f"{model_dir}: needs runs of {' and '.join(BRANCHES)} to label pictures, has {have}; "
        f"train them with maskcls-train --task all --model-dir {model_dir}"
    )


def _newest_run(model_dir: Path, task: str) -> Path | None:
    """The run folder of a task whose best checkpoint is the newest."""
    runs = {run: find_checkpoint(run / BEST) for run in model_dir.glob(f"{task}/*/")}
    times = {run: file.stat().st_mtime_ns for run, file in runs.items() if file is not None}
    return max(sorted(times), key=times.__getitem__, default=None)


def lacking_tasks(model_dir: Path, task: str) -> list[str]:
    """The tasks still to be trained in MODEL_DIR until, with `task`, all attributes are answered;
    none where a set is complete."""
    sets = [[each for each in tasks if not _newest_run(model_dir, each)] for tasks in COMPLETE]
    if [] in sets:
        return []
    return next(lacks for tasks, lacks in zip(COMPLETE, sets, strict=True) if task in tasks)
