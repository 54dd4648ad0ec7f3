"""Labelling with Ray against labelling without, and what a billion pictures would take.

    python benchmarks/cluster.py
    python benchmarks/cluster.py --model onnx/maskcls.onnx --images photos --json cluster.json

The whole command labels two lists, a short one and a long one, the folder's pictures repeated, in
both ways, each on all cores. What both lists take alike is the fixed cost; what the long one takes
longer is the work. With `RAY_ADDRESS` Ray labels on that cluster, else on this machine alone. How
to read it: benchmarks/README.md.

All options: python benchmarks/cluster.py --help
"""

from __future__ import annotations

import argparse
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # this clone, installed or not

from benchmarks.shared import repeated_list, require_positive, write_figures
from maskcls.commands._run import guarded
from maskcls.errors import ConfigError, DataError
from maskcls.runtime.engines import usable_cores
from maskcls.runtime.sources import list_pictures

BILLION = 1_000_000_000
WAYS = ("plain", "Ray")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Measure labelling with Ray against labelling without.",
        epilog="example:\n  python benchmarks/cluster.py --model maskcls.onnx --images photos",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--model",
        type=Path,
        nargs="+",
        default=[Path("runs/demo/onnx/maskcls.onnx")],
        metavar="FILE",
        help="the fused file, or single networks; default: runs/demo/onnx/maskcls.onnx",
    )
    parser.add_argument(
        "--images",
        type=Path,
        default=Path("runs/demo/sample/eval"),
        metavar="DIR",
        help="default: runs/demo/sample/eval",
    )
    parser.add_argument(
        "--entries", type=int, default=20000, metavar="N", help="of the long list; default: 20000"
    )
    parser.add_argument(
        "--short", type=int, default=1000, metavar="N", help="of the short one; default: 1000"
    )
    parser.add_argument("--batch-size", type=int, default=16, metavar="N", help="default: 16")
    parser.add_argument(
        "--partition-size",
        type=int,
        default=256,
        metavar="N",
        help="pictures per file of Ray's; default: 256, so that no core waits long for the last",
    )
    parser.add_argument("--runs", type=int, default=3, metavar="N", help="default: 3")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    return parser


@guarded
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns its exit code."""
    args = build_parser().parse_args(argv)
    require_positive(args, "entries", "short", "batch_size", "partition_size", "runs")
    if args.short >= args.entries:
        raise ConfigError(f"--short {args.short}: needs fewer than --entries {args.entries}")
    with tempfile.TemporaryDirectory() as scratch:
        figures = measure(args, Path(scratch))
    print(format_table(figures))
    write_figures(args.json, figures)
    return 0


def measure(args: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """All figures, as plain values."""
    sources = list_pictures(args.images)
    lists = {
        count: repeated_list(sources, count, scratch / f"list{count}")
        for count in (args.short, args.entries)
    }
    seconds: dict[str, dict[int, list[float]]] = {
        way: {count: [] for count in lists} for way in WAYS
    }
    for way in WAYS:  # not counted: what the first of all runs finds cold
        _label(
            args,
            way,
            lists[args.short],
            scratch / f"cold-{way}{'.parquet' if way == 'plain' else ''}",
        )
    for number in range(args.runs):
        for way in WAYS if number % 2 else WAYS[::-1]:
            for count, pictures in lists.items():
                out = scratch / f"{way}{count}-{number}{'.parquet' if way == 'plain' else ''}"
                seconds[way][count].append(_label(args, way, pictures, out))
        for count in lists:
            _require_same(scratch, count, number)
    return {
        "entries": [args.short, args.entries],
        "batch_size": args.batch_size,
        "partition_size": args.partition_size,
        "cores": usable_cores(),
        "machine": platform.machine(),
        "runs": args.runs,
        "ways": {way: _figures(args, seconds[way]) for way in WAYS},
    }


def _label(args: argparse.Namespace, way: str, pictures: Path, out: Path) -> float:
    """Seconds of the whole command, its start included."""
    command = [sys.executable, str(ROOT / "cli" / "infer.py"), "--model", *map(str, args.model)]
    command += ["--images", str(pictures), "--out", str(out), "--provider", "cpu"]
    command += ["--batch-size", str(args.batch_size)]
    if way == "Ray":  # an actor per core
        command += ["--engine", "ray", "--partition-size", str(args.partition_size)]
    else:
        command += ["--lanes", str(usable_cores())]
    began = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise DataError(f"labelling ({way}) ended with {done.returncode}: {done.stderr.strip()}")
    return time.perf_counter() - began


def _require_same(scratch: Path, count: int, number: int) -> None:
    """
    Raises:
        DataError: the two ways gave different labels.
    """
    from maskcls.runtime import merge

    plain, joined = scratch / f"plain{count}-{number}.parquet", scratch / "joined.parquet"
    merge([scratch / f"Ray{count}-{number}"], joined)
    if joined.read_bytes() != plain.read_bytes():
        raise DataError(f"{count} entries: the labels with Ray are not those without")


def _figures(args: argparse.Namespace, seconds: dict[int, list[float]]) -> dict[str, Any]:
    short, long = (statistics.median(seconds[count]) for count in (args.short, args.entries))
    rate = (args.entries - args.short) / (long - short)
    return {
        "seconds": {str(count): values for count, values in seconds.items()},
        "images_per_s": rate,
        "fixed_s": short - args.short / rate,
    }


def format_table(figures: dict[str, Any]) -> str:
    """For the terminal, and as Markdown to paste."""
    short, long = figures["entries"]
    lines = [
        f"lists of {short:,} and {long:,} entries, {figures['cores']} cores, batches of "
        f"{figures['batch_size']}, partitions of {figures['partition_size']}, medians of "
        f"{figures['runs']} runs",
        "",
        f"| way | s for {short:,} | s for {long:,} | fixed s | images/s |",
        "|---|---:|---:|---:|---:|",
    ]
    for way, row in figures["ways"].items():
        taken = [statistics.median(row["seconds"][str(count)]) for count in (short, long)]
        lines.append(
            f"| {way} | {taken[0]:.1f} | {taken[1]:.1f} | {row['fixed_s']:.1f} "
            f"| {row['images_per_s']:.1f} |"
        )
    days = BILLION / figures["ways"]["Ray"]["images_per_s"] / 86400
    lines += [
        "",
        f"a billion pictures, with Ray at this rate: {days:,.0f} days of what was measured, or one "
        f"day of {days:,.0f} times as much",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
