"""A training from its config to its run folder.

MODEL_DIR/<task>/<name>/  config.yaml  split.csv  last.pt  best.pt  metrics.csv  events…
                         report.html
"""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from ignite.handlers import Checkpoint, EMAHandler
from torch import Tensor, nn
from torch.nn.functional import one_hot
from torch.utils.data import Subset

from maskcls.checkpoints import (
    find_checkpoint,
    is_over,
    read_checkpoint,
    remove_left_over_of,
)
from maskcls.config import TrainConfig, differences, read_yaml, to_yaml, with_changes
from maskcls.data.augmentation import BaseAugmentation, create_augmentation
from maskcls.data.datasets import DATASETS, MaskSplitByProfileDataset
from maskcls.data.fixes import Fix, read_fixes
from maskcls.data.loaders import (
    SAMPLING_POWERS,
    EpochBatches,
    Share,
    training_loader,
    validation_loader,
)
from maskcls.data.mixing import Mixing
from maskcls.data.splits import Split, encode_table, read_split, rows_of_split, split_hash
from maskcls.data.targets import (
    age_step_shares,
    at_border,
    auxiliary_sizes,
    auxiliary_targets,
    border_targets,
    soft_targets,
    step_centres,
    steps_per_group,
)
from maskcls.devices import resolve_device, resolve_precision
from maskcls.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    TrackerError,
    TrainingError,
    WeightsError,
)
from maskcls.evaluation.report import REPORT
from maskcls.files import locked, write_atomic
from maskcls.folds import is_group
from maskcls.labels import get_task
from maskcls.launch import command_line
from maskcls.losses import (
    AuxiliaryLoss,
    balanced_weights,
    create_age_criterion,
    create_criterion,
    step_weights,
)
from maskcls.manifest import Manifest
from maskcls.models import (
    channels_last,
    count_parameters,
    create_model,
    model_args,
    shorten_memory,
)
from maskcls.provenance import OTHERS, fingerprint, names_all
from maskcls.training.calibration import ValidationCalibration, describe
from maskcls.training.engines import (
    create_evaluator,
    create_trainer,
)
from maskcls.training.handlers import EpochEnded, setup_handlers
from maskcls.training.interruption import Interruption
from maskcls.training.metrics import attach_metrics
from maskcls.training.paths import increment_path
from maskcls.training.processes import (
    check_pieces,
    connect,
    is_first,
    on_first,
    share_gradients,
)
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
        data = _load_data(config, say)
    if alike is not None and (difference := _difference(alike, data.table, sides=False)):
        raise CheckpointError(
            f"{alike}: was trained on other data than {_places(config)}: "
            f"{difference}. Give the same data, or start a new group of folds"
        )
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
        _tell_seen(start, session.seen, data, config.fold is not None, say)
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
        config = dataclasses.replace(config, name=folder.name)
    try:
        return session.run(config, folder, epoch_ended=epoch_ended, interruption=interruption)
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
                data = _load_same_data(folder, wanted, manifest, say)
                weights = content.get("class_weights")
                _Session(wanted, data, device, say, weights).finish(wanted, folder)
            except DataError as error:
                if moved:
                    raise
                say(f"warning: {folder / REPORT} was not written: {error}")
        idist.barrier()
        return _result(content, folder, 0)
    with idist.one_rank_first(local=True):
        data = _load_same_data(folder, wanted, manifest, say)
    session = _Session(wanted, data, device, say, content.get("class_weights"))
    if content.get("pictures", pictures := _pictures_digest(data)) != pictures:
        raise CheckpointError(
            f"{folder}: its pictures come in another order than when it began, so that some would "
            "be trained on twice in an epoch; give the data folders in the same order, with the "
            "same names in them, or start a new run without --resume"
        )
    session.seen = frozenset(content["seen"].tolist() if "seen" in content else [OTHERS])
    inside = f" and {steps} steps of the next" if steps else ""
    say(f"resuming {folder} after epoch {epoch}{inside}")
    return session.run(wanted, folder, content, epoch_ended=epoch_ended, interruption=interruption)


def _load_same_data(
    folder: Path, config: TrainConfig, manifest: Manifest, say: Callable[[str], None]
) -> _Data:
    """
    Raises:
        CheckpointError: not the data that the run in the folder was trained on.
        DataError: as `_load_data`.
    """
    data = _load_data(config, say)
    if split_hash(data.table) != manifest.split_hash:
        difference = _difference(folder, data.table) or "its split.csv has changed"
        raise CheckpointError(
            f"{folder}: was trained on other data than {_places(config)}: {difference}. Give the "
            "data of the run, or start a new one without --resume"
        )
    return data


@dataclass(frozen=True)
class _Data:
    dataset: MaskSplitByProfileDataset
    train: Any
    val: Any
    people: Split
    table: str
    fixes: tuple[Fix, ...]
    left_out: tuple[int, ...]  # pictures of the training side that nothing is learnt from


class _Session:
    """Everything that a run needs besides its folder: network, optimiser, data, engines."""

    def __init__(
        self,
        config: TrainConfig,
        data: _Data,
        device: torch.device,
        say: Callable[[str], None],
        weights: Tensor | None = None,
    ) -> None:
        """`weights`: those of the classes that a resumed run began with.

        Raises:
            ConfigError, CheckpointError: the option's weights cannot be had, or are others.
        """
        self.seen: frozenset[int] = frozenset()  # by the network that this one starts from
        self.task = get_task(config.task)
        self.data = data
        self.device = device
        self.say = say
        seed_everything(config.seed)
        # Exact ages say more than their group: a network that is to answer the group learns them.
        self.steps = steps_per_group() if config.soften_age and self.task.name == "age" else None
        self.beside = auxiliary_sizes(self.task) if config.auxiliary else ()
        size = config.preprocess().size
        model = create_model(
            config.model, self.task.num_classes, size, self.steps, sum(self.beside)
        )
        if config.weights == "none":
            shorten_memory(model)
        batches = EpochBatches(len(data.train), config.batch_size, config.seed)
        check_pieces(model, batches.smallest, config.accumulate)
        self.model = channels_last(model.to(device))
        labels = torch.from_numpy(data.dataset.labels)
        self.counts = torch.bincount(
            labels[torch.tensor(data.train.indices)], minlength=self.task.num_classes
        )
        self.class_weights = (
            class_weights(config.class_weights, self.counts)
            if weights is None
            else _same_weights(weights, config.class_weights, self.counts)
        )

    def run(
        self,
        config: TrainConfig,
        folder: Path,
        content: dict[str, Any] | None = None,
        *,
        epoch_ended: EpochEnded | None,
        interruption: Interruption | None,
    ) -> RunResult:
        """Trains into `folder`, from the beginning or on from a checkpoint's content.

        Raises:
            TrainingError: another process trains into it.
            TrackerError: a tracker cannot be opened.
        """

        with _alone(folder) if is_first() else nullcontext():
            # Of a resumed run, too: where its data are now; and a folder that cannot be written is
            # told before the work.
            if is_first():
                write_atomic(folder / "config.yaml", to_yaml(config).encode())
            with tracking(config, folder, self.say) as trackers:
                result = self._run(config, folder, content, trackers, epoch_ended, interruption)
                trackers.keep(folder)
            idist.barrier()  # the first has written all that the others may want to read
            return result

    def finish(self, config: TrainConfig, folder: Path) -> None:
        """Of a training that is over, in the first process: notes where its data are now, and
        writes the report that something prevented.

        Raises:
            TrainingError: another process trains into it.
        """
        with _alone(folder):
            write_atomic(folder / "config.yaml", to_yaml(config).encode())
            if (folder / REPORT).is_file():
                return
            self._report(config, folder)
            try:
                with tracking(config, folder, self.say) as trackers:
                    trackers.keep(folder)
            except TrackerError as error:
                self.say(f"warning: {error}")

    def _run(
        self,
        config: TrainConfig,
        folder: Path,
        content: dict[str, Any] | None,
        trackers: Trackers,
        epoch_ended: EpochEnded | None,
        given: Interruption | None,
    ) -> RunResult:
        data, model, device = self.data, self.model, self.device
        precision = resolve_precision(config.precision, device)

        def criterion(weights: Tensor | None, steps: Sequence[int] | None = None) -> nn.Module:
            return create_criterion(
                config.criterion,
                class_weights=weights,
                steps=steps,
                focal_gamma=config.focal_gamma,
                focal_alpha=config.focal_alpha,
                label_smoothing=config.label_smoothing,
            ).to(device)

        training_criterion = criterion(self.class_weights, self.steps)
        if self.steps is not None:
            weights = step_weights(self.class_weights, self.steps)
            training_criterion = create_age_criterion(
                config.age_loss, training_criterion, step_centres(), weights
            ).to(device)
        if self.beside:
            own = sum(self.steps or [1] * self.task.num_classes)
            training_criterion = AuxiliaryLoss(
                training_criterion, (own, *self.beside), config.auxiliary
            )
        share = Share(idist.get_rank(), idist.get_world_size(), config.accumulate)
        train_loader = training_loader(
            data.train, config.batch_size, config.seed, config.sampling, share
        )
        trained = share_gradients(model)
        whole = Share(share.process, share.processes)
        val_loader = validation_loader(data.val, config.batch_size * 2, whole)
        optimizer = create_optimizer(model, config)
        schedule = Schedule(optimizer, config, len(train_loader))
        scaler = torch.amp.GradScaler(device.type, enabled=precision.dtype == torch.float16)
        ema = (
            EMAHandler(model, 1 - config.ema_decay, handle_buffers="update")
            if config.ema_decay
            else None
        )
        trainer = create_trainer(
            trained,
            optimizer,
            training_criterion,
            create_augmentation(
                config.augmentation,
                data.dataset.spec,
                config.seed,
                erasing=config.erasing,
                operations=config.rand_operations,
                magnitude=config.rand_magnitude,
            ),
            device=device,
            precision=precision,
            scaler=scaler,
            share=share,
            clip_norm=config.clip_norm,
            class_weights=self.class_weights,
            soft_targets=self._soft_targets(config),
            mixing=self._mixing(config) if _mixes(config) else None,
            say=self.say,
        )
        evaluator = create_evaluator(
            model if ema is None else ema.ema_model,
            BaseAugmentation(data.dataset.spec),
            device=device,
            precision=precision,
            tta=config.tta,
            share=whole,
        )
        known = self.class_weights
        if known is not None:  # a class that nobody trains on weighs 0: a mean over it alone is nan
            known = known.where(known > 0, 1.0)
        attach_metrics(evaluator, self.task, criterion(known))
        manifest = self._manifest(config)
        constant = {
            "seen": torch.tensor(sorted(self.seen | _fingerprints(data)), dtype=torch.int64),
            "pictures": _pictures_digest(data),
        }
        if self.class_weights is not None:
            constant["class_weights"] = self.class_weights
        calibration = (
            ValidationCalibration(config.calibration, self.counts.numpy(), data.dataset.people)
            if config.calibration != "none"
            else None
        )
        interruption = given or Interruption()
        states = setup_handlers(
            trainer,
            evaluator,
            config=config,
            task=self.task,
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
            extra=lambda metrics: {
                "manifest": dataclasses.replace(
                    manifest,
                    metrics=metrics,
                    calibration=calibration.found if calibration is not None else None,
                ).to_json(),
                **constant,
            },
            interruption=interruption,
            epoch_ended=epoch_ended,
            say=self.say,
        )
        if content is not None:
            _restore(states, content, folder)
            _tell_again(states["history"].rows, epoch_ended)
        left_out = {data.dataset.people[index] for index in data.left_out}
        border = (
            f" ({len(data.left_out)} of {len(left_out)} others left out, at the border of an age "
            "group)"
        )
        self.say(
            f"{config.task}: {config.model} ({count_parameters(model) / 1e6:.1f} M parameters), "
            f"{config.height}x{config.width}, {len(data.train)} pictures of "
            f"{len(data.people.train) - len(left_out)} people{border if left_out else ''}, "
            f"validating on {len(data.val)} of "
            f"{len(data.people.val)} others; {device.type}, {config.precision} → {folder}"
        )
        try:
            with interruption:
                trainer.run(train_loader, max_epochs=config.epochs)
                # Too late to end this training. A report takes seconds, and belongs to it.
                if is_first():
                    if calibration is not None:
                        best = read_checkpoint(folder / "best.pt")["manifest"]
                        self.say(f"{config.task}: {describe(Manifest.from_json(best))}")
                    self._report(config, folder)
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

    def _report(self, config: TrainConfig, folder: Path) -> None:
        loader = validation_loader(self.data.val, config.batch_size * 2)
        try:
            precision = resolve_precision(config.precision, self.device)
            report_run(folder, config, loader, self.device, precision)
        except Exception as error:  # whatever it is: the training is done, and must not fail of it
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            self.say(f"warning: {folder / REPORT} was not written: {reason}")

    def _mixing(self, config: TrainConfig) -> Mixing:
        # Of what sampling has left of it: partners come from the batch.
        power = SAMPLING_POWERS[config.sampling] - 1
        rarity = (self.counts.clamp_min(1).double() ** power)[
            torch.from_numpy(self.data.dataset.labels)
        ]
        return Mixing(
            config.mixup, config.cutmix, config.seed, rarity.numpy() if config.mix_rare else None
        )

    def _soft_targets(self, config: TrainConfig) -> Tensor | None:
        """What each picture teaches, where that is more than its class."""
        data, years = self.data.dataset, config.soften_age
        own = None
        if self.steps is not None:
            own = age_step_shares(data.ages, years)
        elif years and "age" in self.task.attributes:
            own = soft_targets(self.task, data.labels, data.ages, years)
        elif config.border_ages == "soften" and "age" in self.task.attributes:
            own = border_targets(self.task, data.labels, data.ages)
        if own is None and (self.beside or _mixes(config)):
            own = one_hot(torch.from_numpy(data.labels), self.task.num_classes).float()
        if own is None or not self.beside:
            return own
        beside = auxiliary_targets(self.task, data.attributes, data.ages, years)
        return torch.cat([own, beside], dim=1)

    def _manifest(self, config: TrainConfig) -> Manifest:
        spec = self.data.dataset.spec
        return Manifest(
            task=config.task,
            class_names=self.task.class_names,
            preprocess=spec,
            model=config.model,
            model_args=model_args(config.model, spec.size, self.steps, sum(self.beside)),
            config=config.to_dict(),
            split_hash=split_hash(self.data.table),
            fixes=tuple(dataclasses.asdict(fix) for fix in self.data.fixes),
            git_revision=_git_revision(),
            versions=_versions(),
        )


def _mixes(config: TrainConfig) -> bool:
    return config.mixup + config.cutmix > 0


def class_weights(option: str, counts: Tensor) -> Tensor | None:
    """`none`, `balanced`, `sqrt`, or a file with one weight per class and line → (C,) float32.

    Raises:
        ConfigError: no such file, or not one number above 0 per class.
    """
    if option == "none":
        return None
    if option in ("balanced", "sqrt"):
        return balanced_weights(counts, power=1.0 if option == "balanced" else 0.5)
    try:
        values = [float(line) for line in Path(option).read_text("utf-8").split()]
    except FileNotFoundError:
        raise ConfigError(
            f"class_weights {option!r}: neither none, balanced or sqrt, nor a file"
        ) from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"class_weights {option}: {error}") from None
    if len(values) != len(counts) or not all(0 < value < float("inf") for value in values):
        raise ConfigError(
            f"class_weights {option}: needs {len(counts)} numbers above 0, has {values}"
        )
    return torch.tensor(values, dtype=torch.float32)


def _same_weights(before: Tensor, option: str, counts: Tensor) -> Tensor:
    """What a run began with. Its file may be gone.

    Raises:
        CheckpointError: the option gives other ones now.
    """
    with suppress(ConfigError):
        now = class_weights(option, counts)
        if now is None or not torch.equal(now, before):
            raise CheckpointError(
                f"class_weights {option}: the run began with {before.tolist()}; put them back, or "
                "start a new run without --resume"
            )
    return before


def _load_data(config: TrainConfig, say: Callable[[str], None]) -> _Data:
    task = get_task(config.task)
    fixes = tuple(read_fixes(Path(config.fixes))) if config.fixes else ()
    dataset = DATASETS.get(config.task, MaskSplitByProfileDataset)(
        [Path(folder) for folder in config.data_dir],
        config.preprocess(),
        task=task,
        fixes=fixes,
        cache=config.cache,
        workers=config.workers,
        strict=config.strict,
        say=say,
    )
    if dataset.unreadable:
        shown = "\n  ".join(dataset.unreadable[:5])
        say(f"warning: {len(dataset.unreadable)} unreadable pictures are skipped:\n  {shown}")
    pictures, validation, people = dataset.split(
        val_ratio=config.val_ratio, fold=config.fold, folds=config.folds, seed=config.seed
    )
    left_out: list[int] = []
    if config.border_ages == "drop" and "age" in task.attributes:
        own = np.array(pictures.indices)
        border = at_border(dataset.ages[own])
        left_out, pictures = own[border].tolist(), Subset(dataset, own[~border].tolist())
    for name, side in (("training", pictures), ("validation", validation)):
        present = set(dataset.labels[side.indices].tolist())
        absent = [text for label, text in enumerate(task.class_names) if label not in present]
        if absent:
            say(f"warning: no {name} picture is {' or '.join(absent)}")
    if len(pictures) < 2:
        without = f" that border_ages {config.border_ages} keeps" if left_out else ""
        count = ("no", "one")[len(pictures)]
        raise DataError(f"{count} readable training picture{without}: a training needs at least 2")
    table = dataset.split_table(people)
    return _Data(dataset, pictures, validation, people, table, fixes, tuple(left_out))


def _fingerprints(data: _Data) -> frozenset[int]:
    """Who and what is trained on, so that a score on them is noticed."""
    people = {fingerprint(person) for person in data.people.train}
    paths = [str(data.dataset.paths[index]) for index in data.train.indices]
    return frozenset(people | {fingerprint(data.dataset.digests[path]) for path in paths})


def _pictures_digest(data: _Data) -> str:
    """Of the training pictures in their order, which batches go by."""
    paths = [str(data.dataset.paths[index]) for index in data.train.indices]
    order = "\n".join(data.dataset.digests[path] for path in paths)
    return hashlib.sha256(order.encode()).hexdigest()


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


def _tell_seen(
    start: Path, seen: frozenset[int], data: _Data, is_fold: bool, say: Callable[[str], None]
) -> None:
    """Warns of a start that has seen people who validate here, be it in a folder of another name,
    or does not say whom it has seen.

    Raises:
        WeightsError: of a fold, whose score is to be out of fold.
    """
    if not names_all(seen):
        say(
            f"warning: {start}: does not say whom all it, or what it started from, was trained on. "
            "If people who validate here are among them, the score will flatter"
        )
    own = {person for person in data.people.val if fingerprint(person) in seen}
    pictures = data.dataset
    known = sorted(
        own
        | {
            pictures.people[index]
            for index in data.val.indices
            if fingerprint(pictures.digests[str(pictures.paths[index])]) in seen
        }
    )
    if not known:
        return
    found = (
        f"{start}: was trained on {len(known)} of the {len(data.people.val)} people who validate "
        f"here, first: {known[0]}"
    )
    if is_fold:
        raise WeightsError(
            f"{found}; start from a network that has not seen them, or with --weights none"
        )
    say(f"warning: {found}. The score will flatter; the same --seed and --val-ratio may help")


def _result(
    states: Mapping[str, Any], folder: Path, unreadable: int, signal: int | None = None
) -> RunResult:
    scores = [row["macro_f1"] for row in states["history"]["rows"]]
    return RunResult(folder, len(scores), max(scores), unreadable, signal)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Holds a run folder's lock, and clears what a killed training left there unfinished.

    Raises (when it is entered):
        TrainingError: another process has it.
    """

    def busy() -> None:
        raise TrainingError(f"{folder}: another process is training in it")

    with locked(folder / ".lock", busy):
        for name in ("last.pt", "best.pt"):
            remove_left_over_of(folder / name)
        yield


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


def _difference(folder: Path, table: str, *, sides: bool = True) -> str:
    """In a few words, how a split differs from the one in a run's folder; "" where it does not.
    Without `sides`, it does not matter who validates."""
    try:
        old = rows_of_split(read_split(folder / "split.csv"), sides=sides)
    except OSError:
        return "its split.csv cannot be read"
    new = rows_of_split(table, sides=sides)
    if old == new:
        return ""
    changed = sum(old[person] != new[person] for person in old.keys() & new.keys())
    return (
        f"{len(old.keys() - new.keys())} people are gone, {len(new.keys() - old.keys())} are new, "
        f"{changed} changed"
    )


def _places(config: TrainConfig) -> str:
    fixes = f" with {config.fixes}" if config.fixes else ""
    return f"{', '.join(config.data_dir)}{fixes}"


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


def _versions() -> dict[str, str]:
    found = {}
    for package in ("maskcls", "torch", "torchvision", "pytorch-ignite", "efficientnet_pytorch"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # run from a clone that is not installed
            continue
    return found
