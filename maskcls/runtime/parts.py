"""The finished parts of a long job, beside its output: `output.csv.parts/`.

Each part is a file of rows that appears whole. A killed job leaves its finished parts, and the same
job goes on after them; the output is put together from all parts, so it is the same bytes whether
the job was interrupted or not.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from maskcls.errors import DataError
from maskcls.files import locked, remove_left_over, write_atomic
from maskcls.provenance import provenance_path

LOCK = ".lock"
Row = Mapping[str, Any]


def parts_path(out: Path) -> Path:
    """`output.csv` → `output.csv.parts`. Of a link, beside what it leads to, where jobs meet."""
    out = out.resolve() if out.is_symlink() else out
    return out.with_name(f"{out.name}.parts")


@contextlib.contextmanager
def only_job(out: Path, folder: Path | None = None) -> Iterator[None]:
    """Keeps a second job from the same output while one writes it. `folder`: where the lock lies;
    None: among the parts.

    Raises:
        DataError: another process is labelling into it, or `out` is a folder and not to be one.
    """
    if folder is None and out.is_dir():
        raise DataError(f"{out}: is a folder; name a file for the labels")

    def busy() -> None:
        raise DataError(f"{out}: another job is writing it; wait for its end, or name another file")

    with locked((folder or parts_path(out)) / LOCK, busy):
        for written in (out, provenance_path(out)):
            remove_left_over(written)
        yield


class Parts:
    """The parts of one job. `key` tells jobs apart: pictures, models, options.

    Raises:
        DataError: there is an unfinished job and `resume` was not asked for, or it is another one.
    """

    def __init__(self, out: Path, key: str, *, resume: bool) -> None:
        self.folder = parts_path(out)
        job = self.folder / "job.json"
        if job.exists():
            self._refuse(job, key, resume)
        elif any(not _passing(file.name) for file in self.folder.iterdir()):
            raise DataError(f"{self.folder}: is in the way, and no job of maskcls; move it away")
        else:
            write_atomic(job, json.dumps({"key": key}).encode())
        self.done = 0
        while self._file(self.done).exists():
            self.done += 1

    def write(self, rows: Sequence[Row]) -> None:
        """The next part, whole or not at all."""
        # ASCII: a file name that is no UTF-8 survives as an escaped surrogate.
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        write_atomic(self._file(self.done), lines.encode())
        self.done += 1

    def __iter__(self) -> Iterator[list[Row]]:
        """The rows of each part, in order, a part in memory at a time."""
        for index in range(self.done):
            lines = self._file(index).read_text("utf-8").splitlines()
            yield [json.loads(line) for line in lines]

    def remove(self) -> None:
        """When the output is complete, or nothing was finished."""
        passing = [file for file in self.folder.glob(".*") if _passing(file.name)]
        # The job after its parts: a kill in between leaves it known.
        for file in (*self.folder.glob("*.jsonl"), self.folder / "job.json", *passing):
            file.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # something else lies in it
            self.folder.rmdir()

    def _file(self, index: int) -> Path:
        return self.folder / f"{index:08d}.jsonl"

    def _refuse(self, job: Path, key: str, resume: bool) -> None:
        if not resume:
            raise DataError(
                f"{self.folder}: holds the finished parts of a job that was interrupted; go on "
                "with --resume, or delete the folder to start anew"
            )
        try:
            same = json.loads(job.read_text("utf-8"))["key"] == key
        except (OSError, ValueError, KeyError, TypeError):
            same = False
        if not same:
            raise DataError(
                f"{self.folder}: is of another job (other pictures, or in another place; "
                "other model or options); go back to them, or delete the folder to start anew"
            )


def _passing(name: str) -> bool:
    """Whether it is the lock, or what a kill left of a file that was being written."""
    return name == LOCK or (name.startswith(".") and name.endswith(".tmp"))
