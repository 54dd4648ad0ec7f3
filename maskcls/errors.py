"""The errors that `maskcls` raises for input it cannot work with.

    MaskclsError
    ├── ConfigError         an option, a key or a value that does not exist or does not fit
    ├── DataError           a data folder, a table or a label that cannot be used
    │   └── PictureError    one picture that cannot be decoded
    ├── CheckpointError     a checkpoint that is damaged, missing or of another run
    ├── WeightsError        pretrained weights that cannot be had or do not fit the network
    ├── ExportError         an export that did not pass its comparison, or cannot be made
    ├── ProviderError       a device or execution provider that cannot be had
    ├── TrainingError       a training that cannot go on (NaN loss, too little memory)
    ├── StudyError          a search's folder that is damaged, in use or of another search
    ├── TrackerError        a tracker that was asked for and cannot be opened
    ├── PageError           the page of maskcls-demo cannot be made or served
    └── MissingExtraError   an optional package is not installed; names the extra

Every message names the bad value, where it stood, and the way out. A command prints it as one
`error:` line and ends with exit code 2 (`ConfigError`) or 1 (all others), without a traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MaskclsError(Exception):
    """Base of all errors that a user can cause and mend."""

    exit_code = 1


class ConfigError(MaskclsError):
    """An option, a key or a value that does not exist or does not fit."""

    exit_code = 2


class DataError(MaskclsError):
    """A data folder, a table or a label that cannot be used."""


class PictureError(DataError):
    """One picture that cannot be decoded."""


class CheckpointError(MaskclsError):
    """A checkpoint that is damaged, missing, or belongs to another run."""


class WeightsError(MaskclsError):
    """Pretrained weights that cannot be had or do not fit the network."""


class ExportError(MaskclsError):
    """An export that did not pass its comparison with PyTorch, or cannot be made."""


class ProviderError(MaskclsError):
    """An execution provider that was asked for and cannot be had."""


class TrainingError(MaskclsError):
    """A training that cannot go on."""


class StudyError(MaskclsError):
    """The folder of a search is damaged, in use, or belongs to another search."""


class TrackerError(MaskclsError):
    """A tracker that was asked for and cannot be opened."""


class PageError(MaskclsError):
    """The page of `maskcls-demo` cannot be made or served."""


class MissingExtraError(MaskclsError):
    """An optional package is not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs the package {package!r}: pip install 'maskcls[{extra}]'")


def unknown(kind: str, value: str, known: Iterable[str]) -> str:
    """The message for a name that is not in a table, with the nearest known one.

    >>> unknown("model", "resnet43", ["resnet34", "vgg19"])
    "unknown model 'resnet43'; did you mean 'resnet34'? known: resnet34, vgg19"
    """
    names = list(known)
    close = difflib.get_close_matches(value, names, n=1)
    hint = f" did you mean {close[0]!r}?" if close else ""
    return f"unknown {kind} {value!r};{hint} known: {', '.join(names)}"
