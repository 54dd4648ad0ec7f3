"""Labels a folder in forked children that are killed on the way, until one comes to the end.

    python tests/runtime/kill_labelling.py FOLDER OUT KILLS LANES

Child n is killed by SIGKILL when it does something, such as a rename, for the m-th time; n and m
run through all that a job does. Prints how many were killed.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from maskcls.preprocessing import PreprocessSpec
from maskcls.provenance import ModelFile
from maskcls.runtime import inference, labelling, list_pictures

BATCH = 4


class MeanColour:
    """Answers a fixed function of a picture's colours."""

    provider = "cpu"
    models = (ModelFile("multi", "a.pt", "0" * 64),)
    specs = (PreprocessSpec(32, 32),)
    trained_on = None
    lanes = 1

    def predict(self, pixels: Sequence[Any]) -> np.ndarray:
        means = np.asarray(pixels[0]).reshape(len(pixels[0]), -1, 3).mean(axis=1)
        answer = np.tile(means, 6) * np.arange(1, 19)
        shares: np.ndarray = (answer / answer.sum(axis=1, keepdims=True)).astype(np.float32)
        return shares


def killing(function: Callable[..., Any], number: int) -> Callable[..., Any]:
    calls = 0

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)

    return counted


PLACES: tuple[tuple[Any, str], ...] = (
    (os, "replace"),
    (MeanColour, "predict"),
    (os, "fsync"),
    (labelling, "decode"),
    (Path, "write_bytes"),
    (Path, "unlink"),
)


def main() -> None:
    folder, out, kills = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    MeanColour.lanes = int(sys.argv[4])
    labelling.PART = 2 * BATCH
    killed = 0
    for trial in range(kills + 1):
        child = os.fork()
        if child == 0:
            signal.alarm(120)  # a child that hangs is a failure, too
            if trial < kills:
                owner, name = PLACES[trial % len(PLACES)]
                setattr(owner, name, killing(getattr(owner, name), 1 + trial // len(PLACES)))
            resume = out.with_name(f"{out.name}.parts").exists()
            inference(MeanColour(), list_pictures(folder), out, batch_size=BATCH, resume=resume)
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status == 0:
            break
        assert status == -signal.SIGKILL, status
        killed += 1
    print(killed)


if __name__ == "__main__":
    main()
