"""Labelling a folder against the bare session, and its memory over the length of the job.

    python benchmarks/labelling.py
    python benchmarks/labelling.py --model onnx/maskcls.onnx --images photos --json labelling.json
    python benchmarks/labelling.py --model onnx/maskcls.onnx --images photos --memory 2000 20000

The bare session runs the same batches of the same pictures, decoded beforehand and held in memory,
one after the other. Labelling goes from the files to `output.csv`. The two take turns in one
process. `--memory` runs the whole command on lists of so many pictures, the folder's repeated, and
shows the peak of each. How to read it: benchmarks/README.md.

All options: python benchmarks/labelling.py --help
"""

from __future__ import annotations

import argparse
import contextlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # this clone, installed or not


from benchmarks.shared import process_bytes, repeated_list, require_positive, write_figures
from maskcls.commands._run import guarded
from maskcls.errors import DataError
from maskcls.runtime.engines import usable_cores


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Measure labelling against the bare session, and its memory.",
        epilog="example:\n  python benchmarks/labelling.py --model maskcls.onnx --images photos",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--model",
        type=Path,
        default=Path("runs/demo/onnx/maskcls.onnx"),
        metavar="FILE",
        help="a fused file; default: runs/demo/onnx/maskcls.onnx",
    )
    parser.add_argument(
        "--images",
        type=Path,
        default=Path("runs/demo/sample/eval"),
        metavar="DIR",
        help="default: runs/demo/sample/eval",
    )
    parser.add_argument("--provider", default="cpu", choices=("cpu", "cuda", "tensorrt"))
    parser.add_argument("--batch-size", type=int, default=16, metavar="N", help="default: 16")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="default: 2")
    parser.add_argument("--runs", type=int, default=5, metavar="N", help="default: 5")
    parser.add_argument(
        "--memory",
        type=int,
        nargs="+",
        default=[],
        metavar="N",
        help="lengths of lists to label, each by a process of its own",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    return parser


@guarded
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns its exit code."""
    args = build_parser().parse_args(argv)
    require_positive(args, "batch_size", "workers", "runs", "memory")
    with tempfile.TemporaryDirectory() as scratch:
        figures = measure(args, Path(scratch))
    print(format_table(figures))
    write_figures(args.json, figures)
    return 0


def measure(args: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """All figures, as plain values."""
    import onnxruntime

    from maskcls.runtime.engines import FusedEngine
    from maskcls.runtime.sources import list_pictures

    sources = list_pictures(args.images)
    engine = FusedEngine(args.model, args.provider)
    return {
        "pictures": len(sources),
        "provider": engine.provider,
        "precision": engine.manifest.precision,
        "batch_size": args.batch_size,
        "workers": args.workers,
        "cores": usable_cores(),
        "machine": platform.machine(),
        "onnxruntime": onnxruntime.__version__,
        "speed": _speed(args, engine, sources, scratch),
        "memory": [_memory(args, sources, count, scratch) for count in args.memory],
    }


def _speed(
    args: argparse.Namespace, engine: Any, sources: Sequence[Any], scratch: Path
) -> dict[str, Any]:
    from maskcls.runtime import inference
    from maskcls.runtime.labelling import decoded_batches, predict

    batches = list(decoded_batches(engine.specs, sources, args.batch_size, args.workers, None))
    batches = [[picture for picture in batch if not picture.error] for batch in batches]
    if sum(map(len, batches)) < len(sources):
        raise DataError(f"{args.images}: not all pictures can be read, so the ways would differ")
    expected: list[int] = []

    def bare() -> None:
        expected[:] = []
        for batch in batches:
            expected.extend(predict(engine, batch).argmax(axis=1).tolist())

    def whole() -> None:
        inference(
            engine,
            sources,
            scratch / "output.csv",
            batch_size=args.batch_size,
            workers=args.workers,
        )

    seconds: dict[Callable[[], None], list[float]] = {bare: [], whole: []}
    for number in range(args.runs + 1):  # the first is not counted: allocation, page cache
        for way in (bare, whole) if number % 2 else (whole, bare):
            began = time.perf_counter()
            way()
            if number:
                seconds[way].append(time.perf_counter() - began)
    rows = (scratch / "output.csv").read_text("utf-8").splitlines()[1:]
    if [int(row.rpartition(",")[2]) for row in rows] != expected:
        raise DataError("labelling and the bare session answer differently")
    ratios = [a / b for a, b in zip(seconds[bare], seconds[whole], strict=True)]
    rates = {
        name: [len(sources) / value for value in seconds[way]]
        for name, way in (("bare session", bare), ("labelling", whole))
    }
    return {
        "images_per_s": {name: statistics.median(values) for name, values in rates.items()},
        "images_per_s_all": rates,
        "ratio": {
            "median": statistics.median(ratios),
            "min": min(ratios),
            "max": max(ratios),
        },
    }


def _memory(
    args: argparse.Namespace, sources: Sequence[Any], count: int, scratch: Path
) -> dict[str, Any]:
    """The whole command on a list of `count` pictures, the folder's repeated."""
    folder = scratch / f"list{count}"
    pictures = repeated_list(sources, count, folder)
    command = [sys.executable, str(ROOT / "cli" / "infer.py"), "--model", str(args.model)]
    command += ["--images", str(pictures), "--out", str(folder / "output.csv")]
    command += ["--provider", args.provider, "--batch-size", str(args.batch_size)]
    command += ["--workers", str(args.workers)]
    command += ["--lanes", str(usable_cores())]  # the most; not what some job found out before
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    peak = 0.0
    while process.poll() is None:
        with contextlib.suppress(OSError, KeyError):  # it has just ended, or this is no Linux
            peak = process_bytes("VmHWM", process.pid)
        time.sleep(0.02)
    seconds = time.perf_counter() - began
    if process.returncode != 0:
        raise DataError(f"labelling {count} pictures ended with {process.returncode}")
    header, *rows = (folder / "output.csv").read_text("utf-8").splitlines()
    if len(rows) != count or "error" in header:
        raise DataError(f"labelling {count} pictures wrote {len(rows)} rows of {header}")
    return {
        "pictures": count,
        "peak_mb": peak / 1e6 if peak else None,
        "images_per_s": count / seconds,
    }


def format_table(figures: dict[str, Any]) -> str:
    """For the terminal, and as Markdown to paste."""
    ratio = figures["speed"]["ratio"]
    lines = [
        f"{figures['pictures']} pictures, {figures['precision']}, {figures['provider']}, "
        f"{figures['cores']} cores, batches of {figures['batch_size']}, {figures['workers']} "
        f"decoding threads, onnxruntime {figures['onnxruntime']}",
        "",
        "| way | images/s |",
        "|---|---:|",
        *(f"| {name} | {rate:.1f} |" for name, rate in figures["speed"]["images_per_s"].items()),
        "",
        f"labelling reaches {100 * ratio['median']:.1f} % of the bare session "
        f"({100 * ratio['min']:.1f}–{100 * ratio['max']:.1f} %)",
    ]
    if figures["memory"]:
        lines += ["", "| pictures | peak MB | images/s, start included |", "|---:|---:|---:|"]
        for row in figures["memory"]:
            peak = "?" if row["peak_mb"] is None else f"{row['peak_mb']:.0f}"
            lines.append(f"| {row['pictures']:,} | {peak} | {row['images_per_s']:.1f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
