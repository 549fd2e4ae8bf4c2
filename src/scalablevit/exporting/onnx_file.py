"""An ONNX file that serves every batch size and every image size."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim
from torch.fx.experimental import _config as symbolic_shapes

from scalablevit.exporting.program import check_evaluation_mode, example_images
from scalablevit.scalable_vit import ScalableViT


def export_onnx(model: ScalableViT, path: str | Path, metadata: Mapping[str, str] | None = None) -> Path:
    """Writes the model as an ONNX file for one image and more, of any height and width from one pixel.

    Args:
        model: In evaluation mode.
        path: Where to write; an existing file is replaced.
        metadata: Goes into the file's ``metadata_props``.

    Returns:
        The path. The file's input is ``images`` (batch, channels, height, width), its output ``logits``.

    Raises:
        ValueError: If the model is in training mode.
        ImportError: If onnx or onnxscript are not installed.
    """
    from scalablevit.exporting.onnx_lists import put_on_lists

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
    put_on_lists(program.model.graph)
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # where in the source it comes from: a quarter of nano's file
        for value in node.outputs:
            if not value.is_graph_output():
                # Each runtime finds them itself, and ONNX Runtime is a tenth slower with the exporter's.
                value.shape, value.type = None, None
    program.model.metadata_props.update(metadata or {})
    program.save(path)
    return path


class OnnxFile:
    """An ONNX file in ONNX Runtime.

    Args:
        path: The file.
        device: ``"cpu"`` or ``"cuda"``; None: the CPU.
        threads: How many may work on one call; None: as many as ONNX Runtime thinks right.

    Raises:
        ValueError: If the file cannot be read, or the installed ONNX Runtime does not know the device.
    """

    def __init__(self, path: Path, *, device: str | None = None, threads: int | None = None) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors
        if threads is not None:
            options.intra_op_num_threads = threads
        providers = [_provider(device or "cpu", onnxruntime.get_available_providers())]
        try:
            self.session = onnxruntime.InferenceSession(path, options, providers=providers)
        except _errors() as error:
            raise ValueError(f"{path} is not an ONNX file that can be run: {str(error).splitlines()[0]}") from error

    def metadata(self) -> dict[str, str]:
        """What the file says of itself."""
        return dict(self.session.get_modelmeta().custom_metadata_map)

    def __call__(self, images: Tensor) -> Tensor:
        (logits,) = self.session.run(["logits"], {"images": images.numpy(force=True)})
        return torch.from_numpy(logits)


def _provider(device: str, available: list[str]) -> str:
    kind = device.partition(":")[0]
    provider = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}.get(kind)
    if provider is None or provider not in available:
        raise ValueError(
            f"device is {device!r}, which the installed ONNX Runtime does not serve: it has {', '.join(available)}"
        )
    return provider


def _errors() -> Any:
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    return (state.Fail, state.InvalidProtobuf, state.InvalidGraph, state.InvalidArgument, state.NoSuchFile)
