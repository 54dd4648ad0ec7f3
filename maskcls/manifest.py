"""The contract that every checkpoint and every ONNX file carries: what the network answers, what
it wants to be fed, and where it comes from. A loader needs the file and nothing else.
"""

from __future__ import annotations

import json
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
FORMAT = 1
"""Raised when a file of this version could no longer be read by an older `maskcls`."""


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
    format: int = FORMAT

    def __post_init__(self) -> None:
        if self.task not in TASKS or self.class_names != TASKS[self.task].class_names:
            raise CheckpointError(
                f"manifest: task {self.task!r} with classes {list(self.class_names)} "
                "is not one that this version knows"
            )

    def get_task(self) -> Task:
        """The entry of the task table."""
        return TASKS[self.task]

    @property
    def tta(self) -> str:
        """What the network averages over when it labels: `none` or `flip`."""
        return str(self.config.get("tta", "none"))

    def without_places(self) -> Manifest:
        """The same for a file that is given away: no path of this machine in it."""
        config = {
            key: value
            for key, value in self.config.items()
            if key not in PLACE_FIELDS and key != "cache"
        }
        for key, words in (("weights", WEIGHT_NAMES), ("class_weights", CLASS_WEIGHT_NAMES)):
            if key in config and config[key] not in words:
                config[key] = PurePath(str(config[key])).name
        return replace(self, config=config)

    def to_json(self) -> str:
        """One JSON object; keys sorted, so equal manifests give equal text."""
        return json.dumps(self.to_dict(), sort_keys=True, ensure_ascii=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self) | {"preprocess": self.preprocess.to_dict()}

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """The inverse of `to_json`.

        Raises:
            CheckpointError: not a manifest, or one of a newer format.
        """
        try:
            values = json.loads(text)
            if values["format"] > FORMAT:
                raise CheckpointError(
                    f"manifest format {values['format']}: this version of maskcls reads up to "
                    f"{FORMAT}; install a newer one"
                )
            values["preprocess"] = PreprocessSpec.from_dict(values["preprocess"])
            values["class_names"] = tuple(values["class_names"])
            values["fixes"] = tuple(values["fixes"])
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
            "format": FORMAT,
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
