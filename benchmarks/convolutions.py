"""What the gradients of `maskcls.convolutions` save, on this machine.

    python benchmarks/convolutions.py
    python benchmarks/convolutions.py --model resnet18 --batch-size 64 --json convolutions.json

Training steps on a CPU in bfloat16, PyTorch's own convolutions against ours, in alternating runs;
and for every shape that the network has, the time of its gradients in both. A ratio is taken within
a run. How to read the table: benchmarks/README.md.

All options: python benchmarks/convolutions.py --help
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this clone, installed or not

import torch
from torch import Tensor, nn

from benchmarks.shared import processor, require_positive, write_figures
from maskcls.commands._run import guarded
from maskcls.config import MODEL_NAMES
from maskcls.convolutions import Conv2d
from maskcls.models import channels_last, create_model

Shape = tuple[torch.Size, torch.Size, tuple[int, ...]]
"""Of what comes in, of the weight, and the stride."""


class PyTorchs(Conv2d):
    """The same layer, its gradients as PyTorch has them."""

    def forward(self, images: Tensor) -> Tensor:
        if (padding := self._modules.get("static_padding")) is not None:
            images = padding(images)
        return nn.Conv2d.forward(self, images)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Measure training steps with PyTorch's convolutions and with ours.",
        epilog="example:\n  python benchmarks/convolutions.py --model resnet18 --batch-size 64",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", choices=MODEL_NAMES, default="efficientnet_b3")
    parser.add_argument("--height", type=int, default=128, metavar="N", help="default: 128")
    parser.add_argument("--width", type=int, default=96, metavar="N", help="default: 96")
    parser.add_argument("--batch-size", type=int, default=32, metavar="N", help="default: 32")
    parser.add_argument("--runs", type=int, default=9, metavar="N", help="default: 9")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    return parser


@guarded
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns its exit code."""
    args = build_parser().parse_args(argv)
    require_positive(args, "height", "width", "batch_size", "runs")
    torch.manual_seed(0)
    size = (args.height, args.width)
    ours = channels_last(create_model(args.model, 6, size)).train()
    theirs = with_pytorchs(ours)
    images = torch.randn(args.batch_size, 3, *size).to(memory_format=torch.channels_last)
    labels = torch.randint(0, 6, (args.batch_size,))

    print(f"{args.model}, {args.height}x{args.width}, batches of {args.batch_size}, bf16")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {processor()}")
    shapes = shapes_of(ours, images)
    rows = [measure_shape(conv, shape, count) for (conv, shape, count) in shapes]
    print("\n| in | weight | stride | layers | PyTorch, ms | ours, ms | times as fast |")
    print("|---|---|---|---|---|---|---|")
    for row in sorted(rows, key=lambda row: -row["layers"] * row["pytorch_ms"]):
        print(
            f"| {'x'.join(map(str, row['in']))} | {'x'.join(map(str, row['weight']))} "
            f"| {row['stride'][0]} | {row['layers']} | {row['pytorch_ms']:.2f} "
            f"| {row['ours_ms']:.2f} | {row['pytorch_ms'] / row['ours_ms']:.2f} |"
        )

    ways = {
        name: training_step(model, images, labels)
        for name, model in (("PyTorch", theirs), ("ours", ours))
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for run in range(args.runs + 1):
        for name in ways if run % 2 else reversed(ways):
            rate = args.batch_size / seconds(ways[name])
            if run:  # the first is not counted: memory is allocated
                rates[name].append(rate)
    ratios = [b / a for a, b in zip(*rates.values(), strict=True)]
    print("\n| steps | images/s | times as fast |")
    print("|---|---|---|")
    print(f"| PyTorch | {statistics.median(rates['PyTorch']):.1f} | |")
    print(
        f"| ours | {statistics.median(rates['ours']):.1f} | {statistics.median(ratios):.2f} "
        f"({min(ratios):.2f} to {max(ratios):.2f}) |"
    )
    write_figures(args.json, {"model": args.model, "shapes": rows, "images_per_s": rates})
    return 0


def with_pytorchs(model: nn.Module) -> nn.Module:
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, Conv2d):
            module.__class__ = PyTorchs
    return model


def shapes_of(model: nn.Module, images: Tensor) -> list[tuple[Conv2d, torch.Size, int]]:
    """A convolution of each shape, what it takes, and how many there are of it."""
    seen: dict[Shape, tuple[Conv2d, torch.Size]] = {}
    count: Counter[Shape] = Counter()

    def note(conv: nn.Module, given: tuple[Tensor, ...], _: Tensor) -> None:
        assert isinstance(conv, Conv2d)
        shape = (given[0].shape, conv.weight.shape, conv.stride)
        seen.setdefault(shape, (conv, given[0].shape))
        count[shape] += 1

    hooks = [m.register_forward_hook(note) for m in model.modules() if isinstance(m, Conv2d)]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        model(images)
    for hook in hooks:
        hook.remove()
    return [(*seen[shape], count[shape]) for shape in seen]


def measure_shape(conv: Conv2d, shape: torch.Size, layers: int) -> dict[str, object]:
    """Milliseconds of one layer's gradients, both ways."""
    images = torch.randn(shape).to(torch.bfloat16, memory_format=torch.channels_last)
    images.requires_grad_()
    ways: dict[str, Callable[[], None]] = {}
    for name, layer in (("pytorch_ms", with_pytorchs(conv)), ("ours_ms", copy.deepcopy(conv))):
        with torch.autocast("cpu", torch.bfloat16):
            answer = layer(images)
        gradient = torch.randn_like(answer)
        wanted = (images, *layer.parameters())

        def gradients(answer: Tensor = answer, gradient: Tensor = gradient, wanted=wanted) -> None:
            torch.autograd.grad(answer, wanted, gradient, retain_graph=True)

        ways[name] = gradients
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for run in range(6):
        for name in ways if run % 2 else reversed(ways):
            elapsed = seconds(ways[name])
            if run:  # the first is not counted
                taken[name].append(1000 * elapsed)
    found = {name: statistics.median(values) for name, values in taken.items()}
    return {
        "in": list(shape),
        "weight": list(conv.weight.shape),
        "stride": list(conv.stride),
        "layers": layers,
    } | found


def training_step(model: nn.Module, images: Tensor, labels: Tensor) -> Callable[[], None]:
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            loss = nn.functional.cross_entropy(model(images), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    return step


def seconds(do: Callable[[], None]) -> float:
    start = time.perf_counter()
    do()
    return time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(main())
