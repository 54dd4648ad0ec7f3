"""A file is seen whole or not at all, whatever goes wrong while it is written."""

from __future__ import annotations

import csv
import io
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskcls.files import cache_folder, locked, replacing, write_atomic, write_rows

OLD, NEW = b"the old content", b"the new content, which is longer"


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """A file that would grow beyond `size` bytes meets EFBIG, as on a disk that is full."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("content", [b"", NEW, memoryview(NEW), bytes(range(256)) * 5000])
def test_content_arrives_whole_and_alone(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "a.bin"
    for _ in range(2):  # new, then in place of itself
        write_atomic(file, content)
        assert file.read_bytes() == bytes(content)
        assert names(tmp_path) == ["a.bin"]


def test_missing_folders_are_made(tmp_path: Path) -> None:
    write_atomic(tmp_path / "one" / "two" / "a.bin", NEW)
    assert (tmp_path / "one" / "two" / "a.bin").read_bytes() == NEW


def test_nothing_is_seen_before_the_block_ends(tmp_path: Path) -> None:
    file = tmp_path / "a.bin"
    file.write_bytes(OLD)
    with replacing(file) as temporary:
        temporary.write_bytes(NEW)
        assert temporary.parent == file.parent  # a rename between file systems would copy
        assert temporary != file
        assert file.read_bytes() == OLD
    assert file.read_bytes() == NEW


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), OSError(28, "full")])
def test_an_exception_leaves_what_was_there(
    tmp_path: Path, error: BaseException, there: bool
) -> None:
    file = tmp_path / "a.bin"
    if there:
        file.write_bytes(OLD)
    with pytest.raises(type(error)), replacing(file) as temporary:
        temporary.write_bytes(NEW[:5])
        raise error
    assert names(tmp_path) == (["a.bin"] if there else [])
    assert not there or file.read_bytes() == OLD


def test_a_disk_without_room_keeps_the_old_file_and_names_it(tmp_path: Path) -> None:
    file = tmp_path / "a.bin"
    file.write_bytes(OLD)
    with largest_file(4096), pytest.raises(OSError) as caught:
        write_atomic(file, bytes(1_000_000))
    assert caught.value.filename == str(file)
    assert file.read_bytes() == OLD
    assert names(tmp_path) == ["a.bin"]


def test_a_failing_rename_keeps_the_old_file_and_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.bin"
    file.write_bytes(OLD)

    def fail(source: Path, target: Path) -> None:
        raise PermissionError(13, "Permission denied", str(source), None, str(target))

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(PermissionError) as caught:
        write_atomic(file, NEW)
    assert (caught.value.filename, caught.value.filename2) == (str(file), None)
    assert file.read_bytes() == OLD
    assert names(tmp_path) == ["a.bin"]


def test_an_error_about_another_file_keeps_its_name(tmp_path: Path) -> None:
    other = tmp_path / "missing"
    with pytest.raises(FileNotFoundError) as caught, replacing(tmp_path / "a.bin") as temporary:
        temporary.write_bytes(other.read_bytes())
    assert caught.value.filename == str(other)


def test_a_block_that_writes_nothing_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught, replacing(tmp_path / "a.bin"):
        pass
    assert caught.value.filename == str(tmp_path / "a.bin")


@pytest.mark.parametrize("below", ["a.bin", "sub/a.bin"])
def test_a_file_where_a_folder_should_be(tmp_path: Path, below: str) -> None:
    (tmp_path / "folder").write_bytes(OLD)
    with pytest.raises(OSError) as caught:
        write_atomic(tmp_path / "folder" / below, NEW)
    assert ".tmp" not in str(caught.value)  # nobody but this module knows the temporary name
    assert str(tmp_path / "folder") in str(caught.value)
    assert (tmp_path / "folder").read_bytes() == OLD


@pytest.mark.parametrize("there", [True, False])
def test_a_link_stays_one(tmp_path: Path, there: bool) -> None:
    real, link = tmp_path / "far" / "real.bin", tmp_path / "link.bin"
    real.parent.mkdir()
    if there:
        real.write_bytes(OLD)
    link.symlink_to(real)
    write_atomic(link, NEW)
    assert link.is_symlink()
    assert real.read_bytes() == NEW
    assert names(tmp_path / "far") == ["real.bin"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
def test_a_pipe_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_atomic(pipe, NEW)
        assert os.read(reader, 100) == NEW
    finally:
        os.close(reader)
    assert pipe.is_fifo()


# --- one process at a time ---------------------------------------------------------------------

HOLD = """
import sys, time
from pathlib import Path
from maskcls.files import locked
with locked(Path(sys.argv[1]), lambda: None):
    print("inside", flush=True)
    time.sleep(600)
"""


class Busy(Exception):
    pass


def refuse() -> None:
    raise Busy


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "lock"
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(file)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "inside\n"
        with pytest.raises(Busy), locked(file, refuse):
            raise AssertionError("two inside")
    finally:
        process.kill()
        process.communicate()
    assert file.exists()  # as after any kill
    with locked(file, refuse):
        pass
    assert names(file.parent) == []


def test_who_does_not_refuse_waits(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    waiting, order = threading.Event(), []

    def second() -> None:
        with locked(file, waiting.set):
            order.append("second")

    thread = threading.Thread(target=second)
    with locked(file, refuse):
        thread.start()
        assert waiting.wait(30)
        order.append("first")
    thread.join(30)
    assert order == ["first", "second"]
    assert names(tmp_path) == []


def test_a_lock_is_free_after_an_error(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(Busy), locked(tmp_path / "lock", refuse):
            raise Busy
        assert names(tmp_path) == []


# --- tables --------------------------------------------------------------------------------------

cells = st.text(st.characters(exclude_categories=("Cs",)), max_size=5)


@given(st.lists(st.lists(cells, min_size=2, max_size=2), max_size=5))
def test_rows_come_back_from_a_table(rows: list[list[str]]) -> None:
    text = io.StringIO()
    write_rows(text, rows)
    assert list(csv.reader(io.StringIO(text.getvalue(), newline=""))) == rows


def test_rows_are_plain_where_they_can_be() -> None:
    text = io.StringIO()
    write_rows(text, [("ImageID", "ans"), ("a,b.jpg", 3), ("c\rd.jpg", 4)])
    assert text.getvalue() == 'ImageID,ans\n"a,b.jpg",3\n"c\rd.jpg","4"\n'


def test_cache_folder() -> None:
    assert cache_folder("here/there") == Path("here/there")
    assert cache_folder("auto").name == "maskcls"
