"""An export answers as PyTorch does, or there is none."""

from __future__ import annotations

import copy
import csv
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from google.protobuf.message import EncodeError
from onnx.reference import ReferenceEvaluator
from PIL import Image
from torch import nn

from maskcls.checkpoints import read_checkpoint, read_manifest, save_checkpoint
from maskcls.classifier import TorchClassifier
from maskcls.commands import export as command
from maskcls.commands import infer
from maskcls.config import MODEL_NAMES
from maskcls.data.runs import labelled_pictures, people_of_run
from maskcls.errors import CheckpointError, ConfigError, DataError, ExportError, ProviderError
from maskcls.files import file_digest, locked
from maskcls.images import read_image
from maskcls.labels import TASKS
from maskcls.manifest import ONNX_KEY, Calibration, Manifest, OnnxManifest
from maskcls.models import create_model
from maskcls.onnx import convert as conversion
from maskcls.onnx import exporter as exporting
from maskcls.onnx import fuse as fusing
from maskcls.onnx.convert import OPSET, convert
from maskcls.onnx.exporter import ExportResult, export
from maskcls.onnx.pictures import calibration_pixels
from maskcls.onnx.quantise import last_layers, to_int8, use_global_pools
from maskcls.preprocessing import PreprocessSpec
from maskcls.runtime import Classifier, open_onnx
from maskcls.runtime import session as sessions
from maskcls.runtime.session import IMAGES, LOGITS, open_session, read_onnx
from tests.runtime.test_session import WrongGpu, others_of_the_batch

CPU = torch.device("cpu")
MakeRun = Callable[..., Path]
TORCH = ("torch", "torchvision", "ignite", "efficientnet_pytorch")
SIZES = [(40, 30), (128, 96), (97, 211), (33, 300), (512, 384)]  # height, width


def quiet(*_: object) -> None: ...


@dataclasses.dataclass(frozen=True)
class Exported:
    """Two branches with a spec each, of which the second averages over mirror images, and their
    export. Tests read it."""

    folder: Path
    runs: list[Path]
    result: ExportResult

    @property
    def images(self) -> Path:
        return self.folder / "train" / "images"


@pytest.fixture(scope="module")
def exported(
    tmp_path_factory: pytest.TempPathFactory, make_data: Callable[..., Path], build_run: MakeRun
) -> Exported:
    folder = tmp_path_factory.mktemp("exported")
    make_run = partial(build_run, folder / "runs", make_data(folder / "train", 12))
    runs = [
        make_run("mask_gender", "base", tta="none", crop=(0.8, 1.0)) / "best.pt",
        make_run("age", "base", height=40, width=56) / "best.pt",
    ]
    return Exported(folder, runs, export(runs, folder / "onnx", say=quiet))


@pytest.fixture
def runs(exported: Exported) -> list[Path]:
    return exported.runs


def pictures(sizes: list[tuple[int, int]]) -> list[np.ndarray]:
    rng = np.random.default_rng(5)
    found = []
    for height, width in sizes:
        coarse = rng.integers(0, 256, (7, 5, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        found.append(np.asarray(image))
    return found


@pytest.fixture
def photos(exported: Exported, tmp_path: Path) -> Path:
    """The pictures of the data, without anything that says what they show; one is damaged."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for index, path in enumerate(sorted(exported.images.glob("*/*"))):
        shutil.copy(path, folder / f"{index}{path.suffix}")
    (folder / "bad.jpg").write_bytes(b"bad")
    return folder


# --- what is written ---------------------------------------------------------------------------


def test_three_files_that_say_what_they_are(exported: Exported) -> None:
    result, folder = exported.result, exported.folder
    assert [file.name for file in result.files] == ["mask_gender.onnx", "age.onnx", "maskcls.onnx"]
    assert sorted(path.name for path in (folder / "onnx").iterdir()) == sorted(
        ["mask_gender.onnx", "age.onnx", "maskcls.onnx", "parity.json", "model_card.md"]
    )
    assert json.loads((folder / "onnx" / "parity.json").read_text())["passed"] is True
    for file in result.files:
        manifest = read_onnx(file).manifest
        digests = dict(zip(("mask_gender", "age"), map(file_digest, exported.runs), strict=True))
        assert manifest.checkpoints == tuple(digests[n.task] for n in manifest.networks)
        assert manifest.parity["passed"] is True
        assert manifest.opset == 20 and manifest.precision == "fp32"
        assert manifest.networks[0].split_hash
        content = file.read_bytes()
        assert str(folder).encode() not in content  # nor any other path of this machine
        assert str(Path(conversion.__file__).parents[2]).encode() not in content
        assert b"site-packages" not in content
    assert read_onnx(result.files[2]).trained_on == {1, 2, len("age"), len("mask_gender")}


def test_one_network_alone(runs: list[Path], tmp_path: Path) -> None:
    result = export(runs[1:], tmp_path / "onnx", say=quiet)
    assert [file.name for file in result.files] == ["age.onnx"]
    with pytest.raises(CheckpointError, match="none answers mask"):
        open_onnx(result.files)


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_every_network_passes(name: str, make_run: Callable[..., Path], tmp_path: Path) -> None:
    run = make_run("age", name, height=64, width=48, tta="none")
    result = export([run / "best.pt"], tmp_path / "onnx", max_pictures=12, say=quiet)
    found = result.parity.networks["age"]
    assert found.max_logit < 1e-3 and found.flips == 0
    assert found.variation > 0.05


def test_the_average_of_the_weights_is_exported(
    make_run: Callable[..., Path], tmp_path: Path
) -> None:
    from maskcls.checkpoints import read_checkpoint, save_checkpoint

    path = make_run("age", "base") / "best.pt"
    content = read_checkpoint(path)
    content["ema"] = {name: value * 0.9 for name, value in content["model"].items()}
    save_checkpoint(content, path)
    result = export([path], tmp_path / "onnx", say=quiet)  # the gate compares with the average
    weights = {
        t.name: onnx.numpy_helper.to_array(t)
        for t in read_onnx(result.files[0]).proto.graph.initializer
    }
    bias = content["ema"]["fc.bias"].numpy()
    assert any(value.shape == bias.shape and np.allclose(value, bias) for value in weights.values())


# --- the fused graph ---------------------------------------------------------------------------


def test_raw_pixels_of_any_size_answer_as_checkpoints_do(exported: Exported) -> None:
    result = exported.result
    reference = TorchClassifier(exported.runs, CPU)
    arrays = pictures(SIZES * 3)
    images = [Image.fromarray(array) for array in arrays]
    expected = reference.predict(
        [np.stack([spec.resize(image) for image in images]) for spec in reference.specs]
    )
    fused = open_onnx([result.files[2]]).predict([arrays])
    singles = open_onnx(list(result.files[:2]))
    alone = singles.predict(
        [np.stack([spec.resize(image) for image in images]) for spec in singles.specs if spec]
    )
    assert expected.argmax(axis=1).std() > 0
    np.testing.assert_allclose(alone, expected, atol=1e-5)
    np.testing.assert_allclose(fused, expected, atol=0.02)  # a level in a few pixels
    best = np.sort(expected, axis=1)
    clear = best[:, -1] - best[:, -2] > 0.02  # random weights answer some with a tie
    assert clear.sum() > 5
    np.testing.assert_array_equal(fused.argmax(axis=1)[clear], expected.argmax(axis=1)[clear])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("crop", [(1.0, 1.0), (0.8, 1.0), (0.61, 0.37)])
def test_the_resize_is_pillows(size: tuple[int, int], crop: tuple[float, float]) -> None:
    spec = PreprocessSpec(48, 40, crop)
    graph = fusing._Graph()
    pixels = graph.node("Transpose", [IMAGES], perm=[0, 3, 1, 2])
    output = fusing._prepare(graph, pixels, spec)
    helper = onnx.helper
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "g",
            [helper.make_tensor_value_info(IMAGES, onnx.TensorProto.UINT8, ["n", "h", "w", 3])],
            [helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, ["n", 3, "H", "W"])],
            graph.initializers,
        ),
        opset_imports=[helper.make_opsetid("", conversion.OPSET)],
        ir_version=fusing.IR_VERSION,
    )
    session = open_session(model.SerializeToString(), Path("graph"), "cpu")
    [array] = pictures([size])
    [found] = session.run([output], {IMAGES: np.stack([array, array[:, ::-1]])})
    images = [Image.fromarray(part) for part in (array, np.ascontiguousarray(array[:, ::-1]))]
    expected = spec.normalise(np.stack([spec.resize(image) for image in images]))
    level = 1 / 255 / min(spec.std)
    assert np.abs(found - expected).max() <= 1.01 * level
    if size == (512, 384) and crop[1] == 1.0:  # the competition's pictures: the same pixels
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_outputs_agree_with_one_another(exported: Exported) -> None:
    file = exported.result.files[2]
    session = open_session(file.read_bytes(), file, "cpu")
    batch = np.stack(pictures([(60, 50)] * 9))
    mask, gender, age, joint, label = session.run(None, {IMAGES: batch})
    grid = joint.reshape(-1, 3, 2, 3)
    np.testing.assert_allclose(grid.sum(axis=(2, 3)), mask, atol=1e-6)
    np.testing.assert_allclose(grid.sum(axis=(1, 3)), gender, atol=1e-6)
    np.testing.assert_allclose(grid.sum(axis=(1, 2)), age, atol=1e-6)
    np.testing.assert_array_equal(joint.argmax(axis=1), label)
    assert label.dtype == np.int64 and label.shape == (9,)


def test_a_fixed_input_size(runs: list[Path], tmp_path: Path) -> None:
    file = export(runs, tmp_path / "onnx", input_size=(80, 60), say=quiet).files[2]
    opened = read_onnx(file)
    shape = opened.proto.graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_value for dim in shape] == [0, 80, 60, 3]
    with Classifier(file) as classifier:  # brings pictures of other sizes to it
        assert all(a.label is not None for a in classifier.predict(pictures(SIZES)))


def test_what_a_small_input_size_costs_is_measured_on_the_pictures(
    runs: list[Path], tmp_path: Path
) -> None:
    """PyTorch sees them as they are, as it did when it was scored."""
    out = tmp_path / "onnx"
    whole = export(runs, out, say=quiet).parity
    small = export(runs, out, input_size=(32, 32), max_f1_drop=1.0, say=quiet).parity
    assert small.f1_pytorch == whole.f1_pytorch
    assert small.label_flips > whole.label_flips == 0
    assert small.networks == whole.networks
    assert small.f1_pytorch >= small.f1_given == small.f1_onnx
    most = small.f1_pytorch - small.f1_onnx - 0.001
    with pytest.raises(ExportError, match=r"macro F1 falls.*the input size costs \d\.\d+: take"):
        export(runs, out, input_size=(32, 32), max_f1_drop=most, say=quiet)
    with pytest.raises(ConfigError, match=r"input_size \(80, 60\): is of maskcls\.onnx"):
        export(runs[1:], tmp_path / "one", input_size=(80, 60), say=quiet)


def test_a_file_of_one_input_size_answers_to_that_as_pytorch_does(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the size costs so little that macro F1 may fall by it."""
    real = exporting.fuse

    def wrong(networks: Sequence[tuple[onnx.ModelProto, Manifest]], size: Any) -> onnx.ModelProto:
        changed = []
        for proto, manifest in networks:
            spec = manifest.preprocess
            other = replace(spec, std=tuple(part / 4 for part in spec.std))
            changed.append((proto, replace(manifest, preprocess=other)))
        return real(changed, size)

    monkeypatch.setattr(exporting, "fuse", wrong)
    with pytest.raises(ExportError, match=r"from file to label \d+ of \d+ labels differ"):
        export(runs, tmp_path, input_size=(64, 48), max_f1_drop=1.0, say=quiet)


def test_a_link_to_a_file_stays_one(runs: list[Path], tmp_path: Path) -> None:
    out, store = tmp_path / "onnx", tmp_path / "store"
    files = [*export(runs, out, say=quiet).files, out / "parity.json", out / "model_card.md"]
    store.mkdir()
    for file in files:
        file.rename(store / file.name).write_bytes(b"old")
        file.symlink_to(store / file.name)
    export(runs, out, say=quiet)
    for file in files:
        assert file.is_symlink() and file.resolve() == store / file.name
        assert file.read_bytes() != b"old"


def test_nothing_to_export(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint"):
        export([], tmp_path / "onnx", say=quiet)


def test_two_exports_do_not_write_one_folder(runs: list[Path], tmp_path: Path) -> None:
    with locked(tmp_path / ".lock", lambda: None):
        with pytest.raises(ExportError, match="another export is writing into it"):
            export(runs, tmp_path, say=quiet)
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    export(runs, tmp_path, say=quiet)
    assert not (tmp_path / ".lock").exists()


def test_a_network_of_more_than_two_gigabytes(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(proto: onnx.ModelProto) -> None:
        raise EncodeError("Failed to serialize proto")

    monkeypatch.setattr(onnx.checker, "check_model", fail)
    with pytest.raises(ExportError, match="holds 2 GB at most"):
        conversion.check(onnx.ModelProto())


def test_a_kill_leaves_no_files_of_two_exports(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "onnx"
    names = [file.name for file in export(runs, out, say=quiet).files]
    old = {name: (out / name).read_bytes() for name in names}
    real = os.replace

    def killed(source: Any, target: Any) -> None:
        if Path(target).suffix == ".onnx":
            raise KeyboardInterrupt
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            export(runs, out, precision="fp16", say=quiet)
    assert not list(out.glob("*.onnx"))
    (out / ".age.onnx.123.tmp").write_bytes(b"of a kill")
    export(runs, out, say=quiet)
    assert sorted(path.name for path in out.iterdir() if path.name.startswith(".")) == []
    assert {name: len((out / name).read_bytes()) for name in names} == {
        name: len(content) for name, content in old.items()
    }


# --- calibration -------------------------------------------------------------------------------

CALIBRATIONS = {
    "mask_gender": Calibration(0.4, (-0.5, 0.25, 1.0, 0.0, 0.5, -0.25)),
    "age": Calibration(1.7, (-0.2, 0.1, 0.15)),
}


@pytest.fixture
def calibrated_runs(make_run: MakeRun) -> list[Path]:
    """As `runs`, and each with a calibration."""
    given = {"mask_gender": {"tta": "none"}, "age": {"height": 40, "width": 56}}
    return [
        make_run(task, "base", calibration=CALIBRATIONS[task], **values) / "best.pt"
        for task, values in given.items()
    ]


def test_each_file_knows_whom_its_own_network_has_seen(
    calibrated_runs: list[Path], tmp_path: Path
) -> None:
    first, second, fused = export(calibrated_runs, tmp_path / "onnx", say=quiet).files
    seen = [set(read_checkpoint(run)["seen"].tolist()) for run in calibrated_runs]
    assert seen[0] != seen[1]
    assert [read_onnx(file).trained_on for file in (first, second)] == seen
    assert read_onnx(fused).trained_on == seen[0] | seen[1]
    content = read_checkpoint(calibrated_runs[0])
    save_checkpoint({key: content[key] for key in content if key != "seen"}, calibrated_runs[0])
    first, second, fused = export(calibrated_runs, tmp_path / "onnx", say=quiet).files
    assert [read_onnx(file).trained_on for file in (first, second, fused)] == [None, seen[1], None]


def test_labels_that_cannot_be_read_are_not_passed_over(
    calibrated_runs: list[Path], tmp_path: Path
) -> None:
    data = shutil.copytree(tmp_path / "train", tmp_path / "copy")
    table = data / "train.csv"
    lines = table.read_text("utf-8").splitlines()
    lines[1] = lines[1].replace(lines[1].split(",")[3], "abc", 1)
    table.write_text("\n".join(lines), "utf-8")
    with pytest.raises(DataError, match="line 2"):
        export(calibrated_runs, tmp_path / "onnx", pictures=data, say=quiet)
    said: list[str] = []
    person = data / "images" / lines[2].split(",")[4]
    export(calibrated_runs, tmp_path / "onnx", pictures=person, say=said.append)
    assert any("have no labels: " in line for line in said)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_a_calibration_is_in_the_files(
    calibrated_runs: list[Path], tmp_path: Path, precision: str
) -> None:
    out = tmp_path / "onnx"
    result = export(calibrated_runs, out, precision=precision, max_f1_drop=1.0, say=quiet)
    allowed = {"fp32": 1e-4, "fp16": 0.02, "int8": 0.2}[precision]
    reference = TorchClassifier(calibrated_runs, CPU)
    files = [read_onnx(file) for file in result.files]
    images = [Image.fromarray(array) for array in pictures([(120, 90)] * 24)]
    pixels = [np.stack([spec.resize(image) for image in images]) for spec in reference.specs]
    for index, task in enumerate(reference.tasks):
        expected = reference.logits(index, pixels[index])
        session = open_session(files[index].content, result.files[index], "cpu")
        batch = reference.specs[index].normalise(pixels[index])
        found = session.run([LOGITS], {IMAGES: batch})[0]
        np.testing.assert_allclose(found, expected, atol=allowed)
        # Without the bias this would fail.
        without = found - np.array(CALIBRATIONS[task].bias, dtype=np.float32)
        assert np.abs(without - expected).max() > 0.14
        # Not in steps of 8 bits: what follows the last layer is computed in floats.
        assert len(np.unique(found)) == found.size or precision == "fp16"
    assert [network.calibration for network in files[2].manifest.networks] == [
        CALIBRATIONS[task] for task in reference.tasks
    ]
    if precision == "fp32":
        fused = open_onnx([result.files[2]]).predict([[np.asarray(image) for image in images]])
        expected = reference.predict(pixels)
        np.testing.assert_allclose(fused, expected, atol=0.02)  # a level in a few pixels
        best = np.sort(expected, axis=1)
        clear = best[:, -1] - best[:, -2] > 0.02
        assert clear.any()
        np.testing.assert_array_equal(fused.argmax(axis=1)[clear], expected.argmax(axis=1)[clear])


def test_a_file_without_its_calibration_is_caught(
    calibrated_runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert = exporting.convert

    def other(model: Any, manifest: Any) -> onnx.ModelProto:
        bare = Calibration(manifest.calibration.temperature, (0.0,) * len(manifest.class_names))
        return convert(model, dataclasses.replace(manifest, calibration=bare))

    monkeypatch.setattr(exporting, "convert", other)
    with pytest.raises(ExportError, match=r"mask_gender: logits differ .*age: logits differ"):
        export(calibrated_runs, tmp_path / "onnx", say=quiet)
    assert [path.name for path in (tmp_path / "onnx").iterdir()] == ["parity.json"]


def test_a_provider_that_mixes_up_the_batch_is_not_taken(
    exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a resize that reads other pictures' rows would."""
    file = exported.result.files[2]
    monkeypatch.setattr(sessions, "why_not", lambda provider: "")
    monkeypatch.setattr(ort, "InferenceSession", WrongGpu(others_of_the_batch))
    with pytest.raises(ProviderError, match=r"answers otherwise .* on which .*maskcls\.onnx was"):
        open_onnx([file], "cuda")
    monkeypatch.setattr(ort, "InferenceSession", WrongGpu(lambda answer: answer))
    assert open_onnx([file], "cuda").provider == "CUDAExecutionProvider"


# --- smaller arithmetic ------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_other_precisions(exported: Exported, tmp_path: Path, precision: str) -> None:
    plain = exported.result
    result = export(exported.runs, tmp_path, precision=precision, max_f1_drop=0.2, say=quiet)
    assert read_onnx(result.files[2]).manifest.precision == precision
    sizes = [sum(f.stat().st_size for f in r.files) for r in (plain, result)]
    assert sizes[1] < 0.6 * sizes[0]


def test_means_over_pictures_become_pools() -> None:
    """And no other mean does."""
    helper, shape = onnx.helper, ["batch", 3, 4, 5]
    axes = {"pool": [-1, 2], "channels": [1, 2], "flat": [2, 3], "all": [1, 2, 3]}
    nodes = [
        helper.make_node("ReduceMean", ["x", f"{name}_axes"], [name], keepdims=int(name != "flat"))
        for name in axes
    ]
    graph = helper.make_graph(
        nodes,
        "means",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in axes],
        [onnx.numpy_helper.from_array(np.array(a), f"{name}_axes") for name, a in axes.items()],
    )
    proto = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=fusing.IR_VERSION
    )
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(np.float32)

    def answers() -> list[np.ndarray]:
        found: list[np.ndarray] = ReferenceEvaluator(proto).run(None, {"x": x})
        return found

    before = answers()
    use_global_pools(proto)
    kinds = {node.output[0]: node.op_type for node in proto.graph.node}
    assert kinds == dict.fromkeys(axes, "ReduceMean") | {"pool": "GlobalAveragePool"}
    for one, other in zip(before, answers(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


class Excited(nn.Module):
    """What EfficientNets are made of: a swish, and a squeeze-and-excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.gate = nn.Conv2d(8, 8, 1)
        self.fc = nn.Linear(8, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = nn.functional.silu(self.stem(images))
        x = x * self.gate(nn.functional.adaptive_avg_pool2d(x, 1)).sigmoid()
        answer: torch.Tensor = self.fc(x.mean((2, 3), keepdim=True).flatten(1))
        return answer


def test_int8_stays_in_int8(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """One way in, and one way out before the last layer."""
    torch.manual_seed(0)
    names = TASKS["age"].class_names
    proto = convert(Excited(), Manifest("age", names, PreprocessSpec(40, 32), "base", {}))
    images = np.random.default_rng(0).normal(size=(32, 3, 40, 32)).astype(np.float32)
    small = to_int8(proto, images)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    session = ort.InferenceSession(small.SerializeToString(), options, ["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]
    assert kinds.count("QuantizeLinear") == kinds.count("DequantizeLinear") == 1
    assert {"QLinearGlobalAveragePool", "QLinearConv", "Gemm"} <= set(kinds)
    assert "ReduceMean" not in kinds
    expected = ReferenceEvaluator(proto).run(None, {IMAGES: images})[0]
    answer = session.run(None, {IMAGES: images})[0]
    np.testing.assert_allclose(answer, expected, atol=0.05 * np.ptp(expected))
    assert capfd.readouterr() == ("", "")  # onnxruntime warns on its own


def test_int8_answers_alike_on_processors_without_vnni() -> None:
    """They add up two products in 16 bits, which bright pictures and large weights overflow."""
    torch.manual_seed(0)
    network = Excited()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.abs_()
    names = TASKS["age"].class_names
    proto = convert(network, Manifest("age", names, PreprocessSpec(40, 32), "base", {}))
    images = np.random.default_rng(0).uniform(1, 2, size=(32, 3, 40, 32)).astype(np.float32)
    small = to_int8(proto, images)
    weights = [
        array
        for tensor in small.graph.initializer
        if (array := onnx.numpy_helper.to_array(tensor)).dtype == np.int8 and array.ndim == 4
    ]
    assert len(weights) == 2
    for array in weights:
        assert 2 * 255 * np.abs(array.astype(int)).max() < 2**15
    plain = ort.SessionOptions()  # dequantised, and multiplied as floats
    plain.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    answer, expected = (
        ort.InferenceSession(small.SerializeToString(), options, ["CPUExecutionProvider"]).run(
            None, {IMAGES: images}
        )[0]
        for options in (None, plain)
    )
    assert np.ptp(expected) > 0
    np.testing.assert_allclose(answer, expected, atol=0.02 * np.ptp(expected))


def test_what_is_done_with_logits_is_no_work_for_int8() -> None:
    """Of a picture and of its mirror image, which are two passes through the network."""
    names = TASKS["age"].class_names
    manifest = Manifest(
        "age",
        names,
        PreprocessSpec(40, 32),
        "base",
        {},
        config={"tta": "flip"},
        calibration=Calibration(2.0, (0.5, 0.0, -0.5)),
    )
    proto = convert(Excited(), manifest)
    found = set(last_layers(proto))
    kinds = [node.op_type for node in proto.graph.node if node.name in found]
    assert kinds.count("Gemm") == 2 and {"LogSoftmax", "Div", "Add"} <= set(kinds)
    assert not {"Conv", "Mul", "Sigmoid", "Flatten", "Reshape"} & set(kinds)
    every = [node.op_type for node in proto.graph.node]
    assert every.count("Gemm") == 2 and every.count("Conv") == 4
    images = np.random.default_rng(0).normal(size=(32, 3, 40, 32)).astype(np.float32)
    small = to_int8(proto, images)
    quantised = {value for n in small.graph.node if n.op_type == "DequantizeLinear"
                 for value in n.output}  # fmt: skip
    for node in small.graph.node:
        if node.op_type in ("LogSoftmax", "Div", "Add"):
            assert not quantised & {*node.input}


def test_int8_spares_the_tensors_that_it_holds_worst() -> None:
    torch.manual_seed(0)
    names = TASKS["age"].class_names
    proto = convert(Excited(), Manifest("age", names, PreprocessSpec(40, 32), "base", {}))
    images = np.random.default_rng(0).normal(size=(32, 3, 40, 32)).astype(np.float32)
    expected = ReferenceEvaluator(proto).run(None, {IMAGES: images})[0]
    pairs, errors = [], []
    for spared in (0, 1, 4, 100):
        small = to_int8(proto, images, spared)
        pairs.append([node.op_type for node in small.graph.node].count("QuantizeLinear"))
        session = ort.InferenceSession(small.SerializeToString(), None, ["CPUExecutionProvider"])
        errors.append(np.abs(session.run(None, {IMAGES: images})[0] - expected).max())
    assert pairs[0] > pairs[1] > pairs[2] > pairs[3] == 0
    assert errors[2] < errors[0]
    assert errors[3] < 1e-5


def coarse(proto: onnx.ModelProto, *_: object) -> onnx.ModelProto:
    """Weights of three values, to the loss of the score."""
    copied = copy.deepcopy(proto)
    for tensor in copied.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if values.dtype == np.float32 and values.ndim == 4:
            step = np.abs(values).max()
            tensor.CopyFrom(
                onnx.numpy_helper.from_array((values / step).round() * step, tensor.name)
            )
    return copied


@pytest.mark.parametrize("enough", [12, None])
def test_int8_spares_as_much_as_the_score_asks_for(
    runs: list[Path],
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    enough: int | None,
) -> None:
    def fussy(proto: onnx.ModelProto, pixels: np.ndarray, spared: int) -> onnx.ModelProto:
        return coarse(proto) if enough is None or spared < enough else proto

    monkeypatch.setattr(exporting, "to_int8", fussy)
    said: list[str] = []

    def run() -> None:
        export(runs[:1], tmp_path / "onnx", precision="int8", pictures=photos, say=said.append)

    if enough is None:
        with pytest.raises(ExportError, match="macro F1 falls from"):
            run()
    else:
        run()
    verdict = json.loads((tmp_path / "onnx" / "parity.json").read_text())
    assert verdict["passed"] == (enough is not None)
    assert verdict["spared_tensors"] == (enough or exporting.SPARED[-1])
    tried = [line for line in said if line.startswith("int8 costs")]
    assert len(tried) == (2 if enough else len(exporting.SPARED))


def test_a_loss_of_score_is_refused(
    runs: list[Path], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "to_fp16", coarse)
    with pytest.raises(ExportError, match="macro F1 falls from"):
        export(runs, tmp_path / "onnx", precision="fp16", pictures=photos, say=quiet)
    assert [path.name for path in (tmp_path / "onnx").iterdir()] == ["parity.json"]


# --- the gate can fail -------------------------------------------------------------------------


def wrong_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    prepare = fusing._prepare

    def other(graph: Any, pixels: str, spec: PreprocessSpec) -> str:
        return prepare(graph, pixels, dataclasses.replace(spec, mean=(0.1, 0.9, 0.5)))

    monkeypatch.setattr(fusing, "_prepare", other)


def wrong_class_order(monkeypatch: pytest.MonkeyPatch) -> None:
    convert = exporting.convert

    def other(model: Any, manifest: Any) -> onnx.ModelProto:
        other = copy.deepcopy(model)
        other.fc.weight.data = other.fc.weight.data.flip(0)
        other.fc.bias.data = other.fc.bias.data.flip(0)
        return convert(other, manifest)

    monkeypatch.setattr(exporting, "convert", other)


def wrong_resize(monkeypatch: pytest.MonkeyPatch) -> None:
    fuse = exporting.fuse

    def other(*args: Any) -> onnx.ModelProto:
        proto = fuse(*args)
        for node in proto.graph.node:
            if node.op_type == "Resize":
                kept = [a for a in node.attribute if a.name == "coordinate_transformation_mode"]
                del node.attribute[:]
                node.attribute.extend([*kept, onnx.helper.make_attribute("mode", "nearest")])
        return proto

    monkeypatch.setattr(exporting, "fuse", other)


def wrong_label(monkeypatch: pytest.MonkeyPatch) -> None:
    fuse = exporting.fuse

    def other(*args: Any) -> onnx.ModelProto:
        proto = fuse(*args)
        [node] = [node for node in proto.graph.node if node.op_type == "ArgMax"]
        node.op_type = "ArgMin"
        return proto

    monkeypatch.setattr(exporting, "fuse", other)


@pytest.mark.parametrize("break_it", [wrong_mean, wrong_class_order, wrong_resize, wrong_label])
def test_what_is_broken_is_caught(
    break_it: Callable[[pytest.MonkeyPatch], None],
    exported: Exported,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "onnx"
    shutil.copytree(exported.folder / "onnx", out)  # whole before; the files of then do not stay
    break_it(monkeypatch)
    with pytest.raises(ExportError, match=r"does not answer as PyTorch does: .*differ"):
        export(exported.runs, out, say=quiet)
    assert [path.name for path in out.iterdir()] == ["parity.json"]
    verdict = json.loads((out / "parity.json").read_text())
    assert verdict["passed"] is False and verdict["failures"]


def test_padding_for_another_size_is_caught(
    make_run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run("age", "efficientnet_b3", height=64, width=50, tta="none") / "best.pt"
    convert = exporting.convert

    def other(model: Any, manifest: Any) -> onnx.ModelProto:
        own = manifest.model_args
        padded = create_model(
            manifest.model, len(manifest.class_names), (300, 300), own["steps"], own["auxiliary"]
        )
        padded.load_state_dict(model.state_dict())
        return convert(padded, manifest)

    monkeypatch.setattr(exporting, "convert", other)
    with pytest.raises(ExportError, match="age: logits differ by up to"):
        export([run], tmp_path / "onnx", max_pictures=12, say=quiet)


def test_a_network_that_answers_its_bias_proves_nothing(
    make_run: Callable[..., Path], tmp_path: Path
) -> None:
    run = make_run("age", "efficientnet_b3", trained=False, height=32, width=32, tta="none")
    with pytest.raises(ExportError, match="the logits vary by .* says nothing"):
        export([run / "best.pt"], tmp_path / "onnx", max_pictures=12, say=quiet)


# --- pictures to compare on --------------------------------------------------------------------


def test_people_who_validated_are_compared_on(exported: Exported) -> None:
    with (exported.runs[0].parent / "split.csv").open(newline="") as file:
        people = sum(row["side"] == "val" for row in csv.DictReader(file))
    parity = exported.result.parity
    assert parity.pictures == people * 7
    assert parity.f1_of == "labels of the data"


def test_any_folder_of_pictures_will_do(runs: list[Path], photos: Path, tmp_path: Path) -> None:
    parity = export(runs, tmp_path / "onnx", pictures=photos, say=quiet).parity
    assert parity.pictures == 84
    assert parity.f1_of == "the labels that PyTorch gives" and parity.f1_pytorch == 1.0


def test_a_split_that_is_gone_or_another(exported: Exported, tmp_path: Path) -> None:
    shutil.copytree(exported.folder / "runs", tmp_path / "runs")
    runs = [tmp_path / run.relative_to(exported.folder) for run in exported.runs]
    table = runs[0].parent / "split.csv"
    table.write_text(table.read_text().replace("val", "train", 1))
    with pytest.raises(DataError, match="is not the split of .*--parity-images"):
        export(runs, tmp_path / "onnx", say=quiet)
    table.unlink()
    with pytest.raises(DataError, match="no split of the run .*--parity-images"):
        export(runs, tmp_path / "onnx", say=quiet)


# --- the commands ------------------------------------------------------------------------------


def test_export_then_label(
    exported: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs, out = exported.runs, tmp_path / "onnx"
    argv = ["--mask-gender", str(runs[0].parent), "--age", str(runs[1]), "--out", str(out)]
    assert command.main(argv) == 0
    said = capsys.readouterr().out
    assert "parity: passed; 0 of 28 labels differ" in said
    assert f"next: maskcls-infer --model {out / 'maskcls.onnx'}" in said
    images = str(exported.images)
    texts = {}
    for name, model in {
        "fused": [out / "maskcls.onnx"],
        "lanes": [out / "maskcls.onnx"],
        "folder": [out],
        "single": [out / "age.onnx", out / "mask_gender.onnx"],
        "torch": runs,
    }.items():
        target = tmp_path / f"{name}.csv"
        argv = ["--model", *map(str, model), "--images", images, "--out", str(target)]
        argv += ["--lanes", "3"] if name == "lanes" else []
        assert infer.main([*argv, "--provider", "cpu"]) == 0
        texts[name] = target.read_bytes()
    assert len(set(texts.values())) == 1
    assert len(texts["fused"].splitlines()) == 12 * 7 + 1


def test_labelling_without_pytorch(exported: Exported, tmp_path: Path) -> None:
    """As where only the extra `runtime` is installed: the same bytes, and a clear word on what is
    not there."""
    file = exported.result.files[2]
    images, out = str(exported.images), [tmp_path / f"{n}.csv" for n in "ab"]
    argv = ["--model", str(file), "--images", images, "--provider", "cpu", "--probabilities"]
    assert infer.main([*argv, "--out", str(out[0])]) == 0
    code = f"""
import sys
class No:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {sorted(TORCH)}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, No())
from maskcls.commands.infer import main
sys.exit(main(sys.argv[1:]))
"""
    ran = [sys.executable, "-c", code]
    done = subprocess.run([*ran, *argv, "--out", str(out[1])], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert out[0].read_bytes() == out[1].read_bytes()
    argv[1] = str(exported.runs[0])
    done = subprocess.run([*ran, *argv, "--out", str(out[1])], capture_output=True, text=True)
    assert done.returncode == 1
    assert "error: this command needs the package 'torch'" in done.stderr
    assert "maskcls[train]" in done.stderr and "Traceback" not in done.stderr


def test_a_killed_job_goes_on_to_the_same_bytes(exported: Exported, tmp_path: Path) -> None:
    """A real process, a real kill -9, between any two parts."""
    file = exported.result.files[2]
    pictures = sorted(exported.images.glob("*/*"))
    folder = tmp_path / "many"
    folder.mkdir()
    for index in range(2000):
        (folder / f"{index:05d}.jpg").symlink_to(pictures[index % len(pictures)])
    script = Path(conversion.__file__).parents[2] / "cli" / "infer.py"
    argv = [sys.executable, str(script), "--model", str(file), "--images", str(folder)]
    argv += ["--provider", "cpu", "--out"]
    subprocess.run([*argv, str(tmp_path / "whole.csv")], check=True, capture_output=True)
    out = tmp_path / "killed.csv"
    process = subprocess.Popen([*argv, str(out)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    parts = tmp_path / "killed.csv.parts"
    deadline = time.monotonic() + 60
    while not list(parts.glob("*.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert list(parts.glob("*.jsonl")) and not out.exists()
    done = subprocess.run([*argv, str(out)], capture_output=True, text=True)
    assert done.returncode == 1 and "--resume" in done.stderr
    subprocess.run([*argv, str(out), "--resume"], check=True, capture_output=True)
    assert out.read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert not parts.exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "--model-dir is missing"),
        (["--model-dir", "a", "--age", "b"], "not both"),
        (["--age", "b", "--parity-pictures", "0"], "must be 1 or more"),
        (["--age", "b", "--max-f1-drop", "2"], "must be from 0 to 1"),
        (["--age", "b", "--input-size", "5", "40"], "sides must be from 32"),
    ],
)
def test_wrong_options(
    argv: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("SM_MODEL_DIR", raising=False)
    assert command.main([*argv, "--out", str(tmp_path / "onnx")]) == 2
    assert message in capsys.readouterr().err


def test_two_networks_for_one_task(runs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="two networks for one task"):
        export([runs[0], runs[0]], tmp_path / "onnx", say=quiet)


def test_a_manifest_survives_its_file(exported: Exported) -> None:
    file = exported.result.files[2]
    [text] = [e.value for e in read_onnx(file).proto.metadata_props if e.key == ONNX_KEY]
    manifest = OnnxManifest.from_json(text)
    assert OnnxManifest.from_json(manifest.to_json()) == manifest
    assert manifest.networks[0].preprocess.crop == (0.8, 1.0)
    assert "data_dir" not in manifest.networks[0].config


def test_classifier_takes_files_and_arrays(exported: Exported) -> None:
    file = exported.result.files[2]
    paths = sorted(exported.images.glob("*/*"))[:20]
    with Classifier(file, provider="cpu", batch_size=7) as classifier:
        assert classifier.provider == "CPUExecutionProvider"
        answers = classifier.predict(paths)
        arrays = classifier.predict([np.asarray(read_image(path)) for path in paths])
        assert answers == arrays
        assert len({answer.label for answer in arrays}) > 1


def test_an_option_takes_a_run_of_its_own_task(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = runs[0].parents[2]
    for run, holds in ((runs[0].parent, "mask_gender"), (folder, "mask_gender and age")):
        assert command.main(["--age", str(run), "--out", str(tmp_path / "onnx")]) == 2
        line = capsys.readouterr().err.splitlines()[-1]
        assert f"--age {run}: holds {holds}, not one run of age" in line
    assert not (tmp_path / "onnx").exists()


def test_a_file_in_the_place_of_the_folder_is_told_before_the_work(
    runs: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "onnx").touch()
    said: list[str] = []
    with pytest.raises(OSError):
        export(runs, tmp_path / "onnx", say=said.append)
    assert said == []


def test_int8_is_calibrated_on_training_people_alone(make_run: MakeRun) -> None:
    """The macro F1 of its gate is of those who validate."""
    run = make_run("age", "base") / "best.pt"
    manifest = read_manifest(run)
    found = calibration_pixels(run, manifest)
    paths = [path for path, _ in labelled_pictures(people_of_run(run, manifest, "train"))]
    spec = manifest.preprocess
    expected = spec.normalise(np.stack([spec.resize(read_image(path)) for path in paths]))
    assert found.shape == expected.shape and len(found) == 8 * 7

    def rows(pixels: np.ndarray) -> list[bytes]:
        return sorted(picture.tobytes() for picture in pixels)

    assert rows(found) == rows(expected)
