"""Where a prediction file comes from: a small JSON file beside it, `output.csv.json`.

Labelling writes it and scoring reads it, so that a score on people the network was trained on is
noticed. It holds the hash of the prediction file and so cannot pass for the one of another file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from maskcls.files import file_digest, write_atomic


@dataclass(frozen=True)
class ModelFile:
    """One model file that gave the labels."""

    task: str
    path: str
    sha256: str


@dataclass(frozen=True)
class ShardRecord:
    """Which part of a job a prediction file is, and what the other parts must share with it."""

    number: int  # from 1
    count: int
    batch_size: int
    escape_formulas: bool
    pictures_sha256: str  # of the list of all pictures


@dataclass(frozen=True)
class Provenance:
    """How a prediction file was made.

    `seen_in_training` counts the pictures whose person or content was in the training split of one
    of the models; None when the models do not say who that was.
    """

    pictures: int
    errors: int  # pictures that could not be read; their `ans` is empty
    seen_in_training: int | None
    models: tuple[ModelFile, ...]
    shard: ShardRecord | None = None  # None: it is the whole job

    def __post_init__(self) -> None:
        for name in ("pictures", "errors", "seen_in_training"):
            count = getattr(self, name)
            if count is None and name == "seen_in_training":
                continue
            if type(count) is not int or count < 0:
                raise ValueError(f"provenance: {name} is {count!r}, not a count")


def provenance_path(pred_path: Path) -> Path:
    """`output.csv` → `output.csv.json`."""
    return pred_path.with_name(pred_path.name + ".json")


def write_provenance(
    pred_path: Path, provenance: Provenance, more: Mapping[str, Any] | None = None
) -> Path:
    """Writes the provenance beside a prediction file that is complete, and plain values that there
    are `more` to say; returns its path."""
    values = to_values(provenance) | dict(more or {}) | {"labels_sha256": file_digest(pred_path)}
    text = json.dumps(values, indent=1) + "\n"  # ASCII: names that are no UTF-8 survive
    write_atomic(provenance_path(pred_path), text.encode())
    return provenance_path(pred_path)


def read_provenance(pred_path: Path) -> Provenance | None:
    """The provenance of a prediction file. None where nothing can be told: there is no such file
    beside it, it is damaged, or the predictions have changed since.
    """
    try:
        values = json.loads(provenance_path(pred_path).read_text("utf-8"))
        labels_sha256 = values.pop("labels_sha256")
        provenance = from_values(values)
        return provenance if labels_sha256 == file_digest(pred_path) else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def to_values(provenance: Provenance) -> dict[str, Any]:
    """What JSON holds of it."""
    values = asdict(provenance)
    if provenance.shard is None:
        del values["shard"]
    return values


def from_values(values: dict[str, Any]) -> Provenance:
    """
    Raises:
        ValueError, TypeError, KeyError, AttributeError: they are not of `to_values`.
    """
    known = {field.name: values[field.name] for field in fields(Provenance) if field.name in values}
    known["models"] = tuple(ModelFile(**model) for model in values["models"])
    if "shard" in values:
        known["shard"] = ShardRecord(**values["shard"])
    return Provenance(**known)


def fingerprint(text: str) -> int:
    """A person's key, or a picture's content digest → 64 bits (signed), as checkpoints remember
    whom they were trained on without naming them.
    """
    return int.from_bytes(
        hashlib.sha256(text.encode(errors="surrogateescape")).digest()[:8], "big", signed=True
    )


OTHERS = fingerprint("others, of whom nobody says who they are")
"""Among fingerprints: there are more people, as where the start of a training does not say whom it
was trained on itself."""


def names_all(trained_on: frozenset[int] | None) -> bool:
    """Whether fingerprints are of everybody that a network has seen; None are of nobody."""
    return trained_on is not None and OTHERS not in trained_on


def seen_by_all(sets: Iterable[frozenset[int] | None]) -> frozenset[int] | None:
    """Whom networks have seen, taken together; None where one of them does not say."""
    whole: frozenset[int] = frozenset()
    for seen in sets:
        if seen is None:
            return None
        whole |= seen
    return whole


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Of those that are installed; one that runs from a clone may not be."""
    found = {}
    for package in packages:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found
