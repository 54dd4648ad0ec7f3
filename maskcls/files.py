"""Writing files so that nobody ever sees half of one, and one process at a time."""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to; it takes the place of `path` when the block ends
    well, and is removed when it does not. Makes missing folders. The content is on the disk, not
    only in memory, before it gets its name, and so is the name when the block has ended.

    An OSError on the way names `path`: a full disk does not say by itself which file it was.
    """
    if path.exists() and not path.is_file():  # /dev/stdout, a pipe: nothing to put in its place
        yield path
        return
    target = path.resolve()  # a link stays one
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, target)
            sync_folder(target.parent)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        if error.filename in (None, os.fspath(temporary)):
            error.filename, error.filename2 = os.fspath(path), None
        raise


def remove_left_over(path: Path) -> None:
    """Removes what killed processes left of `replacing(path)`. For a caller that keeps others from
    writing it."""
    target = path.resolve()
    before, after = f".{target.name}.", ".tmp"
    with suppress(OSError):  # no such folder
        for file in target.parent.iterdir():
            process = file.name.removeprefix(before).removesuffix(after)
            if process.isdecimal() and file.name == f"{before}{process}{after}":
                file.unlink(missing_ok=True)


def write_atomic(path: Path, content: bytes) -> None:
    """The content under `path`, whole or not at all.

    Raises:
        OSError: it names `path`.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def file_digest(path: Path) -> str:
    """sha256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cache_folder(option: str) -> Path:
    """The folder that `--cache` names; `auto` is the user's cache folder."""
    import platformdirs

    return Path(platformdirs.user_cache_dir("maskcls") if option == "auto" else option)


def write_rows(file: TextIO, rows: Iterable[Sequence[object]]) -> None:
    """Rows of a CSV table; lines end with a newline alone."""
    plain = csv.writer(file, lineterminator="\n")
    # Python before 3.13 leaves a carriage return unquoted, where a reader ends the row.
    quoted = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL)
    for row in rows:
        odd = any(isinstance(cell, str) and "\r" in cell for cell in row)
        (quoted if odd else plain).writerow(row)


def sync_folder(folder: Path) -> None:
    """Renames in the folder survive a power failure from here on. (Windows cannot be asked to.)"""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def locked(path: Path, busy: Callable[[], object]) -> Iterator[None]:
    """Lets one process at a time into the blocks of the same `path`, a file made for this. It is
    free again when its process has ended, however that ended.

    `busy` is called where another process is inside; unless it raises, this one waits.

    Raises:
        OSError: the file cannot be made.
    """
    from filelock import FileLock, Timeout

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        busy()
        lock.acquire()
    try:
        yield
    finally:
        # While it is held: one that waits sees that its file is gone, and asks anew.
        with suppress(OSError):  # Windows does not remove an open file
            path.unlink(missing_ok=True)
        lock.release()
