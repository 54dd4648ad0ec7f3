"""Trainings that are killed in the middle of something, by a real SIGKILL, and go on: the result is
that of a training that nobody disturbed, bit for bit."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maskcls.checkpoints import find_checkpoint, read_checkpoint
from maskcls.config import resolve
from maskcls.data.sample import make_sample
from tests.training import small

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="forks"),
    # A kill between two renames: the checkpoint is found under the name that it has by then.
    pytest.mark.filterwarnings("ignore:.*taking .* instead"),
]

STEPS = 4  # of an epoch: 9 people, 63 pictures
SMALL = small.SMALL | {"epochs": 3, "lr": 0.005, "ema_decay": 0.9}
CASES: dict[str, dict[str, Any]] = {
    "cosine": {"patience": 3, "auxiliary": 0.5, "workers": 1},
    "plateau": {"schedule": "plateau", "plateau_patience": 0, "lr": 0.0, "accumulate": 2},
    "early": {"patience": 1, "lr": 0.0, "epochs": 9, "augmentation": "CustomAugmentation"},
    "sgd": {"optimizer": "sgd", "criterion": "focal:0.5,f1:0.5", "ema_decay": 0.0},
}
MOMENTS = {"step": 3 * STEPS, "evaluated": 6, "row": 3, "write": 20, "sync": 20, "rename": 30}
"""What a training does → about how often."""

Check = Callable[[Path, Path], None]


def trials(count: int) -> list[tuple[str, str, int]]:
    """Case, point and number of each trial: drawn once and for all, every moment in turn."""
    rng = np.random.default_rng(4)
    points = list(MOMENTS)
    drawn = []
    for index in range(count):
        point = points[index % len(points)]
        case = list(CASES)[int(rng.integers(len(CASES)))]
        drawn.append((case, point, int(rng.integers(1, MOMENTS[point] + 1))))
    return drawn


class Server:
    """tests/training/kill_server.py in a process of its own."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("kill_server.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, point: str = "", number: int = 0, **request: Any) -> int:
        assert self.process.stdin is not None and self.process.stdout is not None
        line = json.dumps(request | {"point": point, "number": number})
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.process.communicate()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("kills") / "sample"
    return make_sample(root, people=12, eval_people=6, progress=False)


def config_of(data: Path, model_dir: Path, case: str, **more: Any) -> dict[str, Any]:
    flags = (
        SMALL
        | CASES[case]
        | {
            "data_dir": (str(data / "train"),),
            "model_dir": str(model_dir),
            "cache": str(data.parent / "cache"),
        }
    )
    return resolve("age", "scratch", flags=flags | more).to_dict()


@pytest.fixture(scope="module")
def whole(
    server: Server, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """Name of a case → the run folder of a training that nobody disturbed."""
    done: dict[str, Path] = {}

    def make(case: str) -> Path:
        if case not in done:
            folder = tmp_path_factory.mktemp(case)
            assert server.ask(config=config_of(data, folder, case)) == 0
            done[case] = folder / "age" / "exp"
        return done[case]

    return make


def test_the_reference_stopped_early_and_met_plateaus(whole: Callable[[str], Path]) -> None:
    assert len((whole("early") / "metrics.csv").read_text().splitlines()) < 1 + 9
    assert read_checkpoint(whole("plateau") / "last.pt")["schedule"]["plateaus"] >= 1


@pytest.mark.parametrize(("case", "point", "number"), trials(36))
def test_killed_and_resumed(
    server: Server,
    data: Path,
    tmp_path: Path,
    whole: Callable[[str], Path],
    assert_same_run: Check,
    case: str,
    point: str,
    number: int,
) -> None:
    config = config_of(data, tmp_path, case)
    folder = tmp_path / "age" / "exp"
    status = server.ask(point, number, config=config)
    assert status in (-9, 0)  # 0: it did not do that so often
    if find_checkpoint(folder / "last.pt") is None:  # killed before anything was saved
        assert server.ask(resume=str(folder)) == 1
        assert server.ask(config=config) == 0
        folder = tmp_path / "age" / ("exp2" if folder.exists() else "exp")
    else:
        # Once more on the way, at the same point, then to the end.
        assert server.ask(point, max(1, number // 2), resume=str(folder)) in (-9, 0)
        assert server.ask(resume=str(folder)) == 0
    assert_same_run(folder, whole(case))
    assert not [path.name for path in folder.iterdir() if ".pt.new" in path.name]


@pytest.mark.parametrize("point", MOMENTS)
def test_every_moment_is_met(server: Server, data: Path, tmp_path: Path, point: str) -> None:
    """That the trials kill: one that is never met ends well in all of them."""
    assert server.ask(point, 1, config=config_of(data, tmp_path, "cosine")) == -9


@pytest.mark.parametrize("workers", [1, 2])
def test_killed_while_the_cache_is_filled(
    server: Server,
    data: Path,
    tmp_path: Path,
    whole: Callable[[str], Path],
    assert_same_run: Check,
    workers: int,
) -> None:
    config = config_of(data, tmp_path, "cosine", cache=str(tmp_path / "cache"), workers=workers)
    assert server.ask("decode", 20, config=config) == -9
    assert not (tmp_path / "age").exists()
    assert server.ask(config=config) == 0
    assert not list((tmp_path / "cache").glob("*.part"))
    assert_same_run(tmp_path / "age" / "exp", whole("cosine"))


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
@pytest.mark.parametrize("case", CASES)
def test_a_polite_signal_saves_the_step(
    server: Server,
    data: Path,
    tmp_path: Path,
    whole: Callable[[str], Path],
    assert_same_run: Check,
    case: str,
    name: str,
    code: int,
) -> None:
    folder = tmp_path / "age" / "exp"
    assert server.ask(name, 2, config=config_of(data, tmp_path, case)) == code
    assert read_checkpoint(folder / "last.pt")["trainer"]["iteration"] == 2
    # The last step of an epoch, which ends with its validation first.
    assert server.ask(name, STEPS - 2, resume=str(folder)) == code
    assert read_checkpoint(folder / "last.pt")["trainer"]["iteration"] == STEPS
    assert len((folder / "metrics.csv").read_text().splitlines()) == 2
    assert server.ask(name, 3, resume=str(folder)) == code
    assert read_checkpoint(folder / "last.pt")["trainer"]["iteration"] == STEPS + 3
    assert server.ask(resume=str(folder)) == 0
    assert_same_run(folder, whole(case))


@pytest.mark.parametrize("case", CASES)  # one of them stops early
def test_a_signal_in_the_last_step_is_too_late(
    server: Server,
    data: Path,
    tmp_path: Path,
    whole: Callable[[str], Path],
    assert_same_run: Check,
    case: str,
) -> None:
    steps = read_checkpoint(whole(case) / "last.pt")["trainer"]["iteration"]
    config = config_of(data, tmp_path, case)
    assert server.ask("SIGTERM", steps, config=config) == 0
    assert_same_run(tmp_path / "age" / "exp", whole(case))
    assert (tmp_path / "age" / "exp" / "report.html").is_file()
