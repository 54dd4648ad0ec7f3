"""Training: this project, the original's way and timm's parts in a well-set loop, in turns.

    python benchmarks/training.py --data-dir data/train
    python benchmarks/training.py --data-dir data/train --model efficientnet_b3 --epochs 3
    python benchmarks/training.py --data-dir data/train --epochs 12 --targets 0.7 0.8

Same people, pictures, network, input size, batch, optimiser, highest learning rate and number of
epochs; warm-up, weight decay, clipped gradients and augmentation are each way's own.
A run trains from the beginning, in a process of its own, with the decoding, validation and
whatever else its way does. Needs the extra `bench`. How to read the table: benchmarks/README.md.

All options: python benchmarks/training.py --help
"""

from __future__ import annotations

import argparse
import itertools
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this clone, installed or not

from benchmarks.shared import (
    PEER_NAMES,
    in_own_process,
    peak_bytes,
    processor,
    require_positive,
    spread,
    start_workers_as_usual,
    write_figures,
)
from maskcls.commands._run import guarded
from maskcls.errors import ConfigError, MaskclsError
from maskcls.labels import TASKS
from maskcls.runtime.engines import usable_cores

SEED = 42  # of the first turn; each has another split and start, the same for all ways
WAYS = {
    "maskcls": "maskcls",
    "original": "original's way",
    "timm": "timm, its best flags",
    "timm-compiled": "the same, compiled",
}


@dataclass(frozen=True)
class Job:
    """What a way is told; plain values, for a process of its own."""

    way: str
    task: str
    data_dirs: tuple[str, ...]
    model: str
    height: int
    width: int
    batch_size: int
    epochs: int
    lr: float
    ema_decay: float | None  # of maskcls; None: its preset's
    workers: int
    seed: int
    scratch: str


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Measure trainings of one network against other ways to train it.",
        epilog="example:\n  python benchmarks/training.py --data-dir data/train --runs 3",
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
    parser.add_argument("--task", default="mask_gender", choices=TASKS, help="default: mask_gender")
    parser.add_argument("--model", default="resnet18", choices=sorted(PEER_NAMES), metavar="NAME")
    parser.add_argument("--height", type=int, default=128, metavar="N", help="default: 128")
    parser.add_argument("--width", type=int, default=96, metavar="N", help="default: 96")
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="default: 64")
    parser.add_argument("--epochs", type=int, default=2, metavar="N", help="default: 2")
    parser.add_argument("--lr", type=float, default=1e-3, metavar="X", help="default: 0.001")
    parser.add_argument(
        "--ema-decay",
        type=float,
        metavar="X",
        help="of maskcls, whose averaged weights no other way has; 0: none; default: its preset's",
    )
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="default: 2")
    parser.add_argument("--runs", type=int, default=5, metavar="N", help="of each way; default: 5")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS, metavar="WAY")
    parser.add_argument(
        "--targets",
        type=float,
        nargs="+",
        default=[],
        metavar="F1",
        help="show when validation reached each macro F1",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="draw F1 over time")
    return parser


@guarded
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns its exit code."""
    args = build_parser().parse_args(argv)
    require_positive(args, "height", "width", "batch_size", "epochs", "workers", "runs")
    if args.epochs < 2:
        raise ConfigError("--epochs 1: the first epoch decodes; a rate needs a second")
    if args.ema_decay is not None and not (0 <= args.ema_decay < 1 and "maskcls" in args.ways):
        raise ConfigError(f"--ema-decay {args.ema_decay:g}: from 0 to below 1, with --ways maskcls")
    with tempfile.TemporaryDirectory() as scratch:
        figures = measure(args, Path(scratch))
    print(format_table(figures))
    write_figures(args.json, figures)
    if args.plot is not None:
        draw(figures, args.plot)
        print(f"wrote {args.plot}")
    return 0


def measure(args: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """All figures, as plain values."""
    from tqdm import tqdm

    runs: dict[str, list[dict[str, Any]]] = {way: [] for way in args.ways}
    with tqdm(total=args.runs * len(runs), unit="training", disable=None) as bar:
        for number in range(args.runs):
            for way in runs if number % 2 == 0 else reversed(runs):
                bar.set_description(WAYS[way])
                job = Job(
                    way,
                    args.task,
                    tuple(str(folder.resolve()) for folder in args.data_dir),
                    args.model,
                    args.height,
                    args.width,
                    args.batch_size,
                    args.epochs,
                    args.lr,
                    args.ema_decay,
                    args.workers,
                    SEED + number,
                    str(scratch / f"{way}{number}"),
                )
                runs[way].append(run_alone(job))
                bar.update()
    return {
        "task": args.task,
        "model": args.model,
        "height": args.height,
        "width": args.width,
        "batch_size": args.batch_size,
        "epochs": args.epochs,
        "lr": args.lr,
        "ema_decay": args.ema_decay,
        "workers": args.workers,
        "seeds": [SEED + number for number in range(args.runs)],
        "targets": args.targets,
        "cores": usable_cores(),
        "processor": processor(),
        "python": platform.python_version(),
        "runs": runs,
    }


def run_alone(job: Job) -> dict[str, Any]:
    """One training in a process of its own: {"pictures", "epochs": [{"end", "f1"}, …], "seconds",
    "peak"}.

    Raises:
        ConfigError: the way cannot be had here.
        DataError: its process failed; its own words are on stderr.
    """
    answer = in_own_process(work, job)
    if "error" in answer:
        raise ConfigError(f"{WAYS[job.way]}: {answer['error']}")
    return answer


# --- in a way's own process ----------------------------------------------------------------------


def work(end: Connection, job: Job) -> None:
    """Trains, and sends what `run_alone` answers."""
    import sklearn.metrics  # noqa: F401  # before the clock starts, for all
    import torch

    from benchmarks.peers import import_timm
    from maskcls.training import seed_everything

    start_workers_as_usual()
    seed_everything(job.seed)
    if job.way != "maskcls":  # ours is reproducible, to the bit, and pays for it
        torch.backends.cudnn.deterministic = False
    try:
        if job.way.startswith("timm"):
            import_timm()
            torch.backends.cudnn.benchmark = True
        began = time.perf_counter()
        if job.way == "maskcls":
            pictures, epochs = train_ours(job)
        else:
            pictures, epochs = train_plainly(job)
    except MaskclsError as error:
        end.send({"error": str(error)})
        return
    seconds = time.perf_counter() - began
    end.send({"pictures": pictures, "epochs": epochs, "seconds": seconds, "peak": peak_bytes()})


def train_ours(job: Job) -> tuple[int, list[dict[str, float]]]:
    """As `maskcls-train` does it, with its cache, checkpoints, averages and TensorBoard."""
    import csv

    from maskcls.config import resolve
    from maskcls.training import train

    flags = {
        "data_dir": job.data_dirs,
        "model_dir": f"{job.scratch}/runs",
        "cache": f"{job.scratch}/cache",  # decoding is part of the time
        "weights": "none",
        "model": job.model,
        "height": job.height,
        "width": job.width,
        "crop": None,
        "batch_size": job.batch_size,
        "epochs": job.epochs,
        "lr": job.lr,
        "val_ratio": 0.2,
        "seed": job.seed,
        "workers": job.workers,
        "augmentation": "BestAugmentation",  # much as timm's, whatever the preset has
        "criterion": "cross_entropy",
        "class_weights": "none",
        "mixup": 0.0,
        "cutmix": 0.0,
        "auxiliary": 0.0,
        "soften_age": 0.0,
        "tta": "none",
    }
    if job.ema_decay is not None:
        flags["ema_decay"] = job.ema_decay
    ends: list[float] = []
    began = time.perf_counter()

    def say(line: str) -> None:
        if f"{job.task} epoch" in line:
            ends.append(time.perf_counter() - began)

    result = train(resolve(job.task, "scratch", flags=flags), say)
    with (result.folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
        scores = [float(row["macro_f1"]) for row in csv.DictReader(file)]
    with (result.folder / "split.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["side"] == "train"]
    pictures = sum(int(row["pictures"]) for row in rows)
    return pictures, [{"end": e, "f1": f} for e, f in zip(ends, scores, strict=True)]


def train_plainly(job: Job) -> tuple[int, list[dict[str, float]]]:
    """A loop over DataLoaders that decode every picture in every epoch: the original's, or timm's
    parts with what is known to help on this device."""
    import torch
    from sklearn.metrics import f1_score
    from torch import nn
    from torch.utils.data import DataLoader

    from benchmarks.peers import (
        LabelledPictures,
        create_peer,
        original_network,
        original_transforms,
        timm_transforms,
    )
    from maskcls.data.profiles import read_all_profiles
    from maskcls.data.runs import labelled_pictures
    from maskcls.data.splits import split_people
    from maskcls.devices import resolve_device, resolve_precision
    from maskcls.models import create_model, shorten_memory

    began = time.perf_counter()
    expert = job.way.startswith("timm")
    task = TASKS[job.task]
    profiles = read_all_profiles([Path(folder) for folder in job.data_dirs])
    people = split_people(profiles, val_ratio=0.2, seed=job.seed)
    size = (job.height, job.width)
    transforms = (timm_transforms if expert else original_transforms)(size)

    def loader(side: frozenset[str], training: bool) -> DataLoader[Any]:
        own = [profile for profile in profiles if profile.person in side]
        labelled = [(path, int(task.from_multi(label))) for path, label in labelled_pictures(own)]
        return DataLoader(
            LabelledPictures(labelled, transforms[0 if training else 1]),
            batch_size=job.batch_size,
            shuffle=training,
            num_workers=job.workers,
            persistent_workers=expert,
            pin_memory=expert and device.type == "cuda",
            drop_last=training,
        )

    device = resolve_device("auto")
    batches, validation = loader(people.train, True), loader(people.val, False)
    precision = resolve_precision("auto" if expert else "fp32", device)
    network: nn.Module
    if expert:
        network = create_peer("timm", PEER_NAMES[job.model], task.num_classes)
        network = network.to(device, memory_format=torch.channels_last)
        if job.way == "timm-compiled":
            network.compile()
    else:
        network = original_network(create_model(job.model, task.num_classes, size), size)
        shorten_memory(network)  # as it comes, its validation says nothing for a thousand steps
        network = network.to(device)
    layout = torch.channels_last if expert else torch.contiguous_format
    optimizer = torch.optim.AdamW(network.parameters(), lr=job.lr, fused=expert)
    total = job.epochs * len(batches)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, job.lr, total, pct_start=0.1)
    criterion = nn.CrossEntropyLoss()

    def forward(images: torch.Tensor) -> torch.Tensor:
        with precision.autocast():
            placed = images.to(device, memory_format=layout, non_blocking=expert)
            answer: torch.Tensor = network(placed)
        return answer.float()

    epochs = []
    for _ in range(job.epochs):
        network.train()
        for images, labels in batches:
            optimizer.zero_grad()
            criterion(forward(images), labels.to(device)).backward()
            optimizer.step()
            schedule.step()
        network.eval()
        truth, answers = [], []
        with torch.inference_mode():
            for images, labels in validation:
                truth += labels.tolist()
                answers += forward(images).argmax(dim=1).tolist()
        score = float(f1_score(truth, answers, average="macro"))
        epochs.append({"end": time.perf_counter() - began, "f1": score})
    return len(batches) * job.batch_size, epochs  # what is short of a batch is left out


# --- how it is shown -----------------------------------------------------------------------------


def rate(run: dict[str, Any]) -> float:
    """Pictures a second from the end of the first epoch on, validation and all else in it."""
    epochs = run["epochs"]
    seconds: float = epochs[-1]["end"] - epochs[0]["end"]
    return float(run["pictures"]) * (len(epochs) - 1) / seconds


def seconds_to(run: dict[str, Any], target: float) -> float | None:
    """When validation first reached a score; None where it never did."""
    return next((epoch["end"] for epoch in run["epochs"] if epoch["f1"] >= target), None)


def format_table(figures: dict[str, Any]) -> str:
    """For the terminal, and as Markdown to paste. Ratios are taken within a turn."""
    runs = figures["runs"]
    ours = runs.get("maskcls")
    decay = figures["ema_decay"]
    lines = [
        f"{figures['task']}, {figures['model']}, {figures['height']}x{figures['width']}, batches "
        f"of {figures['batch_size']}, {figures['epochs']} epochs"
        f"{'' if decay is None else f', --ema-decay {decay:g}'}; {figures['processor']}, "
        f"{figures['cores']} cores",
        "",
        "| way | images/s | maskcls × | first epoch s | whole s | maskcls × | last F1 | peak MB |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for way, turns in runs.items():
        baseline = way == "maskcls" or ours is None
        pairs = list(zip(ours or turns, turns, strict=True))
        cells = [
            WAYS[way],
            f"{statistics.median(map(rate, turns)):.1f}",
            "1" if baseline else spread([rate(a) / rate(b) for a, b in pairs]),
            f"{statistics.median(run['epochs'][0]['end'] for run in turns):.1f}",
            f"{statistics.median(run['seconds'] for run in turns):.1f}",
            "1" if baseline else spread([b["seconds"] / a["seconds"] for a, b in pairs]),
            f"{statistics.median(run['epochs'][-1]['f1'] for run in turns):.3f}",
            f"{max(run['peak'] for run in turns) / 1e6:.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    if figures["targets"]:
        lines += [
            "",
            "| macro F1 | way | reached | s | maskcls is there × sooner |",
            "|---:|---|---:|---:|---:|",
            *(
                f"| {target:g} | {WAYS[way]} | {' | '.join(reaching(turns, ours, target))} |"
                for target in figures["targets"]
                for way, turns in runs.items()
            ),
        ]
    return "\n".join(lines)


def reaching(
    turns: Sequence[dict[str, Any]], ours: Sequence[dict[str, Any]] | None, target: float
) -> tuple[str, str, str]:
    """In how many turns a way got to a score, after how many seconds, and how much sooner we did.
    Where one turn never got there a median would be of the others alone, so there is none."""
    seconds = [seconds_to(run, target) for run in turns]
    reached = [each for each in seconds if each is not None]
    pairs = zip([seconds_to(run, target) for run in ours or ()], seconds, strict=ours is not None)
    ratios = [theirs / mine for mine, theirs in pairs if mine is not None and theirs is not None]
    return (
        f"{len(reached)} of {len(turns)}",
        f"{statistics.median(reached):.0f}" if len(reached) == len(turns) else "–",
        "1" if turns is ours else spread(ratios) if len(ratios) == len(turns) else "–",
    )


def draw(figures: dict[str, Any], path: Path) -> None:
    """Validation F1 over the seconds of each training."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from maskcls.files import replacing

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    colours = ("tab:blue", "tab:orange", "tab:green", "tab:red")
    for colour, (way, turns) in zip(itertools.cycle(colours), figures["runs"].items()):
        for number, run in enumerate(turns):
            points = [(epoch["end"], epoch["f1"]) for epoch in run["epochs"]]
            label = WAYS[way] if number == 0 else None
            axes.plot(*zip(*points, strict=True), "o-", color=colour, label=label, markersize=4)
    axes.set_xlabel("seconds from the start, decoding and validation included")
    axes.set_ylabel(f"macro F1 of {figures['task']} on validation people")
    axes.set_title(f"{figures['model']}, {figures['processor']}, {figures['cores']} cores", size=9)
    axes.grid(alpha=0.3)
    axes.legend()
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


if __name__ == "__main__":
    raise SystemExit(main())
