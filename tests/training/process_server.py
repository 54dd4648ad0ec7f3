"""Trains with several processes of torchrun, forked ones, so that a trial costs no import.

    python tests/training/process_server.py

One JSON object a line on stdin: {"processes": n, "options": of maskcls-train, or keywords of
maskcls.train, "events": [[name, process, step], ...], "pictures": of a batch that they share
instead, or 0, "out": file, "err": file}; one a line on stdout, the exit status. The agent is
torchrun's own, and so are what it sets for its processes and how it ends them.

An event is what happens in a process before a step: the signal of that name; with `ENOSPC` the
first file that it writes from there on finds a full disk; with `MEMORY` it has none.
"""

from __future__ import annotations

import copy
import errno
import faulthandler
import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Sequence
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import ignite.distributed as idist
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

import maskcls
from maskcls.commands.train import main
from maskcls.data.loaders import Share
from maskcls.training import handlers
from maskcls.training.processes import connect, gather, share_gradients

Event = tuple[str, int, int]


def act(name: str) -> None:
    if name == "ENOSPC":

        def write(path: Path, content: Any) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

        Path.write_bytes = write  # type: ignore[assignment]
    elif name == "MEMORY":

        def forward(*_: Any) -> None:
            torch.empty(10**15)

        nn.Linear.forward = forward  # type: ignore[assignment]
    else:
        os.kill(os.getpid(), getattr(signal, name))


def confusion_figure(matrix: np.ndarray, *_: object) -> Figure:
    print(f"confusion of {matrix.sum()} pictures")
    return Figure((1, 1), dpi=8)


def train(options: Sequence[str] | dict[str, Any], events: Sequence[Event]) -> None:
    """One process: `maskcls-train`, or `maskcls.train`, without dropout, whose masks are each
    process's own, and with small figures."""
    nn.Dropout.forward = lambda self, images: images  # type: ignore[assignment]
    handlers.grid_image = lambda *_: Figure((1, 1), dpi=8)
    handlers.confusion_figure = confusion_figure
    own = {step: name for name, process, step in events if process == _rank()}
    real = handlers.seed_step

    def seed_step(seed: int, iteration: int) -> None:
        if iteration in own:
            act(own[iteration])
        real(seed, iteration)

    handlers.seed_step = seed_step
    if isinstance(options, dict):
        results = maskcls.train(**options)
        assert all((result.folder / "report.html").is_file() for result in results.values())
        code = 0
    else:
        code = main(options)
    sys.stdout.flush()
    if code:
        raise SystemExit(code)


def compare(pictures: int) -> None:
    """One process: two steps with its share of a batch, and with all of it; raises where that
    makes a difference to more than the last digits."""
    connect(torch.device("cpu"))
    torch.manual_seed(0)
    whole = nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout2d(0.0)),
        *(nn.Conv2d(8, 5, 3), nn.BatchNorm2d(5, eps=0.01, momentum=0.3), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3)),
    ).to(torch.float64, memory_format=torch.channels_last)
    shared = copy.deepcopy(whole)
    images = torch.randn(pictures, 3, 8, 7, dtype=torch.float64)
    target = torch.arange(pictures) % 3
    share = Share(idist.get_rank(), idist.get_world_size())
    [sizes] = share.sizes(pictures)
    for model, count in ((share_gradients(shared), share.processes), (whole, 1)):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        for _ in range(2):
            optimizer.zero_grad()
            own = gather(model(images[share.rows(pictures)]), sizes) if count > 1 else model(images)
            (nn.functional.cross_entropy(own, target) * count).backward()
            optimizer.step()
    torch.testing.assert_close(shared.state_dict(), whole.state_dict(), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(shared.eval()(images), whole.eval()(images), rtol=1e-9, atol=1e-9)
    idist.finalize()


def work(request: dict[str, Any], forked: Barrier) -> None:
    # The agent's store looks up the name of who connects, in a thread: a process forked meanwhile
    # would have the C library's lock of such look-ups held for ever.
    forked.wait()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)  # the agent's handlers, which an exec would drop
    signal.signal(signal.SIGINT, signal.default_int_handler)
    faulthandler.dump_traceback_later(90)  # one that hangs says where, before the alarm ends all
    if request["pictures"]:
        compare(request["pictures"])
    else:
        train(request["options"], request["events"])


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


def answer(request: dict[str, Any]) -> int:
    signal.alarm(120)  # a trial that hangs is a status, too
    for name, descriptor in (("out", 1), ("err", 2)):
        os.dup2(os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    forked = multiprocessing.get_context("fork").Barrier(request["processes"])
    if request["processes"] == 1:
        work(request, forked)
        return 0
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=request["processes"],
        run_id=str(os.getpid()),
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.1,
        start_method="fork",
    )
    try:
        elastic_launch(config, work)(request, forked)
    except ChildFailedError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def serve() -> None:
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            code = 70  # of a traceback
            try:
                code = answer(json.loads(line))
            except SystemExit as error:
                code = int(error.code or 0)
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    serve()
