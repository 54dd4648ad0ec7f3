"""How far the answers of all ways are apart, on PyTorch and on onnxruntime; nothing is timed.

    python benchmarks/parity.py
    python benchmarks/parity.py --runs runs --onnx onnx onnx-int8 --images photos --pictures 500

Every way answers the same pictures, in each batch size, and is held against PyTorch eager in fp32.
The export compares on the CPU before it writes a file; this compares wherever the file will run. An
fp32 way that differs ends it with exit code 1. How to read the table: benchmarks/README.md.

All options: python benchmarks/parity.py --help
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this clone, installed or not

import numpy as np
from tqdm import tqdm

from benchmarks.shared import require_positive, write_figures
from benchmarks.ways import (
    MAX_DIFFERENCE,
    Bench,
    Subject,
    Way,
    add_options,
    load_bench,
    machine,
)
from maskcls.commands._run import guarded


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Compare the answers of all ways to run the networks.",
        epilog="example:\n  python benchmarks/parity.py --runs runs --onnx onnx --images photos",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_options(parser)
    parser.add_argument(
        "--pictures", type=int, default=256, metavar="N", help="how many; default: 256"
    )
    return parser


@guarded
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the comparison; returns its exit code."""
    args = build_parser().parse_args(argv)
    require_positive(args, "batch_sizes", "threads", "pictures")
    figures = compare(load_bench(args, args.pictures), args.batch_sizes)
    print(format_table(figures))
    write_figures(args.json, figures)
    wrong = [row for row in figures["rows"] if row["precision"] == "fp32" and not row["equal"]]
    for row in wrong:
        print(
            f"error: {row['subject']}, {row['way']}: answers differ by {row['max']:.2g}, allowed "
            f"is {MAX_DIFFERENCE:g}",
            file=sys.stderr,
        )
    return 1 if wrong else 0


def compare(bench: Bench, batch_sizes: Sequence[int]) -> dict[str, Any]:
    """All figures, as plain values."""
    rows: list[dict[str, Any]] = []
    failed: list[str] = []
    for subject in bench.subjects:
        expected = _answers(subject, subject.ways[0], max(batch_sizes))
        for way in tqdm(subject.ways, desc=subject.name, unit="way", disable=None):
            try:
                answers = {size: _answers(subject, way, size) for size in batch_sizes}
            except Exception as error:  # whatever a backend cannot do is shown; the others go on
                failed.append(f"{subject.name}, {way.key}: {' '.join(str(error).split())[:200]}")
                continue
            deltas = np.stack([np.abs(answer - expected) for answer in answers.values()])
            labels = np.stack([answer.argmax(axis=1) for answer in answers.values()])
            rows.append(
                {
                    "subject": subject.name,
                    "way": way.name,
                    "precision": way.precision,
                    "data": way.data,
                    "max": float(deltas.max()),
                    "mean": float(deltas.mean()),
                    # In any batch size: a picture's label must not depend on its neighbours.
                    "flips": int((labels != expected.argmax(axis=1)).any(axis=0).sum()),
                    "varies": float(np.ptp(expected, axis=0).max()),
                    "equal": bool(deltas.max() <= MAX_DIFFERENCE),
                }
            )
    found = machine(bench)
    return found | {
        "absent": found["absent"] + failed,
        "pictures": len(bench.subjects[0].inputs),
        "batch_sizes": list(batch_sizes),
        "rows": rows,
    }


def _answers(subject: Subject, way: Way, size: int) -> np.ndarray:
    """Of all inputs, float32 (N, classes)."""
    parts = []
    for start in range(0, len(subject.inputs), size):
        prepared = way.prepare(np.ascontiguousarray(subject.inputs[start : start + size]))
        parts.append(np.array(prepared.answer(prepared.run())))
    return np.concatenate(parts)


def format_table(figures: dict[str, Any]) -> str:
    """For the terminal, and as Markdown to paste."""
    sizes = ", ".join(str(size) for size in figures["batch_sizes"])
    lines = [
        f"{figures['pictures']} pictures in batches of {sizes}; {figures['processor']}; GPU: "
        f"{figures['gpu'] or 'none'}; torch {figures['torch']}, "
        f"onnxruntime {figures['onnxruntime']}",
        "",
        "| network | way | precision | data | max Δ | mean Δ | labels differ | answers vary by |",
        "|---|---|---|---|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {row['subject']} | {row['way']} | {row['precision']} | {row['data']} "
        f"| {row['max']:.1e} | {row['mean']:.1e} | {row['flips']} | {row['varies']:.2f} |"
        for row in figures["rows"]
    ]
    lines += ["", *(f"not measured: {reason}" for reason in figures["absent"])]
    return "\n".join(lines).rstrip()


if __name__ == "__main__":
    raise SystemExit(main())
