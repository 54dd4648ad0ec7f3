"""Run folders with networks whose answers vary, as after a training, made in a second."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from maskcls.checkpoints import save_checkpoint
from maskcls.config import resolve
from maskcls.data.profiles import read_profiles
from maskcls.data.splits import split_hash, split_people, split_table
from maskcls.data.targets import auxiliary_sizes, steps_per_group
from maskcls.images import content_digest, read_image
from maskcls.labels import TASKS
from maskcls.manifest import Calibration, Manifest
from maskcls.models import create_model, model_args

MakeRun = Callable[..., Path]


def perturb(model: nn.Module, images: torch.Tensor) -> nn.Module:
    """Statistics of real pictures, and a classifier whose answers vary: with the statistics that a
    deep network is made with, a picture's signal is gone before the last layer."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the mean over what it sees
            nn.init.uniform_(module.weight, 0.8, 1.2)
            nn.init.uniform_(module.bias, -0.2, 0.2)
    model.train()
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    with torch.no_grad():
        model(images)
        model.eval()
        last.training = True  # all that it learns, where it answers sums of that
        logits = model(images)
        scale = 0.4 / logits.std(dim=0).mean()
        last.weight *= scale
        last.bias.copy_(last.bias * scale - logits.mean(dim=0) * scale)
        again = 0.4 / model.eval()(images).std(dim=0).mean()  # sums of steps vary less than those
        last.weight *= again
        last.bias *= again
    return model.eval()


@pytest.fixture(scope="session")
def build_run() -> MakeRun:
    """`build_run(runs, data, "age", "resnet18", height=48)` → a run folder in `runs`, with a best
    checkpoint."""

    def build(
        runs: Path,
        data: Path,
        task: str,
        model: str = "resnet18",
        *,
        trained: bool = True,
        calibration: Calibration | None = None,
        **values: object,
    ) -> Path:
        flags = {"data_dir": (str(data),), "model": model, "weights": "none", "height": 48}
        config = resolve(task, "scratch", flags=flags | {"width": 40, "fold": 0, "folds": 3})
        config = resolve(task, "scratch", flags=config.to_dict() | values)
        profiles = read_profiles(data)
        people = split_people(profiles, fold=0, folds=3, seed=config.seed)
        digests = {
            str(picture.path): content_digest(picture.path.read_bytes())
            for profile in profiles
            for picture in profile.pictures
        }
        table = split_table(profiles, people, digests)
        spec = config.preprocess()
        torch.manual_seed(3)
        steps = steps_per_group() if task == "age" else None  # as training makes it
        beside = sum(auxiliary_sizes(TASKS[task]))
        network = create_model(model, TASKS[task].num_classes, spec.size, steps, beside)
        if trained:
            pixels = [
                spec.resize(read_image(picture.path))
                for profile in profiles
                for picture in profile.pictures[-2:]
            ]
            perturb(network, torch.from_numpy(spec.normalise(np.stack(pixels))))
        manifest = Manifest(
            task,
            TASKS[task].class_names,
            spec,
            model,
            model_args(model, spec.size, steps, beside),
            config=config.to_dict(),
            split_hash=split_hash(table),
            calibration=calibration,
        )
        folder = runs / task / "exp"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "split.csv").write_text(table, "utf-8")
        content = {
            "manifest": manifest.to_json(),
            "model": network.state_dict(),
            "seen": torch.tensor([1, 2, len(task)]),
        }
        save_checkpoint(content, folder / "best.pt")
        return folder

    return build


@pytest.fixture
def make_run(tmp_path: Path, data_dir: Callable[..., Path], build_run: MakeRun) -> MakeRun:
    """`make_run("age", "resnet18", height=48)`: `build_run` in the test's own folder."""
    return partial(build_run, tmp_path / "runs", data_dir(12))
