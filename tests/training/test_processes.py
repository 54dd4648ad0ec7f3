"""Real processes of torchrun: together they learn what one learns alone, and they end as one."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from maskcls.checkpoints import read_checkpoint
from maskcls.data.sample import make_sample
from maskcls.models import load_model
from tests.training import small

ROOT = Path(__file__).resolve().parents[2]
# RandAugment makes some pictures flat. Their gradients are little but rounding, and AdamW's steps
# are as long for those.
SMALL = small.SMALL | {"epochs": 3, "lr": 0.005, "augmentation": "BestAugmentation"}
STEPS = 4  # of an epoch: 9 people, 63 pictures, 15 or 16 in a batch; 21 validate

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="signals end differently there"),
]

CASES: dict[str, tuple[int, dict[str, Any]]] = {
    "mixed": (
        2,
        {
            "criterion": "cross_entropy:0.7,f1:0.3",
            "class_weights": "balanced",
            "mixup": 0.3,
            "cutmix": 0.3,
            "mix_rare": True,
            "accumulate": 3,
            "clip_norm": 1.0,
            "ema_decay": 0.9,
            "calibration": "macro_f1",
            "tta": "flip",
        },
    ),
    "weighted": (
        3,
        {
            "criterion": "focal",
            "class_weights": "sqrt",
            "soften_age": 0.0,
            "sampling": "sqrt",
            "augmentation": "RandAugmentation",
            "batch_size": 13,
            "optimizer": "sgd",  # unlike AdamW it sees how large gradients are
            "lr": 0.05,
        },
    ),
    "normalised": (
        3,
        {
            "model": "resnet18",
            "batch_size": 13,
            "epochs": 1,
            "optimizer": "sgd",
            "lr": 0.0005,
            "ema_decay": 0.9,
        },
    ),
    "few": (3, {"batch_size": 2, "epochs": 1, "soften_age": 0.0, "criterion": "cross_entropy"}),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("processes") / "sample"
    return make_sample(root, people=12, eval_people=6, progress=False)


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str


Start = Callable[..., Ended]


@pytest.fixture(scope="module")
def server() -> Iterator[subprocess.Popen[str]]:
    """tests/training/process_server.py in a process of its own."""
    running = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("process_server.py"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    yield running
    running.communicate()


@pytest.fixture
def start(server: subprocess.Popen[str], data: Path, tmp_path: Path) -> Start:
    """`start(processes, *options, events=(), **settings)` trains on the server, with the command;
    with `keywords` it is the function."""

    def run(
        processes: int,
        *options: str,
        keywords: dict[str, Any] | None = None,
        events: tuple[Any, ...] = (),
        pictures: int = 0,
        **settings: Any,
    ) -> Ended:
        if "--resume" not in options:
            options = (*options_of(data, tmp_path, **settings), *options)
        files = {name: str(tmp_path / name) for name in ("out", "err")}
        request = {"processes": processes, "options": keywords or options, "events": events}
        request |= {"pictures": pictures, **files}
        assert server.stdin is not None and server.stdout is not None
        server.stdin.write(json.dumps(request) + "\n")
        server.stdin.flush()
        code = int(server.stdout.readline())
        return Ended(code, *(Path(file).read_text("utf-8") for file in files.values()))

    return run


def options_of(data: Path, folder: Path, **settings: Any) -> list[str]:
    """Of a small training into `folder`/runs."""
    file = folder / "config.yaml"
    places = {
        "data_dir": [str(data / "train")],
        "model_dir": str(folder / "runs"),
        "cache": str(data.parent / "cache"),
    }
    file.write_text(yaml.safe_dump(SMALL | places | settings))
    return ["--task", "age", "--config", str(file)]


def own_lines(text: str) -> list[str]:
    """What the processes say, without what torchrun does."""
    said = r"(error|warning|interrupted|terminated|age[: ]|resuming|decoding|next:)"
    return [line for line in text.splitlines() if re.match(said, line)]


def rows_of(folder: Path) -> list[dict[str, float]]:
    with (folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def assert_close(folder: Path, reference: Path) -> None:
    """Equal but for the order in which numbers were added."""
    for row, other in zip(rows_of(folder), rows_of(reference), strict=True):
        assert row == pytest.approx(other, rel=2e-3, abs=2e-4)
        # Of 21 pictures each counts once: another count is another fraction.
        assert row["accuracy"] == pytest.approx(other["accuracy"], abs=1e-9)
    for name in ("last.pt", "best.pt"):
        one, other = (read_checkpoint(path / name) for path in (folder, reference))
        assert one.keys() == other.keys()
        assert one["trainer"] == other["trainer"]
        for key, value in one["model"].items():
            torch.testing.assert_close(value, other["model"][key], rtol=2e-3, atol=2e-4)
    models = [load_model(path)[0] for path in (folder, reference)]
    pictures = torch.randn(7, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        answers = [model(pictures) for model in models]
    assert answers[0].std(dim=0).min() > 1e-4  # they differ from picture to picture
    torch.testing.assert_close(*answers, rtol=2e-3, atol=1e-3)


@pytest.mark.parametrize("case", CASES)
def test_several_processes_train_as_one(start: Start, tmp_path: Path, case: str) -> None:
    processes, settings = CASES[case]
    together = start(processes, **settings)
    assert together.code == 0, together.err
    alone = start(1, **settings)
    assert alone.code == 0, alone.err
    runs = tmp_path / "runs" / "age"
    assert_close(runs / "exp", runs / "exp2")
    assert (runs / "exp" / "report.html").is_file()
    assert len(list((runs / "exp").glob("events.out.tfevents.*"))) == 1
    # Messages come once.
    assert together.out.count(" epoch ") == alone.out.count(" epoch ") > 0
    assert together.out.count("next: ") == 1
    assert together.out.count("confusion of 21 pictures") == together.out.count(" epoch ")
    assert "Traceback" not in together.err


def test_the_function_does_the_same(start: Start, data: Path, tmp_path: Path) -> None:
    keywords = {"data_dir": str(data / "train"), "task": "age"}
    settings = SMALL | {"model_dir": str(tmp_path / "runs"), "cache": str(data.parent / "cache")}
    together = start(2, keywords=keywords | settings)
    assert together.code == 0, together.err
    alone = start(1)
    runs = tmp_path / "runs" / "age"
    assert_close(runs / "exp", runs / "exp2")
    assert together.out.count(" epoch ") == alone.out.count(" epoch ") > 0


@pytest.mark.parametrize(("processes", "pictures"), [(2, 9), (3, 11), (3, 3)])
def test_batch_normalisation_is_over_all_pictures(
    start: Start, processes: int, pictures: int
) -> None:
    done = start(processes, pictures=pictures)
    assert done.code == 0, done.err


@pytest.mark.parametrize(
    ("settings", "code", "message"),
    [
        ({"batch_size": 0}, 2, "batch_size 0: must be 2 or more"),
        ({"data_dir": ["nowhere"]}, 1, "nowhere"),
        ({"model": "resnet18", "batch_size": 2}, 1, "needs a picture for each"),
        ({"folds": 3}, 2, "--folds without --fold cannot be shared by the 3 processes"),
    ],
)
def test_an_error_of_all_is_said_once(
    start: Start, tmp_path: Path, settings: dict[str, Any], code: int, message: str
) -> None:
    done = start(3, **settings)
    assert done.code != 0
    [line] = own_lines(done.err)
    assert line.startswith("error: ") and message in line
    assert f"exitcode  : {code}" in done.err  # torchrun's report of the first that failed
    assert not list(tmp_path.glob("runs/*/*"))


@pytest.mark.parametrize(
    ("event", "message"),
    [
        (("ENOSPC", 0, 6), "error: no space left on device while writing "),
        (("MEMORY", 1, 6), "error: out of memory; --accumulate 2 computes smaller parts"),
        (("SIGKILL", 1, 6), "error: another process of this training has ended"),
    ],
)
def test_one_that_fails_ends_all(
    start: Start, tmp_path: Path, event: tuple[str, int, int], message: str
) -> None:
    done = start(2, events=(event,))
    assert done.code != 0
    lines = own_lines(done.err)
    # Of a killed process torchrun hears as well, and may end the other before it says anything.
    assert len(lines) == 1 or (event[0] == "SIGKILL" and not lines)
    assert all(line.startswith(message) for line in lines)
    folder = tmp_path / "runs" / "age" / "exp"
    assert read_checkpoint(folder / "last.pt")["trainer"]["iteration"] == STEPS
    assert len(rows_of(folder)) == 1


def test_interrupted_and_resumed_by_another_number_of_processes(
    start: Start, tmp_path: Path
) -> None:
    settings = {"ema_decay": 0.9, "patience": 3, "mixup": 0.3}
    folder = tmp_path / "runs" / "age" / "exp"
    # A signal to one is one to all: after that step they save and end.
    done = start(2, events=(("SIGTERM", 1, 6),), **settings)
    assert done.code != 0
    assert own_lines(done.err) == []
    assert done.out.count(f"interrupted; go on with: maskcls-train --resume {folder}") == 1
    assert read_checkpoint(folder / "last.pt")["trainer"]["iteration"] == 6
    done = start(3, "--resume", str(folder))
    assert done.code == 0, done.err
    assert done.out.count(f"resuming {folder} after epoch 1 and 2 steps of the next") == 1
    alone = start(1, **settings)
    assert alone.code == 0, alone.err
    assert_close(folder, folder.with_name("exp2"))
    (folder / "report.html").unlink()
    done = start(3, "--resume", str(folder))
    assert done.code == 0, done.err
    assert (folder / "report.html").is_file()
    assert f"{folder} is finished: " in done.out


def test_ctrl_c_reaches_torchrun_and_its_processes(data: Path, tmp_path: Path) -> None:
    # As in a terminal. torchrun's processes are in groups of their own, and get it from torchrun.
    process = subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
        + [str(ROOT / "cli" / "train.py"), *options_of(data, tmp_path, epochs=500)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Where the tests run in the background of a script, Ctrl-C is ignored, and inherited so.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    folder = tmp_path / "runs" / "age" / "exp"
    try:
        while not (folder / "last.pt").exists():
            assert process.poll() is None
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode != 0
    assert own_lines(out)[-1] == f"interrupted; go on with: maskcls-train --resume {folder}"
    assert own_lines(err) == ["interrupted"]
    # No step is lost that was done when the epochs were written.
    assert read_checkpoint(folder / "last.pt")["trainer"]["iteration"] >= STEPS * len(
        rows_of(folder)
    )


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_nccl_trains_as_one_device(start: Start, tmp_path: Path) -> None:
    settings = {"device": "cuda", "model": "resnet18"}
    for processes in (2, 1):
        done = start(processes, **settings)
        assert done.code == 0, done.err
    runs = tmp_path / "runs" / "age"
    for row, other in zip(rows_of(runs / "exp"), rows_of(runs / "exp2"), strict=True):
        assert row["train_loss"] == pytest.approx(other["train_loss"], rel=0.05)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() != 1, reason="needs one CUDA device")
def test_fewer_devices_than_processes(start: Start) -> None:
    done = start(2, device="cuda")
    [line] = own_lines(done.err)
    assert line.startswith("error: 2 processes on a machine with 1 CUDA devices")
