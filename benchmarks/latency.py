"""How long the networks take to answer, on PyTorch and on onnxruntime, side by side.

    python benchmarks/latency.py
    python benchmarks/latency.py --runs runs --onnx onnx onnx-int8 --images photos --plot out.png
    python benchmarks/latency.py --device cuda --runs runs --onnx onnx onnx-fp16 --json latency.json

All ways of one network get the same batch. They take turns, so that a machine that gets busier does
not decide between them. Their answers are compared in the same run: an fp32 way that differs ends
it with exit code 1. What cannot be measured here is listed with the reason; a session that computes
on the CPU is never shown as CUDA. How to read the table: benchmarks/README.md.

All options: python benchmarks/latency.py --help
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this clone, installed or not

import numpy as np
from tqdm import tqdm

from benchmarks.shared import require_positive, write_figures
from benchmarks.ways import (
    FUSED,
    MAX_DIFFERENCE,
    Bench,
    Prepared,
    Subject,
    Way,
    add_options,
    load_bench,
    machine,
)
from maskcls.commands._run import guarded
from maskcls.errors import ConfigError

ROUNDS = 5  # every way has a turn in each
PERCENTILES = {50: 1, 95: 20, 99: 100}
"""Percentile → calls below which it says nothing, and is not shown."""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Time the networks on PyTorch and on onnxruntime, and compare their answers.",
        epilog="example:\n  python benchmarks/latency.py --runs runs --onnx onnx --plot out.png",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_options(parser)
    parser.add_argument(
        "--seconds",
        type=float,
        default=3.0,
        metavar="S",
        help=f"for each way and batch size, in {ROUNDS} turns; default: 3",
    )
    parser.add_argument("--plot", type=Path, metavar="PNG", help="draw the medians")
    return parser


@guarded
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns its exit code."""
    args = build_parser().parse_args(argv)
    require_positive(args, "batch_sizes", "threads")
    if not args.seconds > 0:
        raise ConfigError(f"--seconds {args.seconds}: must be above 0")
    bench = load_bench(args, max(args.batch_sizes))
    figures = measure(bench, args.batch_sizes, args.seconds)
    print(format_table(figures))
    write_figures(args.json, figures)
    if args.plot is not None:
        draw(figures, args.plot)
        print(f"wrote {args.plot}")
    wrong = [row for row in figures["rows"] if row["precision"] == "fp32" and not row["equal"]]
    for row in wrong:
        print(
            f"error: {row['subject']}, {row['way']}, batch {row['batch']}: answers differ by "
            f"{row['difference']:.2g} from {row['reference']}; its time says nothing",
            file=sys.stderr,
        )
    return 1 if wrong else 0


def measure(bench: Bench, batch_sizes: Sequence[int], seconds: float) -> dict[str, Any]:
    """All figures, as plain values."""
    rows: list[dict[str, Any]] = []
    failed: list[str] = []
    with tqdm(total=len(batch_sizes) * len(bench.subjects), unit="batch", disable=None) as bar:
        for subject in bench.subjects:
            for size in batch_sizes:
                bar.set_description(f"{subject.name} {size}")
                rows += _measure_batch(subject, size, seconds, failed)
                bar.update()
    found = machine(bench)
    return found | {"absent": found["absent"] + failed, "seconds": seconds, "rows": rows}


def _measure_batch(
    subject: Subject, size: int, seconds: float, failed: list[str]
) -> list[dict[str, Any]]:
    batch = np.ascontiguousarray(subject.inputs[:size])
    ready: list[tuple[Way, Prepared, np.ndarray]] = []
    for way in subject.ways:
        try:
            prepared = way.prepare(batch)
            prepared.run()  # compiles, allocates, searches for algorithms; a CUDA graph is captured
            answer = prepared.answer(prepared.run())
        except Exception as error:  # whatever a backend cannot do is shown, and the others go on
            reason = " ".join(str(error).split())[:200]
            failed.append(f"{subject.name}, {way.key}, batch {size}: {reason}")
            continue
        ready.append((way, prepared, answer))
    times: dict[str, list[float]] = {way.key: [] for way, _, _ in ready}
    for turn in range(ROUNDS):
        for way, prepared, _ in ready if turn % 2 == 0 else reversed(ready):
            prepared.run()  # caches are warm with this way's weights, not with the last one's
            times[way.key] += _time(prepared, seconds / ROUNDS)
    return [_row(subject, way, answer, ready, size, times) for way, _, answer in ready]


def _time(prepared: Prepared, seconds: float) -> list[float]:
    """Seconds of each call."""
    taken: list[float] = []
    total = 0.0
    while total < seconds:
        began = time.perf_counter()
        prepared.run()
        taken.append(time.perf_counter() - began)
        total += taken[-1]
    return taken


def _row(
    subject: Subject,
    way: Way,
    answer: np.ndarray,
    ready: Sequence[tuple[Way, Prepared, np.ndarray]],
    size: int,
    times: dict[str, list[float]],
) -> dict[str, Any]:
    """`ratio`: how many times faster than PyTorch's first way on the same device, with the data in
    the same place where there is one."""
    reference, _, expected = ready[0]
    same = [w for w, _, _ in ready if w.device == way.device]
    beside = next((w for w in same if w.data == way.data), same[0])
    median = float(np.median(times[way.key]))
    difference = float(np.abs(answer - expected).max())
    return {
        "subject": subject.name,
        "way": way.name,
        "precision": way.precision,
        "device": way.device,
        "data": way.data,
        "batch": size,
        "calls": len(times[way.key]),
        **{
            f"p{percent}_ms": 1e3 * float(np.percentile(times[way.key], percent))
            if len(times[way.key]) >= least
            else None
            for percent, least in PERCENTILES.items()
        },
        "images_per_s": size / median,
        "ratio": float(np.median(times[beside.key])) / median,
        "beside": beside.key,
        "reference": reference.key,
        "difference": difference,
        "equal": difference <= MAX_DIFFERENCE,
        "flips": int((answer.argmax(axis=1) != expected.argmax(axis=1)).sum()),
    }


def format_table(figures: dict[str, Any]) -> str:
    """For the terminal, and as Markdown to paste."""
    lines = [
        f"{figures['processor']}, {figures['threads']} threads; GPU: {figures['gpu'] or 'none'}; "
        f"torch {figures['torch']}, onnxruntime {figures['onnxruntime']}; "
        f"{figures['seconds']:g} s per way and batch size",
        "",
        "| network | batch | way | precision | data | p50 ms | p95 | p99 | images/s | × eager "
        "| max Δ | flips |",
        "|---|---:|---|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in figures["rows"]:
        shown = [
            "–" if row[f"p{percent}_ms"] is None else f"{row[f'p{percent}_ms']:.2f}"
            for percent in PERCENTILES
        ]
        lines.append(
            f"| {row['subject']} | {row['batch']} | {row['way']} | {row['precision']} "
            f"| {row['data']} | {' | '.join(shown)} | {row['images_per_s']:,.0f} "
            f"| {row['ratio']:.2f} | {row['difference']:.0e} | {row['flips']} |"
        )
    lines += ["", *_sums(figures["rows"])]
    lines += ["", *(f"not measured: {reason}" for reason in figures["absent"])]
    return "\n".join(lines).rstrip()


def _sums(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The fused file beside its networks one after the other, which it holds."""
    lines = []
    for fused in rows:
        if not fused["subject"].startswith(FUSED) or "onnxruntime" not in fused["way"]:
            continue
        parts = [
            row["p50_ms"]
            for row in rows
            if not row["subject"].startswith(FUSED)
            and all(row[key] == fused[key] for key in ("way", "precision", "data", "batch"))
        ]
        if parts:
            lines.append(
                f"{fused['subject']}, {fused['way']} {fused['precision']}, data on "
                f"{fused['data']}, batch {fused['batch']}: {fused['p50_ms'] / sum(parts):.2f} × "
                "the networks' p50 together"
            )
    return lines


def draw(figures: dict[str, Any], path: Path) -> None:
    """Images a second over the batch size, a panel per network."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from maskcls.files import replacing

    subjects = list(dict.fromkeys(row["subject"] for row in figures["rows"]))
    figure = Figure(figsize=(6.5 * len(subjects), 5), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(subjects), squeeze=False)[0]
    for axes, subject in zip(panels, subjects, strict=True):
        lines: dict[str, list[tuple[int, float]]] = {}
        for row in figures["rows"]:
            if row["subject"] == subject:
                place = ", data on device" if row["data"] == "device" else ""
                name = f"{row['way']}, {row['precision']}{place}"
                lines.setdefault(name, []).append((row["batch"], row["images_per_s"]))
        for name, points in lines.items():
            style = "o-" if "onnxruntime" in name else "s--"
            axes.plot(*zip(*sorted(points), strict=True), style, label=name, markersize=4)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_title(subject)
        axes.set_xlabel("batch size")
        axes.set_ylabel("images/s (median)")
        axes.grid(visible=True, which="both", alpha=0.3)
        axes.legend(fontsize=7)
    figure.suptitle(figures["gpu"] or f"{figures['processor']}, {figures['threads']} threads")
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


if __name__ == "__main__":
    raise SystemExit(main())
