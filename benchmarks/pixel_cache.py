"""What the pixel cache and batch augmentation save, on this machine.

    python benchmarks/pixel_cache.py
    python benchmarks/pixel_cache.py --data-dir data/train --runs 9 --json pixel_cache.json
    python benchmarks/pixel_cache.py --data-dir data/train --memory

Two pairs, each the way that image data sets are usually read against the way this project does it:

    pixels    every picture decoded and resized by Pillow  |  gathered from the pixel cache
    augment   torchvision v2, picture by picture           |  BestAugmentation, whole batches

One run passes over all pictures in each way, several times where that is quick, and which way comes
first alternates. A ratio is taken within a run, so that a machine that gets busier in between does
not decide it. With `--memory` two trainings of an epoch, each a process of its own, show what the
cache costs in memory. How to read the tables: benchmarks/README.md.

All options: python benchmarks/pixel_cache.py --help
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this clone, installed or not

from benchmarks.shared import (
    in_own_process,
    peak_bytes,
    process_bytes,
    require_positive,
    write_figures,
)
from maskcls.commands._run import guarded
from maskcls.errors import DataError

LEAST_SECONDS = 0.2  # a way that is through sooner is repeated: one short pass says little
WARM_UP = 1  # runs that are not counted: files enter the page cache, memory is allocated


@dataclass(frozen=True)
class Pair:
    """Two ways to the same thing. A way passes over all pictures once."""

    name: str
    usual: str
    ours: str
    run_usual: Callable[[], None]
    run_ours: Callable[[], None]


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Measure the pixel cache and batch augmentation against the usual ways.",
        epilog="example:\n  python benchmarks/pixel_cache.py --data-dir data/train --runs 9",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--data-dir", type=Path, metavar="DIR", help="default: the built-in sample, drawn for this"
    )
    parser.add_argument(
        "--people", type=int, default=60, metavar="N", help="people in the sample; default: 60"
    )
    parser.add_argument("--height", type=int, default=128, metavar="N", help="default: 128")
    parser.add_argument("--width", type=int, default=96, metavar="N", help="default: 96")
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="default: 64")
    parser.add_argument("--runs", type=int, default=7, metavar="N", help="default: 7")
    parser.add_argument(
        "--threads", type=int, default=1, metavar="N", help="of torch, for both ways; default: 1"
    )
    parser.add_argument(
        "--memory", action="store_true", help="train an epoch with the cache and one without it"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    return parser


@guarded
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns its exit code."""
    args = build_parser().parse_args(argv)
    require_positive(args, "batch_size", "runs", "threads")
    with tempfile.TemporaryDirectory() as scratch:
        figures = measure(args, Path(scratch))
    print(format_table(figures))
    write_figures(args.json, figures)
    return 0


def measure(args: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """All figures, as plain values. `scratch`: for the sample and the cache, so that it starts
    empty."""
    import torch

    from maskcls.data.datasets import MaskBaseDataset
    from maskcls.data.sample import make_sample
    from maskcls.preprocessing import PreprocessSpec

    torch.set_num_threads(args.threads)
    spec = PreprocessSpec(height=args.height, width=args.width)
    data_dir = args.data_dir or make_sample(scratch / "sample", args.people, 6) / "train"
    began = time.perf_counter()
    dataset = MaskBaseDataset([data_dir], spec, cache=str(scratch / "cache"), workers=1)
    first = time.perf_counter() - began

    # One after the other: to make the second reads the whole cache, whose pages count as memory.
    pairs = {}
    for make in (_pixels, _augment):
        pair = make(dataset, args.batch_size)
        pairs[pair.name] = _compare(pair, len(dataset), args.runs)
    memory = {}
    if args.memory:
        size = (args.height, args.width, args.batch_size)
        for way, cached in (("pixel cache", True), ("Pillow, every time", False)):
            memory[way] = in_own_process(train_once, cached, str(data_dir), str(scratch), *size)
            if (memory[way]["decoded"] == 0) != cached:
                raise DataError(
                    f"{way}: decoded {memory[way]['decoded']} pictures while it trained"
                )
    return {
        "data": str(args.data_dir.name if args.data_dir else f"sample of {args.people} people"),
        "pictures": len(dataset),
        "input": [args.height, args.width],
        "batch_size": args.batch_size,
        "runs": args.runs,
        "torch_threads": args.threads,
        "machine": platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "filling_the_cache_s": first,
        "cache_mb": len(dataset) * args.height * args.width * 3 / 1e6,
        "pairs": pairs,
        "training": memory,
    }


def train_once(
    end: Connection,
    cached: bool,
    data_dir: str,
    scratch: str,
    height: int,
    width: int,
    batch_size: int,
) -> None:
    """Trains the preset for an epoch in a process of its own, and sends what it held at most.
    `cached`: False decodes every picture anew, though the cache is filled."""
    import numpy as np

    from maskcls.config import resolve
    from maskcls.data import datasets
    from maskcls.images import read_image
    from maskcls.training import train

    decoded = 0

    class Decoding:
        """In place of the cache's pixels."""

        def __init__(self, paths: Sequence[Path], spec: Any) -> None:
            self.paths, self.spec = paths, spec

        def __getitem__(self, rows: Any) -> np.ndarray:
            nonlocal decoded
            if np.ndim(rows) == 0:
                decoded += 1
                return np.array(self.spec.resize(read_image(self.paths[rows])))
            return np.stack([self[row] for row in rows])

    def open_decoding(paths: Sequence[Path], spec: Any, *rest: Any, **options: Any) -> Any:
        found = open_cache(paths, spec, *rest, **options)
        return replace(found, pixels=Decoding(paths, spec))

    open_cache = datasets.open_cache
    if not cached:
        datasets.open_cache = open_decoding
    flags = {
        "data_dir": (data_dir,),
        "model_dir": f"{scratch}/runs-{cached}",
        "cache": f"{scratch}/cache",
        "weights": "none",
        "height": height,
        "width": width,
        "crop": None,
        "batch_size": batch_size,
        "epochs": 1,
    }
    train(resolve("mask_gender", "scratch", flags=flags), say=lambda line: None)
    end.send({"peak_mb": peak_bytes() / 1e6 or None, "decoded": decoded})


def _pixels(dataset: Any, batch_size: int) -> Pair:
    import numpy as np

    from maskcls.images import read_image

    def decoded() -> None:
        for indices in _batches(len(dataset), batch_size):
            np.stack([dataset.spec.resize(read_image(dataset.paths[i])) for i in indices])

    def cached() -> None:
        for indices in _batches(len(dataset), batch_size):
            dataset.__getitems__(indices)

    return Pair("pixels", "Pillow, every time", "pixel cache", decoded, cached)


def _augment(dataset: Any, batch_size: int) -> Pair:
    """The same kinds of change at the same strengths, from the same pixels to the same tensors."""
    import torch
    from torchvision.transforms import v2

    from maskcls.data.augmentation import BestAugmentation

    best = BestAugmentation(dataset.spec)
    per_picture = v2.Compose(
        [
            v2.RandomHorizontalFlip(),
            v2.RandomAffine(
                best.degrees,
                translate=(best.shift / 2, best.shift / 2),  # of the whole side, not half of it
                scale=(1 / (1 + best.scale), 1 + best.scale),
                interpolation=v2.InterpolationMode.BILINEAR,
            ),
            v2.ColorJitter(brightness=best.light, contrast=best.light),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(dataset.spec.mean, dataset.spec.std),
            v2.RandomErasing(p=best.erase_share),
        ]
    )
    # Held in memory: only the augmentation is timed.
    batches = [
        (indices, dataset.__getitems__(indices)[0])
        for indices in _batches(len(dataset), batch_size)
    ]

    def one_by_one() -> None:
        for _, pixels in batches:
            torch.stack([per_picture(image.permute(2, 0, 1)) for image in pixels])

    def whole() -> None:
        for indices, pixels in batches:
            best(pixels, indices, epoch=1)

    return Pair("augment", "torchvision v2", "BestAugmentation", one_by_one, whole)


def _batches(size: int, batch_size: int) -> Iterator[list[int]]:
    """Shuffled, as in training; the same in every run."""
    import numpy as np

    order = np.random.default_rng(0).permutation(size).tolist()
    for start in range(0, size, batch_size):
        yield order[start : start + batch_size]


def _compare(pair: Pair, pictures: int, runs: int) -> dict[str, Any]:
    ways = {pair.usual: pair.run_usual, pair.ours: pair.run_ours}
    memory = {name: _peak_growth(run) for name, run in ways.items()}  # its first pass
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(WARM_UP + runs):
        for name in sorted(ways, reverse=number % 2 == 1):
            rate = _rate(ways[name], pictures)
            if number >= WARM_UP:
                rates[name].append(rate)
    ratios = [ours / usual for usual, ours in zip(*(rates[n] for n in ways), strict=True)]
    return {
        "ways": {
            name: {
                "images_per_s": statistics.median(values),
                "images_per_s_all": values,
                "peak_mb": memory[name],
            }
            for name, values in rates.items()
        },
        "ratio": {
            "median": statistics.median(ratios),
            "min": min(ratios),
            "max": max(ratios),
        },
    }


def _rate(run: Callable[[], None], pictures: int) -> float:
    """Pictures a second."""
    began, passes, seconds = time.perf_counter(), 0, 0.0
    while seconds < LEAST_SECONDS:
        run()
        passes += 1
        seconds = time.perf_counter() - began
    return passes * pictures / seconds


def _peak_growth(run: Callable[[], None]) -> float | None:
    """MB that the process grows by at most during a pass, pages of mapped files among them; None
    where the system does not tell (it is Linux that does)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew at the present size
        before = process_bytes("VmRSS")
        run()
        return max(0.0, (process_bytes("VmHWM") - before) / 1e6)
    except (OSError, KeyError):
        run()
        return None


def format_table(figures: dict[str, Any]) -> str:
    """For the terminal, and as Markdown to paste."""
    height, width = figures["input"]
    lines = [
        f"{figures['data']}: {figures['pictures']} pictures to {height}x{width}, "
        f"batches of {figures['batch_size']}, median of {figures['runs']} alternating runs, "
        f"{figures['torch_threads']} torch thread(s), torch {figures['torch']}",
        f"filling the cache once: {figures['filling_the_cache_s']:.2f} s, "
        f"{figures['cache_mb']:.1f} MB",
        "",
        "| what | way | images/s | ratio (min–max) | peak MB |",
        "|---|---|---:|---:|---:|",
    ]
    for name, pair in figures["pairs"].items():
        ratio = pair["ratio"]
        shown = ("1", f"{ratio['median']:.1f} ({ratio['min']:.1f}–{ratio['max']:.1f})")
        for (way, values), times in zip(pair["ways"].items(), shown, strict=True):
            peak = "?" if values["peak_mb"] is None else f"{values['peak_mb']:.0f}"
            rate = f"{values['images_per_s']:,.0f}"
            lines.append(f"| {name} | {way} | {rate} | {times} | {peak} |")
    if figures["training"]:
        lines += ["", "| training of one epoch | peak MB |", "|---|---:|"]
        for way, values in figures["training"].items():
            peak = "?" if values["peak_mb"] is None else f"{values['peak_mb']:.0f}"
            lines.append(f"| {way} | {peak} |")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
