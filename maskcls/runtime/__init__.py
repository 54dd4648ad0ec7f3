"""Labelling pictures with trained networks. Needs no PyTorch: `Classifier` runs ONNX files, and
`inference` labels with anything that fits `Engine`, be it an ONNX session or PyTorch checkpoints.
"""

from maskcls.runtime.classifier import Classifier, Prediction
from maskcls.runtime.engines import Engine, open_onnx
from maskcls.runtime.labelling import LabellingResult, inference
from maskcls.runtime.sources import Source, list_pictures

__all__ = [
    "Classifier",
    "Engine",
    "LabellingResult",
    "Prediction",
    "Source",
    "inference",
    "list_pictures",
    "open_onnx",
]
