"""A Ray cluster of two nodes labels as one machine does, also when a node dies on the way.

The nodes are real, each with a CPU of its own, on this machine.
"""

from __future__ import annotations

import json
import os
import pickle
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="needs the extra `ray`")
pytest.importorskip("pyarrow", reason="needs the extra `ray`")

from maskcls.api import open_engine
from maskcls.commands.infer import main
from maskcls.errors import DataError, PictureError, ProviderError
from maskcls.runtime import LabellingResult, open_pictures
from maskcls.runtime.cluster import Cluster, Job, _Labeller, label_on_cluster
from maskcls.runtime.packed import pictures_digest, places_digest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds processes in /proc"),
]


def descendants(process: int) -> list[int]:
    """The process and all that it started, and they."""
    found = [process]
    for one in found:
        for children in Path(f"/proc/{one}/task").glob("*/children"):
            with suppress(OSError):  # it has ended
                found += [int(child) for child in children.read_text().split()]
    return found


def signal_workers(node: subprocess.Popen[bytes], number: signal.Signals) -> bool:
    """Sends it to the processes of the node's actors that label; says whether there is one."""
    found = False
    for process in descendants(node.pid):
        with suppress(OSError):
            if b"_Labeller" in Path(f"/proc/{process}/cmdline").read_bytes():
                os.kill(process, number)
                found = True
    return found


class Nodes:
    """`ray start`, twice: a head and another, each with one CPU; and commands that use them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._started: list[subprocess.Popen[bytes]] = []
        self._environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "RAY_USAGE_STATS_ENABLED": "0",
            # A dead node is given up after 5 s, not after 15.
            "RAY_health_check_period_ms": "1000",
            # Nobody else gets in, whatever the machine's own settings are.
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(16),
        }
        self._environment.pop("RAY_ADDRESS", None)

    def start(self) -> None:
        head = ["--head", "--port", "0", "--include-dashboard", "false"]
        self.first = self._node([*head, "--temp-dir", str(self._folder)])
        address = (self._folder / "ray_current_cluster").read_text()
        self.second = self._node(["--address", address])
        self._environment["RAY_ADDRESS"] = address

    def _node(self, options: Sequence[str]) -> subprocess.Popen[bytes]:
        size = ["--num-cpus", "1", "--object-store-memory", "100000000"]
        log = self._folder / f"node {len(self._started)}.log"
        node = self._run(["-m", "ray.scripts.scripts", "start", "--block", *size, *options], log)
        deadline = time.monotonic() + 60
        while b"Ray runtime started" not in log.read_bytes():
            assert node.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        return node

    def infer(self, argv: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
        return self._run([str(ROOT / "cli" / "infer.py"), *argv], log)

    def _run(self, argv: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
        with log.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, *argv], env=self._environment, stdout=file, stderr=file
            )
        self._started.append(process)
        return process

    def stop(self) -> None:
        for process in reversed(self._started):
            self.kill(process)

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        if process.poll() is None:
            for one in descendants(process.pid):
                with suppress(ProcessLookupError):
                    os.kill(one, signal.SIGKILL)
        process.wait()


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """For Ray's sockets, whose paths may not be long."""
    folder = Path(tempfile.mkdtemp(prefix="ray-test-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def nodes(short_folder: Path) -> Iterator[Nodes]:
    started = Nodes(short_folder)
    try:
        started.start()
        yield started
    finally:
        started.stop()


def finished() -> int:
    """Partitions."""
    return len(list(Path("labels").glob("part-*.parquet")))


def test_a_node_that_dies_loses_nothing(
    nodes: Nodes,
    networks: list[str],
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for number in range(380):
        os.link(photos / "01.png", photos / f"copy {number:03}.png")
    job = ["--model", *networks, "--images", "photos", "--batch-size", "2", "--provider", "cpu"]
    assert main([*job, "--out", "whole.parquet"]) == 0

    log = tmp_path / "log.txt"
    on_ray = [*job, "--engine", "ray", "--out", "labels", "--partition-size", "2"]
    process = nodes.infer(on_ray, log)
    deadline = time.monotonic() + 60

    def wait_for(condition: Callable[[], bool]) -> None:
        while not condition():
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.01)

    # The second node labels alone for a while, then the first: so both have done some, and the
    # second stops with work that it was given.
    wait_for(lambda: signal_workers(nodes.first, signal.SIGSTOP))
    alone = finished()
    wait_for(lambda: finished() > alone + 2)
    assert signal_workers(nodes.second, signal.SIGSTOP)
    assert signal_workers(nodes.first, signal.SIGCONT)
    before = -1
    while before < finished():
        before = finished()
        time.sleep(2)
    assert alone + 2 < before < 201
    nodes.kill(nodes.second)
    assert process.wait(timeout=120) == 0, log.read_text()
    told = log.read_text()
    assert "Ray: nodes: 2, CPUs: 2, GPUs: 0; computing on cpu" in told
    assert "2 pictures could not be read" in told
    assert sorted(path.name for path in Path("labels").iterdir()) == [
        f"part-{number:05}.parquet" for number in range(1, 202)
    ]
    assert main(["--merge", "labels", "--out", "joined.parquet"]) == 0
    assert Path("joined.parquet").read_bytes() == Path("whole.parquet").read_bytes()

    # Partitions that are missing are computed, and no others.
    for number in (7, 201):
        (Path("labels") / f"part-{number:05}.parquet").unlink()
    before_it = {path.name: path.stat().st_mtime_ns for path in Path("labels").iterdir()}
    process = nodes.infer([*on_ray, "--resume"], log)
    assert process.wait(timeout=120) == 0, log.read_text()
    after_it = {path.name: path.stat().st_mtime_ns for path in Path("labels").iterdir()}
    assert len(after_it) == 201
    assert before_it.items() <= after_it.items()
    assert main(["--merge", "labels", "--out", "joined.parquet"]) == 0
    assert Path("joined.parquet").read_bytes() == Path("whole.parquet").read_bytes()

    # What is not of this job is left alone.
    engine = open_engine([Path(network) for network in networks], "cpu")
    sources = open_pictures(Path("photos"))
    own = {"batch_size": 2, "partition_size": 2}
    for options, message in (
        (own, "holds 201 of 201 partitions"),
        ({**own, "resume": True, "partition_size": 4}, "is of another job"),
        ({**own, "resume": True, "batch_size": 1}, "is of another job"),
        ({**own, "resume": True, "probabilities": True}, "is of another job"),
    ):
        with pytest.raises(DataError, match=message):
            label_on_cluster(
                Cluster(((1, 0),)), lambda: engine, engine, sources, Path("labels"), **options
            )


def test_room_for_actors() -> None:
    cluster = Cluster(((8, 0), (6, 2), (3, 4)))
    assert (cluster.cpus, cluster.gpus) == (17, 6)
    assert cluster.room(1, 0) == 17
    assert cluster.room(4, 0) == 3
    assert cluster.room(2, 1) == 3
    with pytest.raises(ProviderError, match=r"has 4 CPUs and 3 GPUs .* largest has 3 and 4$"):
        cluster.room(4, 3)


def test_a_strict_job_does_not_go_on_after_bad_pictures(
    networks: list[str], photos: Path, tmp_path: Path
) -> None:
    engine = open_engine([Path(network) for network in networks], "cpu")
    sources = open_pictures(photos)
    job = Job(
        out=tmp_path / "labels",
        open_engine=lambda: engine,
        models=engine.models,
        pictures_sha256=pictures_digest(sources),
        places_sha256=places_digest(sources),
        partitions=1,
        batch_size=2,
        workers=1,
        probabilities=False,
        strict=False,
    )
    made = _Labeller(job, os.getcwd())({"number": [1], "pictures": [pickle.dumps(sources)]})
    assert made == {"pictures": [21], "failure": [""]}

    def go_on(strict: bool) -> LabellingResult:
        return label_on_cluster(
            Cluster(((1, 0),)),
            lambda: engine,
            engine,
            sources,
            job.out,
            batch_size=2,
            strict=strict,
            resume=True,
        )

    assert len(go_on(strict=False).errors) == 2
    shutil.copytree(photos, tmp_path / "others")
    here, sources = sources, open_pictures(tmp_path / "others")  # the same names and pixels
    with pytest.raises(DataError, match="is of another job"):
        go_on(strict=False)
    sources = here
    with pytest.raises(PictureError, match=r"05\.png: not a picture in a known format"):
        go_on(strict=True)


def test_nobody_answers(
    networks: list[str], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    argv = ["--model", *networks, "--images", "photos", "--engine", "ray", "--out", "labels"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "cli" / "infer.py"), *argv],
        env=os.environ | {"PYTHONPATH": str(ROOT), "RAY_ADDRESS": "127.0.0.1:9"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: no Ray cluster at RAY_ADDRESS=127.0.0.1:9: ")
    assert not Path("labels").exists()


def test_an_error_of_an_actor_is_told(nodes: Nodes, networks: list[str], photos: Path) -> None:
    argv = ["--model", *networks, "--images", str(photos), "--provider", "cpu", "--strict"]
    argv += ["--engine", "ray", "--out", str(photos.parent / "labels"), "--partition-size", "2"]
    log = photos.parent / "log.txt"
    assert nodes.infer([*argv, "--batch-size", "2"], log).wait(timeout=120) == 1
    assert f"error: {photos / '05.png'}: not a picture in a known format" in log.read_text()
    assert "Traceback" not in log.read_text()


def test_benchmark(networks: list[str], photos: Path, tmp_path: Path, short_folder: Path) -> None:
    """benchmarks/cluster.py. Without RAY_ADDRESS: Ray on this machine alone."""
    (photos / "20.png").unlink()
    options = ["--model", *networks, "--images", photos, "--short", 8, "--entries", 90]
    options += ["--partition-size", 16, "--runs", 1, "--json", tmp_path / "cluster.json"]
    own = {"HOME": str(tmp_path), "RAY_TMPDIR": str(short_folder), "OMP_NUM_THREADS": "1"}
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "cluster.py"), *map(str, options)],
        env=environment | own,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "cluster.json").read_text())
    for way, row in figures["ways"].items():
        [[short], [long]] = row["seconds"].values()
        assert row["images_per_s"] == pytest.approx(82 / (long - short))
        assert row["fixed_s"] == pytest.approx(short - 8 / row["images_per_s"])
        assert f"| {way} | {short:.1f} | {long:.1f} |" in done.stdout
    assert "a billion pictures" in done.stdout
