"""From a model to files that run without this package: ONNX, OpenVINO, `torch.export`, AOTInductor."""

from scalablevit.exporting.description import Description
from scalablevit.exporting.onnx_file import export_onnx
from scalablevit.exporting.opening import OpenedExport, is_export, open_export
from scalablevit.exporting.program import export_program, smallest_side
from scalablevit.exporting.writing import Written, write_export

__all__ = [
    "Description",
    "OpenedExport",
    "Written",
    "export_onnx",
    "export_program",
    "is_export",
    "open_export",
    "smallest_side",
    "write_export",
]
