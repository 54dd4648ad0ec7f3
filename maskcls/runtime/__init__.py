"""Labelling pictures with trained networks. Needs no PyTorch: a classifier is anything that fits
`Classifier`, be it built on PyTorch checkpoints or on an ONNX session.
"""

from maskcls.runtime.labelling import Classifier, LabellingResult, inference
from maskcls.runtime.sources import Source, list_pictures

__all__ = ["Classifier", "LabellingResult", "Source", "inference", "list_pictures"]
