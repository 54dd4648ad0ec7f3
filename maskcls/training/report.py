"""`report.html` of a training, from its best network and the people who validated it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Subset

from maskcls.classifier import BEST, TorchClassifier
from maskcls.config import TrainConfig
from maskcls.data.augmentation import BaseAugmentation
from maskcls.data.datasets import Item, MaskBaseDataset
from maskcls.data.loaders import Batch
from maskcls.devices import Precision
from maskcls.evaluation.answers import Answers, beliefs_of
from maskcls.evaluation.caveats import caveats
from maskcls.evaluation.mistakes import describe, worst
from maskcls.evaluation.report import (
    REPORT,
    Report,
    Run,
    read_history,
    write_report,
)
from maskcls.labels import softmax
from maskcls.provenance import fingerprint


# A network is made with random weights, and a loader draws a seed.
@torch.random.fork_rng(devices=())
def report_run(
    folder: Path,
    config: TrainConfig,
    val_loader: DataLoader[Batch],
    device: torch.device,
    precision: Precision,
) -> None:
    """Writes the report of a run folder. `val_loader`: the pictures that validated.

    Weights, metrics and the state of random numbers stay as they are.

    Raises:
        CheckpointError: the best checkpoint cannot be read.
        OSError: the file cannot be written.
    """
    pictures: Subset[Item] = val_loader.dataset  # type: ignore[assignment]
    dataset: MaskBaseDataset = pictures.dataset  # type: ignore[assignment]
    task, rows = dataset.task, np.asarray(pictures.indices)
    engine = TorchClassifier([folder / BEST], device, complete=False)
    network = engine.network(0)
    plain = BaseAugmentation(dataset.spec)
    logits = []
    for pixels, _, indices in val_loader:
        images = plain(pixels.to(device), indices.tolist())
        # In the run's precision and batches: without a calibration, metrics.csv has the same.
        with torch.inference_mode(), precision.autocast():
            images = images.contiguous(memory_format=torch.channels_last)
            logits.append(network(images).cpu().numpy())
    probabilities = softmax(np.concatenate(logits))
    truth = dataset.labels[rows]
    people = [dataset.people[row] for row in rows]
    seen = engine.trained_on or frozenset()
    digests = (dataset.digests[str(dataset.paths[row])] for row in rows)
    known = sum(fingerprint(digest) in seen for digest in digests)
    chosen = worst(probabilities, truth)
    paths = [dataset.paths[row] for row in rows[chosen]]
    mistakes = describe(
        task,
        [f"{path.parent.name}/{path.name}" for path in paths],
        truth[chosen],
        probabilities[chosen],
        [engine.viewer(0, dataset.__getitems__(rows[chosen].tolist())[0].numpy())],
    )
    answers = Answers(
        task,
        truth,
        probabilities.argmax(axis=1),
        {name: codes[rows] for name, codes in dataset.attributes.items()},
        people=people,
        races=[dataset.races[row] for row in rows],
        beliefs=beliefs_of(task, probabilities, truth),
    )
    history = read_history(folder / "metrics.csv")
    run = Run(task.name, config.model, str(folder), config.to_dict(), history)
    report = Report(
        f"Training {task.name}/{folder.name}",
        answers,
        [run],
        mistakes=mistakes,
        notes=[
            "Scored is the best network on the people who validated the training. They chose the "
            "epoch, so strangers are scored a little lower.",
            *caveats(engine, people, known),
        ],
    )
    write_report(report, folder / REPORT)
