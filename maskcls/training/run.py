"""A training from its config to its run folder.

MODEL_DIR/<task>/<name>/  config.yaml  split.csv  last.pt  best.pt  metrics.csv  events…
                         report.html
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine
from ignite.handlers import Checkpoint, EMAHandler
from torch import Tensor, nn

from maskcls.checkpoints import find_checkpoint, is_over, read_checkpoint, remove_left_over_of
from maskcls.config import TrainConfig, differences, read_yaml, to_yaml, with_changes
from maskcls.data.augmentation import BaseAugmentation, create_augmentation
from maskcls.data.loaders import EpochBatches, Share, training_loader, validation_loader
from maskcls.data.splits import encode_table, split_hash
from maskcls.devices import Precision, resolve_device, resolve_precision
from maskcls.errors import CheckpointError, ConfigError, DataError, TrackerError, TrainingError
from maskcls.evaluation.report import REPORT
from maskcls.files import locked, write_atomic
from maskcls.folds import is_group
from maskcls.launch import command_line
from maskcls.manifest import Manifest
from maskcls.models import channels_last, count_parameters, create_model, shorten_memory
from maskcls.provenance import OTHERS
from maskcls.training.calibration import ValidationCalibration, describe
from maskcls.training.data import TrainingData, load_data, load_same_data, require_alike, tell_seen
from maskcls.training.engines import (
    create_evaluator,
    create_trainer,
)
from maskcls.training.handlers import EpochEnded, setup_handlers
from maskcls.training.interruption import Interruption
from maskcls.training.manifest import checkpoint_extra
from maskcls.training.metrics import attach_metrics
from maskcls.training.objective import Objective
from maskcls.training.paths import increment_path
from maskcls.training.processes import check_pieces, connect, is_first, on_first, share_gradients
from maskcls.training.report import report_run
from maskcls.training.schedule import Schedule, create_optimizer
from maskcls.training.seeding import seed_everything
from maskcls.training.trackers import Trackers, require_packages, tracking
from maskcls.weights import apply_start, find_start, seen_by


@dataclass(frozen=True)
class RunResult:
    """What a training leaves."""

    folder: Path
    epochs: int
    best_score: float  # macro F1 on the validation people
    unreadable: int  # pictures that were skipped
    signal: int | None = None  # that came when it was too late to end this training


def train(
    config: TrainConfig,
    say: Callable[[str], None] = print,
    folder: Path | None = None,
    *,
    epoch_ended: EpochEnded | None = None,
    interruption: Interruption | None = None,
    alike: Path | None = None,
) -> RunResult:
    """Trains one network into a new run folder, or into `folder`.

    `epoch_ended` is told the score of each epoch, once it is saved; what it raises ends the
    training. `interruption`: of a caller that goes on after the training, and looks there whether a
    signal came too late to end it; that caller says how to go on, too. `alike`: the folder of a run
    that must be of the same people, pictures and labels, on whichever side, as other folds are.

    Raises:
        MaskclsError: see the tree in `maskcls.errors`; nothing is left behind if it comes before
            the first epoch.
    """
    require_packages(config)
    device = connect(resolve_device(config.device))
    precision = resolve_precision(config.precision, device)
    with idist.one_rank_first(local=True):  # one process of a machine downloads and decodes
        start = find_start(config.weights, config.model, say)
        data = load_data(config, say)
    if alike is not None:
        require_alike(alike, config, data)
    # What `auto` came to is part of the run: a resumed one must not choose anew.
    config = dataclasses.replace(
        config,
        precision=precision.name,
        weights=config.weights if config.weights != "auto" else ("imagenet" if start else "none"),
    )
    session = _Session(config, data, device, say)
    if start is not None:
        # ImageNet has none of these people in it.
        session.seen = frozenset() if config.weights == "imagenet" else seen_by(start)
        tell_seen(start, session.seen, data, config.fold is not None, say)
        keep = config.model != "efficientnet_b3_init"
        fresh = apply_start(session.model, start, config.task, keep_classifier=keep)
        note = f"; new classifier ({', '.join(fresh)})" if fresh else ""
        say(f"weights from {start}{note}")
    settings = config.to_dict()

    def begin() -> dict[str, Any]:
        own = folder or increment_path(Path(config.model_dir) / config.task / config.name)
        own.mkdir(parents=True, exist_ok=True)
        write_atomic(own / "split.csv", encode_table(data.table))
        return settings | {"folder": str(own), "split": split_hash(data.table)}

    begun = on_first(begin)
    different = [name for name in settings if settings[name] != begun[name]]
    if different or begun["split"] != split_hash(data.table):
        raise TrainingError(
            f"process {idist.get_rank()} would train otherwise than the first: "
            f"{', '.join(different) or 'other people or pictures'}. All processes need the same "
            "data, options and kind of device"
        )
    if folder is None:
        folder = Path(begun["folder"])
        session.config = dataclasses.replace(config, name=folder.name)
    try:
        return session.run(folder, epoch_ended=epoch_ended, interruption=interruption)
    except TrackerError:  # before the first step
        shutil.rmtree(folder)
        raise


def resume(
    folder: Path,
    changes: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = print,
    *,
    epoch_ended: EpochEnded | None = None,
    interruption: Interruption | None = None,
) -> RunResult:
    """Goes on with a run that was interrupted; a finished one is left as it is.

    `changes`: config values of this call. Those of the machine may differ from the run's, and the
    data may have moved; anything else is refused. `epoch_ended` and `interruption`: as in `train`;
    the former is told the epochs before the interruption, too.

    Raises:
        CheckpointError: no run, no readable checkpoint, other data, or another config.
    """
    if not (folder / "config.yaml").is_file():
        raise CheckpointError(f"{folder}: not a run folder (no config.yaml in it)")
    try:
        config = TrainConfig.from_dict(read_yaml(folder / "config.yaml"))
    except ConfigError as error:
        raise CheckpointError(f"{folder / 'config.yaml'}: {error}") from None
    wanted = with_changes(config, changes or {})
    require_packages(wanted)
    device = connect(resolve_device(wanted.device))
    if find_checkpoint(folder / "last.pt") is None:
        raise CheckpointError(
            f"{folder}: ended before anything was saved, so there is nothing to go on from; "
            "start a new run without --resume"
        )
    content = read_checkpoint(folder / "last.pt")
    manifest = Manifest.from_json(content["manifest"])
    refuse_differences(folder, wanted, manifest.config)

    missing = [name for name in ("trainer", "history") if name not in content]
    if missing:
        raise _no_state(folder, missing)
    epoch, steps = divmod(content["trainer"]["iteration"], content["trainer"]["epoch_length"])
    if is_over(content, config):
        _tell_again(content["history"]["rows"], epoch_ended)
        moved = wanted.data_dir != config.data_dir
        complete = not moved and (folder / REPORT).is_file()
        say(f"{folder} is finished: {epoch} epochs{'; nothing to do' if complete else ''}")
        if not complete and is_first():  # files are its affair, and nothing is left to compute
            try:
                data = load_same_data(folder, wanted, manifest, say)
                weights = content.get("class_weights")
                _Session(wanted, data, device, say, weights).finish(folder)
            except DataError as error:
                if moved:
                    raise
                say(f"warning: {folder / REPORT} was not written: {error}")
        idist.barrier()
        return _result(content, folder, 0)
    with idist.one_rank_first(local=True):
        data = load_same_data(folder, wanted, manifest, say)
    session = _Session(wanted, data, device, say, content.get("class_weights"))
    session.objective.refuse_other_weights(folder)
    if content.get("pictures", pictures := data.pictures_digest()) != pictures:
        raise CheckpointError(
            f"{folder}: its pictures come in another order than when it began, so that some would "
            "be trained on twice in an epoch; give the data folders in the same order, with the "
            "same names in them, or start a new run without --resume"
        )
    session.seen = frozenset(content["seen"].tolist() if "seen" in content else [OTHERS])
    inside = f" and {steps} steps of the next" if steps else ""
    say(f"resuming {folder} after epoch {epoch}{inside}")
    return session.run(folder, content, epoch_ended=epoch_ended, interruption=interruption)


class _Session:
    """Everything that a run needs besides its folder: network, optimiser, data, engines."""

    def __init__(
        self,
        config: TrainConfig,
        data: TrainingData,
        device: torch.device,
        say: Callable[[str], None],
        weights: Tensor | None = None,
    ) -> None:
        """`weights`: those of the classes that a resumed run began with.

        Raises:
            ConfigError: the option's weights cannot be had.
        """
        self.config = config
        self.data = data
        self.device = device
        self.say = say
        self.seen: frozenset[int] = frozenset()  # by the network that this one starts from
        seed_everything(config.seed)
        self.objective = objective = Objective(config, data, weights)
        model = create_model(
            config.model,
            objective.task.num_classes,
            config.preprocess().size,
            objective.steps,
            sum(objective.beside),
        )
        if config.weights == "none":
            shorten_memory(model)
        batches = EpochBatches(len(data.train), config.batch_size, config.seed)
        check_pieces(model, batches.smallest, config.accumulate)
        self.model = channels_last(model.to(device))

    def run(
        self,
        folder: Path,
        content: dict[str, Any] | None = None,
        *,
        epoch_ended: EpochEnded | None,
        interruption: Interruption | None,
    ) -> RunResult:
        """Trains into `folder`, from the beginning or on from a checkpoint's content.

        Raises:
            TrainingError: another process trains into it.
            ProviderError: a precision that the device does not have.
            TrackerError: a tracker cannot be opened.
        """
        precision = resolve_precision(self.config.precision, self.device)
        with self._alone(folder) if is_first() else nullcontext():
            with tracking(self.config, folder, self.say) as trackers:
                result = self._run(folder, content, precision, trackers, epoch_ended, interruption)
                trackers.keep(folder)
            idist.barrier()  # the first has written all that the others may want to read
            return result

    def finish(self, folder: Path) -> None:
        """Of a training that is over, in the first process: notes where its data are now, and
        writes the report that something prevented.

        Raises:
            TrainingError: another process trains into it.
        """
        with self._alone(folder):
            if (folder / REPORT).is_file():
                return
            self._report(folder)
            try:
                with tracking(self.config, folder, self.say) as trackers:
                    trackers.keep(folder)
            except TrackerError as error:
                self.say(f"warning: {error}")

    def _run(
        self,
        folder: Path,
        content: dict[str, Any] | None,
        precision: Precision,
        trackers: Trackers,
        epoch_ended: EpochEnded | None,
        given: Interruption | None,
    ) -> RunResult:
        config, data, objective, model = self.config, self.data, self.objective, self.model
        share = Share(idist.get_rank(), idist.get_world_size(), config.accumulate)
        whole = Share(share.process, share.processes)
        train_loader = training_loader(
            data.train, config.batch_size, config.seed, config.sampling, share
        )
        val_loader = validation_loader(data.val, config.batch_size * 2, whole)
        trained = share_gradients(model)
        optimizer = create_optimizer(model, config)
        schedule = Schedule(optimizer, config, len(train_loader))
        scaler = torch.amp.GradScaler(self.device.type, enabled=precision.dtype == torch.float16)
        ema = (
            EMAHandler(model, 1 - config.ema_decay, handle_buffers="update")
            if config.ema_decay
            else None
        )
        trainer = self._trainer(trained, optimizer, precision, scaler, share)
        evaluator = self._evaluator(model if ema is None else ema.ema_model, precision, whole)
        calibration = (
            ValidationCalibration(config.calibration, objective.counts.numpy(), data.dataset.people)
            if config.calibration != "none"
            else None
        )
        interruption = given or Interruption()
        states = setup_handlers(
            trainer,
            evaluator,
            config=config,
            task=objective.task,
            model=model,
            ema=ema,
            optimizer=optimizer,
            schedule=schedule,
            scaler=scaler,
            train_loader=train_loader,
            val_loader=val_loader,
            val_pictures=data.val,
            folder=folder,
            trackers=trackers,
            calibration=calibration,
            extra=checkpoint_extra(config, data, objective, self.seen, calibration),
            interruption=interruption,
            epoch_ended=epoch_ended,
            say=self.say,
        )
        if content is not None:
            _restore(states, content, folder)
            _tell_again(states["history"].rows, epoch_ended)
        self.say(
            f"{config.task}: {config.model} ({count_parameters(model) / 1e6:.1f} M parameters), "
            f"{config.height}x{config.width}, {data.describe()}; "
            f"{self.device.type}, {config.precision} → {folder}"
        )
        try:
            with interruption:
                trainer.run(train_loader, max_epochs=config.epochs)
                # Too late to end this training. A report takes seconds, and belongs to it.
                if is_first():
                    if calibration is not None:
                        best = read_checkpoint(folder / "best.pt")["manifest"]
                        self.say(f"{config.task}: {describe(Manifest.from_json(best))}")
                    self._report(folder)
                late = interruption.asked()
        except (KeyboardInterrupt, SystemExit):
            # Of a group, whoever trains it says so.
            if given is None and (folder / "last.pt").is_file() and not is_group(folder.parent):
                command = command_line(["maskcls-train", "--resume", folder])
                self.say(f"interrupted; go on with: {command}")
            raise
        return _result(
            {name: state.state_dict() for name, state in states.items()},
            folder,
            len(data.dataset.unreadable),
            interruption.signal if late else None,
        )

    def _trainer(
        self,
        trained: nn.Module,
        optimizer: torch.optim.Optimizer,
        precision: Precision,
        scaler: torch.amp.GradScaler,
        share: Share,
    ) -> Engine:
        config, objective = self.config, self.objective
        augmentation = create_augmentation(
            config.augmentation,
            self.data.dataset.spec,
            config.seed,
            erasing=config.erasing,
            operations=config.rand_operations,
            magnitude=config.rand_magnitude,
        )
        return create_trainer(
            trained,
            optimizer,
            objective.criterion().to(self.device),
            augmentation,
            device=self.device,
            precision=precision,
            scaler=scaler,
            share=share,
            clip_norm=config.clip_norm,
            class_weights=objective.class_weights,
            soft_targets=objective.soft_targets(),
            mixing=objective.mixing(),
            say=self.say,
        )

    def _evaluator(self, evaluated: nn.Module, precision: Precision, share: Share) -> Engine:
        evaluator = create_evaluator(
            evaluated,
            BaseAugmentation(self.data.dataset.spec),
            device=self.device,
            precision=precision,
            tta=self.config.tta,
            share=share,
        )
        criterion = self.objective.validation_criterion().to(self.device)
        attach_metrics(evaluator, self.objective.task, criterion)
        return evaluator

    @contextmanager
    def _alone(self, folder: Path) -> Iterator[None]:
        """Holds a run folder's lock, clears what a killed training left there unfinished, and
        writes the config.

        Raises (when it is entered):
            TrainingError: another process has it.
        """

        def busy() -> None:
            raise TrainingError(f"{folder}: another process is training in it")

        with locked(folder / ".lock", busy):
            for name in ("last.pt", "best.pt"):
                remove_left_over_of(folder / name)
            # Of a resumed run, too: where its data are now; and a folder that cannot be written is
            # told before the work.
            write_atomic(folder / "config.yaml", to_yaml(self.config).encode())
            yield

    def _report(self, folder: Path) -> None:
        loader = validation_loader(self.data.val, self.config.batch_size * 2)
        try:
            precision = resolve_precision(self.config.precision, self.device)
            report_run(folder, self.config, loader, self.device, precision)
        except Exception as error:  # whatever it is: the training is done, and must not fail of it
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            self.say(f"warning: {folder / REPORT} was not written: {reason}")


def _restore(states: Mapping[str, Any], content: Mapping[str, Any], folder: Path) -> None:
    missing = [name for name in states if name not in content]
    if missing:
        raise _no_state(folder, missing)
    try:
        Checkpoint.load_objects(states, {name: content[name] for name in states})
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / 'last.pt'}: does not fit its config: {error}") from error


def _tell_again(rows: Sequence[Mapping[str, float]], epoch_ended: EpochEnded | None) -> None:
    """The scores of the epochs before an interruption."""
    if epoch_ended is not None:
        for row in rows:
            epoch_ended(int(row["epoch"]), row["macro_f1"])


def _no_state(folder: Path, missing: Sequence[str]) -> CheckpointError:
    return CheckpointError(
        f"{folder / 'last.pt'}: holds no state of {', '.join(missing)}; "
        "it is not the last checkpoint of this run"
    )


def _result(
    states: Mapping[str, Any], folder: Path, unreadable: int, signal: int | None = None
) -> RunResult:
    scores = [row["macro_f1"] for row in states["history"]["rows"]]
    return RunResult(folder, len(scores), max(scores), unreadable, signal)


def refuse_differences(folder: Path, wanted: TrainConfig, run: Mapping[str, Any]) -> None:
    """
    Raises:
        CheckpointError: a value that decides what is learnt differs from the run's.
    """
    different = differences(wanted, run, "the run")
    if different:
        raise CheckpointError(
            f"{folder}: cannot be resumed with another config: {'; '.join(different)}. "
            "Leave these options away, or start a new run without --resume"
        )
