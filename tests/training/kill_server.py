"""Trains in forked children that end themselves at a given point, so that a trial costs no import.

    python tests/training/kill_server.py

One JSON object a line on stdin, {"config": {...} or "resume": folder, "point": name, "number": n};
one a line on stdout, the exit status of the child: below 0 the signal that killed it. `point` says
what the child does for the n-th time when it is killed, "" that it is left alone.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from matplotlib.figure import Figure

import maskcls.data.cache as cache
from maskcls.config import TrainConfig
from maskcls.errors import MaskclsError
from maskcls.training import handlers, resume, train


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def before(function: Callable[..., Any], number: int, action: Callable[..., None]) -> Any:
    """`function`, with `action` before its call of that number."""
    calls = 0

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            action(*args)
        return function(*args, **kwargs)

    return counted


def set_point(point: str, number: int) -> None:
    def half_written(path: Path, content: Any) -> None:
        with path.open("wb") as file:
            file.write(bytes(content)[: len(content) // 2])
        kill()

    def at(owner: Any, name: str, action: Callable[..., None] = lambda *_: kill()) -> None:
        setattr(owner, name, before(getattr(owner, name), number, action))

    if point == "step":
        at(handlers, "seed_step")
    elif point == "evaluated":
        at(handlers, "_scalars")
    elif point == "row":
        at(handlers.History, "add")
    elif point == "write":
        at(Path, "write_bytes", half_written)
    elif point == "sync":
        at(os, "fsync")
    elif point == "rename":
        at(os, "replace")
    elif point == "decode":
        at(cache, "decode")
    elif point in ("SIGTERM", "SIGINT"):
        at(handlers, "seed_step", lambda *_: os.kill(os.getpid(), getattr(signal, point)))
    elif point:
        raise ValueError(point)


def run(request: dict[str, Any]) -> int:
    signal.alarm(120)  # a child that hangs is a status, too
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a job of the background
    handlers.confusion_figure = handlers.grid_image = lambda *_: Figure((1, 1), dpi=8)
    set_point(request["point"], request["number"])
    try:
        if "resume" in request:
            resume(Path(request["resume"]), say=lambda _: None)
        else:
            train(TrainConfig.from_dict(request["config"]), say=lambda _: None)
    except MaskclsError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except SystemExit as error:
        return int(error.code or 0)
    return 0


def main() -> None:
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            code = 70  # of a traceback
            try:
                code = run(json.loads(line))
            finally:
                sys.stderr.flush()
                os._exit(code)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
