"""An ONNX file that serves every batch size and every image size."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.export import Dim
from torch.fx.experimental import _config as symbolic_shapes

from scalablevit.exporting.program import check_evaluation_mode, example_images
from scalablevit.scalable_vit import ScalableViT


def export_onnx(model: ScalableViT, path: str | Path) -> Path:
    """Writes the model as an ONNX file for one image and more, of any height and width from one pixel.

    Args:
        model: In evaluation mode.
        path: Where to write; an existing file is replaced.

    Returns:
        The path. The file's input is ``images`` (batch, channels, height, width), its output ``logits``.

    Raises:
        ValueError: If the model is in training mode.
        ImportError: If onnx or onnxscript are not installed.
    """
    path = Path(path)
    sizes = {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
    with symbolic_shapes.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]
        program = torch.onnx.export(
            check_evaluation_mode(model),
            (example_images(model),),
            dynamo=True,
            dynamic_shapes={"images": sizes},
            input_names=["images"],
            output_names=["logits"],
            verbose=False,
        )
    assert program is not None  # None is what the older exporter gives
    program.save(path)
    return path
