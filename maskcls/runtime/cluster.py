"""Labelling on a Ray cluster, with Ray Data: actors with a session each write partitions.

A partition is a shard of the job: whole batches, computed by the same code as on one machine, so
the labels are the same to the last digit and `maskcls.runtime.merging.merge` makes the same file of
them. An actor answers with numbers only; the rows go from it to the file. What was computed when a
node dies, and not yet written, is computed again by another one, as often as it takes.

All machines see the model, the pictures and the output under the same paths, and have `maskcls`
installed.
"""

from __future__ import annotations

import itertools
import logging
import os
import pickle
import platform
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from maskcls.errors import (
    CheckpointError,
    DataError,
    MaskclsError,
    MissingExtraError,
    ProviderError,
)
from maskcls.provenance import ModelFile, ShardRecord, names_all
from maskcls.runtime.engines import Engine
from maskcls.runtime.labelling import (
    LabellingResult,
    label_columns,
    labelled_batches,
    nothing_to_read,
    part_size,
    refuse_errors,
    summed_up,
)
from maskcls.runtime.packed import import_pyarrow, pictures_digest, places_digest
from maskcls.runtime.partitions import partition_path, read_partition, read_places, write_partition
from maskcls.runtime.parts import only_job
from maskcls.runtime.shards import Shard
from maskcls.runtime.sources import Pictures
from maskcls.runtime.tables import parts_of, read_columns, read_rows

PARTITION = 2048
"""Pictures per partition, about: what a node that dies loses at most."""


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster that this process is connected to: CPUs and GPUs of each node."""

    nodes: tuple[tuple[int, int], ...]

    @property
    def cpus(self) -> int:
        return sum(cpus for cpus, _ in self.nodes)

    @property
    def gpus(self) -> int:
        return sum(gpus for _, gpus in self.nodes)

    def room(self, cpus: int, gpus: int) -> int:
        """For how many actors of that size.

        Raises:
            ProviderError: for none; Ray would wait for a node without an end.
        """
        found = sum(min(c // cpus, g // gpus if gpus else c // cpus) for c, g in self.nodes)
        if not found:
            largest = max(self.nodes, key=lambda node: (node[1], node[0]), default=(0, 0))
            raise ProviderError(
                f"no node of the Ray cluster has {cpus} CPUs and {gpus} GPUs for an actor; the "
                f"largest has {largest[0]} and {largest[1]}"
            )
        return found


@dataclass(frozen=True)
class Job:
    """What every partition has in common. It travels to the actors."""

    out: Path  # a folder
    open_engine: Callable[[], Engine]
    models: tuple[ModelFile, ...]
    pictures_sha256: str
    places_sha256: str
    partitions: int
    batch_size: int
    workers: int
    probabilities: bool
    strict: bool

    def record(self, number: int) -> ShardRecord:
        return ShardRecord(number, self.partitions, self.batch_size, False, self.pictures_sha256)


@contextmanager
def connected(purpose: str) -> Iterator[Cluster]:
    """Connects to the cluster of $RAY_ADDRESS, or to one that runs on this machine, or starts one
    of this machine alone for as long as the block takes.

    Raises:
        MissingExtraError: Ray is not installed.
        DataError: there is no cluster at this address, or it lets nobody in.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anybody
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # what matters is raised
    try:
        import ray
        import ray.data
    except ImportError:
        raise MissingExtraError("ray", "ray", purpose) from None
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    own = not ray.is_initialized()
    if own:
        _require_cluster()
        try:
            ray.init(logging_level=logging.ERROR, log_to_driver=False)
        except (ray.exceptions.RayError, OSError, RuntimeError) as error:  # a key, a version
            raise DataError(f"no Ray cluster can be used: {' '.join(str(error).split())}") from None
    try:
        sizes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        yield Cluster(tuple((int(size.get("CPU", 0)), int(size.get("GPU", 0))) for size in sizes))
    finally:
        if own:
            ray.shutdown()


def _require_cluster() -> None:
    """Ray itself would try to reach it for seven minutes.

    Raises:
        DataError: nobody answers at $RAY_ADDRESS.
    """
    address = os.environ.get("RAY_ADDRESS", "")
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdecimal():  # not set, or a word such as `auto`
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise DataError(f"no Ray cluster at RAY_ADDRESS={address}: {error}") from None


def label_on_cluster(
    cluster: Cluster,
    open_engine: Callable[[], Engine],
    engine: Engine,
    sources: Pictures,
    out: Path,
    *,
    batch_size: int = 32,
    workers: int = 2,
    probabilities: bool = False,
    strict: bool = False,
    resume: bool = False,
    partition_size: int = PARTITION,
    cpus: int = 1,
    gpus: int = 0,
) -> LabellingResult:
    """As `maskcls.runtime.inference`, to a folder `out` of Parquet files; inside `connected`.

    `open_engine` is called in each actor, and opens the same files as `engine`, which only tells
    what they are. `cpus` and `gpus` are those of an actor. With `resume` partitions that are there
    are not computed again.

    Raises:
        DataError: no picture was given, or none could be read; an actor met an error, which it
            names; partitions are in the way, or of another job.
        PictureError: with `strict` and `resume`, finished partitions have a picture that could not
            be read.
        ProviderError: no node has room for an actor.
        MissingExtraError: without pyarrow.
    """
    if not sources:
        raise DataError("no pictures to label")
    import_pyarrow(out)
    room = cluster.room(cpus, gpus)
    job = Job(
        out=out,
        open_engine=open_engine,
        models=engine.models,
        pictures_sha256=pictures_digest(sources),
        places_sha256=places_digest(sources),
        partitions=-(-len(sources) // partition_size),
        batch_size=batch_size,
        workers=workers,
        probabilities=probabilities,
        strict=strict,
    )
    with only_job(out, out):
        todo = {
            shard.number: sources[shard.bounds(len(sources), batch_size)]
            for shard in _unfinished(job, resume)
        }
        left = sum(len(pictures) for pictures in todo.values())
        with tqdm(
            total=len(sources),
            initial=len(sources) - left,
            desc="labelling",
            unit="img",
            disable=None,
        ) as bar:
            for finished in _computed(job, todo, room, cpus, gpus):
                bar.update(finished)
        for lost in out.glob(".part-*.tmp"):  # of nodes that died
            lost.unlink(missing_ok=True)
        return _result(job, len(sources), names_all(engine.trained_on))


def _unfinished(job: Job, resume: bool) -> list[Shard]:
    """
    Raises:
        DataError: partitions of another job, or of this one without `resume`.
        PictureError: with `strict`, one has a picture that could not be read.
    """
    present = sorted(job.out.glob("part-*.parquet"))
    if present and not resume:
        raise DataError(
            f"{job.out}: holds {len(present)} of {job.partitions} partitions; go on with --resume, "
            "or name another folder"
        )
    shards = {
        partition_path(job.out, number): Shard(number, job.partitions)
        for number in range(1, job.partitions + 1)
    }
    for path in present:
        made = read_partition(path)
        same = (
            path in shards
            and made is not None
            and (
                made.shard == job.record(shards[path].number)
                and read_places(path) == job.places_sha256
                and [model.sha256 for model in made.models]
                == [model.sha256 for model in job.models]
                and set(read_columns(path)) - {"error"} == set(label_columns(job.probabilities))
            )
        )
        if not same:
            raise DataError(
                f"{path}: is of another job (other pictures, or in another place; other model or "
                "options); go back to them, or name another folder"
            )
        if job.strict and made is not None and made.errors:
            refuse_errors(read_rows(path), path)
        del shards[path]
    return list(shards.values())


def _computed(
    job: Job, todo: Mapping[int, Pictures], room: int, cpus: int, gpus: int
) -> Iterator[int]:
    """Has the partitions computed; tells of each, as it is finished, how many pictures it has.
    `room`: for so many actors there is.

    Raises:
        DataError: what an actor met.
    """
    if not todo:
        return
    import ray

    ray.data.DataContext.get_current().enable_progress_bars = False
    rows = [{"number": n, "pictures": pickle.dumps(pictures)} for n, pictures in todo.items()]
    parts = ray.data.from_items(rows, override_num_blocks=len(rows))
    answers = parts.map_batches(
        _Labeller,
        fn_constructor_kwargs={"job": job, "folder": os.getcwd()},
        batch_size=1,
        # As many as there is room for, also on nodes that join later.
        compute=ray.data.ActorPoolStrategy(
            min_size=1, initial_size=min(room, len(rows)), max_size=len(rows)
        ),
        num_cpus=cpus,
        num_gpus=gpus,
    )
    try:
        # Closed: where one answer ends it, the others are stopped before Ray is.
        with closing(iter(answers.iter_rows())) as rows_done:
            for answer in rows_done:
                if answer["failure"]:
                    raise DataError(answer["failure"])
                yield answer["pictures"]
    except ray.exceptions.RayTaskError:  # a bug: its traceback is of use
        raise
    except ray.exceptions.RayError as error:
        reason = str(error).partition("\n")[0]
        raise DataError(f"{job.out}: Ray gives up ({reason}); go on with --resume") from None


class _Labeller:
    """What an actor does."""

    def __init__(self, job: Job, folder: str) -> None:
        self._job = job
        self._engine: Engine | None = None
        with suppress(OSError):  # only relative paths need it
            os.chdir(folder)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """A partition → how many pictures it has, or why it cannot be."""
        pictures: Pictures = pickle.loads(batch["pictures"][0])
        failure = ""
        try:
            self._write(int(batch["number"][0]), pictures)
        except (MaskclsError, OSError, MemoryError) as error:  # anything else goes to Ray
            failure = f"{str(error) or 'out of memory'} (on {platform.node()})"
        return {"pictures": [len(pictures)], "failure": [failure]}

    def _write(self, number: int, pictures: Pictures) -> None:
        job = self._job
        if self._engine is None:
            self._engine = job.open_engine()
            for own, asked in zip(self._engine.models, job.models, strict=True):
                if own.sha256 != asked.sha256:
                    raise CheckpointError(f"{own.path}: is another file here than where it began")
        batches = labelled_batches(
            self._engine, pictures, job.batch_size, job.workers, job.probabilities, job.strict
        )
        rows = list(itertools.chain.from_iterable(batches))
        made, errors = summed_up(self._engine, rows, job.record(number))
        columns = label_columns(job.probabilities) + (["error"] if errors else [])
        parts = list(parts_of(rows, part_size(job.batch_size)))
        write_partition(partition_path(job.out, number), columns, parts, made, job.places_sha256)


def _result(job: Job, pictures: int, knows: bool) -> LabellingResult:
    """What all partitions came to; `knows`: the model says whom all it was trained on.

    Raises:
        DataError: a partition is missing, or no picture could be read.
    """
    errors: list[str] = []
    seen = 0
    for number in range(1, job.partitions + 1):
        path = partition_path(job.out, number)
        made = read_partition(path)
        if made is None:
            raise DataError(f"{path}: has gone; compute it with --resume")
        seen += made.seen_in_training or 0
        if made.errors:
            errors += [row["error"] for row in read_rows(path) if "error" in row]
    if len(errors) == pictures:
        raise nothing_to_read(errors)
    return LabellingResult(job.out, pictures, tuple(errors), seen if seen or knows else None)
