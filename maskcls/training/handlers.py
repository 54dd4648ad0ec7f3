"""The one place where handlers attach to engines: what happens around the steps, in order."""

from __future__ import annotations

import csv
import io
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine, Events
from ignite.handlers import Checkpoint, EarlyStopping, EMAHandler, ProgressBar
from ignite.metrics import RunningAverage
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from maskcls.checkpoints import save_checkpoint
from maskcls.config import TrainConfig
from maskcls.data.datasets import Item
from maskcls.data.loaders import Batch, EpochBatches
from maskcls.evaluation.pictures import confusion_figure
from maskcls.files import write_atomic
from maskcls.labels import Task
from maskcls.training.calibration import ValidationCalibration
from maskcls.training.figures import grid_image
from maskcls.training.interruption import Interruption
from maskcls.training.processes import is_first
from maskcls.training.schedule import Schedule, get_lr
from maskcls.training.seeding import seed_step
from maskcls.training.trackers import Trackers

EMA_MOMENTUM = "ema_momentum"  # where Ignite's handler reads it from the engine's state
EpochEnded = Callable[[int, float], None]
"""Is told an epoch, from 1, and its macro F1 on the validation people."""
MISTAKES = 16  # shown in the trackers' grid


@dataclass
class History:
    """The rows of `metrics.csv`, which the first process writes. They hold no times, so equal
    trainings leave equal files."""

    path: Path
    rows: list[dict[str, float]] = field(default_factory=list)

    def add(self, row: dict[str, float]) -> None:
        self.rows.append(row)
        if not is_first():
            return
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(row), lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        write_atomic(self.path, text.getvalue().encode())

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.rows = [dict(row) for row in state["rows"]]


@dataclass
class EpochLoss:
    """The mean loss of an epoch's steps. It can be saved in the middle of an epoch, where Ignite's
    `Average` would start anew."""

    total: float = 0.0
    steps: int = 0

    @property
    def mean(self) -> float:
        return self.total / self.steps

    def state_dict(self) -> dict[str, float | int]:
        return {"total": self.total, "steps": self.steps}

    def load_state_dict(self, state: Mapping[str, float | int]) -> None:
        self.total, self.steps = float(state["total"]), int(state["steps"])


@dataclass
class CheckpointFolder:
    """Ignite's save handler: our files, with the manifest in them and the previous save kept. The
    first process writes them; the others remember that it did."""

    folder: Path
    extra: Callable[[], dict[str, Any]]  # what goes into the file besides the states

    def __call__(
        self,
        checkpoint: Mapping[str, Any],
        filename: str,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        if is_first():
            save_checkpoint({**checkpoint, **self.extra()}, self.folder / filename)

    def remove(self, filename: str) -> None:
        """Nothing: `save_checkpoint` keeps the file until the next one is whole."""


@dataclass
class Mistakes:
    """The first wrong pictures of an evaluation."""

    indices: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    predictions: list[int] = field(default_factory=list)

    def collect(self, engine: Engine) -> None:
        output: dict[str, Tensor] = engine.state.output  # type: ignore[assignment]
        if engine.state.iteration == 1:
            self.indices, self.labels, self.predictions = [], [], []
        predicted = output["logits"].argmax(dim=1).cpu()
        truth = output["target"].cpu()
        for row in (predicted != truth).nonzero().flatten().tolist():
            if len(self.indices) < MISTAKES:
                self.indices.append(int(output["indices"][row]))
                self.labels.append(int(truth[row]))
                self.predictions.append(int(predicted[row]))


def score(engine: Engine) -> float:
    """What early stopping and the best checkpoint follow: macro F1 on the validation people.

    A NaN would stay the best for ever; it counts as worse than any score.
    """
    value = float(engine.state.metrics["macro_f1"])
    return -math.inf if math.isnan(value) else value


def setup_handlers(
    trainer: Engine,
    evaluator: Engine,
    *,
    config: TrainConfig,
    task: Task,
    model: nn.Module,
    ema: EMAHandler | None,
    optimizer: torch.optim.Optimizer,
    schedule: Schedule,
    scaler: torch.amp.GradScaler,
    train_loader: DataLoader[Batch],
    val_loader: DataLoader[Batch],
    val_pictures: Subset[Item],
    folder: Path,
    trackers: Trackers,
    calibration: ValidationCalibration | None,
    extra: Callable[[Mapping[str, float]], dict[str, Any]],
    interruption: Interruption,
    epoch_ended: EpochEnded | None,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Attaches everything; returns the objects whose states make up `last.pt`, for resuming.

    `extra`: the epoch's metrics → what checkpoints hold besides states (the manifest).
    `interruption`: asked after each step and each epoch whether to save and end.
    `epoch_ended`: told each epoch's score when all else is done; may raise to end the training.
    """
    evaluated = model if ema is None else ema.ema_model
    batches: EpochBatches = train_loader.batch_sampler  # type: ignore[assignment]
    history = History(folder / "metrics.csv")
    epoch_loss = EpochLoss()
    mistakes = Mistakes()
    clock = {"epoch": 0.0, "images": 0.0}

    # --- around a step ---

    @trainer.on(Events.EPOCH_STARTED)
    def set_epoch(engine: Engine) -> None:
        batches.epoch = engine.state.epoch
        batches.start = engine.state.iteration % len(train_loader)
        if batches.start == 0:
            epoch_loss.total, epoch_loss.steps = 0.0, 0
        clock.update(epoch=time.perf_counter(), images=0.0)

    @trainer.on(Events.ITERATION_STARTED)
    def set_rate_and_seed(engine: Engine) -> None:
        seed_step(config.seed, engine.state.iteration)
        schedule.set_rate(engine.state.iteration)

    if ema is not None:
        ema.attach(trainer, name=EMA_MOMENTUM, warn_if_exists=False)

        @trainer.on(Events.ITERATION_STARTED)
        def set_momentum(engine: Engine) -> None:
            # Early on the average follows closely: it began at random weights.
            step = engine.state.iteration
            setattr(engine.state, EMA_MOMENTUM, max(1 - config.ema_decay, 4 / (4 + step)))

    RunningAverage(output_transform=lambda output: output["loss"]).attach(trainer, "loss")

    @trainer.on(Events.ITERATION_COMPLETED)
    def count(engine: Engine) -> None:
        output: dict[str, float] = engine.state.output  # type: ignore[assignment]
        epoch_loss.total += output["loss"]
        epoch_loss.steps += 1
        clock["images"] += output["images"]
        seconds = time.perf_counter() - clock["epoch"]
        engine.state.metrics["lr"] = get_lr(optimizer)
        engine.state.metrics["img/s"] = clock["images"] / seconds
        engine.state.metrics["val F1"] = history.rows[-1]["macro_f1"] if history.rows else 0.0

    # tqdm's disable=None: no bar where nobody looks, in a log file for one.
    ProgressBar(desc=f"{task.name} [{{n_epochs}}]", disable=None).attach(
        trainer, metric_names=["loss", "val F1", "lr", "img/s"]
    )
    ProgressBar(desc="validation", disable=None).attach(evaluator)

    # --- the end of an evaluation: what would calibrate it? stop early? the best so far? ---

    if calibration is not None:
        evaluator.add_event_handler(Events.ITERATION_COMPLETED, calibration.collect)
        evaluator.add_event_handler(Events.COMPLETED, calibration.fit)
    evaluator.add_event_handler(Events.ITERATION_COMPLETED, mistakes.collect)
    states: dict[str, Any] = {
        "model": model,
        "optimizer": optimizer,
        "schedule": schedule,
        "trainer": trainer,
        "history": history,
        "epoch_loss": epoch_loss,
        "scaler": scaler,
    }
    if ema is not None:
        states["ema"] = ema.ema_model
    if config.patience:
        states["early_stopping"] = EarlyStopping(config.patience, score, trainer)
        states["early_stopping"].logger.disabled = True  # said below, in the run's own words
        evaluator.add_event_handler(Events.COMPLETED, states["early_stopping"])

    saver = CheckpointFolder(folder, lambda: extra(_scalars(evaluator.state.metrics)))
    best = Checkpoint(
        {"model": evaluated, "trainer": trainer},
        saver,
        filename_pattern="best.pt",
        score_function=score,
        n_saved=1,  # of the best; `save_checkpoint` keeps one more of each
        greater_or_equal=True,  # of equals the one that has learnt longer
    )
    states["best"] = best
    evaluator.add_event_handler(Events.COMPLETED, best)

    # --- the end of an epoch, in this order ---

    @trainer.on(Events.EPOCH_COMPLETED)
    def evaluate(engine: Engine) -> None:
        evaluator.run(val_loader)
        metrics = _scalars(evaluator.state.metrics)
        schedule.epoch_ended(score(evaluator))
        seconds = time.perf_counter() - clock["epoch"]
        history.add(
            {
                "epoch": engine.state.epoch,
                "lr": get_lr(optimizer),
                "train_loss": epoch_loss.mean,
                **metrics,
            }
        )
        stopped = ", stopping early" if engine.should_terminate else ""
        say(
            f"{task.name} epoch {engine.state.epoch}/{config.epochs}: "
            f"loss {history.rows[-1]['train_loss']:.4f}, "
            f"validation loss {metrics['val_loss']:.4f}, macro F1 {metrics['macro_f1']:.4f}, "
            f"accuracy {metrics['accuracy']:.4f}, "
            f"{clock['images'] / seconds:.0f} img/s, {seconds:.0f} s{stopped}"
        )

    trackers.attach(trainer, optimizer, lambda: history.rows[-1])

    @trainer.on(Events.EPOCH_COMPLETED)
    def show_pictures(engine: Engine) -> None:
        if not trackers:  # to draw takes time
            return
        matrix = evaluator.state.metrics["confusion"].cpu().numpy().astype(np.int64)
        title = f"epoch {engine.state.epoch}"
        trackers.show("confusion", confusion_figure(matrix, task.class_names, title), engine)
        if mistakes.indices:
            pixels = np.stack([val_pictures.dataset[i][0].numpy() for i in mistakes.indices])
            grid = grid_image(pixels, mistakes.labels, mistakes.predictions, task.class_names)
            trackers.show("validation mistakes", grid, engine)

    # --- the last word, after each step and each epoch ---

    last = Checkpoint(states, saver, filename_pattern="last.pt", n_saved=1)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, last)

    @trainer.on(Events.ITERATION_COMPLETED)
    def stop_in_an_epoch(engine: Engine) -> None:
        # An epoch whose steps are all done ends first: what follows them would be left out.
        if engine.state.iteration % len(train_loader) and interruption.asked():
            last(engine)
            idist.barrier()  # torchrun ends those that are left when one has gone
            interruption.end()

    @trainer.on(Events.EPOCH_COMPLETED)
    def stop_between_epochs(engine: Engine) -> None:
        over = engine.state.epoch == config.epochs or engine.should_terminate
        if not over and interruption.asked():
            idist.barrier()
            interruption.end()

    if epoch_ended is not None:
        tell = epoch_ended

        @trainer.on(Events.EPOCH_COMPLETED)
        def tell_the_score(engine: Engine) -> None:
            tell(engine.state.epoch, history.rows[-1]["macro_f1"])

    return states


def _scalars(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items() if isinstance(value, int | float)}
