"""A Ray cluster of two nodes labels as one machine does, also when a node dies on the way.

The nodes are real, each with a CPU of its own, on this machine.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

pytest.importorskip("ray")
pyarrow = pytest.importorskip("pyarrow.parquet")

from maskcls.commands.infer import main

ROOT = Path(__file__).resolve().parents[2]
RAY = [sys.executable, "-m", "ray.scripts.scripts"]
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ray")]


def environment(address: str = "") -> dict[str, str]:
    own = {"PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0", "RAY_ADDRESS": address}
    return {key: value for key, value in (os.environ | own).items() if value}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def descendants(process: int) -> list[int]:
    """The process and all that it started."""
    found = [process]
    for one in found:
        for tasks in Path(f"/proc/{one}/task").glob("*/children"):
            found += [int(child) for child in tasks.read_text().split()]
    return found


def kill(process: int) -> None:
    for one in descendants(process):
        try:
            os.kill(one, signal.SIGKILL)
        except ProcessLookupError:
            pass


class Nodes:
    """`ray start`, twice: a head and another, each with one CPU."""

    def __init__(self, folder: Path) -> None:
        self.address = f"127.0.0.1:{free_port()}"
        self.started: list[subprocess.Popen[bytes]] = []
        head = ["--head", "--port", self.address.partition(":")[2], "--include-dashboard", "false"]
        self._start([*head, "--temp-dir", str(folder)])
        self._start(["--address", self.address])

    def _start(self, options: Sequence[str]) -> None:
        size = ["--num-cpus", "1", "--object-store-memory", "100000000", "--block"]
        argv = [*RAY, "start", "--node-ip-address", "127.0.0.1", *size, *options]
        process = subprocess.Popen(
            argv, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        self.started.append(process)
        assert process.stdout is not None
        for line in process.stdout:
            if b"Ray runtime started" in line:
                return
        raise AssertionError("a node did not start")

    def kill_the_second(self) -> None:
        kill(self.started[1].pid)

    def stop(self) -> None:
        for process in reversed(self.started):
            kill(process.pid)
            process.wait()
            assert process.stdout is not None
            process.stdout.close()


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    folder = Path("/tmp") / f"ray-test-{os.getpid()}"  # short: sockets lie in it
    started = Nodes(folder)
    try:
        yield started
    finally:
        started.stop()
        shutil.rmtree(folder, ignore_errors=True)


def infer(argv: Sequence[str], address: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(ROOT / "cli" / "infer.py"), *argv]
    return subprocess.Popen(
        command,
        env=environment(address),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds processes in /proc")
def test_two_nodes_of_which_one_dies(
    nodes: Nodes, networks: list[str], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for number in range(100):
        shutil.copy(photos / "01.png", photos / f"copy {number:03}.png")
    argv = ["--model", *networks, "--images", "photos", "--batch-size", "2", "--provider", "cpu"]
    assert main([*argv, "--out", "whole.parquet"]) == 0

    job = infer(
        [*argv, "--engine", "ray", "--out", "labels", "--partition-size", "2"], nodes.address
    )
    deadline = time.monotonic() + 60
    while len(list(Path("labels").glob("*.parquet"))) < 3 and job.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    before = len(list(Path("labels").glob("*.parquet")))
    nodes.kill_the_second()
    out, err = job.communicate(timeout=120)
    assert job.returncode == 0, err
    assert "Ray: nodes: 2, CPUs: 2, GPUs: 0; computing on cpu" in out
    assert "2 pictures could not be read" in err
    assert before < 61 == len(list(Path("labels").iterdir()))  # it died on the way
    assert main(["--merge", "labels", "--out", "joined.parquet"]) == 0
    assert Path("joined.parquet").read_bytes() == Path("whole.parquet").read_bytes()
