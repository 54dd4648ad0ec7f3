"""The ways to compute a network's answers that latency.py times and parity.py compares.

A way is one program on one device: PyTorch eager, channels_last or compiled; onnxruntime on the
CPU, on CUDA with and without IO binding and CUDA graph, on TensorRT. Every way of a subject gets
the same pixels and gives the same kind of answer, so that they can be held against each other.
"""

from __future__ import annotations

import argparse
import copy
import platform
import tempfile
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.shared import processor
from maskcls.errors import DataError, ProviderError
from maskcls.preprocessing import PreprocessSpec
from maskcls.runtime.session import IMAGES, LOGITS, OnnxFile, open_session, read_onnx, why_not

FUSED = "maskcls"
PICTURE_SIZE = (512, 384)
MAX_DIFFERENCE = 1e-3  # of fp32 answers, logits or probabilities; as the gate of the export


@dataclass(frozen=True)
class Prepared:
    """One batch, ready. `run` computes until the answer is there; `answer` fetches it as float32
    (N, classes), outside of what is timed where `data` is "device"."""

    run: Callable[[], Any]
    answer: Callable[[Any], np.ndarray]


@dataclass(frozen=True)
class Way:
    """`data`: "host", from numpy to numpy, copies to the device and back in it; or "device", where
    input and output stay there."""

    subject: str
    name: str
    precision: str
    device: str
    data: str
    prepare: Callable[[np.ndarray], Prepared]

    @property
    def key(self) -> str:
        place = " on device" if self.data == "device" else ""
        return f"{self.name} {self.precision}{place}"


@dataclass(frozen=True)
class Subject:
    """What is measured: a single network, or the fused file. `inputs` (N, …) are what its ways
    take; the first of `ways` is the one the others are held against."""

    name: str
    inputs: np.ndarray
    ways: tuple[Way, ...]


@dataclass(frozen=True)
class Bench:
    """All subjects, and what cannot be measured here with the reason."""

    subjects: tuple[Subject, ...]
    absent: tuple[str, ...]
    devices: tuple[str, ...]


def add_options(parser: argparse.ArgumentParser) -> None:
    """What both programs take."""
    parser.add_argument(
        "--runs",
        type=Path,
        nargs="+",
        default=[Path("runs/demo")],
        metavar="RUN",
        help="checkpoints, run folders or their MODEL_DIR; default: runs/demo",
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
        "--images", type=Path, metavar="DIR", help="default: the built-in sample, drawn for this"
    )
    parser.add_argument(
        "--device", default="auto", choices=("auto", "cpu", "cuda"), help="auto: all that work"
    )
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8, 32, 128], metavar="N")
    parser.add_argument(
        "--threads", type=int, metavar="N", help="on the CPU, for all ways; default: the cores"
    )
    parser.add_argument(
        "--no-compile", action="store_true", help="leave torch.compile out: it takes minutes"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")


def load_bench(args: argparse.Namespace, count: int) -> Bench:
    """Opens every way that works here. `count`: pictures to have.

    Raises:
        CheckpointError, DataError: files that cannot be read, or are not of these networks.
        ProviderError: asked for CUDA, and PyTorch or onnxruntime cannot use it.
    """
    import torch

    from maskcls.checkpoints import open_checkpoint
    from maskcls.classifier import TorchClassifier, find_checkpoints
    from maskcls.files import file_digest

    if args.threads is not None:
        torch.set_num_threads(args.threads)
    # float32 is to mean float32 on both sides, and cuDNN may search for its best algorithm, as
    # onnxruntime lets it.
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    absent: list[str] = []
    devices = _devices(args.device, absent)
    checkpoints = find_checkpoints(args.runs)
    digests = {file_digest(open_checkpoint(path)[1]) for path in checkpoints}
    files = [read_onnx(path) for folder in args.onnx for path in _onnx_files(folder)]
    for file in files:
        if not set(file.manifest.checkpoints) <= digests:
            raise DataError(
                f"{file.path}: was exported from other checkpoints than those of --runs"
            )
    pictures = _pictures(args.images, count)

    classifiers = {d: TorchClassifier(checkpoints, torch.device(d)) for d in devices}
    first = classifiers[devices[0]]
    subjects = []
    for index, task in enumerate(first.tasks):
        spec = first.specs[index]
        inputs = spec.normalise(np.stack([spec.resize(picture) for picture in pictures]))
        ways = [
            way
            for device in devices
            for way in _torch_ways(
                task, classifiers[device].network(index), device, not args.no_compile
            )
        ]
        for file in files:
            if file.manifest.kind == "network" and file.manifest.networks[0].task == task:
                ways += _onnx_ways(task, file, devices, args.threads, LOGITS, absent)
        subjects.append(Subject(task, inputs, tuple(ways)))
    fused = [file for file in files if file.manifest.kind == "fused"]
    # As a camera gives them, and as small as the first network takes them, where the resize of the
    # fused file has nothing to do.
    spec = first.specs[0]
    near = tuple(round(side / share) for side, share in zip(spec.size, spec.crop, strict=True))
    for size in dict.fromkeys((PICTURE_SIZE, near)) if fused else ():
        name = f"{FUSED} {size[0]}x{size[1]}"
        whole = PreprocessSpec(height=size[0], width=size[1])
        raw = np.stack([whole.resize(picture) for picture in pictures])
        ways = [_pillow_way(name, classifiers[device], device) for device in devices]
        for file in fused:
            ways += _onnx_ways(name, file, devices, args.threads, "class_prob", absent)
        subjects.append(Subject(name, raw, tuple(ways)))
    return Bench(tuple(subjects), tuple(dict.fromkeys(absent)), devices)


def machine(bench: Bench) -> dict[str, Any]:
    """What a figure has to be read with."""
    import onnxruntime
    import torch

    return {
        "machine": platform.machine(),
        "processor": processor(),
        "gpu": torch.cuda.get_device_name() if "cuda" in bench.devices else None,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "onnxruntime": onnxruntime.__version__,
        "absent": list(bench.absent),
    }


def _devices(wanted: str, absent: list[str]) -> tuple[str, ...]:
    """Best first."""
    import torch

    reason = why_not("cuda")
    if not torch.cuda.is_available():
        reason = reason or f"torch {torch.__version__} finds no CUDA device"
    if wanted == "cuda" and reason:
        raise ProviderError(f"--device cuda: {reason}")
    if wanted == "auto" and reason:
        absent.append(f"CUDA: {reason}")
    if wanted == "auto":
        return ("cpu",) if reason else ("cuda", "cpu")
    return (wanted,)


def _onnx_files(folder: Path) -> list[Path]:
    found = sorted(folder.glob("*.onnx"))
    if not found:
        raise DataError(f"{folder}: no .onnx files in it; make them with maskcls-export")
    return found


def _pictures(folder: Path | None, count: int) -> list[Any]:
    """Upright RGB pictures, repeated where the folder has fewer."""
    from maskcls.data.sample import make_sample
    from maskcls.images import read_image
    from maskcls.runtime.sources import list_pictures

    with tempfile.TemporaryDirectory() if folder is None else nullcontext() as scratch:
        if folder is None:
            folder = make_sample(Path(scratch or "") / "sample", 6, max(6, -(-count // 7))) / "eval"
        listed = list_pictures(folder)
        return [read_image(listed[index % len(listed)].path) for index in range(count)]


def _torch_ways(subject: str, model: Any, device: str, compiled: bool) -> list[Way]:
    """Normalised float32 (N, 3, H, W) → logits, with mirror images where labelling takes them."""
    import torch

    from maskcls.devices import resolve_precision

    half = {"cuda": ("fp16", torch.float16), "cpu": ("bf16", torch.bfloat16)}[device]
    precisions = [("fp32", torch.float32)]
    if device == "cuda" or resolve_precision("auto", torch.device("cpu")).dtype == half[1]:
        precisions.append(half)
    ways = []
    for precision, dtype in precisions:
        for name in ("eager", "channels_last", "compiled"):
            if name == "compiled" and not compiled:
                continue
            for data in ("host", "device") if device == "cuda" else ("host",):
                # A copy: each way has weights in a memory layout of its own.
                prepare = _torch_prepare(copy.deepcopy(model), device, dtype, name, data)
                shown = f"PyTorch {device.upper()} {name}"
                ways.append(Way(subject, shown, precision, device, data, prepare))
    return ways


def _torch_prepare(
    model: Any, device: str, dtype: Any, name: str, data: str
) -> Callable[[np.ndarray], Prepared]:
    import torch
    import torch._dynamo.config
    import torch._inductor.config

    layout = torch.contiguous_format if name == "eager" else torch.channels_last
    model = model.to(memory_format=layout)

    def forward(images: Any) -> Any:
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            return model(images)

    if name == "compiled":
        # Frozen weights, a program for each batch size, and an error where there are too many
        # programs, of which the next would be computed as without compiling.
        torch._inductor.config.freezing = True
        torch._dynamo.config.recompile_limit = 64
        torch._dynamo.config.fail_on_recompile_limit_hit = True
        mode = "reduce-overhead" if device == "cuda" else "default"
        forward = torch.compile(forward, mode=mode, dynamic=False)

    def prepare(batch: np.ndarray) -> Prepared:
        placed = torch.from_numpy(batch).to(device).contiguous(memory_format=layout)

        @torch.inference_mode()
        def on_device() -> Any:
            answer = forward(placed)
            if device == "cuda":
                torch.cuda.synchronize()
            return answer

        @torch.inference_mode()
        def from_host() -> Any:
            images = torch.from_numpy(batch).to(device).contiguous(memory_format=layout)
            return forward(images).float().cpu()

        run = on_device if data == "device" else from_host
        return Prepared(run, lambda answer: answer.float().cpu().numpy())

    return prepare


def _pillow_way(subject: str, classifier: Any, device: str) -> Way:
    """The fused file's work in PyTorch: resized by Pillow, both networks one after the other."""
    from PIL import Image

    def prepare(batch: np.ndarray) -> Prepared:
        def run() -> np.ndarray:
            images = [Image.fromarray(picture) for picture in batch]
            resized = {
                spec: np.stack([spec.resize(image) for image in images])
                for spec in dict.fromkeys(classifier.specs)
            }
            answer: np.ndarray = classifier.predict([resized[s] for s in classifier.specs])
            return answer

        return Prepared(run, lambda answer: answer)

    name = f"PyTorch {device.upper()} channels_last, Pillow"
    return Way(subject, name, "fp32", device, "host", prepare)


def _onnx_ways(
    subject: str,
    file: OnnxFile,
    devices: Sequence[str],
    threads: int | None,
    output: str,
    absent: list[str],
) -> list[Way]:
    precision = file.manifest.precision

    def way(name: str, device: str, data: str, prepare: Callable[[np.ndarray], Prepared]) -> Way:
        return Way(subject, f"onnxruntime {name}", precision, device, data, prepare)

    def session(provider: str, **settings: str) -> Any:
        return open_session(file.content, file.path, provider, threads, settings)

    ways = []
    for device in devices:
        if device == "cpu" and precision == "fp16":
            absent.append("fp16 on the CPU: it computes in fp32 there, with casts")
        elif device == "cuda" and precision == "int8":
            absent.append("int8 on CUDA: onnxruntime has no such kernels")
        else:
            opened = session(device)
            ways.append(way(device.upper(), device, "host", _onnx_host(opened, output)))
            if device == "cuda":
                bound = _onnx_bound(lambda opened=opened: opened, output)
                ways.append(way("CUDA IO binding", device, "device", bound))
                graph = _onnx_bound(lambda: session("cuda", enable_cuda_graph="1"), output)
                ways.append(way("CUDA graph", device, "device", graph))
    if "cuda" in devices:
        if reason := why_not("tensorrt"):
            absent.append(f"TensorRT: {reason}")
        else:
            settings = {"trt_fp16_enable": "1"} if precision == "fp16" else {}
            settings |= {"trt_int8_enable": "1"} if precision == "int8" else {}
            opened = session("tensorrt", **settings)
            ways.append(way("TensorRT", "cuda", "host", _onnx_host(opened, output)))
            bound = _onnx_bound(lambda opened=opened: opened, output)
            ways.append(way("TensorRT IO binding", "cuda", "device", bound))
    return ways


def _onnx_host(session: Any, output: str) -> Callable[[np.ndarray], Prepared]:
    def prepare(batch: np.ndarray) -> Prepared:
        return Prepared(lambda: session.run([output], {IMAGES: batch})[0], lambda answer: answer)

    return prepare


def _onnx_bound(open_it: Callable[[], Any], output: str) -> Callable[[np.ndarray], Prepared]:
    """A CUDA graph is of one shape at fixed addresses: `open_it` is asked once for each shape, and
    the next batch of a shape is copied to where the last one was."""
    ready: dict[tuple[int, ...], tuple[Any, Any, Any, Any]] = {}

    def bind(batch: np.ndarray) -> tuple[Any, Any, Any, Any]:
        import onnxruntime

        session = open_it()
        value = onnxruntime.OrtValue
        [shape] = [entry.shape for entry in session.get_outputs() if entry.name == output]
        images = value.ortvalue_from_numpy(batch, "cuda", 0)
        answer = value.ortvalue_from_shape_and_type([len(batch), shape[1]], np.float32, "cuda", 0)
        binding = session.io_binding()
        binding.bind_ortvalue_input(IMAGES, images)
        binding.bind_ortvalue_output(output, answer)
        return session, binding, images, answer

    def prepare(batch: np.ndarray) -> Prepared:
        if batch.shape not in ready:
            ready[batch.shape] = bind(batch)
        session, binding, images, answer = ready[batch.shape]
        images.update_inplace(batch)

        def run() -> Any:
            session.run_with_iobinding(binding)  # returns when the device is through
            return answer

        return Prepared(run, lambda value: value.numpy())

    return prepare
