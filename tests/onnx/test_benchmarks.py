"""benchmarks/latency.py and benchmarks/parity.py as processes of their own, on exported networks.
How large their figures are is not tested: that is the machine's affair."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from maskcls.models import load_model, predict_logits
from maskcls.onnx import export
from maskcls.runtime.session import why_not

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
MakeRun = Callable[..., Path]
Run = Callable[..., "subprocess.CompletedProcess[str]"]
no_cuda = pytest.mark.skipif(
    torch.cuda.is_available() and not why_not("cuda"), reason="CUDA works here"
)


@pytest.fixture
def run(run_script: Run) -> Run:
    """`run("latency.py", *options)`."""
    return lambda script, *options: run_script(BENCHMARKS / script, *options)


@pytest.fixture(scope="module")
def made(
    tmp_path_factory: pytest.TempPathFactory, make_data: Callable[..., Path], build_run: MakeRun
) -> Path:
    """A folder of two runs and their ONNX files, which tests read."""
    folder = tmp_path_factory.mktemp("exported")
    data = make_data(folder / "train", 12)
    found = [
        build_run(folder / "runs", data, task, height=32, width=32)
        for task in ("mask_gender", "age")
    ]
    export([run / "best.pt" for run in found], folder / "onnx", say=lambda _: None)
    return folder


def options_of(folder: Path) -> tuple[object, ...]:
    """What names the runs and the files."""
    runs = [folder / "runs" / task / "exp" for task in ("mask_gender", "age")]
    return "--runs", *runs, "--onnx", folder / "onnx", "--threads", 1


@pytest.fixture
def exported(made: Path) -> tuple[object, ...]:
    return options_of(made)


def test_latency(run: Run, exported: tuple[object, ...], tmp_path: Path) -> None:
    options = ("--device", "cpu", "--batch-sizes", 1, 3, "--seconds", 0.05, "--no-compile")
    written = ("--json", tmp_path / "latency.json", "--plot", tmp_path / "latency.png")
    done = run("latency.py", *exported, *options, *written)
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "latency.json").read_text())
    assert figures["gpu"] is None
    rows = figures["rows"]
    fused = ["maskcls 512x384", "maskcls 40x32"]
    assert list(dict.fromkeys(row["subject"] for row in rows)) == ["mask_gender", "age", *fused]
    for row in rows:
        assert "CUDA" not in row["way"]
        assert row["calls"] >= 5
        assert row["p99_ms"] is None or row["p50_ms"] <= row["p95_ms"] <= row["p99_ms"]
        assert row["images_per_s"] == pytest.approx(1000 * row["batch"] / row["p50_ms"])
        assert row["precision"] != "fp32" or row["equal"]
        if row["way"] == "PyTorch CPU eager" and row["precision"] == "fp32":
            assert row["ratio"] == 1
            assert row["difference"] == 0
        assert f"| {row['subject']} | {row['batch']} | {row['way']} |" in done.stdout
    ways = {row["way"] for row in rows if row["subject"] == "age"}
    assert ways == {"PyTorch CPU eager", "PyTorch CPU channels_last", "onnxruntime CPU"}
    assert done.stdout.count("the networks' p50 together") == 2 * 2  # sizes of pictures, batches
    with Image.open(tmp_path / "latency.png") as picture:
        picture.load()


def test_parity(run: Run, exported: tuple[object, ...], tmp_path: Path) -> None:
    options = ("--device", "cpu", "--batch-sizes", 2, 3, "--pictures", 5, "--no-compile")
    done = run("parity.py", *exported, *options, "--json", tmp_path / "parity.json")
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "parity.json").read_text())
    assert figures["pictures"] == 5
    assert {row["way"] for row in figures["rows"]} >= {"PyTorch CPU eager", "onnxruntime CPU"}
    for row in figures["rows"]:
        assert row["varies"] > 0
        if row["precision"] == "fp32":
            assert row["equal"]
            assert row["flips"] == 0


def test_answers_that_differ_end_it(run: Run, made: Path, tmp_path: Path) -> None:
    """ONNX files whose manifest names the checkpoint, and whose weights are not its."""
    import onnx
    from onnx import numpy_helper

    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "onnx" / "age.onnx"
    proto = onnx.load(path)
    [bias] = [tensor for tensor in proto.graph.initializer if tensor.name.endswith("fc.bias")]
    values = numpy_helper.to_array(bias)
    changed = values + np.linspace(0, 3, len(values), dtype=np.float32)
    bias.CopyFrom(numpy_helper.from_array(changed, bias.name))
    onnx.save(proto, path)
    options = ("--device", "cpu", "--batch-sizes", 1, "--no-compile")
    for script, more in (("parity.py", ("--pictures", 2)), ("latency.py", ("--seconds", 0.01))):
        done = run(script, *options_of(tmp_path), *options, *more)
        assert done.returncode == 1
        assert "error: age, onnxruntime CPU" in done.stderr
        assert "Traceback" not in done.stderr


@no_cuda
def test_cuda_where_there_is_none(run: Run, exported: tuple[object, ...]) -> None:
    done = run("latency.py", *exported, "--device", "cuda")
    assert done.returncode == 1
    assert done.stderr.startswith("error: --device cuda: ")
    assert "Traceback" not in done.stderr


def test_files_of_other_checkpoints(
    run: Run, made: Path, build_run: MakeRun, tmp_path: Path
) -> None:
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    other = build_run(tmp_path / "runs", made / "train", "age", height=32, width=36)
    done = run("parity.py", *options_of(tmp_path))
    assert done.returncode == 1
    assert "was exported from other checkpoints" in done.stderr
    assert other.is_dir()


def test_labelling(run: Run, made: Path, tmp_path: Path) -> None:
    pictures = sorted((made / "train" / "images").iterdir())[0]
    count = len(list(pictures.iterdir()))
    model = ("--model", made / "onnx" / "maskcls.onnx", "--images", pictures)
    options = ("--runs", 2, "--batch-size", 2, "--memory", 3, 2 * count + 1)
    done = run("labelling.py", *model, *options, "--json", tmp_path / "labelling.json")
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "labelling.json").read_text())
    assert figures["pictures"] == count
    bare, whole = figures["speed"]["images_per_s_all"].values()
    ratios = sorted(b / a for a, b in zip(bare, whole, strict=True))
    assert figures["speed"]["ratio"]["min"] == pytest.approx(ratios[0])
    assert figures["speed"]["ratio"]["max"] == pytest.approx(ratios[-1])
    assert [row["pictures"] for row in figures["memory"]] == [3, 2 * count + 1]
    assert all(20 < row["peak_mb"] < 5000 for row in figures["memory"])


def test_labelling_pictures_that_cannot_be_read(run: Run, made: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "empty.jpg").touch()
    model = ("--model", made / "onnx" / "maskcls.onnx", "--images", tmp_path / "images")
    done = run("labelling.py", *model)
    assert done.returncode == 1
    assert "not all pictures can be read" in done.stderr


def test_operators(run: Run, made: Path, tmp_path: Path) -> None:
    options = ("--onnx", made / "onnx" / "maskcls.onnx", "--batch-size", 3, "--runs", 2)
    options += ("--height", 40, "--width", 36, "--json", tmp_path / "operators.json")
    done = run("operators.py", *options)
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "operators.json").read_text())
    [found] = figures["files"].values()
    kinds = found["kinds"]
    convolutions = {kind for kind in kinds if "Conv" in kind}
    assert all(kinds[kind]["ms"] > 0 for kind in convolutions)
    assert {kind.rpartition(" ")[2] for kind in convolutions} >= {"3x3", "7x7"}
    counted = 0
    for task in ("mask_gender", "age"):
        model, manifest = load_model(made / "runs" / task / "exp")
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            predict_logits(model, torch.zeros(3, 3, 32, 32), manifest.tta)
        counted += counter.get_total_flops()
    assert found["operations"] == pytest.approx(counted, rel=0.01)
    assert sum(row["operations"] for row in kinds.values()) >= 0.99 * counted
    whole = found["ms"]
    assert whole > 0.3 * sum(row["ms"] for row in kinds.values())  # which were measured apart
    for kind, row in kinds.items():
        shown = f"| {kind} | {row['calls']} | {row['ms']:.1f} |" in done.stdout
        assert shown == (row["ms"] >= whole / 200)
    done = run("operators.py", "--onnx", made / "onnx" / "age.onnx")
    assert done.returncode == 1 and "a single network; give the fused file" in done.stderr


def test_throughput(run: Run, made: Path, tmp_path: Path) -> None:
    pictures = sorted((made / "train" / "images").iterdir())[0]
    runs = [made / "runs" / task / "exp" for task in ("mask_gender", "age")]
    options = ["--checkpoints", *runs, "--onnx", made / "onnx", "--images", pictures]
    options += ["--ways", "original", "maskcls", "bound", "--runs", 2, "--batch-size", 4]
    written = ("--json", tmp_path / "figures.json", "--plot", tmp_path / "figures.png")
    done = run("throughput.py", *options, *written)
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["pictures"] == len(list(pictures.iterdir()))
    names = [row["way"] for row in figures["rows"]]
    assert names == ["original's way fp32", "maskcls fp32", "bare session fp32"]
    for row in figures["rows"]:
        assert len(row["images_per_s_all"]) == 2
        assert min(row["images_per_s_all"]) > 0
        assert 50 < row["peak_mb"] < 5000
        assert f"| {row['way']} | {row['images_per_s']:.1f} |" in done.stdout
    first, ours, _ = (row["images_per_s_all"] for row in figures["rows"])
    ratios = sorted(b / a for a, b in zip(first, ours, strict=True))
    assert f"({ratios[0]:.2f}–{ratios[1]:.2f})" in done.stdout
    with Image.open(tmp_path / "figures.png") as picture:
        picture.load()


def test_training(run: Run, data_dir: Callable[..., Path], tmp_path: Path) -> None:
    options = ["--data-dir", data_dir(12), "--height", 32, "--width", 32, "--batch-size", 16]
    options += ["--ways", "maskcls", "original", "--runs", 1, "--targets", 0.001, "--task", "mask"]
    written = ("--json", tmp_path / "figures.json", "--plot", tmp_path / "figures.png")
    done = run("training.py", *options, *written)
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["task"] == "mask"
    assert list(figures["runs"]) == ["maskcls", "original"]
    for way, turns in figures["runs"].items():
        [turn] = turns
        # A fifth of 12 people validates; the original's way leaves out what is short of a batch.
        assert turn["pictures"] == {"maskcls": 7 * 10, "original": 4 * 16}[way]
        ends = [epoch["end"] for epoch in turn["epochs"]]
        assert len(ends) == 2
        assert 0 < ends[0] < ends[1]
        assert all(0 <= epoch["f1"] <= 1 for epoch in turn["epochs"])
    ours, others = (turns[0]["epochs"][0]["end"] for turns in figures["runs"].values())
    assert "| maskcls |" in done.stdout
    # Any score reaches the target, so the first epoch is where both do.
    assert f"| 1 of 1 | {others:.0f} | {others / ours:.2f} (" in done.stdout
    with Image.open(tmp_path / "figures.png") as picture:
        picture.load()


def test_training_needs_a_second_epoch(run: Run) -> None:
    done = run("training.py", "--epochs", 1)
    assert done.returncode == 2
    assert "--epochs 1: the first epoch decodes" in done.stderr


def test_throughput_without_a_peer(run: Run, make_run: MakeRun, tmp_path: Path) -> None:
    runs = [make_run(task, "base", height=32, width=32) for task in ("mask_gender", "age")]
    options = ("--checkpoints", *runs, "--images", tmp_path / "train")
    done = run("throughput.py", *options, "--ways", "torchvision")
    assert done.returncode == 2
    assert "error: torchvision, compiled fp32: torchvision has no network like base" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("script", ["latency.py", "parity.py"])
def test_a_batch_of_nothing_is_a_wrong_option(run: Run, script: str) -> None:
    done = run(script, "--batch-sizes", 0)
    assert done.returncode == 2
    assert "--batch-sizes 0: needs at least 1" in done.stderr


@pytest.mark.skipif(
    not torch.cuda.is_available() or bool(why_not("cuda")), reason="needs CUDA and its provider"
)
def test_latency_on_cuda(run: Run, exported: tuple[object, ...], tmp_path: Path) -> None:
    options = ("--device", "cuda", "--batch-sizes", 1, 3, "--seconds", 0.05, "--no-compile")
    done = run("latency.py", *exported, *options, "--json", tmp_path / "latency.json")
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "latency.json").read_text())
    assert figures["gpu"]
    ways = {row["way"] for row in figures["rows"] if row["subject"] == "age"}
    assert {"onnxruntime CUDA", "onnxruntime CUDA IO binding", "onnxruntime CUDA graph"} <= ways
