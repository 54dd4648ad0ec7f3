"""The contract that every checkpoint and every ONNX file carries: what the network answers, what
it wants to be fed, and where it comes from. A loader needs the file and nothing else.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import PurePath
from typing import Any

from maskcls.config import CLASS_WEIGHT_NAMES, PLACE_FIELDS, WEIGHT_NAMES
from maskcls.errors import CheckpointError, MaskclsError
from maskcls.labels import ATTRIBUTES, TASKS, Task
from maskcls.preprocessing import PreprocessSpec

PRECISIONS = ("fp32", "fp16", "int8")
"""What an ONNX file may compute in."""
FORMAT = 2
"""The newest that this version reads. A file has the oldest that says all that is in it: a version
that would leave some of it out refuses the file."""


@dataclass(frozen=True)
class Calibration:
    """What a network's logits (N, C) go through when it labels: `logits / temperature + bias`."""

    temperature: float
    bias: tuple[float, ...]  # one per class

    def __post_init__(self) -> None:
        numbers = (self.temperature, *self.bias)
        if (
            not all(isinstance(number, float) and math.isfinite(number) for number in numbers)
            or self.temperature <= 0
        ):
            raise CheckpointError(
                f"manifest: a calibration of temperature {self.temperature!r} and bias "
                f"{list(self.bias)}; it needs finite numbers, the temperature above 0"
            )


ENSEMBLE = "ensemble"
"""The `Manifest.model` of several networks in one; `model_args` holds the manifest of each."""
GREEDY_SOUP = "greedy-soup"
COMBINATIONS = (ENSEMBLE, "soup", GREEDY_SOUP)
"""How several networks of a task are made one; see `maskcls.training.combine`."""


@dataclass(frozen=True)
class Manifest:
    """What travels with the weights. All values are plain, so that JSON holds them."""

    task: str
    class_names: tuple[str, ...]
    preprocess: PreprocessSpec
    model: str  # registry name
    model_args: Mapping[str, Any]  # what its constructor was given besides the class count
    config: Mapping[str, Any] = field(default_factory=dict)  # resolved training config
    split_hash: str = ""  # of split.csv: which people, which pictures, which side
    fixes: tuple[Mapping[str, str], ...] = ()  # label corrections that were applied
    git_revision: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    calibration: Calibration | None = None  # None: logits stay as they are

    def __post_init__(self) -> None:
        if self.task not in TASKS or self.class_names != TASKS[self.task].class_names:
            raise CheckpointError(
                f"manifest: task {self.task!r} with classes {list(self.class_names)} "
                "is not one that this version knows"
            )
        if self.calibration and len(self.calibration.bias) != len(self.class_names):
            raise CheckpointError(
                f"manifest: a calibration of {len(self.calibration.bias)} classes for "
                f"{len(self.class_names)}"
            )

    def get_task(self) -> Task:
        """The entry of the task table."""
        return TASKS[self.task]

    @property
    def format(self) -> int:
        """See `FORMAT`: 2 brought calibrations."""
        return 1 if self.calibration is None else 2

    @property
    def tta(self) -> str:
        """What the network averages over when it labels: `none` or `flip`."""
        return str(self.config.get("tta", "none"))

    def without_places(self) -> Manifest:
        """The same for a file that is given away: no path of this machine in it, and no folder of a
        person: of label corrections stays what was corrected."""
        config = {
            key: value
            for key, value in self.config.items()
            if key not in PLACE_FIELDS and key != "cache"
        }
        for key, words in (("weights", WEIGHT_NAMES), ("class_weights", CLASS_WEIGHT_NAMES)):
            if key in config and config[key] not in words:
                config[key] = PurePath(str(config[key])).name
        arguments = dict(self.model_args)
        if self.model == ENSEMBLE:
            arguments["members"] = [m.without_places().to_dict() for m in ensemble_members(self)]
        fixes = tuple(
            {k: fix[k] for k in ("field", "old", "new") if k in fix} for fix in self.fixes
        )
        return replace(self, config=config, model_args=arguments, fixes=fixes)

    def to_json(self) -> str:
        """One JSON object; keys sorted, so equal manifests give equal text."""
        return json.dumps(self.to_dict(), sort_keys=True, ensure_ascii=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        values = asdict(self) | {"preprocess": self.preprocess.to_dict(), "format": self.format}
        if self.calibration is None:  # a key that an older version does not know
            del values["calibration"]
        return values

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """The inverse of `to_json`.

        Raises:
            CheckpointError: not a manifest, or one of a newer format.
        """
        try:
            values = json.loads(text)
            if (found := values.pop("format")) > FORMAT:
                raise CheckpointError(
                    f"manifest format {found}: this version of maskcls reads up to "
                    f"{FORMAT}; install a newer one"
                )
            values["preprocess"] = PreprocessSpec.from_dict(values["preprocess"])
            values["class_names"] = tuple(values["class_names"])
            values["fixes"] = tuple(values["fixes"])
            if (calibration := values.get("calibration")) is not None:
                bias = tuple(calibration["bias"])
                values["calibration"] = Calibration(**calibration | {"bias": bias})
            return cls(**values)
        except CheckpointError:
            raise
        except (
            MaskclsError,
            ValueError,
            TypeError,
            KeyError,
            AttributeError,
            RecursionError,  # of json, on text that is nested too deep
        ) as error:
            raise CheckpointError(f"not a manifest of maskcls: {error!r}") from error


def ensemble_members(manifest: Manifest) -> list[Manifest]:
    """The manifests of an ensemble's networks.

    Raises:
        CheckpointError: there are none, or networks of another task or input.
    """
    found = manifest.model_args.get("members")
    if not isinstance(found, list) or not found:
        raise CheckpointError("manifest: an ensemble without members")
    members = [Manifest.from_json(json.dumps(member)) for member in found]
    for member in members:
        if (member.task, member.preprocess) != (manifest.task, manifest.preprocess):
            raise CheckpointError("manifest: an ensemble whose members differ in task or input")
    return members


def networks_within(manifest: Manifest) -> list[Manifest]:
    """The manifests of the networks that answer: an ensemble's, or the one itself."""
    if manifest.model != ENSEMBLE:
        return [manifest]
    return [one for member in ensemble_members(manifest) for one in networks_within(member)]


def is_greedy(manifest: Manifest) -> bool:
    """Whether a network is a greedy soup, or was made of one."""
    combined = manifest.config.get("combined", {})
    return (
        combined.get("how") == GREEDY_SOUP
        or bool(combined.get("greedy"))
        or (manifest.model == ENSEMBLE and any(map(is_greedy, ensemble_members(manifest))))
    )


ONNX_KEY = "maskcls"
"""Where an ONNX file's `metadata_props` hold its `OnnxManifest`."""
SEEN_KEY = "maskcls.trained_on"
"""… and whom its networks were trained on: fingerprints, int64 little-endian, base64."""


@dataclass(frozen=True)
class OnnxManifest:
    """What an ONNX file says about itself."""

    kind: str  # network: normalised pixels → logits of one task; fused: raw pixels → 18 classes
    networks: tuple[Manifest, ...]
    checkpoints: tuple[str, ...]  # sha256 of the file that each network comes from
    precision: str  # one of PRECISIONS
    opset: int
    input_size: tuple[int, int] | None = None  # fused: (height, width); None takes any
    versions: Mapping[str, str] = field(default_factory=dict)
    parity: Mapping[str, Any] = field(default_factory=dict)  # what the comparison came to

    def __post_init__(self) -> None:
        answered = [name for network in self.networks for name in network.get_task().attributes]
        complete = sorted(answered) == sorted(ATTRIBUTES)
        if self.kind not in ("network", "fused") or not (
            complete if self.kind == "fused" else len(self.networks) == 1
        ):
            raise CheckpointError(f"manifest: a {self.kind!r} file that answers {answered}")
        if len(self.checkpoints) != len(self.networks):
            raise CheckpointError("manifest: not one checkpoint per network")

    def to_json(self) -> str:
        """One JSON object."""
        values = {
            **{item.name: getattr(self, item.name) for item in fields(self)},
            "networks": [network.to_dict() for network in self.networks],
            "format": max(network.format for network in self.networks),
        }
        return json.dumps(values, sort_keys=True, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> OnnxManifest:
        """The inverse of `to_json`.

        Raises:
            CheckpointError: not a manifest, or one of a newer format.
        """
        try:
            values = json.loads(text)
            if values.pop("format") > FORMAT:
                raise CheckpointError("manifest of a newer format: install a newer maskcls")
            values["networks"] = tuple(
                Manifest.from_json(json.dumps(network)) for network in values["networks"]
            )
            values["checkpoints"] = tuple(values["checkpoints"])
            if values["input_size"] is not None:
                height, width = values["input_size"]
                values["input_size"] = int(height), int(width)
            return cls(**values)
        except CheckpointError:
            raise
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise CheckpointError(f"not a manifest of maskcls: {error!r}") from error
