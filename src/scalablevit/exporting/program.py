"""A `torch.export` program that serves every batch size and a range of image sizes."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram
from torch.fx.experimental import _config as symbolic_shapes

from scalablevit.exporting.archives import METADATA_FILE
from scalablevit.scalable_vit import ScalableViT


def export_program(model: ScalableViT) -> ExportedProgram:
    """The model as a program for batches of one image and more, of any height and width from `smallest_side` pixels.

    Save it with `torch.export.save`; the file needs nothing of this package. Smaller images are refused by a message
    that names the axis. A model that takes those is an ONNX file, see `export_onnx`.

    Args:
        model: In evaluation mode.

    Raises:
        ValueError: If the model is in training mode.
    """
    side = smallest_side(model)
    sizes = {0: Dim("batch", min=1), 2: Dim("height", min=side), 3: Dim("width", min=side)}
    # Without the first setting a program is tied to batches of more than one image; without the second, to whatever
    # sizes make PyTorch's reasoning about the example come out the same.
    with symbolic_shapes.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]
        return torch.export.export(
            check_evaluation_mode(model),
            (example_images(model),),
            dynamic_shapes={"images": sizes},
            prefer_deferred_runtime_asserts_over_guards=True,
        )


def save_program(program: ExportedProgram, path: Path, metadata: Mapping[str, str]) -> None:
    """Writes a program, with metadata as one of its extra files."""
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of the machine that it was written on
    buffer = io.BytesIO()  # PyTorch's own writer ends the process where a disk is full
    torch.export.save(program, buffer, extra_files={METADATA_FILE: json.dumps(dict(metadata), ensure_ascii=False)})
    path.write_bytes(buffer.getbuffer())


def compile_program(program: ExportedProgram, path: Path, metadata: Mapping[str, str]) -> None:
    """Compiles a program with AOTInductor, for the processor that this runs on, and writes the package."""
    options: dict[str, Any] = {"aot_inductor.metadata": dict(metadata)}
    with torch.no_grad():
        torch._inductor.aoti_compile_and_package(program, package_path=str(path), inductor_configs=options)


def check_compiler() -> None:
    """Raises a ValueError if there is no C++ compiler, without which AOTInductor compiles nothing."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise ValueError(
            "AOTInductor needs a C++ compiler, and there is none that runs: install g++, name one in the environment"
            " variable CXX, or take --to pt2, which needs none"
        ) from error


def smallest_side(model: ScalableViT) -> int:
    """The smallest height and width, in pixels, that leaves two positions along each axis of the last stage's map."""
    return int(model.feature_info[-1]["reduction"]) + 1


def example_images(model: ScalableViT) -> Tensor:
    """Images to trace with: two, not square, large enough for several windows in every stage.

    Sizes that are 1, or equal, in an example would be taken for constants.
    """
    window_sizes = [size for size in model.config["window_size"] if size is not None]
    positions = max([*window_sizes, 4]) + 1
    stride = int(model.feature_info[-1]["reduction"])
    like = next(model.parameters())
    shape = (2, model.in_chans, positions * stride, (positions + 2) * stride)
    return torch.randn(shape, device=like.device, dtype=like.dtype)


def check_evaluation_mode(model: ScalableViT) -> ScalableViT:
    """The model itself.

    Raises:
        ValueError: If it is in training mode, whose dropout and drop-path would end up in the file.
    """
    if model.training:
        raise ValueError("model is in training mode; call model.eval() before you export it")
    return model
