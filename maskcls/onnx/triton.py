"""An exported file as a model repository of NVIDIA's Triton Inference Server.

    OUT/model_repository/maskcls/config.pbtxt
                                 1/model.onnx

The config is made from the file's own inputs and outputs. Its format is `ModelConfig` in
`model_config.proto` of the repository triton-inference-server/common.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import onnx
from onnx import TensorProto

from maskcls.files import replacing, write_atomic
from maskcls.onnx.parity import BATCH_SIZES
from maskcls.runtime.session import read_onnx

REPOSITORY = "model_repository"
CONFIG = "config.pbtxt"
MAX_QUEUE_DELAY = 1000  # microseconds that a request waits for others to share a batch
TYPES: dict[int, str] = {
    TensorProto.UINT8: "TYPE_UINT8",
    TensorProto.INT64: "TYPE_INT64",
    TensorProto.FLOAT: "TYPE_FP32",
}


def write_repository(file: Path, out: Path) -> Path:
    """Writes the repository of an ONNX file into the folder `out`, and returns it. The model has
    the file's name."""
    model = model_file(out, file.name)
    with replacing(model) as temporary:
        shutil.copyfile(file, temporary)
    config = model_config(read_onnx(file).proto, file.stem)
    write_atomic(model.parents[1] / CONFIG, config.encode())
    return out / REPOSITORY


def remove_model(out: Path, name: str) -> None:
    """Takes an ONNX file out of the repository in the folder `out`, where it is there."""
    model = model_file(out, name)
    model.unlink(missing_ok=True)
    (model.parents[1] / CONFIG).unlink(missing_ok=True)
    for folder in model.parents[:3]:
        with contextlib.suppress(OSError):  # it is not there, or holds something else
            folder.rmdir()


def model_file(out: Path, name: str) -> Path:
    """Where the repository in the folder `out` has the ONNX file of that name."""
    return out / REPOSITORY / Path(name).stem / "1" / "model.onnx"


def model_config(proto: onnx.ModelProto, name: str) -> str:
    """The `config.pbtxt` of a network whose tensors have the batch first.

    Requests are put together to batches of up to 32 pictures, the largest that exports are compared
    in; of pictures that differ in size, those of one size.
    """
    lines = [
        "# Written by maskcls-export, from the file's own inputs and outputs.",
        f'name: "{name}"',
        'platform: "onnxruntime_onnx"',
        f"max_batch_size: {max(BATCH_SIZES)}",
        f"dynamic_batching {{ max_queue_delay_microseconds: {MAX_QUEUE_DELAY} }}",
    ]
    for kind, values in (("input", proto.graph.input), ("output", proto.graph.output)):
        for value in values:
            lines += [f"{kind} {{", *_tensor(value), "}"]
    return "\n".join(lines) + "\n"


def _tensor(value: onnx.ValueInfoProto) -> Iterator[str]:
    tensor = value.type.tensor_type
    _, *shape = tensor.shape.dim  # without the batch
    dims = [dim.dim_value if dim.HasField("dim_value") else -1 for dim in shape]
    yield f'  name: "{value.name}"'
    yield f"  data_type: {TYPES[tensor.elem_type]}"
    yield f"  dims: {dims or [1]}"
    if not dims:
        yield "  reshape { shape: [] }"  # Triton wants a dimension beside the batch's
