"""What the benchmarks have in common: options that count, long lists of pictures, figures on disk
and in tables, memory of a process."""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import platform
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from maskcls.errors import ConfigError, DataError
from maskcls.files import write_atomic
from maskcls.runtime.sources import Source

PEER_NAMES = {
    "efficientnet_b3": "efficientnet_b3",
    "efficientnet_b3_init": "efficientnet_b3",
    "efficientnet_b4": "efficientnet_b4",
    "efficientnet_b5": "efficientnet_b5",
    "resnet18": "resnet18",
    "resnet34": "resnet34",
    "resnext50": "resnext50_32x4d",
    "resnext101": "resnext101_32x8d",
    "vgg19": "vgg19",
}
"""Network → its name in timm and in torchvision. With random weights: speed does not ask."""


def require_positive(args: argparse.Namespace, *names: str) -> None:
    """
    Raises:
        ConfigError: an option, or one of its values, below 1. One that was not given is passed.
    """
    for name in names:
        given = getattr(args, name)
        values = given if isinstance(given, list) else [] if given is None else [given]
        for value in values:
            if value < 1:
                raise ConfigError(f"--{name.replace('_', '-')} {value}: needs at least 1")


def repeated_list(sources: Sequence[Source], count: int, folder: Path) -> Path:
    """`list.txt` with `count` entries, in a new folder: the pictures as often as it takes, under
    another name each time. (A list that names a picture twice is refused.)"""
    folder.mkdir()
    lines = []
    numbers: dict[Path, int] = {}  # of the folders: two may have one name
    for index in range(count):
        turn, place = divmod(index, len(sources))
        path = sources[place].path.resolve()
        link = folder / f"{turn}-{numbers.setdefault(path.parent, len(numbers))}"
        if not link.exists():
            link.symlink_to(path.parent, target_is_directory=True)
        lines.append(f"{link.name}/{path.name}\n")
    (folder / "list.txt").write_text("".join(lines), "utf-8")
    return folder / "list.txt"


def write_figures(path: Path | None, figures: dict[str, Any]) -> None:
    """As JSON, where a file was asked for."""
    if path is not None:
        write_atomic(path, (json.dumps(figures, indent=1) + "\n").encode())
        print(f"wrote {path}")


def in_own_process(work: Callable[..., None], *arguments: Any) -> dict[str, Any]:
    """What `work(end, *arguments)` sends through `end`, from a process that was spawned for it.

    Raises:
        DataError: the process ended without an answer; its own words are on stderr.
    """
    context = multiprocessing.get_context("spawn")
    end, other = context.Pipe()
    process = context.Process(target=work, args=(other, *arguments))
    process.start()
    other.close()
    try:
        answer: dict[str, Any] = end.recv()
    except EOFError:
        raise DataError("a process of the benchmark ended, see above") from None
    finally:
        process.join()
    return answer


def start_workers_as_usual() -> None:
    """In a process that was spawned: DataLoaders start their workers as they do in a script, which
    is a fork on Linux. They would be spawned, too, and each import PyTorch anew."""
    multiprocessing.set_start_method(None, force=True)


def process_bytes(field: str, pid: int | str = "self") -> float:
    """A size in `/proc/PID/status`: VmRSS, or VmHWM, the peak of the program that runs there now.
    (The peak that `wait4` gives counts the memory of the parent, too: a child begins as its copy.)

    Raises:
        OSError: no such process, or no Linux.
        KeyError: the process is over.
    """
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    values = dict(line.split(":", 1) for line in lines)
    return float(values[field].split()[0]) * 1024


def spread(ratios: Sequence[float]) -> str:
    """`1.91 (1.85–1.92)`: the median, the smallest and the largest."""
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})"


def processor() -> str:
    """What computes, as the machine calls it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if "model name" in line), "")


def peak_bytes() -> float:
    """The most memory that this process has held; 0 where it cannot be told."""
    try:
        return process_bytes("VmHWM")
    except (OSError, KeyError):
        return 0.0


def forget_peak() -> None:
    """`peak_bytes` from here on is of what comes, where Linux can do that."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
