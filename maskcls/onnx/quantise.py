"""Smaller arithmetic: float16 for CUDA, int8 for CPUs. Both leave inputs and outputs float32."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx

from maskcls.onnx.convert import without_traces
from maskcls.runtime.session import IMAGES

CALIBRATION_BATCH = 16
WEIGHTED = ("Conv", "Gemm", "MatMul")
FEW = 4
"""Pictures whose activations are all in memory at once, some 100 MB each of a large network."""


def to_fp16(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Weights and arithmetic in float16."""
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    converted: onnx.ModelProto = convert_float_to_float16(copy, keep_io_types=True)
    OnnxModel(converted).topological_sort()  # the converter adds the casts of inputs at the end
    without_traces(converted)
    return converted


def to_int8(proto: onnx.ModelProto, normalised: np.ndarray, spared: int = 0) -> onnx.ModelProto:
    """Static quantisation, weights per channel; the last layer and what follows it stay float32.

    Weights have 7 bits. With 8, x86 processors without VNNI answer otherwise than those with it:
    they add up two products at a time in 16 bits, and 2 x 255 x 127 does not fit there.

    normalised: float32 (N, 3, H, W), training pictures that the ranges are measured on. `spared`:
    so many tensors, those that 8 bits hold worst, stay float32 with the layers on either side.
    """
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    root = logging.getLogger()
    level = root.level
    with tempfile.TemporaryDirectory() as folder:
        source, prepared, target = (Path(folder, name) for name in ("a.onnx", "b.onnx", "c.onnx"))
        onnx.save(proto, source)

        def quantise(excluded: Sequence[str]) -> None:
            quantize_static(
                prepared,
                target,
                _Batches(normalised),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                reduce_range=True,
                nodes_to_exclude=list(excluded),
            )

        try:
            root.setLevel(logging.ERROR)  # it advises pre-processing, which has just been done
            quant_pre_process(source, prepared, skip_symbolic_shape=True)
            ready = onnx.load(prepared)
            use_global_pools(ready)
            onnx.save(ready, prepared)
            nodes = ready.graph.node
            last = last_layers(ready)
            quantise(last)
            if spared:
                worst = set(worst_tensors(target, normalised[:FEW])[:spared])
                around = [n.name for n in nodes if worst & {*n.input, *n.output}]
                quantise([*last, *around])
        finally:
            root.setLevel(level)
        quantised = onnx.load(target)
    without_traces(quantised)
    return quantised


class _Batches:
    """`onnxruntime.quantization.CalibrationDataReader`, which is a protocol in all but name."""

    def __init__(self, normalised: np.ndarray) -> None:
        parts = max(1, len(normalised) // CALIBRATION_BATCH)
        self._batches: Iterator[np.ndarray] = iter(np.array_split(normalised, parts))

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self._batches, None)
        return None if batch is None else {IMAGES: batch}

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return iter(self.get_next, None)


def worst_tensors(quantised: Path, normalised: np.ndarray) -> list[str]:
    """Names of a network's activations, those that 8 bits hold worst first: by the ratio of signal
    to quantisation noise."""
    from onnxruntime.quantization import qdq_loss_debug as debug

    augmented = quantised.with_suffix(".all.onnx")
    debug.modify_model_output_intermediate_tensors(quantised, augmented)
    found = debug.collect_activations(str(augmented), _Batches(normalised))
    ratios = {
        name: debug.compute_signal_to_quantization_noice_ratio(pair["pre_qdq"], pair["post_qdq"])
        for name, pair in debug.create_activation_matching(found).items()
    }
    return sorted(ratios, key=ratios.__getitem__)


def last_layers(proto: onnx.ModelProto) -> list[str]:
    """Names of the nodes that no layer with weights comes after: the classifier, of the picture and
    of its mirror image, and all that is done with logits."""
    names, leading = [], set[str]()  # to a layer with weights
    for node in reversed(proto.graph.node):  # in the order of computing, says ONNX
        if last := not leading & {*node.output}:
            names.append(node.name)
        if not last or node.op_type in WEIGHTED:
            leading |= {*node.input}
    return names


def use_global_pools(proto: onnx.ModelProto) -> None:
    """Means over the height and width of pictures as `GlobalAveragePool`, in place.

    The exporter writes them as `ReduceMean`, which onnxruntime has in float32 only: every one of
    EfficientNet's 27 would be a way out of the 8 bits and back in.
    """
    constants = {tensor.name: tensor for tensor in proto.graph.initializer}
    ranks = {
        value.name: len(value.type.tensor_type.shape.dim)
        for value in (*proto.graph.value_info, *proto.graph.input)
    }
    for node in proto.graph.node:
        if node.op_type != "ReduceMean" or len(node.input) < 2 or node.input[1] not in constants:
            continue
        axes = onnx.numpy_helper.to_array(constants[node.input[1]]).tolist()
        keeps = [attribute.i for attribute in node.attribute if attribute.name == "keepdims"]
        over_pictures = sorted(axis % 4 for axis in axes) == [2, 3]
        if over_pictures and ranks.get(node.input[0]) == 4 and keeps != [0]:
            node.op_type = "GlobalAveragePool"
            del node.attribute[:], node.input[1:]
    used = {name for node in proto.graph.node for name in node.input}
    for name in constants.keys() - used:  # onnxruntime would warn of them
        proto.graph.initializer.remove(constants[name])
