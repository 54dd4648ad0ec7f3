"""Folders of runs."""

from __future__ import annotations

import itertools
from pathlib import Path


def increment_path(path: Path, exist_ok: bool = False) -> Path:
    """Makes and returns `path`, or the first of `path2`, `path3`, … that does not exist.

    Two processes that ask at the same moment get folders of their own. With `exist_ok`, `path`
    itself is taken even where it exists.

    Raises:
        OSError: the folder cannot be made.
    """
    for number in itertools.count(1):
        candidate = path if number == 1 else path.with_name(f"{path.name}{number}")
        try:
            candidate.mkdir(parents=True, exist_ok=exist_ok)
            return candidate
        except FileExistsError:
            continue
    raise AssertionError("itertools.count ended")
