"""The model repository for Triton: its config says what the ONNX file in it takes and answers.

Triton itself is not asked. The config is parsed as Protocol Buffers text by the part of Triton's
`ModelConfig` that it uses, with the field names, numbers and types of `model_config.proto`, and
held against what onnxruntime says of the file, and against its answers.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

from maskcls.commands import export as command
from maskcls.errors import ExportError
from maskcls.labels import ATTRIBUTES, MULTI
from maskcls.onnx import exporter as exporting
from maskcls.onnx.exporter import export
from maskcls.runtime import open_onnx
from maskcls.runtime.session import read_onnx

MakeRun = Callable[..., Path]
Field = descriptor_pb2.FieldDescriptorProto

DATA_TYPES = {"TYPE_UINT8": 2, "TYPE_INT64": 9, "TYPE_FP16": 10, "TYPE_FP32": 11}
OF_ONNXRUNTIME = {
    "tensor(uint8)": "TYPE_UINT8",
    "tensor(int64)": "TYPE_INT64",
    "tensor(float)": "TYPE_FP32",
}
MESSAGES: dict[str, list[tuple[str, int, int, bool, str]]] = {  # name, number, type, repeated, of
    "ModelTensorReshape": [("shape", 1, Field.TYPE_INT64, True, "")],
    "ModelInput": [
        ("name", 1, Field.TYPE_STRING, False, ""),
        ("data_type", 2, Field.TYPE_ENUM, False, "DataType"),
        ("dims", 4, Field.TYPE_INT64, True, ""),
        ("reshape", 5, Field.TYPE_MESSAGE, False, "ModelTensorReshape"),
    ],
    "ModelOutput": [
        ("name", 1, Field.TYPE_STRING, False, ""),
        ("data_type", 2, Field.TYPE_ENUM, False, "DataType"),
        ("dims", 3, Field.TYPE_INT64, True, ""),
        ("reshape", 5, Field.TYPE_MESSAGE, False, "ModelTensorReshape"),
    ],
    "ModelDynamicBatching": [
        ("preferred_batch_size", 1, Field.TYPE_INT32, True, ""),
        ("max_queue_delay_microseconds", 2, Field.TYPE_UINT64, False, ""),
    ],
    "ModelConfig": [
        ("name", 1, Field.TYPE_STRING, False, ""),
        ("platform", 2, Field.TYPE_STRING, False, ""),
        ("max_batch_size", 4, Field.TYPE_INT32, False, ""),
        ("input", 5, Field.TYPE_MESSAGE, True, "ModelInput"),
        ("output", 6, Field.TYPE_MESSAGE, True, "ModelOutput"),
        ("dynamic_batching", 11, Field.TYPE_MESSAGE, False, "ModelDynamicBatching"),
    ],
}


def schema() -> type[Any]:
    """The class of `ModelConfig`."""
    file = descriptor_pb2.FileDescriptorProto(
        name="model_config.proto", package="inference", syntax="proto3"
    )
    values = file.enum_type.add(name="DataType").value
    values.add(name="TYPE_INVALID", number=0)
    for name, number in DATA_TYPES.items():
        values.add(name=name, number=number)
    for message, fields in MESSAGES.items():
        described = file.message_type.add(name=message)
        for name, number, kind, repeated, of in fields:
            described.field.add(
                name=name,
                number=number,
                type=kind,  # type: ignore[arg-type]
                label=Field.LABEL_REPEATED if repeated else Field.LABEL_OPTIONAL,
                type_name=f".inference.{of}" if of else None,
            )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)  # type: ignore[no-untyped-call]
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("inference.ModelConfig"))


def read_config(repository: Path, name: str) -> Any:
    return text_format.Parse((repository / name / "config.pbtxt").read_text(), schema()())


def quiet(*_: object) -> None: ...


@pytest.fixture
def runs(make_run: MakeRun) -> list[Path]:
    return [
        make_run("mask_gender", "base", tta="none", crop=(0.8, 1.0)) / "best.pt",
        make_run("age", "base", height=40, width=56) / "best.pt",
    ]


def shape_of(tensor: Any) -> list[int]:
    """What Triton hands to the network, or gets from it: -1 is the batch, or any size."""
    dims = tensor.reshape.shape if tensor.HasField("reshape") else tensor.dims
    return [-1, *dims]


def check(repository: Path, name: str) -> Any:
    """The config, held against the file beside it."""
    config = read_config(repository, name)
    assert (config.name, config.platform) == (name, "onnxruntime_onnx")
    assert config.max_batch_size == 32
    assert config.HasField("dynamic_batching")
    file = repository / name / "1" / "model.onnx"
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    type_names = {number: text for text, number in DATA_TYPES.items()}
    for tensors, real in (
        (config.input, session.get_inputs()),
        (config.output, session.get_outputs()),
    ):
        assert [tensor.name for tensor in tensors] == [tensor.name for tensor in real]
        for tensor, found in zip(tensors, real, strict=True):
            assert type_names[tensor.data_type] == OF_ONNXRUNTIME[found.type]
            assert isinstance(found.shape[0], str)  # any batch
            assert shape_of(tensor) == [d if isinstance(d, int) else -1 for d in found.shape]
            assert list(tensor.dims)  # Triton takes no empty shape
    answer_as_triton_would(config, session)
    return config


def answer_as_triton_would(config: Any, session: Any) -> None:
    rng = np.random.default_rng(0)
    [images] = config.input
    for batch in (1, 3, config.max_batch_size):
        shape = [batch, *(size if size > 0 else 50 for size in images.dims)]
        pixels = rng.integers(0, 256, shape).astype(
            {"TYPE_UINT8": np.uint8, "TYPE_FP32": np.float32}[
                {number: text for text, number in DATA_TYPES.items()}[images.data_type]
            ]
        )
        answers = session.run([tensor.name for tensor in config.output], {images.name: pixels})
        for tensor, answer in zip(config.output, answers, strict=True):
            assert answer.reshape(batch, *tensor.dims).size == answer.size


def test_the_config_is_that_of_the_file(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "onnx"
    arguments = ["--mask-gender", str(runs[0]), "--age", str(runs[1]), "--out", str(out)]
    assert command.main([*arguments, "--triton"]) == 0
    repository = out / "model_repository"
    assert f"{repository}: for tritonserver --model-repository" in capsys.readouterr().out
    found = sorted(path.relative_to(repository).as_posix() for path in repository.rglob("*.*"))
    assert found == ["maskcls/1/model.onnx", "maskcls/config.pbtxt"]
    config = check(repository, "maskcls")
    assert list(config.input[0].dims) == [-1, -1, 3]
    outputs = {tensor.name: list(tensor.dims) for tensor in config.output}
    assert outputs == {f"{name}_prob": [len(values)] for name, values in ATTRIBUTES.items()} | {
        "class_prob": [MULTI.num_classes],
        "label": [1],
    }
    # It is the file that was compared, and opens as one.
    model = repository / "maskcls" / "1" / "model.onnx"
    assert model.read_bytes() == (out / "maskcls.onnx").read_bytes()
    assert open_onnx([model], "cpu").models[0].sha256 == read_onnx(out / "maskcls.onnx").sha256
    wrong_configs_are_seen(repository)


def wrong_configs_are_seen(repository: Path) -> None:
    config = repository / "maskcls" / "config.pbtxt"
    text = config.read_text()
    for old, new in (
        ("dims: [18]", "dims: [19]"),
        ("TYPE_UINT8", "TYPE_FP32"),
        ("reshape { shape: [] }", ""),
        ('"age_prob"', '"ages"'),
    ):
        assert old in text
        config.write_text(text.replace(old, new))
        with pytest.raises(AssertionError):
            check(repository, "maskcls")
    config.write_text(text.replace("data_type", "dtype"))
    with pytest.raises(text_format.ParseError):
        check(repository, "maskcls")


def test_half_precision_is_inside(runs: list[Path], tmp_path: Path) -> None:
    result = export(
        runs, tmp_path, precision="fp16", max_f1_drop=1.0, max_pictures=8, triton=True, say=quiet
    )
    assert result.repository is not None
    check(result.repository, "maskcls")


def test_a_fixed_size_and_one_network(runs: list[Path], tmp_path: Path) -> None:
    fixed = export(
        runs, tmp_path / "a", input_size=(80, 60), max_pictures=8, triton=True, say=quiet
    )
    assert fixed.repository is not None
    assert list(check(fixed.repository, "maskcls").input[0].dims) == [80, 60, 3]
    alone = export(runs[1:], tmp_path / "b", max_pictures=8, triton=True, say=quiet)
    assert alone.repository is not None
    config = check(alone.repository, "age")
    assert list(config.input[0].dims) == [3, 40, 56]
    assert [(tensor.name, list(tensor.dims)) for tensor in config.output] == [("logits", [3])]


def test_a_failed_export_leaves_no_earlier_model(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier = tmp_path / "model_repository" / "maskcls" / "1" / "model.onnx"
    earlier.parent.mkdir(parents=True)
    earlier.write_bytes(b"of an earlier export")
    convert = exporting.convert

    def wrong(model: Any, manifest: Any) -> Any:
        for parameter in model.parameters():
            parameter.data += 0.3
        return convert(model, manifest)

    monkeypatch.setattr(exporting, "convert", wrong)
    with pytest.raises(ExportError, match="does not answer as PyTorch does"):
        export(runs, tmp_path, max_pictures=8, say=quiet)
    assert not list(tmp_path.glob("**/*.onnx"))
