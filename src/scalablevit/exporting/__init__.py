"""From a model to files that run without this package: `torch.export` programs and ONNX."""

from scalablevit.exporting.onnx_file import export_onnx
from scalablevit.exporting.program import export_program, smallest_side

__all__ = ["export_onnx", "export_program", "smallest_side"]
