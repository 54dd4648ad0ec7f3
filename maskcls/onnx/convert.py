"""One trained network → one ONNX model: normalised pixels in, logits out."""

from __future__ import annotations

import logging
import warnings

import onnx
import torch
from google.protobuf.message import EncodeError  # type: ignore[import-untyped]
from torch import nn

from maskcls.errors import ExportError
from maskcls.manifest import Manifest
from maskcls.models import Answer
from maskcls.runtime.session import IMAGES, LOGITS

OPSET = 20


def convert(model: nn.Module, manifest: Manifest) -> onnx.ModelProto:
    """`images` float32 (batch, 3, H, W), normalised → `logits` float32 (batch, classes), as
    `Answer` has them; the batch is free. Whole in itself, with no path of this machine in it.

    Raises:
        ExportError: the exporter failed, or wrote another opset than it was asked for.
    """
    answer = Answer(model, manifest).cpu().eval()  # train mode exports without a complaint
    example = torch.randn(2, 3, *manifest.preprocess.size)
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    try:
        logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the exporter about itself
            program = torch.onnx.export(
                answer,
                (example,),
                dynamo=True,
                opset_version=OPSET,
                input_names=[IMAGES],
                output_names=[LOGITS],
                dynamic_shapes=({0: "batch"},),
                verbose=False,
            )
    except Exception as error:  # torch.onnx has many, all of them about the network
        reason = " ".join(str(error).split())[:300]
        raise ExportError(f"{manifest.model} cannot be converted: {reason}") from error
    finally:
        logger.setLevel(level)
    assert program is not None
    proto: onnx.ModelProto = program.model_proto
    without_traces(proto)
    check(proto)
    return proto


def without_traces(proto: onnx.ModelProto) -> None:
    """Removes what the exporter notes about where it ran: stack traces with local paths."""
    proto.doc_string = ""
    graphs = [proto.graph, *proto.functions]
    for graph in graphs:
        graph.doc_string = ""
        del graph.metadata_props[:]
        for node in graph.node:
            node.doc_string = ""
            del node.metadata_props[:]
        for value in graph.value_info:
            value.doc_string = ""
            del value.metadata_props[:]
    for value in (*proto.graph.input, *proto.graph.output):
        value.doc_string = ""
        del value.metadata_props[:]
    for tensor in proto.graph.initializer:
        tensor.doc_string = ""
        del tensor.metadata_props[:]
    del proto.metadata_props[:]


def check(proto: onnx.ModelProto) -> None:
    """
    Raises:
        ExportError: invalid ONNX, or another opset than `OPSET`.
    """
    try:
        onnx.checker.check_model(proto)
    except onnx.checker.ValidationError as error:
        raise ExportError(f"the exporter wrote invalid ONNX: {error}") from error
    except (EncodeError, ValueError) as error:  # which of them, depends on protobuf
        raise ExportError(
            f"an ONNX file holds 2 GB at most ({error}); export a soup, or an ensemble of fewer "
            "networks"
        ) from error
    found = {entry.version for entry in proto.opset_import if entry.domain == ""}
    if found != {OPSET}:
        raise ExportError(f"the exporter wrote opset {sorted(found)}, not {OPSET}")
