"""Decoded, resized pictures as one memory-mapped uint8 file, so that a second epoch, a second
branch and a second run decode nothing.

The file's name is a digest of the pictures' content, of the preprocessing and of Pillow's version,
so a changed picture or size gets a file of its own, and files are never written twice.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import PIL
from PIL import features
from tqdm import tqdm

from maskcls.errors import DataError, PictureError
from maskcls.files import locked, write_atomic
from maskcls.images import content_digest, decode, picture_digest, read_bytes
from maskcls.preprocessing import PreprocessSpec

_VERSION = 3  # of decoding and resizing; raised when the same picture would give other pixels
_T = TypeVar("_T")


@dataclass(frozen=True)
class PixelCache:
    """The pixels of a list of pictures, in its order."""

    pixels: np.ndarray  # uint8 (N, height, width, 3), memory-mapped, read-only
    digests: tuple[str, ...]  # content of each picture; "" where it could not be read
    errors: dict[int, str]  # index → why the picture has no pixels


def open_cache(
    paths: Sequence[Path],
    spec: PreprocessSpec,
    folder: Path,
    *,
    workers: int = 2,
    say: Callable[[str], None] = print,
) -> PixelCache:
    """The pixels of `paths`, from the cache or decoded into it.

    A picture that cannot be decoded has an entry in `errors` and black pixels. `say` is told the
    size before anything is written.

    Raises:
        DataError: the disk has no room for the cache, the folder cannot be written, or a picture
            changed or went away while it was filled.
    """
    with ThreadPoolExecutor(workers) as pool:
        digests = tuple(_progress(pool.map(picture_digest, paths), len(paths), "reading pictures"))
    name = _key(digests, spec)
    file, notes = folder / f"{name}.npy", folder / f"{name}.json"
    try:
        shape = (len(paths), *spec.size, 3)
        if not _complete(file, notes, shape):
            # Of two processes one decodes, and the other waits for what it needs as well.
            with locked(folder / f"{name}.lock", lambda: say(f"waiting for {file} to be filled")):
                if not _complete(file, notes, shape):
                    _decode_all(paths, digests, spec, file, notes, workers, say)
        errors = {index: f"{paths[index]}: {why}" for index, why in _read_notes(notes).items()}
        return PixelCache(np.load(file, mmap_mode="r"), digests, errors)
    except OSError as error:
        raise DataError(
            f"pixel cache {folder}: {error.strerror or error}; name another folder with --cache DIR"
        ) from error


def _decode_all(
    paths: Sequence[Path],
    digests: Sequence[str],
    spec: PreprocessSpec,
    file: Path,
    notes: Path,
    workers: int,
    say: Callable[[str], None],
) -> None:
    folder = file.parent
    size = len(paths) * spec.height * spec.width * 3
    free = shutil.disk_usage(folder).free
    say(f"decoding {len(paths)} pictures into a cache of {size / 1e6:,.1f} MB in {folder}")
    if size > free:
        raise DataError(
            f"pixel cache {folder}: {size / 1e6:,.0f} MB are needed and {free / 1e6:,.0f} MB are "
            "free; name another folder with --cache DIR"
        )
    part = file.with_name(f"{file.stem}.part")  # of a killed process: written over
    try:
        pixels = np.lib.format.open_memmap(
            part, mode="w+", dtype=np.uint8, shape=(len(paths), *spec.size, 3)
        )
        _take_room(part)
        errors: dict[str, str] = {}

        def fill(index: int) -> None:
            digest = ""
            try:
                content = read_bytes(paths[index])
                digest = content_digest(content)
                pixels[index] = spec.resize(decode(content, paths[index]))
            except PictureError as error:
                # Without its name: another folder may hold the same pictures.
                errors[str(index)] = str(error).removeprefix(f"{paths[index]}: ")
            if digest != digests[index]:
                # The file's name is of what was read first: this would be kept as that for ever.
                reason = errors.get(str(index), "its content has changed")
                raise DataError(f"{paths[index]}: {reason}, after it was read once; run again")

        with ThreadPoolExecutor(workers) as pool:
            for _ in _progress(pool.map(fill, range(len(paths))), len(paths), "decoding"):
                pass
        pixels.flush()
        write_atomic(notes, json.dumps(errors).encode())
        os.replace(part, file)  # complete under its name or not there at all
    finally:
        part.unlink(missing_ok=True)


def _take_room(file: Path) -> None:
    """Has the disk keep room for all of a file that is written by its memory map: a full disk would
    end the process by SIGBUS there, with no error to catch.

    Raises:
        OSError: there is no such room.
    """
    if hasattr(os, "posix_fallocate"):  # not on macOS and Windows
        with file.open("rb+") as opened:
            os.posix_fallocate(opened.fileno(), 0, file.stat().st_size)


def _complete(file: Path, notes: Path, shape: tuple[int, ...]) -> bool:
    try:
        _read_notes(notes)
        # Not np.load, which takes other formats too, each with errors of its own.
        return bool(np.lib.format.open_memmap(file, mode="r").shape == shape)
    except (OSError, ValueError, AttributeError):  # missing, truncated or foreign: made anew
        return False


def _read_notes(notes: Path) -> dict[int, str]:
    return {int(index): text for index, text in json.loads(notes.read_text("utf-8")).items()}


def _key(digests: Sequence[str], spec: PreprocessSpec) -> str:
    what = {
        "version": _VERSION,
        "size": spec.size,
        "crop": spec.crop,
        "interpolation": spec.interpolation,
        # Another Pillow may decode otherwise, or not at all, and the folder may be shared.
        "pillow": [PIL.__version__, features.check("webp")],
        "pictures": list(digests),
    }
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:32]


def _progress(items: Iterable[_T], total: int, what: str) -> Iterable[_T]:
    return tqdm(items, total=total, desc=what, unit="img", leave=False, delay=1.0, disable=None)
