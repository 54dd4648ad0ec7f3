"""The cores are used as this machine's own measurement says, and no answer depends on it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from maskcls.runtime import Engine, Source, engines, list_pictures, open_onnx, tuning
from maskcls.runtime.labelling import Decoded, answered_batches
from maskcls.runtime.tuning import FILE, lane_choices, tuned
from tests.runtime.test_session import network

COUNT = 40
Answered = tuple[list[Decoded], np.ndarray]


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    files = []
    for task in ("mask_gender", "age"):
        onnx.save(network(task), tmp_path / f"{task}.onnx")
        files.append(tmp_path / f"{task}.onnx")
    return open_onnx(files, "cpu")


@pytest.fixture
def sources(tmp_path: Path) -> list[Source]:
    (tmp_path / "photos").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (COUNT, 8, 6, 3), dtype=np.uint8)
    for index, picture in enumerate(pixels):
        Image.fromarray(picture).resize((30, 40)).save(tmp_path / "photos" / f"{index:02}.png")
    return list_pictures(tmp_path / "photos")


@pytest.fixture(autouse=True)
def four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "usable_cores", lambda: 4)
    # Measured are 3 choices, 3 times, of 4 batches for each of 4 lanes.
    monkeypatch.setattr(tuning, "WORTH", COUNT / (3 * 3 * 4 * 4 * 4))


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The lanes of each measurement, of which two are the fastest."""
    found: list[int] = []

    def slowly(engine: Engine, sources: Sequence[Source], *_: object) -> Iterator[Answered]:
        found.append(engine.lanes)
        time.sleep(0.01 if engine.lanes == 2 else 0.05)
        yield [], np.zeros((len(sources), 18))

    monkeypatch.setattr(tuning, "answered_batches", slowly)
    return found


def ask(engine: Engine, sources: Sequence[Source], folder: Path, batch_size: int = 4) -> Engine:
    return tuned(engine, sources, batch_size, 1, folder=folder, say=lambda _: None)


def test_choices() -> None:
    assert [lane_choices(cores) for cores in (1, 2, 3, 16)] == [
        (1,),
        (1, 2),
        (1, 2),
        (1, 2, 4, 8, 16),
    ]


def test_the_fastest_is_taken_and_remembered(
    engine: Engine, sources: list[Source], tmp_path: Path, measured: list[int]
) -> None:
    best = ask(engine, sources, tmp_path)
    assert best.lanes == 2
    assert set(measured) == {1, 2, 4}
    assert best.models == engine.models
    measured.clear()
    assert ask(engine, sources, tmp_path).lanes == 2
    assert ask(engine, sources[:16], tmp_path).lanes == 2  # a small job profits
    assert ask(engine, sources[:15], tmp_path) is engine  # not enough for two lanes
    assert measured == []
    ask(engine, sources, tmp_path, batch_size=3)  # may differ
    assert set(measured) == {1, 2, 4}


def test_a_small_job_is_not_kept_waiting(
    engine: Engine, sources: list[Source], tmp_path: Path, measured: list[int]
) -> None:
    assert ask(engine, sources[:-1], tmp_path) is engine
    assert measured == []


def test_pictures_that_cannot_be_read_say_nothing(
    engine: Engine, sources: list[Source], tmp_path: Path
) -> None:
    gone = [replace(source, path=tmp_path / "gone") for source in sources]
    assert ask(engine, gone, tmp_path) is engine
    assert not (tmp_path / FILE).exists()


@pytest.mark.parametrize("content", [b"", b"\xff{", b"[]", b"[" * 100_000, None])
def test_a_damaged_memory_is_measured_anew(
    engine: Engine,
    sources: list[Source],
    tmp_path: Path,
    measured: list[int],
    content: bytes | None,
) -> None:
    memory = tmp_path / FILE
    ask(engine, sources, tmp_path)
    if content is None:  # a number that this machine does not know
        content = json.dumps(dict.fromkeys(json.loads(memory.read_bytes()), 1000)).encode()
    memory.write_bytes(content)
    measured.clear()
    assert ask(engine, sources, tmp_path).lanes == 2
    assert measured


def test_no_memory_is_no_error(
    engine: Engine, sources: list[Source], tmp_path: Path, measured: list[int]
) -> None:
    (tmp_path / "file").write_text("")
    assert ask(engine, sources, tmp_path / "file").lanes == 2


def test_other_engines_stay_as_they_are(
    engine: Engine, sources: list[Source], tmp_path: Path, measured: list[int]
) -> None:
    engine.provider = "CUDAExecutionProvider"  # type: ignore[misc]
    assert ask(engine, sources, tmp_path) is engine
    assert measured == []


def test_a_real_measurement(engine: Engine, sources: list[Source], tmp_path: Path) -> None:
    assert ask(engine, sources, tmp_path).lanes in (1, 2, 4)


def test_answers_do_not_depend_on_lanes(engine: Engine, sources: list[Source]) -> None:
    answers = []
    for lanes in (1, 2, 4):
        one = open_onnx([Path(model.path) for model in engine.models], "cpu", lanes)
        answers.append(np.concatenate([a for _, a in answered_batches(one, sources, 3, 1)]))
    assert answers[0].shape == (COUNT, 18)
    assert np.ptp(answers[0], axis=0).max() > 0.1
    np.testing.assert_array_equal(answers[0], answers[1])
    np.testing.assert_array_equal(answers[0], answers[2])


# --- cores ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limit", "cores"),
    [("max 100000", 4), ("150000 100000", 2), ("50000 100000", 1), ("900000 100000", 4), ("", 4)],
)
def test_cores_are_those_of_the_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, cores: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)), raising=False)
    monkeypatch.setattr(engines, "CPU_MAX", tmp_path / "cpu.max")
    monkeypatch.setattr(engines, "CPU_QUOTA", (tmp_path / "quota", tmp_path / "period"))
    assert engines.usable_cores() == 4
    (tmp_path / "cpu.max").write_text(f"{limit}\n")
    assert engines.usable_cores() == cores


@pytest.mark.parametrize(("quota", "cores"), [(-1, 4), (150000, 2), (50000, 1), (900000, 4)])
def test_cores_are_those_of_a_container_of_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: int, cores: int
) -> None:
    """Control groups of version 1 have a file for each of the two."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)), raising=False)
    monkeypatch.setattr(engines, "CPU_MAX", tmp_path / "cpu.max")
    files = tmp_path / "quota", tmp_path / "period"
    monkeypatch.setattr(engines, "CPU_QUOTA", files)
    for file, value in zip(files, (quota, 100000), strict=True):
        file.write_text(f"{value}\n")
    assert engines.usable_cores() == cores


@pytest.mark.parametrize(("lanes", "threads"), [(1, 8), (2, 7), (4, 5), (8, 1), (16, 1)])
def test_lanes_and_what_their_session_has_are_as_many_as_cores(lanes: int, threads: int) -> None:
    assert engines.session_threads(lanes, 8) == threads


PINNED = """
import os, sys
from pathlib import Path
from maskcls.runtime import open_onnx

core = min(os.sched_getaffinity(0))
os.sched_setaffinity(0, {core})
engine = open_onnx(list(map(Path, sys.argv[1:])), "cpu")
tasks = os.listdir("/proc/self/task")
assert all(os.sched_getaffinity(int(task)) == {core} for task in tasks), "a thread is elsewhere"
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux")
@pytest.mark.skipif(os.cpu_count() == 1, reason="needs two cores")
def test_a_pinned_process_stays_on_its_cores(networks: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PINNED, *networks], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
