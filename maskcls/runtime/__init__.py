"""Labelling pictures with trained networks. Needs no PyTorch: `Classifier` runs ONNX files, and
`inference` labels with anything that fits `Engine`, be it an ONNX session or PyTorch checkpoints.
"""

from maskcls.runtime.classifier import Classifier, Prediction
from maskcls.runtime.engines import Engine, open_onnx
from maskcls.runtime.labelling import LabellingResult, inference
from maskcls.runtime.merging import merge
from maskcls.runtime.packed import open_pictures
from maskcls.runtime.shards import Shard
from maskcls.runtime.sources import Pictures, Source, list_pictures

__all__ = [
    "Classifier",
    "Engine",
    "LabellingResult",
    "Pictures",
    "Prediction",
    "Shard",
    "Source",
    "inference",
    "list_pictures",
    "merge",
    "open_onnx",
    "open_pictures",
]
