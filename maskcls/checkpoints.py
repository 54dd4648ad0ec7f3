"""Checkpoint files: written so that a kill, a full disk or a flipped bit never costs the last good
one, and read without running anything that is in them.

Beside `best.pt` lie `best.pt.sha256` and, from the second save on, `best.prev.pt` with its own.
A new file is complete on the disk before the present one becomes the previous one. A reader checks
the digest and falls back to the previous file, saying so.
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from maskcls.config import TrainConfig
from maskcls.errors import CheckpointError
from maskcls.files import file_digest, remove_left_over, sync_folder, write_atomic
from maskcls.manifest import Manifest


def save_checkpoint(content: Mapping[str, Any], path: Path) -> None:
    """Plain values and tensors → `path`, keeping the file that stood there as the previous one.

    Raises:
        OSError: the disk is full or the folder cannot be written; what stood there stays readable.
    """
    buffer = io.BytesIO()
    torch.save(dict(content), buffer)
    data = buffer.getvalue()  # shares the buffer's memory
    fresh = _fresh_path(path)
    write_atomic(fresh, data)
    write_atomic(digest_path(fresh), f"{hashlib.sha256(data).hexdigest()}\n".encode())
    # From here on only renames, which need no space. A kill between any two of them leaves a whole
    # file under one of the names that read_checkpoint tries.
    if path.exists():
        previous = previous_path(path)
        digest_path(previous).unlink(missing_ok=True)
        os.replace(path, previous)
        if digest_path(path).exists():
            os.replace(digest_path(path), digest_path(previous))
    os.replace(fresh, path)
    os.replace(digest_path(fresh), digest_path(path))
    sync_folder(path.parent)


def remove_left_over_of(path: Path) -> None:
    """Removes what killed processes left of `save_checkpoint(…, path)` unfinished."""
    fresh = _fresh_path(path)
    for written in (fresh, digest_path(fresh)):
        remove_left_over(written)


def _fresh_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.new")


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What `open_checkpoint` reads, without the name of the file.

    Raises:
        CheckpointError: as there.
    """
    return open_checkpoint(path)[0]


def read_manifest(path: Path) -> Manifest:
    """The manifest of what `read_checkpoint` reads.

    Raises:
        CheckpointError: as there; or a manifest that this version does not know.
    """
    return Manifest.from_json(read_checkpoint(path)["manifest"])


def open_checkpoint(path: Path) -> tuple[dict[str, Any], Path]:
    """The content of `path`, or, where that is damaged or gone, of the previous save; and the file
    that it was read from.

    Loads with `weights_only`: a malicious file runs nothing. A fallback is a `UserWarning` that
    says which file was taken and why.

    Raises:
        CheckpointError: none of the candidates can be read; names each with its reason.
    """
    reasons = []
    for candidate in _candidates(path):
        try:
            content = _read(candidate)
        except CheckpointError as error:
            if candidate == path or candidate.exists():
                reasons.append(str(error))
            continue
        if reasons:
            warnings.warn(f"{'; '.join(reasons)}; taking {candidate} instead", stacklevel=2)
        return content, candidate
    raise CheckpointError("; ".join(reasons))


def find_checkpoint(path: Path) -> Path | None:
    """The first file that a checkpoint would be read from; None if there is none."""
    return next((candidate for candidate in _candidates(path) if candidate.is_file()), None)


def is_finished(folder: Path) -> bool:
    """Whether a run folder's training came to its end.

    Raises:
        CheckpointError: its last checkpoint cannot be read.
    """
    if find_checkpoint(folder / "last.pt") is None:
        return False
    content = read_checkpoint(folder / "last.pt")
    config = Manifest.from_json(content["manifest"]).config
    return "trainer" in content and is_over(content, TrainConfig.from_dict(config))


def is_over(content: Mapping[str, Any], config: TrainConfig) -> bool:
    """Whether nothing is left to train, by what a run's last checkpoint holds."""
    trainer, stopping = content["trainer"], content.get("early_stopping")
    return trainer["iteration"] // trainer["epoch_length"] >= config.epochs or (
        stopping is not None and stopping["counter"] >= config.patience
    )


def previous_path(path: Path) -> Path:
    """`best.pt` → `best.prev.pt`."""
    return path.with_name(f"{path.stem}.prev{path.suffix}")


def digest_path(path: Path) -> Path:
    """`best.pt` → `best.pt.sha256`."""
    return path.with_name(f"{path.name}.sha256")


def load_plain(path: Path) -> Any:
    """`torch.load` of tensors and plain values on the CPU, with one error for all that goes wrong.

    Raises:
        CheckpointError: missing, empty, truncated, no checkpoint, or holding code.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except pickle.UnpicklingError as error:
        reason = " ".join(str(error).split("\n")[0].split())
        raise CheckpointError(
            f"{path}: not a file of tensors and plain values ({reason})"
        ) from None
    except Exception as error:  # torch raises RuntimeError, EOFError, KeyError, … on damaged files
        raise CheckpointError(f"{path}: damaged or no checkpoint ({error})") from None


def _candidates(path: Path) -> tuple[Path, Path, Path]:
    """Where the newest checkpoint may lie, from the most to the least recent: a kill between two
    renames leaves it without its name."""
    return path, _fresh_path(path), previous_path(path)


def _read(path: Path) -> dict[str, Any]:
    digest = digest_path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    # A file that somebody copied without its digest is taken as it is.
    if (
        digest.is_file()
        and file_digest(path) != digest.read_bytes().decode(errors="replace").strip()
    ):
        raise CheckpointError(f"{path}: damaged (its sha256 is not the one in {digest.name})")
    content = load_plain(path)
    if not isinstance(content, dict) or "manifest" not in content or "model" not in content:
        raise CheckpointError(f"{path}: not a checkpoint of maskcls")
    return content
