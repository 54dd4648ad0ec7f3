"""From checkpoints to ONNX files that are held against PyTorch before they get their names."""

from maskcls.onnx.exporter import ExportResult, export
from maskcls.onnx.parity import Parity

__all__ = ["ExportResult", "Parity", "export"]
