"""What a training is told: one frozen, validated dataclass, its presets, and its YAML form.

Values come from four places, the later ones stronger: the field's default, the preset of the task,
a YAML file, the command line. Field names are the YAML keys and, with dashes, the options.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from maskcls.errors import ConfigError, unknown
from maskcls.labels import TASKS, get_task
from maskcls.preprocessing import PreprocessSpec

MODEL_NAMES = (
    "base",
    "efficientnet_b3",
    "efficientnet_b3_init",
    "efficientnet_b4",
    "efficientnet_b5",
    "resnet18",
    "resnet34",
    "resnext50",
    "resnext101",
    "vgg19",
)
CRITERION_NAMES = ("cross_entropy", "focal", "label_smoothing", "f1")
AUGMENTATION_NAMES = (
    "BaseAugmentation",
    "AddGaussianNoise",
    "CustomAugmentation",
    "BestAugmentation",
    "RandAugmentation",
)
MAX_MAGNITUDE = 30
"""The strongest that `RandAugmentation` changes pictures, as in torchvision's `RandAugment`."""
DEFAULT_CROP = {"CustomAugmentation": (320 / 512, 256 / 384)}
"""Of (height, width): the original's 320x256 of its 512x384 pictures. Others: the whole picture."""

OPTIMIZER_NAMES = ("adamw", "adam", "sgd")
SCHEDULE_NAMES = ("cosine", "plateau", "constant")
PRECISION_NAMES = ("auto", "fp32", "bf16", "fp16")
CLASS_WEIGHT_NAMES = ("none", "sqrt", "balanced")
SAMPLING_NAMES = ("none", "sqrt", "balanced")
AGE_LOSS_NAMES = ("distribution", "ordinal", "expected")
BORDER_AGE_NAMES = ("keep", "drop", "soften")
TTA_NAMES = ("none", "flip")
CALIBRATION_NAMES = ("none", "temperature", "macro_f1")
WEIGHT_NAMES = ("auto", "imagenet", "none")
TRACKER_NAMES = ("tensorboard", "wandb", "mlflow", "clearml")


def _option(default: Any, help: str, choices: tuple[str, ...] | None = None) -> Any:
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices})


@dataclass(frozen=True)
class TrainConfig:
    """One training of one network, resolved: nothing in it depends on anything outside it."""

    task: str = _option("mask_gender", "what the network learns", tuple(TASKS))

    # where things are
    data_dir: tuple[str, ...] = _option((), "folder with train.csv and images/; may be repeated")
    model_dir: str = _option("runs", "run folders go to MODEL_DIR/<task>/<name>")
    name: str = _option("exp", "run name; exp, exp2, exp3, … where it exists")
    fixes: str | None = _option(None, "CSV of label corrections (target,field,old,new,why)")

    # people on either side
    val_ratio: float = _option(0.2, "share of the people that validate")
    fold: int | None = _option(None, "which fold validates, from 0; needs --folds")
    folds: int | None = _option(
        None, "number of folds instead of --val-ratio; without --fold each in turn"
    )
    seed: int = _option(42, "same seed, same split, same weights")

    # network and input
    model: str = _option("efficientnet_b3", "network", MODEL_NAMES)
    weights: str = _option("auto", "where it starts: auto, imagenet, none, or a file")
    height: int = _option(128, "input height, pixels")
    width: int = _option(96, "input width, pixels")
    crop: tuple[float, float] | None = _option(
        None, "centre crop: two fractions of height and width; default: the augmentation's"
    )
    augmentation: str = _option(
        "BestAugmentation", "augmentation of training batches", AUGMENTATION_NAMES
    )

    rand_operations: int = _option(2, "RandAugmentation: operations on each picture")
    rand_magnitude: float = _option(
        9.0, f"RandAugmentation: their strength, from 0 to {MAX_MAGNITUDE}"
    )
    erasing: float | None = _option(
        None,
        "share of the training pictures that lose a rectangle; default: the augmentation's, which "
        "is 0.25 of BestAugmentation and 0 of the others",
    )
    sampling: str = _option(
        "none",
        "how often classes are drawn: as they have pictures, by the square root of that, or evenly",
        SAMPLING_NAMES,
    )
    mixup: float = _option(0.0, "share of the training pictures that are blended with another")
    cutmix: float = _option(
        0.0, "share of the training pictures that get the right half of another's face"
    )
    mix_rare: bool = _option(
        False, "mixup, cutmix: the other picture is rather of a class with few pictures"
    )
    tta: str = _option(
        "none",
        "at validation and labelling: average over a picture and its mirror image",
        TTA_NAMES,
    )
    calibration: str = _option(
        "none",
        "at labelling, fitted on the validation people: temperature of the probabilities; "
        "macro_f1: and a shift towards rare or frequent classes",
        CALIBRATION_NAMES,
    )

    # loss
    criterion: str = _option(
        "cross_entropy",
        f"loss, or a weighted sum such as cross_entropy:0.7,f1:0.3 of {', '.join(CRITERION_NAMES)}",
    )
    focal_gamma: float = _option(2.0, "focal: how strongly easy pictures count less")
    focal_alpha: float | None = _option(None, "focal: scale of the loss")
    label_smoothing: float = _option(0.1, "label_smoothing: share given to the other classes")
    soften_age: float = _option(
        0.0, "age: deviation of a label in years; the network learns exact ages, answers groups"
    )
    age_loss: str = _option(
        "distribution",
        "age, with soften_age: the criterion on the distribution over ages; in its place, at or "
        "above each age or not; or beside it the distance of the expected age",
        AGE_LOSS_NAMES,
    )
    border_ages: str = _option(
        "keep",
        "age, multi: training people in the last years of an age group; leave them out or give a "
        "part of their label to the next group (soften_age does that for every age)",
        BORDER_AGE_NAMES,
    )
    auxiliary: float = _option(
        0.0,
        "weight in the loss of the attributes beside the task, learnt and not answered; 0: none",
    )
    class_weights: str = _option(
        "none", "none, balanced (inverse frequency), sqrt (its square root), or a file: one a line"
    )

    # optimisation
    optimizer: str = _option("adamw", "optimiser", OPTIMIZER_NAMES)
    lr: float = _option(1e-3, "peak learning rate")
    layer_decay: float = _option(
        1.0,
        "fine-tuning: factor of the learning rate from layer to layer, down from the classifier",
    )
    weight_decay: float = _option(0.01, "decay of weight matrices; biases and norms have none")
    momentum: float = _option(0.9, "sgd: momentum")
    schedule: str = _option("cosine", "learning rate after the warm-up", SCHEDULE_NAMES)
    warmup_epochs: float = _option(0.5, "linear warm-up, epochs")
    plateau_patience: int = _option(1, "plateau: epochs without a better score before lr / 10")
    epochs: int = _option(30, "passes over the training pictures at most")
    patience: int = _option(3, "early stop after so many epochs without a better score; 0: never")
    batch_size: int = _option(64, "pictures per optimiser step")
    accumulate: int = _option(1, "split a batch into so many parts, for lack of memory")
    clip_norm: float = _option(0.0, "clip the gradient's norm; 0: no clipping")
    ema_decay: float = _option(0.0, "average weights over steps, such as 0.99; 0: no average")

    # machine
    precision: str = _option("auto", "autocast; auto: the fastest safe one", PRECISION_NAMES)
    device: str = _option("auto", "auto, cpu, cuda, cuda:1, …")
    workers: int = _option(2, "threads that decode pictures into the cache")
    cache: str = _option("auto", "folder of the pixel cache; auto: the user's cache folder")
    strict: bool = _option(False, "a picture that cannot be read is an error, not skipped")
    tracker: str = _option(
        "tensorboard",
        f"what shows the training, one or several with commas of {', '.join(TRACKER_NAMES)}; none",
    )

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            _check_type(field.name, value, _TYPES[field.name])
            choices = field.metadata["choices"]
            if choices and value not in choices:
                raise ConfigError(unknown(field.name, str(value), choices))
        parse_criterion(self.criterion)
        parse_trackers(self.tracker)
        self._check_ranges()
        self.preprocess()

    @property
    def all_folds(self) -> bool:
        """Whether it stands for a group of runs, one for each fold; see `maskcls.folds`."""
        return self.folds is not None and self.fold is None

    def preprocess(self) -> PreprocessSpec:
        """What pictures become before the network, in training and ever after.

        Raises:
            ConfigError: an impossible size or crop.
        """
        crop = self.crop or DEFAULT_CROP.get(self.augmentation, (1.0, 1.0))
        return PreprocessSpec(height=self.height, width=self.width, crop=(crop[0], crop[1]))

    def _check_ranges(self) -> None:
        rules: dict[str, tuple[bool, str]] = {
            "val_ratio": (0 < self.val_ratio < 1, "above 0 and below 1"),
            "rand_operations": (1 <= self.rand_operations <= 10, "from 1 to 10"),
            "rand_magnitude": (
                0 <= self.rand_magnitude <= MAX_MAGNITUDE,
                f"from 0 to {MAX_MAGNITUDE}",
            ),
            "erasing": (self.erasing is None or 0 <= self.erasing <= 1, "from 0 to 1"),
            "mixup": (0 <= self.mixup <= 1, "from 0 to 1"),
            "cutmix": (self.cutmix >= 0 and self.mixup + self.cutmix <= 1, "from 0 to 1 - mixup"),
            "label_smoothing": (0 <= self.label_smoothing < 1, "from 0 to below 1"),
            "soften_age": (0 <= self.soften_age < float("inf"), "0 or more"),
            "auxiliary": (0 <= self.auxiliary < float("inf"), "0 or more"),
            "focal_gamma": (self.focal_gamma >= 0, "0 or more"),
            "focal_alpha": (self.focal_alpha is None or self.focal_alpha > 0, "above 0"),
            "lr": (0 <= self.lr < 100, "from 0 to below 100"),
            "layer_decay": (0 < self.layer_decay <= 1, "above 0 and at most 1"),
            "weight_decay": (self.weight_decay >= 0, "0 or more"),
            "momentum": (0 <= self.momentum < 1, "from 0 to below 1"),
            "warmup_epochs": (self.warmup_epochs >= 0, "0 or more"),
            "plateau_patience": (self.plateau_patience >= 0, "0 or more"),
            "epochs": (self.epochs >= 1, "1 or more"),
            "patience": (self.patience >= 0, "0 or more"),
            "batch_size": (self.batch_size >= 2, "2 or more"),
            "accumulate": (1 <= self.accumulate <= self.batch_size // 2, "1 to batch_size / 2"),
            "clip_norm": (self.clip_norm >= 0, "0 or more"),
            "ema_decay": (0 <= self.ema_decay < 1, "from 0 to below 1"),
            "workers": (1 <= self.workers <= 256, "from 1 to 256"),
            "seed": (0 <= self.seed < 2**31, "from 0 to 2147483647"),
            "name": (
                Path(self.name).name == self.name and self.name not in ("", ".."),
                "a plain folder name",
            ),
        }
        for name, (holds, expected) in rules.items():
            if not holds:
                raise ConfigError(f"{name} {getattr(self, name)!r}: must be {expected}")
        if self.border_ages == "soften" and self.soften_age > 0:
            raise ConfigError(
                f"border_ages soften and soften_age {self.soften_age}: two ways to soften the same "
                "label; set soften_age to 0, or border_ages to keep or drop"
            )
        if self.task == "age" and self.age_loss != "distribution" and not self.soften_age:
            raise ConfigError(
                f"age_loss {self.age_loss}: needs soften_age above 0, with which ages are learnt; "
                "without it their groups are"
            )
        if self.fold is not None and self.folds is None:
            raise ConfigError("fold and folds go together: --fold 0 --folds 5")
        if self.folds is not None and self.folds < 2:
            raise ConfigError(f"folds {self.folds}: must be 2 or more")
        if self.folds is not None and not 0 <= (self.fold or 0) < self.folds:
            raise ConfigError(f"fold {self.fold}: must be from 0 to folds - 1 = {self.folds - 1}")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for YAML and JSON; the inverse is `from_dict`."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in dataclasses.asdict(self).items()
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainConfig:
        """
        Raises:
            ConfigError: an unknown key, a value of the wrong type or out of range.
        """
        check_keys(values, "config")
        return cls(**{key: _coerce(value, _TYPES[key]) for key, value in values.items()})


_TYPES: dict[str, Any] = typing.get_type_hints(TrainConfig)
OPTION_FIELDS = tuple(field for field in fields(TrainConfig) if field.name != "task")
"""The fields that become options of `cli/train.py`, in order."""

PEOPLE_FIELDS = ("data_dir", "fixes", "val_ratio", "fold", "folds", "seed")
"""Fields that decide who trains and who validates."""
PLACE_FIELDS = frozenset({"data_dir", "model_dir", "name", "fixes"})
"""Fields that say where things lie; a run knows its data by what they hold."""
MACHINE_FIELDS = frozenset({"device", "workers", "cache", "tracker"})
"""Fields that may change when a run is resumed: they do not change what is learnt."""


def with_changes(config: TrainConfig, changes: Mapping[str, Any]) -> TrainConfig:
    """A config with the values of the call that goes on with it.

    Raises:
        ConfigError: a value that does not fit.
    """
    chosen = {  # what `auto` came to was settled at the beginning
        name: value for name, value in changes.items() if value != "auto" or name in MACHINE_FIELDS
    }
    return TrainConfig.from_dict({**config.to_dict(), **chosen})


def differences(wanted: TrainConfig, before: Mapping[str, Any], owner: str) -> list[str]:
    """The settings that differ from `before`, the values of an earlier config, each as a text for a
    message that says whose they are: the owner's. Where things lie, and the machine, may differ."""
    known = {**TrainConfig().to_dict(), **before}  # an older one lacks what came later, and its use
    return [
        f"{name} {value!r} ({owner} has {known[name]!r})"
        for name, value in wanted.to_dict().items()
        if name not in MACHINE_FIELDS | PLACE_FIELDS and value != known[name]
    ]


def parse_criterion(text: str) -> dict[str, float]:
    """A loss, or a weighted sum of losses, as it is written on the command line.

    >>> parse_criterion("cross_entropy:0.7,f1:0.3")
    {'cross_entropy': 0.7, 'f1': 0.3}

    Raises:
        ConfigError: an unknown loss, a weight that is no positive number, a loss named twice.
    """
    terms: dict[str, float] = {}
    for part in text.split(","):
        name, _, weight = (piece.strip() for piece in part.partition(":"))
        if name not in CRITERION_NAMES:
            raise ConfigError(unknown("criterion", name, CRITERION_NAMES))
        if name in terms:
            raise ConfigError(f"criterion {text!r}: {name} is named twice")
        try:
            terms[name] = float(weight) if weight else 1.0
        except ValueError:
            terms[name] = 0.0
        if not 0 < terms[name] < float("inf"):
            raise ConfigError(f"criterion {text!r}: the weight of {name} is not a positive number")
    return terms


def parse_trackers(text: str) -> tuple[str, ...]:
    """Names of trackers as they are written on the command line; none of them for `none`.

    >>> parse_trackers("tensorboard,mlflow")
    ('tensorboard', 'mlflow')

    Raises:
        ConfigError: an unknown tracker, or one that is named twice.
    """
    if text.strip() == "none":
        return ()
    names = tuple(part.strip() for part in text.split(","))
    for name in names:
        if name not in TRACKER_NAMES:
            raise ConfigError(unknown("tracker", name, (*TRACKER_NAMES, "none")))
        if names.count(name) > 1:
            raise ConfigError(f"tracker {text!r}: {name} is named twice")
    return names


# --- presets -----------------------------------------------------------------------------------

# The final table of the original project. A learning rate of 1e-5 fine-tunes ImageNet weights.
_IMAGENET = {
    "model": "efficientnet_b3_init",
    "optimizer": "adamw",
    "lr": 1e-5,
    "criterion": "cross_entropy",
    "schedule": "constant",
    "warmup_epochs": 0.0,
    "epochs": 30,
    "patience": 3,
}
# From random weights on a CPU: a network that sees enough pictures in half an hour of two cores.
# Sizes and epochs were chosen on validation people.
_SCRATCH = {
    "model": "resnet18",
    "height": 112,
    "width": 96,
    "crop": [0.8, 1.0],  # a portrait's face is in its middle; above and below it there is nothing
    "optimizer": "adamw",
    "lr": 2e-3,
    "weight_decay": 0.05,
    "criterion": "label_smoothing",
    "label_smoothing": 0.05,
    "soften_age": 4.0,  # an age is known to some years
    "auxiliary": 0.5,  # ages say more of a face than mask and gender do
    "class_weights": "sqrt",
    "augmentation": "RandAugmentation",  # with less change, people are learnt by heart sooner
    "schedule": "cosine",
    "epochs": 9,  # mask_gender's validation loss rises after these
    "patience": 0,  # the cosine's last epochs are its best; stopping before them wastes the run
    "clip_norm": 1.0,
    "ema_decay": 0.995,
    "val_ratio": 0.1,
    "tta": "flip",
}
# Age is learnt slowly, and its validation score is noisy: more epochs and a longer average. Mask
# and gender teach it nothing more. (Mixing pictures was tried for both, and scored no higher on
# validation people in as many epochs.)
_SCRATCH_AGE = {"epochs": 15, "ema_decay": 0.998, "auxiliary": 0.0}
# The second of two branches starts from the first, which has learnt faces already: a smaller step
# keeps what it knows.
_BRANCH = {"lr": 1e-3}
_SCRATCH_PRESETS = {
    task: _SCRATCH | (_SCRATCH_AGE if "age" in TASKS[task].attributes else {}) for task in TASKS
}
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "imagenet": {
        task: _IMAGENET
        | ({"model": "efficientnet_b3", "optimizer": "adam", "epochs": 20} if task == "age" else {})
        for task in TASKS
    },
    "scratch": _SCRATCH_PRESETS,
    "branch": {task: preset | _BRANCH for task, preset in _SCRATCH_PRESETS.items()},
}
"""start (imagenet, scratch, or branch: the other branch's network, itself from scratch) → task →
the values it sets; all others are the defaults."""


def resolve(
    task: str,
    start: str,
    file: Mapping[str, Any] | None = None,
    flags: Mapping[str, Any] | None = None,
) -> TrainConfig:
    """Preset, then file, then flags. `start`: which preset, a key of `PRESETS`.

    `file` is what `read_yaml` returns; a key that names a task holds values for that task only.

    Raises:
        ConfigError: an unknown task or key, or a value that does not fit.
    """
    get_task(task)
    own = file_values(file or {}, task)
    config = TrainConfig.from_dict(PRESETS[start][task] | own | dict(flags or {}) | {"task": task})
    refuse_idle(config)
    return config


def refuse_idle(config: TrainConfig) -> None:
    """Of a training that is to begin. Those of earlier versions, which took no notice, can still be
    read.

    Raises:
        ConfigError: a value that would do nothing.
    """
    if config.task == "multi" and config.age_loss != "distribution":
        raise ConfigError(
            f"age_loss {config.age_loss}: is of task age; multi learns the 18 classes as they are"
        )


def file_values(file: Mapping[str, Any], task: str) -> dict[str, Any]:
    """A config file's values for one task: its common keys, then the task's own section.

    Raises:
        ConfigError: an unknown key.
    """
    common = {key: value for key, value in file.items() if key not in TASKS}
    sections = {key: value for key, value in file.items() if key in TASKS}
    check_keys(common, "config file")
    for name, section in sections.items():
        if not isinstance(section, Mapping):
            raise ConfigError(f"config file: the section {name} must hold keys and values")
        check_keys(section, f"config file, section {name}")
    common.pop("task", None)
    return {**common, **sections.get(task, {})}


def check_keys(values: Mapping[str, Any], where: str) -> None:
    """
    Raises:
        ConfigError: a key that is no field of `TrainConfig`; names the nearest.
    """
    for key in values:
        if key not in _TYPES:
            raise ConfigError(f"{where}: {unknown('key', str(key), _TYPES)}")


def typed(key: str, value: Any) -> Any:
    """A setting's value as a config has it: `1e-3` is no text there, and a list is a tuple.

    Raises:
        ConfigError: a value of the wrong type.
    """
    value = _coerce(value, _TYPES[key])
    _check_type(key, value, _TYPES[key])
    return value


def read_yaml(path: Path) -> dict[str, Any]:
    """A config file's content.

    Raises:
        ConfigError: no such file, not YAML, or not keys and values.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from None
    except (ValueError, RecursionError, yaml.YAMLError) as error:  # ValueError: 2020-13-45
        raise ConfigError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: holds no keys and values")
    return values


def to_yaml(config: TrainConfig) -> str:
    """The resolved config, as it lands in the run folder."""
    return yaml.safe_dump(config.to_dict(), sort_keys=False, allow_unicode=True)


# --- types -------------------------------------------------------------------------------------


def _coerce(value: Any, hint: Any) -> Any:
    """YAML has no tuples and reads `1e-3` as text and `1` as a whole number."""
    kinds = _members(hint)
    if isinstance(value, str) and float in kinds and str not in kinds:
        try:
            return float(value)
        except ValueError:
            return value
    if isinstance(value, int) and not isinstance(value, bool) and float in kinds:
        try:
            return float(value)
        except OverflowError:  # 400 digits
            return value
    if _is_tuple(kinds):
        if isinstance(value, str):
            return (value,)
        if isinstance(value, list | tuple):
            return tuple(value) if str in _item(kinds) else tuple(_coerce(v, float) for v in value)
    return value


def _check_type(name: str, value: Any, hint: Any) -> None:
    kinds = _members(hint)
    if _is_tuple(kinds):
        item = _item(kinds)
        if (value is None and type(None) in kinds) or (
            isinstance(value, tuple)
            and all(isinstance(part, item) for part in value)
            and len(value) == (2 if float in item else len(value))
        ):
            return
    elif type(value) in kinds and not (isinstance(value, float) and not math.isfinite(value)):
        # type(): True is no int
        return
    shown = " or ".join(getattr(kind, "__name__", str(kind)) for kind in kinds)
    raise ConfigError(f"{name} {value!r}: must be {shown.replace('NoneType', 'null')}")


def _members(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)


def _is_tuple(kinds: tuple[Any, ...]) -> bool:
    return any(typing.get_origin(kind) is tuple for kind in kinds)


def _item(kinds: tuple[Any, ...]) -> tuple[Any, ...]:
    [kind] = [kind for kind in kinds if typing.get_origin(kind) is tuple]
    return typing.get_args(kind)[:1]
