"""Writing files so that nobody ever sees half of one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to; it takes the place of `path` when the block ends
    well, and is removed when it does not. Makes missing folders. The content is on the disk, not
    only in memory, before it gets its name.

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
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        if error.filename in (None, os.fspath(temporary)):
            error.filename, error.filename2 = os.fspath(path), None
        raise


def write_atomic(path: Path, content: bytes | memoryview) -> None:
    """The content under `path`, whole or not at all.

    Raises:
        OSError: it names `path`.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(content)
