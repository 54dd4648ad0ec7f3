"""Training with several processes of torchrun against one, on the same cores or GPUs.

    python benchmarks/processes.py --data-dir data/train
    python benchmarks/processes.py --data-dir data/train --processes 4 --batch-size 256 --runs 5

On CPUs the processes share the cores: one has all as threads, of several each has its part. Same
pictures, network and global batch; the ways take turns. benchmarks/README.md says how to read the
table.

All options: python benchmarks/processes.py --help
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # this clone, installed or not

from benchmarks.shared import processor, require_positive, spread, write_figures
from maskcls.commands._run import guarded
from maskcls.errors import ConfigError, DataError
from maskcls.runtime.engines import usable_cores


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Measure trainings with several processes against one.",
        epilog="example:\n  python benchmarks/processes.py --data-dir data/train --processes 2",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--data-dir",
        type=Path,
        nargs="+",
        default=[Path("runs/demo/sample/train")],
        metavar="DIR",
        help="default: runs/demo/sample/train",
    )
    parser.add_argument("--processes", type=int, default=2, metavar="N", help="default: 2")
    parser.add_argument("--model", default="resnet18", metavar="NAME", help="default: resnet18")
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="default: 64")
    parser.add_argument("--epochs", type=int, default=3, metavar="N", help="default: 3")
    parser.add_argument("--runs", type=int, default=3, metavar="N", help="default: 3")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    return parser


@guarded
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns its exit code."""
    args = build_parser().parse_args(argv)
    require_positive(args, "processes", "batch_size", "epochs", "runs")
    if args.epochs < 2:
        raise ConfigError("--epochs 1: the first epoch warms up; a rate needs a second")
    rates: dict[int, list[float]] = {1: [], args.processes: []}
    with tempfile.TemporaryDirectory() as scratch:
        for turn in range(args.runs):
            for processes in rates if turn % 2 == 0 else reversed(rates):
                rates[processes].append(train(args, processes, Path(scratch)))
    ratios = sorted(b / a for a, b in zip(*rates.values(), strict=True)) if len(rates) > 1 else [1]
    figures: dict[str, Any] = {
        "model": args.model,
        "batch_size": args.batch_size,
        "epochs": args.epochs,
        "cores": usable_cores(),
        "processor": processor(),
        "images_per_second": {str(processes): found for processes, found in rates.items()},
        "ratios": ratios,
    }
    print(
        f"{args.model}, batches of {args.batch_size}; {figures['processor']}, {figures['cores']} "
        "cores\n\n| processes | images/s | × one |\n|---:|---:|---:|"
    )
    for processes, found in rates.items():
        shown = "1" if processes == 1 else spread(ratios)
        print(f"| {processes} | {statistics.median(found):.0f} | {shown} |")
    write_figures(args.json, figures)
    return 0


def train(args: argparse.Namespace, processes: int, scratch: Path) -> float:
    """Pictures a second of one training, its validations in it: the median of its epochs but the
    first.

    Raises:
        DataError: the training failed; its own words are on stderr.
    """
    options = ["--task", "mask_gender", "--weights", "none", "--model", args.model]
    options += ["--batch-size", str(args.batch_size), "--epochs", str(args.epochs)]
    options += ["--model-dir", str(scratch / "runs"), "--cache", str(scratch / "cache")]
    for folder in args.data_dir:
        options += ["--data-dir", str(folder)]
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    done = subprocess.run(
        [
            sys.executable,
            *(launcher if processes > 1 else []),
            str(ROOT / "cli" / "train.py"),
            *options,
        ],
        env=os.environ | {"OMP_NUM_THREADS": str(max(1, usable_cores() // processes))},
        stdout=subprocess.PIPE,
        text=True,
    )
    rates = [int(rate) for rate in re.findall(r" epoch .* (\d+) img/s", done.stdout)]
    if done.returncode or len(rates) != args.epochs:
        raise DataError(f"the training with {processes} processes failed, see above")
    return float(statistics.median(rates[1:]))


if __name__ == "__main__":
    raise SystemExit(main())
