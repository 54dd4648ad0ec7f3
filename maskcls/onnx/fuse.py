"""Networks and their preprocessing → one ONNX model: raw pixels in, labels out.

The graph is made of ONNX operators here, around the converted networks as they are. The resize
works on uint8: in onnxruntime that is Pillow's fixed-point arithmetic, so that the graph sees the
pixels that training saw. (`exclude_outside` is what makes its borders Pillow's, too.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from maskcls.labels import ATTRIBUTES, MULTI
from maskcls.manifest import Manifest
from maskcls.onnx.convert import OPSET, check
from maskcls.preprocessing import PreprocessSpec
from maskcls.runtime.session import FUSED_OUTPUTS, IMAGES, LOGITS

IR_VERSION = 10


def fuse(
    networks: Sequence[tuple[onnx.ModelProto, Manifest]],
    input_size: tuple[int, int] | None = None,
) -> onnx.ModelProto:
    """Converted networks that together answer every attribute, as one model.

    `images` uint8 (N, H, W, 3), RGB, upright, of any N, H and W, or of the one `input_size` →
    `mask_prob` (N, 3), `gender_prob` (N, 2), `age_prob` (N, 3), `class_prob` (N, 18) float32,
    `label` int64 (N,), the most probable of the 18 classes.

    Raises:
        ExportError: the result is not valid ONNX.
    """
    graph = _Graph()
    pixels = graph.node("Transpose", [IMAGES], perm=[0, 3, 1, 2])
    prepared = {
        manifest.preprocess: _prepare(graph, pixels, manifest.preprocess)
        for _, manifest in networks
    }
    domains = {"": OPSET}
    grid = ""
    for proto, manifest in networks:
        task = manifest.get_task()
        logits = _embed(graph, proto, prepared[manifest.preprocess], f"{task.name}/")
        domains |= {entry.domain: entry.version for entry in proto.opset_import}
        shares = graph.node("Softmax", [logits], axis=1)
        part = graph.node("Reshape", [shares, graph.integers([-1, *task.joint_shape])])
        grid = graph.node("Mul", [grid, part]) if grid else part
    for axis, name in enumerate(ATTRIBUTES, start=1):
        others = [other for other in range(1, len(ATTRIBUTES) + 1) if other != axis]
        graph.node("ReduceSum", [grid, graph.integers(others)], f"{name}_prob", keepdims=0)
    graph.node("Reshape", [grid, graph.integers([-1, MULTI.num_classes])], "class_prob")
    graph.node("ArgMax", ["class_prob"], "label", axis=1, keepdims=0)

    height, width = input_size or ("height", "width")
    sizes = {f"{name}_prob": len(values) for name, values in ATTRIBUTES.items()}
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch"])
        if name == "label"
        else helper.make_tensor_value_info(
            name, TensorProto.FLOAT, ["batch", sizes.get(name, MULTI.num_classes)]
        )
        for name in FUSED_OUTPUTS
    ]
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "maskcls",
            [helper.make_tensor_value_info(IMAGES, TensorProto.UINT8, ["batch", height, width, 3])],
            outputs,
            graph.initializers,
        ),
        opset_imports=[helper.make_opsetid(*entry) for entry in domains.items()],
        functions=_functions(networks),
        ir_version=IR_VERSION,
        producer_name="maskcls",
    )
    check(model)
    return model


class _Graph:
    """Nodes and constants in the making; every value gets a name of its own."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def node(
        self, operator: str, inputs: Sequence[str], output: str = "", **attributes: Any
    ) -> str:
        output = output or f"pre/{operator}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [output], output, **attributes))
        return output

    def constant(self, values: np.ndarray) -> str:
        name = f"pre/constant_{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(values, name))
        return name

    def integers(self, values: Sequence[int]) -> str:
        return self.constant(np.array(values, dtype=np.int64))


def _prepare(graph: _Graph, pixels: str, spec: PreprocessSpec) -> str:
    """uint8 (N, 3, H, W) → normalised float32 (N, 3, spec.height, spec.width), as
    `PreprocessSpec.resize` and `normalise` do it."""
    if spec.crop != (1.0, 1.0):
        pixels = _centre_crop(graph, pixels, spec)
    count = graph.node("Shape", [pixels], start=0, end=1)
    sizes = graph.node("Concat", [count, graph.integers([3, *spec.size])], axis=0)
    resized = graph.node(
        "Resize",
        [pixels, "", "", sizes],
        mode="linear",
        antialias=1,
        exclude_outside=1,
        coordinate_transformation_mode="half_pixel",
    )
    levels = graph.node("Cast", [resized], to=TensorProto.FLOAT)
    shape = (1, 3, 1, 1)
    mean = graph.constant(np.array(spec.mean, dtype=np.float32).reshape(shape))
    std = graph.constant(np.array(spec.std, dtype=np.float32).reshape(shape))
    scaled = graph.node("Div", [levels, graph.constant(np.array([255.0], dtype=np.float32))])
    return graph.node("Div", [graph.node("Sub", [scaled, mean]), std])


def _centre_crop(graph: _Graph, pixels: str, spec: PreprocessSpec) -> str:
    """`PreprocessSpec.crop_box`: Python's round is to even, as ONNX's, and so is the arithmetic in
    double precision."""
    sides = graph.node("Shape", [pixels], start=2, end=4)
    exact = graph.node(
        "Mul",
        [
            graph.node("Cast", [sides], to=TensorProto.DOUBLE),
            graph.constant(np.array(spec.crop, dtype=np.float64)),
        ],
    )
    rounded = graph.node("Cast", [graph.node("Round", [exact])], to=TensorProto.INT64)
    kept = graph.node("Max", [rounded, graph.integers([1, 1])])
    start = graph.node("Div", [graph.node("Sub", [sides, kept]), graph.integers([2, 2])])
    end = graph.node("Add", [start, kept])
    return graph.node("Slice", [pixels, start, end, graph.integers([2, 3])])


def _embed(graph: _Graph, proto: onnx.ModelProto, images: str, prefix: str) -> str:
    """Adds a converted network, its names prefixed; returns the name of its logits."""
    renamed = {IMAGES: images, "": ""}

    def name(old: str) -> str:
        return renamed.get(old, prefix + old)

    for tensor in proto.graph.initializer:
        copy = onnx.TensorProto()
        copy.CopyFrom(tensor)
        copy.name = name(tensor.name)
        graph.initializers.append(copy)
    for node in proto.graph.node:
        own = onnx.NodeProto()
        own.CopyFrom(node)
        own.name = prefix + node.name
        own.input[:] = [name(value) for value in node.input]
        own.output[:] = [name(value) for value in node.output]
        graph.nodes.append(own)
    return name(LOGITS)


def _functions(
    networks: Sequence[tuple[onnx.ModelProto, Manifest]],
) -> Iterator[onnx.FunctionProto]:
    seen = set()
    for proto, _ in networks:
        for function in proto.functions:
            if (function.domain, function.name) not in seen:
                seen.add((function.domain, function.name))
                yield function
