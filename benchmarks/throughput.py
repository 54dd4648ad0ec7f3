"""From a folder of JPEGs to a file of labels: this project, the original's way, and PyTorch as an
expert sets it up, in turns.

    python benchmarks/throughput.py
    python benchmarks/throughput.py --checkpoints runs --onnx onnx onnx-int8 --images photos
    python benchmarks/throughput.py --ways maskcls original --json throughput.json --plot out.png

Every way is a process of its own, made ready and warmed up before the first counted run; they take
turns, so that a machine that gets busier does not decide between them. The bound is the bare
session: the same batches, decoded beforehand and held in memory. Peers need the extra `bench`.
How to read the table: benchmarks/README.md.

All options: python benchmarks/throughput.py --help
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import multiprocessing
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this clone, installed or not

from benchmarks.shared import (
    PEER_NAMES,
    forget_peak,
    peak_bytes,
    processor,
    require_positive,
    spread,
    start_workers_as_usual,
    write_figures,
)
from maskcls.commands._run import guarded
from maskcls.errors import ConfigError, DataError, MaskclsError
from maskcls.runtime.engines import usable_cores

GROUPS = ("bound", "maskcls", "original", "timm", "torchvision")


@dataclass(frozen=True)
class Job:
    """What a way is told; plain values, for a process of its own."""

    group: str
    precision: str
    checkpoints: tuple[str, ...]
    onnx: str
    images: str
    out: str
    batch_size: int
    workers: int
    device: str
    lanes: int

    @property
    def name(self) -> str:
        shown = {
            "bound": "bare session",
            "original": "original's way",
            "timm": "timm, compiled",
            "torchvision": "torchvision, compiled",
        }
        return f"{shown.get(self.group, self.group)} {self.precision}"


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Measure the way from a folder of pictures to a file of labels.",
        epilog="example:\n  python benchmarks/throughput.py --checkpoints runs --onnx onnx",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--checkpoints",
        type=Path,
        nargs="+",
        default=[Path("runs/demo")],
        metavar="PATH",
        help="run folders or their MODEL_DIR; default: runs/demo",
    )
    parser.add_argument(
        "--onnx",
        type=Path,
        nargs="+",
        default=[Path("runs/demo/onnx")],
        metavar="DIR",
        help="folders of maskcls-export, one per precision; default: runs/demo/onnx",
    )
    parser.add_argument(
        "--images",
        type=Path,
        default=Path("runs/demo/sample/eval"),
        metavar="DIR",
        help="default: runs/demo/sample/eval",
    )
    parser.add_argument("--ways", nargs="+", default=GROUPS, choices=GROUPS, metavar="WAY")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--batch-size", type=int, default=16, metavar="N", help="default: 16")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="default: 2")
    parser.add_argument("--runs", type=int, default=5, metavar="N", help="counted; default: 5")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="draw them")
    return parser


@guarded
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns its exit code."""
    args = build_parser().parse_args(argv)
    require_positive(args, "batch_size", "workers", "runs")
    with tempfile.TemporaryDirectory() as scratch:
        figures = measure(args, Path(scratch))
    print(format_table(figures))
    write_figures(args.json, figures)
    if args.plot is not None:
        draw(figures, args.plot)
        print(f"wrote {args.plot}")
    return 0


def measure(args: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """All figures, as plain values.

    Raises:
        DataError: ways of the same weights and precision answer differently.
    """
    from maskcls.classifier import find_checkpoints
    from maskcls.runtime.sources import list_pictures

    pictures = len(list_pictures(args.images))
    jobs = list_jobs(args, tuple(str(path) for path in find_checkpoints(args.checkpoints)), scratch)
    context = multiprocessing.get_context("spawn")
    processes, ends = [], []
    try:
        for job in jobs:  # one after the other: they compile and warm up
            end, other = context.Pipe()
            process = context.Process(target=serve, args=(job, other), daemon=False)
            process.start()
            processes.append(process)
            ends.append(end)
            other.close()
            receive(job, end)
        rows: list[list[dict[str, Any]]] = [[] for _ in jobs]
        for number in range(args.runs):
            order = range(len(jobs)) if number % 2 == 0 else reversed(range(len(jobs)))
            for index in order:
                ends[index].send("run")
                rows[index].append(receive(jobs[index], ends[index]))
    finally:
        for process, end in zip(processes, ends, strict=True):
            with contextlib.suppress(OSError):  # it has ended by itself
                end.send("end")
            process.join()
    labels = {job.name: row[0]["labels"] for job, row in zip(jobs, rows, strict=True)}
    for job in jobs:
        bound = f"bare session {job.precision}"
        if job.group == "maskcls" and labels[job.name] != labels.get(bound, labels[job.name]):
            raise DataError(f"{job.name} and the {bound} answer differently")
    return {
        "pictures": pictures,
        "batch_size": args.batch_size,
        "workers": args.workers,
        "cores": usable_cores(),
        "processor": processor(),
        "device": args.device,
        "python": platform.python_version(),
        "rows": [
            {
                "way": job.name,
                "group": job.group,
                "precision": job.precision,
                "lanes": job.lanes,
                "images_per_s": statistics.median(pictures / run["seconds"] for run in row),
                "images_per_s_all": [pictures / run["seconds"] for run in row],
                "peak_mb": max(run["peak"] for run in row) / 1e6 or None,
            }
            for job, row in zip(jobs, rows, strict=True)
        ],
    }


def list_jobs(args: argparse.Namespace, checkpoints: tuple[str, ...], scratch: Path) -> list[Job]:
    """The ways that were asked for, the slowest usual one first.

    Raises:
        DataError: most of the pictures cannot be read.
    """
    from maskcls.runtime.engines import FusedEngine
    from maskcls.runtime.session import read_onnx
    from maskcls.runtime.sources import list_pictures
    from maskcls.runtime.tuning import fastest_lanes, sample_size

    sources = list_pictures(args.images)[: sample_size(args.batch_size)]

    def job(group: str, precision: str, onnx: str = "", lanes: int = 1) -> Job:
        return Job(
            group,
            precision,
            checkpoints,
            onnx,
            str(args.images),
            str(scratch / f"{group}-{precision}.csv"),
            args.batch_size,
            args.workers,
            args.device,
            lanes,
        )

    half = "fp16" if args.device == "cuda" else "bf16"
    jobs = [job("original", "fp32")] if "original" in args.ways else []
    for peer in ("torchvision", "timm"):
        if peer in args.ways:
            jobs += [job(peer, "fp32"), job(peer, half)]
    own = [group for group in ("maskcls", "bound") if group in args.ways]
    for folder in args.onnx if own else []:
        file = folder / "maskcls.onnx"
        precision = read_onnx(file).manifest.precision
        for group in own:
            one = job(group, precision, str(file))
            lanes: int | None = 1
            if args.device == "cpu" and group == "maskcls":  # as a large job finds out for itself
                engine = FusedEngine(file, args.device)
                lanes = fastest_lanes(engine, sources, args.batch_size, args.workers)
            elif args.device == "cpu":
                lanes = fastest_bare(one)
            if lanes is None:
                raise DataError(f"{args.images}: most of the pictures cannot be read")
            jobs.append(replace(one, lanes=lanes))
    return jobs


def fastest_bare(job: Job) -> int:
    """With how many lanes the bare session is the fastest, which may be others than labelling's."""
    from maskcls.runtime.tuning import lane_choices

    seconds: dict[int, float] = {}
    runs = {lanes: bound(replace(job, lanes=lanes)) for lanes in lane_choices(usable_cores())}
    for turn in range(3):  # the first is not counted
        for lanes, run in runs.items():
            began = time.perf_counter()
            run()
            taken = time.perf_counter() - began
            if turn:
                seconds[lanes] = min(taken, seconds.get(lanes, taken))
    return min(seconds, key=seconds.__getitem__)


def receive(job: Job, end: Connection) -> dict[str, Any]:
    """
    Raises:
        ConfigError: the way cannot be had here.
        DataError: the way's process failed; its own words are on stderr.
    """
    try:
        answer: dict[str, Any] = end.recv()
    except EOFError:
        raise DataError(f"{job.name}: its process ended, see above") from None
    if "error" in answer:
        raise ConfigError(f"{job.name}: {answer['error']}")
    return answer


# --- in a way's own process ----------------------------------------------------------------------


def serve(job: Job, end: Connection) -> None:
    """Makes a way ready, says so, and runs it whenever it is told to."""
    start_workers_as_usual()
    if job.device == "cuda" and job.group not in ("bound", "maskcls"):
        import torch  # float32 is float32 for all, and cuDNN may look for its best algorithm

        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.benchmark = True
    make = {"bound": bound, "maskcls": ours, "original": original}.get(job.group, expert)
    try:
        run = make(job)
    except MaskclsError as error:
        end.send({"error": str(error)})
        return
    run()
    forget_peak()
    end.send({})
    while end.recv() == "run":
        began = time.perf_counter()
        labels = run()
        seconds = time.perf_counter() - began
        digest = hashlib.sha256(repr(labels).encode()).hexdigest()
        end.send({"seconds": seconds, "labels": digest, "peak": peak_bytes()})


Run = Callable[[], list[int]]


def bound(job: Job) -> Run:
    """The bare session on arrays in memory, used as labelling uses it."""
    from concurrent.futures import ThreadPoolExecutor

    from maskcls.runtime.engines import FusedEngine
    from maskcls.runtime.labelling import decoded_batches, predict
    from maskcls.runtime.sources import list_pictures

    engine = FusedEngine(Path(job.onnx), job.device, job.lanes)
    sources = list_pictures(Path(job.images))
    batches = list(decoded_batches(engine.specs, sources, job.batch_size, job.workers, None))
    pool = ThreadPoolExecutor(job.lanes)

    def run() -> list[int]:
        answers = pool.map(lambda batch: predict(engine, batch).argmax(axis=1), batches)
        return [int(label) for answer in answers for label in answer]

    return run


def ours(job: Job) -> Run:
    """As `maskcls-infer` does it, its start apart."""
    from maskcls.runtime import inference
    from maskcls.runtime.engines import FusedEngine
    from maskcls.runtime.sources import list_pictures

    engine = FusedEngine(Path(job.onnx), job.device, job.lanes)
    sources = list_pictures(Path(job.images))

    def run() -> list[int]:
        inference(engine, sources, Path(job.out), batch_size=job.batch_size, workers=job.workers)
        rows = Path(job.out).read_text("utf-8").splitlines()[1:]
        return [int(row.rpartition(",")[2]) for row in rows]

    return run


def original(job: Job) -> Run:
    """One branch after the other over all files: Pillow, torchvision transforms, DataLoader, and
    PyTorch and efficientnet_pytorch as they come."""
    import pandas
    import torch
    from torch.utils.data import DataLoader

    from benchmarks.peers import PillowPictures, classify, original_network
    from maskcls.checkpoints import read_checkpoint
    from maskcls.labels import MULTI
    from maskcls.models import restore_model
    from maskcls.runtime.sources import list_pictures

    sources = list(list_pictures(Path(job.images)))
    networks = []
    for path in job.checkpoints:
        model, manifest = restore_model(read_checkpoint(Path(path)), Path(path))
        model = original_network(model, manifest.preprocess.size)
        networks.append((model.to(job.device).eval(), manifest))

    @torch.no_grad()
    def run() -> list[int]:
        digits: dict[str, Any] = {}
        for model, manifest in networks:
            pictures = PillowPictures([s.path for s in sources], manifest.preprocess)
            loader = DataLoader(pictures, batch_size=job.batch_size, num_workers=job.workers)
            views = manifest.tta
            answers = [classify(model, batch.to(job.device), views).cpu() for batch in loader]
            digits |= manifest.get_task().decode(torch.cat(answers).numpy())
        labels = MULTI.encode(**digits)
        names = [source.image_id for source in sources]
        pandas.DataFrame({"ImageID": names, "ans": labels}).to_csv(job.out, index=False)
        answer: list[int] = labels.tolist()
        return answer

    return run


def expert(job: Job) -> Run:
    """Both networks in one pass: libjpeg-turbo through torchvision, uint8 batches, channels_last,
    compiled with frozen weights, half precision where asked for, and of some numbers of workers the
    one that is fastest here."""
    import torch
    import torch._inductor.config
    from torch.utils.data import DataLoader

    from benchmarks.peers import TensorPictures, classify, create_peer
    from maskcls.checkpoints import read_manifest
    from maskcls.labels import MULTI
    from maskcls.runtime.sources import list_pictures

    sources = list(list_pictures(Path(job.images)))
    manifests = [read_manifest(Path(path)) for path in job.checkpoints]
    spec = manifests[0].preprocess
    if any(manifest.preprocess != spec for manifest in manifests):
        raise ConfigError("the networks take pictures of different sizes; leave it out with --ways")
    tasks = [manifest.get_task() for manifest in manifests]
    models = [
        create_peer(
            job.group,
            _peer_name(job.group, manifest.model),
            task.num_classes,
        )
        .to(job.device, memory_format=torch.channels_last)
        .eval()
        for manifest, task in zip(manifests, tasks, strict=True)
    ]
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[job.precision]
    mean, std = (
        torch.tensor(values, device=job.device).view(1, 3, 1, 1) * 255
        for values in (spec.mean, spec.std)
    )

    def forward(pixels: torch.Tensor) -> list[torch.Tensor]:
        images = ((pixels.float() - mean) / std).contiguous(memory_format=torch.channels_last)
        with torch.autocast(job.device, dtype, enabled=dtype != torch.float32):
            return [
                classify(model, images, manifest.tta)
                for model, manifest in zip(models, manifests, strict=True)
            ]

    # Weights become constants: batch normalisation goes into the convolutions, weights are packed
    # for oneDNN and cast to half precision once.
    torch._inductor.config.freezing = True
    compiled = torch.compile(forward, dynamic=False)

    def load(workers: int) -> DataLoader[torch.Tensor]:
        return DataLoader(
            TensorPictures([source.path for source in sources], spec),
            batch_size=job.batch_size,
            num_workers=workers,
            persistent_workers=True,
            pin_memory=job.device == "cuda",
        )

    @torch.inference_mode()
    def label_all(loader: DataLoader[torch.Tensor]) -> list[int]:
        found: list[list[torch.Tensor]] = [[] for _ in tasks]
        for batch in loader:
            pixels = batch.to(job.device, non_blocking=True)
            lacking = job.batch_size - len(pixels)  # the last batch is filled: one compiled shape
            if lacking:
                pixels = torch.cat([pixels, pixels[:1].expand(lacking, -1, -1, -1)])
            for answers, answer in zip(found, compiled(pixels), strict=True):
                answers.append(answer[: len(batch)])
        digits: dict[str, Any] = {}
        for task, answers in zip(tasks, found, strict=True):
            digits |= task.decode(torch.cat(answers).cpu().numpy())
        labels: list[int] = MULTI.encode(**digits).tolist()
        rows = [f"{source.image_id},{ans}\n" for source, ans in zip(sources, labels, strict=True)]
        Path(job.out).write_text("ImageID,ans\n" + "".join(rows), "utf-8")
        return labels

    best: tuple[float, DataLoader[torch.Tensor]] | None = None
    for workers in sorted({1, max(1, job.workers // 2), job.workers}):
        loader = load(workers)
        label_all(loader)  # compiles, and starts the workers
        began = time.perf_counter()
        label_all(loader)
        seconds = time.perf_counter() - began
        if best is None or seconds < best[0]:
            best = seconds, loader
    assert best is not None
    fastest = best[1]
    return lambda: label_all(fastest)


def _peer_name(package: str, model: str) -> str:
    """
    Raises:
        ConfigError: a network that the package does not have.
    """
    if model not in PEER_NAMES:
        raise ConfigError(f"{package} has no network like {model}; leave it out with --ways")
    return PEER_NAMES[model]


# --- how it is shown -----------------------------------------------------------------------------


def format_table(figures: dict[str, Any]) -> str:
    """For the terminal, and as Markdown to paste. Ratios are taken within a run."""
    rows = figures["rows"]
    heads = [row for row in rows if row["group"] not in ("bound", "maskcls")]
    lines = [
        f"{figures['pictures']} pictures, {figures['device']}, {figures['processor']}, "
        f"{figures['cores']} cores, batches of {figures['batch_size']}, "
        f"{figures['workers']} workers",
        "",
        "| way | images/s | peak MB | " + "".join(f"× {row['way']} | " for row in heads),
        "|---|---:|---:|" + "---:|" * len(heads),
    ]
    for row in rows:
        shown = [ratio(row, head) for head in heads]
        memory = "?" if row["peak_mb"] is None else f"{row['peak_mb']:.0f}"
        cells = "".join(f"{text} | " for text in shown)
        lines.append(f"| {row['way']} | {row['images_per_s']:.1f} | {memory} | {cells}".rstrip())
    for row in rows:
        for other in rows:
            if row["group"] == "maskcls" and other["group"] == "bound":
                if row["precision"] == other["precision"]:
                    lines += ["", f"{row['way']} reaches {ratio(row, other)} of the bare session"]
    return "\n".join(lines)


def ratio(row: dict[str, Any], other: dict[str, Any]) -> str:
    """Median of the ratios within the runs, with the smallest and the largest."""
    if row is other:
        return "1"
    pairs = zip(row["images_per_s_all"], other["images_per_s_all"], strict=True)
    return spread([a / b for a, b in pairs])


def draw(figures: dict[str, Any], path: Path) -> None:
    """A bar per way."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from maskcls.files import replacing

    rows = figures["rows"]
    figure = Figure(figsize=(8, 0.5 * len(rows) + 1.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    values = [row["images_per_s"] for row in rows]
    low = [row["images_per_s"] - min(row["images_per_s_all"]) for row in rows]
    high = [max(row["images_per_s_all"]) - row["images_per_s"] for row in rows]
    colours = {"maskcls": "tab:blue", "bound": "tab:grey"}
    bars = axes.barh(
        [row["way"] for row in rows],
        values,
        xerr=[low, high],
        color=[colours.get(row["group"], "tab:orange") for row in rows],
    )
    axes.bar_label(bars, [f"{value:.0f}" for value in values], padding=6)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel("images/s, from JPEGs to labels (median; smallest to largest)")
    axes.set_title(f"{figures['processor']}, {figures['cores']} cores", fontsize=9)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


if __name__ == "__main__":
    raise SystemExit(main())
