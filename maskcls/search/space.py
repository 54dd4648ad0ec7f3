"""A search space: which settings a search tries, and among which values.

A YAML file with a key of `TrainConfig` a line. A list is a choice; `low` and `high` are a range,
with `log: true` for one that is drawn by its order of magnitude, and `step` for one that is drawn
in steps:

    lr: {low: 0.0005, high: 0.01, log: true}
    mixup: {low: 0.0, high: 0.4, step: 0.1}
    class_weights: [none, sqrt]
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

import yaml

from maskcls.config import (
    MACHINE_FIELDS,
    PEOPLE_FIELDS,
    PLACE_FIELDS,
    TrainConfig,
    check_keys,
    parse_criterion,
    refuse_idle,
    typed,
)
from maskcls.errors import ConfigError, unknown

FIXED_FIELDS = frozenset(
    (*PEOPLE_FIELDS, *PLACE_FIELDS, *MACHINE_FIELDS, "task", "strict", "calibration")
)
"""Scores could not be compared if these differed between trials, or would not differ: scored is
what a network answers before it is calibrated."""
RANGE_KEYS = ("low", "high", "log", "step")


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included; whole ones where both are of type int."""

    low: float
    high: float
    log: bool = False
    step: float | None = None

    @property
    def whole(self) -> bool:
        return isinstance(self.low, int)

    def examples(self) -> tuple[float, ...]:
        """Values that have to fit a config if all do."""
        return self.low, self.high

    def holds(self, value: Any) -> bool:
        """Whether a trial can have this value."""
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and self.low <= value <= self.high and _on_grid(self, value)


@dataclass(frozen=True)
class Choices:
    """Some values of a setting."""

    values: tuple[Any, ...]

    def examples(self) -> tuple[Any, ...]:
        """Values that have to fit a config if all do."""
        return self.values

    def holds(self, value: Any) -> bool:
        """Whether a trial can have this value."""
        return value in self.values


Space = Mapping[str, Range | Choices]
"""Key of `TrainConfig` → what is tried."""


def parse_space(text: str, base: TrainConfig, where: str) -> Space:
    """The content of a space file. `base`: what trials have besides. `where`: the file's name, for
    messages.

    Raises:
        ConfigError: not YAML, no setting, a key that is none or cannot be searched, a range or a
            choice that makes no sense, a value that does not fit; with its line.
    """
    try:
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        nodes = root.value if isinstance(root, yaml.MappingNode) else []
        entries = [
            (
                f"{where}, line {key.start_mark.line + 1}",
                str(loader.construct_object(key, deep=True)),
                loader.construct_object(value, deep=True),
            )
            for key, value in nodes
        ]
    except (ValueError, RecursionError, yaml.YAMLError) as error:  # ValueError: 2020-13-45
        raise ConfigError(f"{where}: not YAML: {' '.join(str(error).split())}") from None
    if not entries:
        raise ConfigError(f"{where}: holds no keys and values: nothing to search")
    space: dict[str, Range | Choices] = {}
    for line, key, value in entries:
        check_keys({key: value}, line)
        if key in space:
            raise ConfigError(f"{line}: {key} is there twice")
        if key in FIXED_FIELDS:
            raise ConfigError(
                f"{line}: {key} cannot be searched: it is the same for all trials, so that their "
                "scores can be compared"
            )
        space[key] = _dimension(key, value, line)
    for line, key, _ in entries:
        _check_with_others(key, space, base, line)
    return space


def default_space(base: TrainConfig) -> str:
    """A space file for a task, around a config."""
    rate = base.lr or 1e-3
    lines = [
        f"lr: {{low: {rate / 5:.6g}, high: {rate * 5:.6g}, log: true}}",
        "weight_decay: {low: 0.001, high: 0.3, log: true}",
        f"class_weights: {_among(base.class_weights, 'none', 'sqrt')}",
        f"augmentation: {_among(base.augmentation, 'BestAugmentation', 'RandAugmentation')}",
        "mixup: {low: 0.0, high: 0.4, step: 0.1}",
        "cutmix: {low: 0.0, high: 0.4, step: 0.1}",
    ]
    losses = parse_criterion(base.criterion)
    if "label_smoothing" in losses:
        lines.append("label_smoothing: {low: 0.0, high: 0.2}")
    elif list(losses) == ["cross_entropy"]:
        lines.append(f"criterion: {_among(base.criterion, 'label_smoothing')}")
    if "focal" in losses:
        lines.append("focal_gamma: {low: 0.5, high: 4.0}")
    if base.soften_age:
        lines.append("soften_age: {low: 1.0, high: 8.0}")
    if base.auxiliary:
        lines.append("auxiliary: {low: 0.1, high: 1.0}")
    if base.weights != "none":
        lines.append("layer_decay: {low: 0.7, high: 1.0}")
    return "\n".join(lines) + "\n"


def _among(own: str, *others: str) -> str:
    """A choice with the config's own value first."""
    return yaml.safe_dump(list(dict.fromkeys((own, *others))), default_flow_style=True).strip()


def _dimension(key: str, value: Any, line: str) -> Range | Choices:
    """
    Raises:
        ConfigError: it is neither a choice nor a range of this setting's values.
    """
    if isinstance(value, list):
        if len(value) < 2:
            raise ConfigError(
                f"{line}: {key}: a choice needs two values or more; what is fixed belongs into the "
                "config"
            )
        values = tuple(_typed(key, item, line) for item in value)
        if len(set(values)) < len(values):
            raise ConfigError(f"{line}: {key}: a value is there twice")
        return Choices(values)
    if not isinstance(value, dict):
        raise ConfigError(
            f"{line}: {key}: {value!r} is neither a list of choices nor a range "
            "{low: …, high: …, log: true}"
        )
    for name in value:
        if name not in RANGE_KEYS:
            raise ConfigError(f"{line}: {key}: {unknown('key', str(name), RANGE_KEYS)}")
    for name in ("low", "high"):
        if name not in value:
            raise ConfigError(f"{line}: {key}: has no {name}: a range needs low and high")
    low, high = (_typed(key, value[name], line) for name in ("low", "high"))
    if not all(isinstance(end, int | float) and not isinstance(end, bool) for end in (low, high)):
        raise ConfigError(f"{line}: {key} has no numbers: give a list of choices")
    if not low < high:
        raise ConfigError(f"{line}: {key}: low {low} must be below high {high}")
    log, step = value.get("log", False), value.get("step")
    if not isinstance(log, bool):
        raise ConfigError(f"{line}: {key}: log {log!r} must be true or false")
    if log and low <= 0:
        raise ConfigError(f"{line}: {key}: low {low} must be above 0 with log: true")
    if step is None:
        return Range(low, high, log)
    if log:
        raise ConfigError(f"{line}: {key}: log and step do not go together")
    try:
        width = typed(key, step)  # as low is: YAML takes 1e-3 for a text
    except ConfigError:
        width = 0
    if not width > 0:
        number = "a whole number" if isinstance(low, int) else "a number"
        raise ConfigError(f"{line}: {key}: step {step!r} must be {number} above 0")
    found = Range(low, high, step=width)
    if not _on_grid(found, high):
        raise ConfigError(f"{line}: {key}: high {high} is no whole number of steps above low {low}")
    return found


def _typed(key: str, value: Any, line: str) -> Any:
    """
    Raises:
        ConfigError: a value of the wrong type.
    """
    try:
        return typed(key, value)
    except ConfigError as error:
        raise ConfigError(f"{line}: {error}") from None


def _check_with_others(key: str, space: Space, base: TrainConfig, line: str) -> None:
    """Each value has to fit the config as it is, or together with values of the other keys.

    Raises:
        ConfigError: one fits neither.
    """
    values = base.to_dict()
    lowest = {name: other.examples()[0] for name, other in space.items()}
    highest = {name: other.examples()[-1] for name, other in space.items()}
    for value in space[key].examples():
        first: ConfigError | None = None
        for others in ({}, lowest, highest):
            try:
                refuse_idle(TrainConfig.from_dict(values | others | {key: value}))
                break
            except ConfigError as error:
                first = first or error
        else:
            raise ConfigError(f"{line}: {first}")


def _on_grid(dimension: Range, value: float) -> bool:
    if dimension.step is None:
        return True
    # Decimal: 0.3 is three steps of 0.1.
    low, step, own = (Decimal(str(number)) for number in (dimension.low, dimension.step, value))
    try:
        return (own - low) % step == 0
    except InvalidOperation:  # more steps than Decimal has digits
        return False
