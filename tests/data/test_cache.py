"""The cache holds the pixels that decoding would give, and is whole or not there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import warnings
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from maskcls.data import cache
from maskcls.data.cache import PixelCache, open_cache
from maskcls.errors import DataError
from maskcls.images import content_digest, read_image
from maskcls.preprocessing import PreprocessSpec

SPEC = PreprocessSpec(height=32, width=40)


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    """Seven pictures of several sizes and formats."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "pictures"
    folder.mkdir()
    found = []
    for index, suffix in enumerate([".png", ".jpg", ".jpeg", ".png", ".bmp", ".jpg", ".webp"]):
        path = folder / f"{index}{suffix}"
        shape = (40 + 7 * index, 60 - 3 * index, 3)
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(path)
        found.append(path)
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "here"


def build(paths: list[Path], folder: Path, spec: PreprocessSpec = SPEC) -> PixelCache:
    return open_cache(paths, spec, folder, say=lambda text: None)


def arrays(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.npy"))


def assert_right(cached: PixelCache, paths: list[Path], spec: PreprocessSpec = SPEC) -> None:
    assert cached.pixels.shape == (len(paths), spec.height, spec.width, 3)
    assert cached.pixels.dtype == np.uint8
    for index, path in enumerate(paths):
        if index not in cached.errors:
            np.testing.assert_array_equal(cached.pixels[index], spec.resize(read_image(path)))
            assert cached.digests[index] == content_digest(path.read_bytes())


def nobody(*args: Any, **options: Any) -> Any:
    raise AssertionError("decoded, though the cache has it")


# --- what it holds -----------------------------------------------------------------------------


@pytest.mark.parametrize("crop", [(1.0, 1.0), (0.5, 0.8)])
@pytest.mark.parametrize("workers", [1, 4])
def test_pixels_are_those_of_decoding(
    paths: list[Path], folder: Path, workers: int, crop: tuple[float, float]
) -> None:
    spec = PreprocessSpec(32, 40, crop)
    cached = open_cache(paths, spec, folder, workers=workers, say=lambda text: None)
    assert_right(cached, paths, spec)
    assert cached.errors == {}
    assert isinstance(cached.pixels, np.memmap)
    assert not cached.pixels.flags.writeable


def test_second_opening_decodes_nothing_and_says_nothing(
    paths: list[Path], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = build(paths, folder)
    monkeypatch.setattr(cache, "decode", nobody)
    said: list[str] = []
    second = open_cache(paths, SPEC, folder, say=said.append)
    np.testing.assert_array_equal(first.pixels, second.pixels)
    assert (second.digests, second.errors, said) == (first.digests, first.errors, [])


def test_copied_pictures_share_the_file(paths: list[Path], folder: Path, tmp_path: Path) -> None:
    build(paths, folder)
    copies = [Path(shutil.copy(path, tmp_path / path.name)) for path in paths]
    assert_right(build(copies, folder), copies)
    assert len(arrays(folder)) == 1


@pytest.mark.parametrize(
    "spec",
    [PreprocessSpec(40, 32), PreprocessSpec(32, 40, (0.9, 1.0)), PreprocessSpec(33, 40)],
)
def test_another_spec_gets_another_file(
    paths: list[Path], folder: Path, spec: PreprocessSpec
) -> None:
    first = build(paths, folder)
    assert_right(build(paths, folder, spec), paths, spec)
    assert len(arrays(folder)) == 2
    assert_right(first, paths)


def test_another_pillow_gets_another_file(
    paths: list[Path], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may decode otherwise; one without WebP could not read what this one can."""
    build(paths, folder)
    monkeypatch.setattr(cache.features, "check", lambda name: None)
    build(paths, folder)
    monkeypatch.setattr(cache.PIL, "__version__", "0")
    build(paths, folder)
    assert len(arrays(folder)) == 3


def test_another_normalisation_takes_the_same_pixels(paths: list[Path], folder: Path) -> None:
    build(paths, folder)
    build(paths, folder, PreprocessSpec(32, 40, mean=(0.5, 0.5, 0.5)))
    assert len(arrays(folder)) == 1


def test_changed_content_and_another_order_get_other_files(paths: list[Path], folder: Path) -> None:
    build(paths, folder)
    assert_right(build(paths[::-1], folder), paths[::-1])
    Image.new("RGB", (50, 50), "red").save(paths[0])
    assert_right(build(paths, folder), paths)
    assert len(arrays(folder)) == 3


# --- pictures that cannot be read --------------------------------------------------------------


def test_unreadable_pictures_are_listed_and_black(paths: list[Path], folder: Path) -> None:
    paths[1].write_bytes(paths[1].read_bytes()[:200])
    paths[3].write_bytes(b"")
    paths[5].unlink()
    for _ in range(2):  # made, then opened
        cached = build(paths, folder)
        assert sorted(cached.errors) == [1, 3, 5]
        for index, message in cached.errors.items():
            assert str(paths[index]) in message
            assert not cached.pixels[index].any()
        assert_right(cached, paths)
        assert cached.digests[3] == cached.digests[5] == ""


def test_what_cannot_be_read_is_named_where_it_is_now(
    paths: list[Path], folder: Path, tmp_path: Path
) -> None:
    paths[3].write_bytes(b"bad")
    [first] = build(paths, folder).errors.values()
    (tmp_path / "pictures").rename(tmp_path / "moved")
    paths = [tmp_path / "moved" / path.name for path in paths]
    [then] = build(paths, folder).errors.values()
    assert len(arrays(folder)) == 1
    assert first.startswith(f"{tmp_path / 'pictures'}/3.png: not a picture")
    assert then == first.replace("/pictures/", "/moved/")


def test_a_mended_picture_is_read_again(paths: list[Path], folder: Path) -> None:
    good = paths[3].read_bytes()
    paths[3].write_bytes(b"")
    assert list(build(paths, folder).errors) == [3]
    paths[3].write_bytes(good)
    assert_right(build(paths, folder), paths)


def vanish(path: Path) -> None:
    path.unlink()


def be_another(path: Path) -> None:
    Image.new("RGB", (50, 50), "red").save(path)


def be_damaged(path: Path) -> None:
    path.write_bytes(b"bad")


@pytest.mark.parametrize("change", [vanish, be_another, be_damaged])
def test_a_picture_that_changes_on_the_way_is_not_kept(
    paths: list[Path], folder: Path, change: Callable[[Path], None]
) -> None:
    good = paths[3].read_bytes()
    with pytest.raises(DataError, match="after it was read once; run again") as caught:
        # It is said between the two times that the pictures are read.
        open_cache(paths, SPEC, folder, say=lambda text: change(paths[3]))
    assert str(paths[3]) in str(caught.value)
    assert list(folder.iterdir()) == []
    paths[3].write_bytes(good)
    assert_right(build(paths, folder), paths)


# --- damage ------------------------------------------------------------------------------------


def truncate(file: Path, notes: Path) -> None:
    os.truncate(file, file.stat().st_size - 1000)


def empty(file: Path, notes: Path) -> None:
    os.truncate(file, 0)


def garbage(file: Path, notes: Path) -> None:
    file.write_bytes(b"PK\x03\x04 this is no array")


def no_notes(file: Path, notes: Path) -> None:
    notes.unlink()


def bad_notes(file: Path, notes: Path) -> None:
    notes.write_bytes(b"")


@pytest.mark.parametrize("damage", [truncate, empty, garbage, no_notes, bad_notes])
def test_a_damaged_cache_is_made_anew(paths: list[Path], folder: Path, damage: Any) -> None:
    paths[3].write_bytes(b"")
    build(paths, folder)
    [file] = arrays(folder)
    damage(file, file.with_suffix(".json"))
    cached = build(paths, folder)
    assert_right(cached, paths)
    assert list(cached.errors) == [3]


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_an_exception_leaves_no_half_file(
    paths: list[Path], folder: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    real, calls = cache.decode, []

    def fail(content: bytes, name: Path) -> Image.Image:
        calls.append(name)
        if len(calls) == 4:
            raise error
        return real(content, name)

    monkeypatch.setattr(cache, "decode", fail)
    with pytest.raises(error):
        build(paths, folder)
    assert list(folder.iterdir()) == []
    monkeypatch.setattr(cache, "decode", real)
    assert_right(build(paths, folder), paths)


# --- room --------------------------------------------------------------------------------------


def test_too_small_a_disk_is_told_before_anything_is_written(
    paths: list[Path], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    need = len(paths) * 32 * 40 * 3
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, need - 1))
    with pytest.raises(DataError, match="are needed.*--cache DIR") as caught:
        build(paths, folder)
    assert str(folder) in str(caught.value)
    assert list(folder.iterdir()) == []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, need + 10_000))
    assert_right(build(paths, folder), paths)


def test_size_is_said_before_decoding(
    paths: list[Path], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = PreprocessSpec(1000, 1000)
    said: list[str] = []
    monkeypatch.setattr(cache, "decode", nobody)
    with pytest.raises(AssertionError, match="decoded"):
        open_cache(paths, spec, folder, say=said.append)
    [line] = said
    assert f"{len(paths)} pictures" in line and "21.0 MB" in line and str(folder) in line


def test_a_folder_that_cannot_be_made(paths: list[Path], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(DataError, match=re.escape(str(tmp_path / "file" / "sub"))):
        build(paths, tmp_path / "file" / "sub")


def test_a_disk_that_fills_up_on_the_way(paths: list[Path], folder: Path) -> None:
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with warnings.catch_warnings(), pytest.raises(DataError, match="--cache DIR"):
            warnings.simplefilter("ignore")
            build(paths, folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(folder.iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="nothing takes room beforehand")
def test_its_room_is_taken_before_it_is_filled(
    paths: list[Path], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pages of a memory map that find the disk full end the process."""
    blocks = []

    def look(content: bytes, name: Any) -> Any:
        [part] = folder.glob("*.part")
        blocks.append(part.stat().st_blocks * 512 - part.stat().st_size)
        return Image.new("RGB", (50, 50))

    monkeypatch.setattr(cache, "decode", look)
    open_cache(paths, PreprocessSpec(1000, 1000), folder, say=lambda text: None)
    assert len(blocks) == len(paths) and min(blocks) >= 0


# --- two at once -------------------------------------------------------------------------------

BUILD = """
import sys, time
from pathlib import Path
from maskcls.data import cache
from maskcls.preprocessing import PreprocessSpec
folder, *paths = map(Path, sys.argv[1:])
real = cache.decode
def slow(content, name):
    time.sleep(0.05)
    return real(content, name)
cache.decode = slow
cached = cache.open_cache(paths, PreprocessSpec(32, 40), folder)
import hashlib
print("digest", hashlib.sha256(cached.pixels.tobytes()).hexdigest())
"""


def test_two_processes_at_once_agree(paths: list[Path], folder: Path) -> None:
    command = [sys.executable, "-c", BUILD, str(folder), *map(str, paths)]
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=120) for process in running]
    assert [process.returncode for process in running] == [0, 0], outputs
    digests = {out.split("digest ")[1] for out, _ in outputs}
    assert len(digests) == 1
    said = "".join(out for out, _ in outputs)
    assert said.count("decoding 7 pictures") == 1  # the other one waited, or came later
    assert_right(build(paths, folder), paths)
    assert sorted(path.suffix for path in folder.iterdir()) == [".json", ".npy"]
