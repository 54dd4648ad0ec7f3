"""How a CPU's cores are shared between batches: measured on the job's own pictures, once, and
remembered for the next job of the same files on this machine.

One batch on all cores answers soonest. Several at once, which share them, do not wait for
one another inside every operator, and decode where they compute; how much that is worth depends on
the network, its precision and the machine. The answers are the same.
"""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path

from maskcls.files import cache_folder, write_atomic
from maskcls.runtime.engines import Engine, open_onnx, session_threads, usable_cores
from maskcls.runtime.labelling import answered_batches
from maskcls.runtime.session import PROVIDERS, import_onnxruntime
from maskcls.runtime.sources import Pictures

WORTH = 2.5
"""So many times the pictures that the measurements compute, a job has to have to be worth them."""
BATCHES = 4
"""Of each lane, in a measurement."""
TURNS = 2
"""Measurements of each number of lanes; the best counts, so that a neighbour's work does not."""
FILE = "lanes.json"


def tuned(
    engine: Engine,
    sources: Pictures,
    batch_size: int,
    workers: int,
    *,
    folder: Path | None = None,
    say: Callable[[str], None] = print,
) -> Engine:
    """The same ONNX files on a CPU with the number of lanes that labels these pictures fastest; any
    other engine as it is.

    A small job takes what a larger one has found, or leaves the engine as it is. `folder`: where it
    is remembered, the user's cache folder by default.
    """
    choices = lane_choices(usable_cores())
    if engine.provider != PROVIDERS["cpu"] or len(choices) == 1:
        return engine
    memory = (folder or cache_folder("auto")) / FILE
    key = _key(engine, batch_size)
    lanes = _recall(memory, key)
    if lanes not in choices:
        if len(sources) < least_job(batch_size):
            return engine
        lanes = fastest_lanes(engine, sources[: sample_size(batch_size)], batch_size, workers)
        if lanes is None:
            return engine
        _remember(memory, key, lanes)
        say(f"{lanes} of {', '.join(map(str, choices))} batches at once label fastest here")
    # With fewer batches some lanes would soon have nothing to do.
    return _with_lanes(engine, lanes if len(sources) >= 2 * lanes * batch_size else 1)


def lane_choices(cores: int) -> tuple[int, ...]:
    """Powers of two up to the cores.

    >>> lane_choices(6)
    (1, 2, 4)
    """
    return tuple(1 << power for power in range(cores.bit_length()))


def sample_size(batch_size: int) -> int:
    """Pictures of a measurement."""
    return BATCHES * max(lane_choices(usable_cores())) * batch_size


def least_job(batch_size: int) -> float:
    """Pictures of a job that is worth measuring."""
    return WORTH * sample_size(batch_size) * len(lane_choices(usable_cores())) * (TURNS + 1)


def _with_lanes(engine: Engine, lanes: int) -> Engine:
    if lanes == engine.lanes:
        return engine
    return open_onnx([Path(model.path) for model in engine.models], "cpu", lanes)


def fastest_lanes(engine: Engine, sample: Pictures, batch_size: int, workers: int) -> int | None:
    """Measured from file to answer. None where most of the pictures cannot be read, which says
    nothing about the others."""
    choices = lane_choices(usable_cores())
    engines = [_with_lanes(engine, lanes) for lanes in choices]
    rates = dict.fromkeys(choices, 0.0)
    for turn in range(TURNS + 1):  # the first is not counted: allocation, page cache
        for one in engines if turn % 2 else reversed(engines):
            began = time.perf_counter()
            answered = sum(
                len(answers) for _, answers in answered_batches(one, sample, batch_size, workers)
            )
            if answered < len(sample) / 2:
                return None
            if turn:
                rate = answered / (time.perf_counter() - began)
                rates[one.lanes] = max(rate, rates[one.lanes])
    return max(choices, key=rates.__getitem__)


def _key(engine: Engine, batch_size: int) -> str:
    """What the choice depends on."""
    known = [
        *(model.sha256 for model in engine.models),
        batch_size,
        [session_threads(lanes) for lanes in lane_choices(usable_cores())],
        usable_cores(),
        platform.machine(),
        platform.node(),
        import_onnxruntime().__version__,
    ]
    return hashlib.sha256(json.dumps(known).encode()).hexdigest()


def _recall(memory: Path, key: str) -> int | None:
    lanes = _read(memory).get(key)
    return lanes if isinstance(lanes, int) else None


def _remember(memory: Path, key: str, lanes: int) -> None:
    try:
        write_atomic(memory, json.dumps({**_read(memory), key: lanes}, indent=1).encode())
    except OSError:  # it will be measured again
        return


def _read(memory: Path) -> dict[str, object]:
    """Empty where there is nothing, or nothing that makes sense."""
    try:
        known = json.loads(memory.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return known if isinstance(known, dict) else {}
