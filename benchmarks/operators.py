"""Where the time of an exported file goes: by operator, beside what the arithmetic alone takes.

    python benchmarks/operators.py
    python benchmarks/operators.py --onnx onnx/maskcls.onnx onnx-int8/maskcls.onnx --json ops.json

onnxruntime's own profile of one core, the fastest of some runs of each node. The bound is what the
multiplications of the file would take at the rate of a large product of matrices in float32: what
is above it is memory, activations, means and the rest, and no other order of the same float32
multiplications can go below it. How to read it: benchmarks/README.md.

All options: python benchmarks/operators.py --help
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this clone, installed or not

from benchmarks.shared import processor, require_positive, write_figures
from maskcls.commands._run import guarded

PRODUCT = 1024  # rows and columns of the large matrices
PRODUCTS = ("Gemm", "MatMul", "QGemm", "QLinearMatMul")
OPTIMISED = "optimised.onnx"


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Show where the time of an exported file goes, by operator.",
        epilog="example:\n  python benchmarks/operators.py --onnx onnx/maskcls.onnx",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--onnx",
        type=Path,
        nargs="+",
        default=[Path("runs/demo/onnx/maskcls.onnx")],
        metavar="FILE",
        help="fused files; default: runs/demo/onnx/maskcls.onnx",
    )
    parser.add_argument("--height", type=int, default=512, metavar="N", help="default: 512")
    parser.add_argument("--width", type=int, default=384, metavar="N", help="default: 384")
    parser.add_argument("--batch-size", type=int, default=16, metavar="N", help="default: 16")
    parser.add_argument("--runs", type=int, default=10, metavar="N", help="default: 10")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    return parser


@guarded
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns its exit code."""
    args = build_parser().parse_args(argv)
    require_positive(args, "height", "width", "batch_size", "runs")
    rate = product_rate(args.runs)
    pixels = np.random.default_rng(0).integers(
        0, 256, (args.batch_size, args.height, args.width, 3), dtype=np.uint8
    )
    figures: dict[str, Any] = {
        "processor": processor(),
        "batch_size": args.batch_size,
        "height": args.height,
        "width": args.width,
        "product_gflops": rate / 1e9,
        "files": {str(file): profile(file, pixels, args.runs) for file in args.onnx},
    }
    print(format_tables(figures))
    write_figures(args.json, figures)
    return 0


def product_rate(runs: int) -> float:
    """Operations a second, additions counted too, of a large float32 product on one core."""
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    left, right = (rng.standard_normal((PRODUCT, PRODUCT)).astype(np.float32) for _ in range(2))
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, left.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, left.shape)],
        [numpy_helper.from_array(right, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    session = _open(model.SerializeToString(), None)
    return float(2 * PRODUCT**3 / fastest(lambda: session.run(None, {"x": left}), runs))


def fastest(do: Callable[[], Any], runs: int) -> float:
    """Seconds of the fastest run."""
    best = math.inf
    for _ in range(runs + 1):
        began = time.perf_counter()
        do()
        best = min(best, time.perf_counter() - began)
    return best


def profile(file: Path, pixels: np.ndarray, runs: int) -> dict[str, Any]:
    """What one batch takes: "ms", "operations", and "kinds", of operators, as `kinds_of` has them.

    The whole counts the operations of the file; a kind those that are done, which are more where
    onnxruntime fills channels up to whole vectors.

    Raises:
        CheckpointError: not a fused file of maskcls-export.
    """
    import onnx

    from maskcls.errors import CheckpointError
    from maskcls.runtime.session import IMAGES, read_onnx

    found = read_onnx(file)
    if found.manifest.kind != "fused":
        raise CheckpointError(f"{file}: a single network; give the fused file, maskcls.onnx")

    def events_of(optimise: bool, count: int) -> tuple[list[Any], Any]:
        with tempfile.TemporaryDirectory() as folder:
            session = _open(found.content, Path(folder), optimise)
            for _ in range(count):
                session.run(["class_prob"], {IMAGES: pixels})
            events = json.loads(Path(session.end_profiling()).read_text("utf-8"))
            # A profile does not tell the shapes of weights that were packed; this graph does.
            return events, onnx.load(Path(folder, OPTIMISED)).graph

    as_written = kinds_of(*events_of(optimise=False, count=1))
    events, graph = events_of(optimise=True, count=runs + 1)
    plain = _open(found.content, None)  # to write a profile takes time of its own
    whole = fastest(lambda: plain.run(["class_prob"], {IMAGES: pixels}), runs)
    return {
        "ms": 1e3 * whole,
        "operations": sum(row["operations"] for row in as_written.values()),
        "kinds": kinds_of(events, graph),
    }


def kinds_of(events: Sequence[Mapping[str, Any]], graph: Any) -> dict[str, dict[str, float]]:
    """Kind of operator → {"calls", "ms", "operations"}, each node at its fastest run."""
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for node in graph.node:  # int8 weights, where they are not packed yet
        if node.op_type == "DequantizeLinear" and node.input[0] in shapes:
            shapes[node.output[0]] = shapes[node.input[0]]
    weights = {
        node.name: next((shapes[name] for name in node.input if len(shapes.get(name, ())) > 1), ())
        for node in graph.node
    }
    nodes = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            nodes[event["name"].removesuffix("_kernel_time")].append(event)
    kinds: dict[str, dict[str, float]] = {}
    for name, own in nodes.items():
        kind, operations = describe(own[0]["args"], weights.get(name, ()))
        row = kinds.setdefault(kind, {"calls": 0, "ms": 0.0, "operations": 0.0})
        row["calls"] += 1
        row["ms"] += min(event["dur"] for event in own) / 1e3
        row["operations"] += operations
    return kinds


def describe(node: Mapping[str, Any], weights: tuple[int, ...]) -> tuple[str, float]:
    """A node's kind, and how many multiplications and additions it does with weights of a shape."""
    kind = str(node["op_name"])
    [out] = node["output_type_shape"][0].values()
    if len(weights) == 4 and kind.endswith("Conv"):
        channels, inputs, *kernel = weights
        depthwise = " depthwise" if inputs == 1 and channels > 1 else ""
        each = inputs * math.prod(kernel)
        return f"{kind}{depthwise} {kernel[0]}x{kernel[1]}", 2 * math.prod(out) * each
    if kind in PRODUCTS:
        return kind, 2 * math.prod(out) * math.prod(weights) / out[-1]
    return kind, 0


def format_tables(figures: Mapping[str, Any]) -> str:
    """For the terminal, and as Markdown to paste."""
    rate, count = figures["product_gflops"], figures["batch_size"]
    lines = [
        f"{figures['processor']}, one core; {count} pictures of {figures['height']}x"
        f"{figures['width']}; a large product of matrices in float32 does {rate:.0f} GFLOP/s"
    ]
    for file, found in figures["files"].items():
        kinds, whole, operations = (found[name] for name in ("kinds", "ms", "operations"))
        bound = operations / rate / 1e6
        lines += [
            "",
            f"{file}: {whole:.1f} ms a batch, {1e3 * count / whole:.1f} images/s; its "
            f"{operations / 1e9:.1f} G operations with weights alone would take {bound:.1f} ms at "
            f"that rate, {bound / whole:.0%}",
            "",
            "| operator | calls | ms | share | GFLOP/s |",
            "|---|---:|---:|---:|---:|",
        ]
        for kind, row in sorted(kinds.items(), key=lambda item: -item[1]["ms"]):
            if row["ms"] >= whole / 200:
                speed = f"{row['operations'] / row['ms'] / 1e6:.0f}" if row["operations"] else ""
                lines.append(
                    f"| {kind} | {row['calls']} | {row['ms']:.1f} | {row['ms'] / whole:.1%} | "
                    f"{speed} |"
                )
    return "\n".join(lines)


def _open(content: bytes, folder: Path | None, optimise: bool = True) -> Any:
    """A session on one core; with a folder, its profile and the graph that runs come there."""
    from maskcls.runtime.session import import_onnxruntime

    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if not optimise:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if folder is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(folder / "profile")
        options.optimized_model_filepath = str(folder / OPTIMISED)
    return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])


if __name__ == "__main__":
    raise SystemExit(main())
