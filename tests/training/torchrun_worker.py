"""`maskcls-train` with something wrong or left out, for tests of several processes.

    torchrun --nproc_per_node=2 tests/training/torchrun_worker.py WHAT OPTION…

WHAT: words with commas. `plain`: no dropout, whose masks are each process's own, and small figures.
`NAME@PROCESS:STEP`: before that step the process, or any (`*`), gets the signal of that name; with
`ENOSPC` the first file that it writes from there on finds a full disk; with `MEMORY` a process has
none.
"""

import errno
import os
import signal
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from matplotlib.figure import Figure
from torch import nn

from maskcls.commands.train import main
from maskcls.training import handlers


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


def at(step: int, name: str) -> None:
    real = handlers.seed_step

    def counted(seed: int, iteration: int) -> None:
        if iteration == step:
            act(name)
        real(seed, iteration)

    handlers.seed_step = counted


if __name__ == "__main__":
    for word in sys.argv.pop(1).split(","):
        if word == "plain":
            nn.Dropout.forward = lambda self, images: images  # type: ignore[assignment]
            handlers.confusion_figure = handlers.grid_image = lambda *_: Figure((1, 1), dpi=8)
            continue
        name, _, where = word.partition("@")
        process, _, step = where.partition(":")
        if process in ("*", os.environ.get("RANK", "0")):
            at(int(step), name)
    raise SystemExit(main())
