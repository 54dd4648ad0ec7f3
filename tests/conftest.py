"""Fixtures: a small folder in the competition's layout, and the stand-in data where it is there."""

from __future__ import annotations

import csv
import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

from maskcls.labels import MASK_OF_STEM

SIZE = (96, 128)  # pixels, width × height
GROUPS = tuple(itertools.product(("male", "female"), (22, 45, 63)))

DataDir = Callable[..., Path]
RunScript = Callable[..., "subprocess.CompletedProcess[str]"]

# How long an example takes says how busy the machine is, not whether the code is right.
settings.register_profile("suite", deadline=None)
settings.load_profile("suite")

# Two test processes with two threads each on two cores wait for one another most of the time.
# Before torch is imported, and inherited by the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def picture(person: int, number: int = 0) -> Image.Image:
    """A blurred pattern that belongs to the person, with a little of it changed per picture."""
    face = np.random.default_rng([1, person]).integers(0, 256, (8, 6, 3))
    change = np.random.default_rng([2, person, number]).integers(-30, 31, (8, 6, 3))
    levels = (face + change).clip(0, 255).astype(np.uint8)
    return Image.fromarray(levels).resize(SIZE, Image.Resampling.BICUBIC)


@pytest.fixture(scope="session")
def make_data() -> DataDir:
    """`make_data(folder, people=6, table=True, first=1)` makes a data folder of that many people,
    spread over the genders and age groups, or of the `ages` given, seven JPEGs each, and returns
    it."""

    def make(
        root: Path,
        people: int = 6,
        *,
        table: bool = True,
        first: int = 1,
        ages: Sequence[int] = (),
    ) -> Path:
        rows = []
        for number in range(first, first + people):
            gender, age = GROUPS[number % len(GROUPS)]
            age = ages[number - first] if ages else age
            row = (f"{number:06d}", gender, "Asian", str(age))
            folder = root / "images" / "_".join(row)
            folder.mkdir(parents=True)
            for index, stem in enumerate(MASK_OF_STEM):
                picture(number, index).save(folder / f"{stem}.jpg", quality=90)
            rows.append((*row, folder.name))
        if table:
            with (root / "train.csv").open("w", encoding="utf-8", newline="") as file:
                csv.writer(file).writerows([("id", "gender", "race", "age", "path"), *rows])
        return root

    return make


@pytest.fixture
def data_dir(tmp_path: Path, make_data: DataDir) -> DataDir:
    """`data_dir(people=6, name="train", ...)`: `make_data` in the test's own folder."""

    def make(people: int = 6, *, name: str = "train", **options: Any) -> Path:
        return make_data(tmp_path / name, people, **options)

    return make


@pytest.fixture(scope="session")
def run_script(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunScript]:
    """`run_script(script, *options, cwd=".", env=os.environ)` runs a script as a process of its
    own, a fork of one that has PyTorch imported (tests/command_server.py): it spares seconds."""
    written = [tmp_path_factory.mktemp("scripts") / name for name in ("out", "err")]
    server = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("command_server.py"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdin is not None and server.stdout is not None

    def run(
        script: Path | str,
        *options: object,
        cwd: Path | str = ".",
        env: Mapping[str, str] = os.environ,
    ) -> subprocess.CompletedProcess[str]:
        argv = [str(part) for part in (script, *options)]
        out, err = map(str, written)
        request = {"argv": argv, "cwd": str(cwd), "env": dict(env), "out": out, "err": err}
        server.stdin.write(json.dumps(request) + "\n")
        server.stdin.flush()
        code = int(server.stdout.readline())
        return subprocess.CompletedProcess(
            argv, code, *(path.read_text("utf-8") for path in written)
        )

    yield run
    server.communicate()


@pytest.fixture(scope="session")
def maskface() -> Path:
    """The stand-in data beside the clone, which is not part of the project."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data" / "maskface"
    if not folder.is_dir():
        pytest.skip("needs ../shared/data/maskface beside the clone; it is not there")
    return folder


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    argv = [str(mount), "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    if mount is None or os.geteuid() or subprocess.run(argv, capture_output=True).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def fill() -> Callable[[Path], None]:
    """Leaves no room on the file system of a folder, in a file `filler`."""

    def fill(folder: Path) -> None:
        # Without a buffer, whose rest would be an error of its own when the file is closed.
        with (folder / "filler").open("wb", buffering=0) as file:
            with pytest.raises(OSError, match="No space"):
                while True:
                    file.write(bytes(4096))

    return fill
