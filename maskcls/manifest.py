"""The contract that every checkpoint and every ONNX file carries: what the network answers, what
it wants to be fed, and where it comes from. A loader needs the file and nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from maskcls.errors import CheckpointError, MaskclsError
from maskcls.labels import TASKS, Task
from maskcls.preprocessing import PreprocessSpec

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

    def to_json(self) -> str:
        """One JSON object; keys sorted, so equal manifests give equal text."""
        values = asdict(self) | {"preprocess": self.preprocess.to_dict()}
        return json.dumps(values, sort_keys=True, ensure_ascii=False)

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
