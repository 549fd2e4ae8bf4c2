"""Exports as callables: the counterpart of `writing`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from scalablevit.exporting.archives import ProgramArchive
from scalablevit.exporting.description import Arithmetic, Description
from scalablevit.exporting.onnx_file import OnnxFile
from scalablevit.exporting.openvino_files import OpenVinoFiles
from scalablevit.extras import require_extra
from scalablevit.suggestions import nearest_path
from scalablevit.weights.folders import EXPORT_SUFFIXES


class OpenedExport:
    """An export, ready to run: normalised images (b, c, h, w) in float32 to logits (b, classes).

    Attributes:
        path: The file.
        description: What the file says of itself.
        labels: Names of the classes, in the order of the logits; None if it has none.
        pretrained_cfg: How images are made into what it takes, under timm's names; `Preprocessing` reads it.
        multi_label: Whether an image may have any number of labels.
        num_classes: Number of logits.
    """

    def __init__(self, path: Path, description: Description, run: Callable[[Tensor], Tensor]) -> None:
        self.path = path
        self.description = description
        self._run = run

    @property
    def labels(self) -> tuple[str, ...] | None:
        return self.description.labels

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        return self.description.pretrained_cfg

    @property
    def multi_label(self) -> bool:
        return self.description.multi_label

    @property
    def num_classes(self) -> int:
        return self.description.num_classes

    def __call__(self, images: Tensor) -> Tensor:
        """The logits, in float32, on the CPU unless PyTorch runs the export on another device.

        Args:
            images: (b, c, h, w), float32, normalised.

        Raises:
            ValueError: If the images are of another type or shape, or smaller than the export takes.
        """
        return self._run(self._checked(images))

    def _checked(self, images: Tensor) -> Tensor:
        channels = self.pretrained_cfg["input_size"][0]
        shape = tuple(images.shape)
        if images.dtype != torch.float32 or len(shape) != 4 or shape[0] < 1 or shape[1] != channels:
            raise ValueError(
                f"images is {images.dtype} of shape {shape}; {self.path} takes torch.float32 of shape (batch,"
                f" {channels}, height, width), normalised as its pretrained_cfg says"
            )
        smallest = self.description.smallest_side
        if min(shape[2:]) < smallest:
            raise ValueError(
                f"images are {shape[2]} x {shape[3]} pixels, but {self.path} takes no height or width below {smallest}:"
                " resize them, or export with --to onnx or openvino, which take any size"
            )
        return images


def is_export(path: str | Path) -> bool:
    """Whether a path is, by its ending, that of an export rather than of a folder with a model."""
    path = Path(path)
    return path.suffix.lower() in EXPORT_SUFFIXES and not path.is_dir()


def open_export(
    path: str | Path,
    device: str | torch.device | None = None,
    threads: int | None = None,
    precision: Arithmetic | None = None,
) -> OpenedExport:
    """An export by `scalablevit export`, ready to run.

    Args:
        path: The ``.onnx``, ``.pt2`` or ``.xml`` file.
        device: Where to compute, as its runtime calls it (``"cpu"``, ``"cuda"``, OpenVINO's ``"gpu"``); None: the CPU.
        threads: How many may work on one call; None: as many as the runtime thinks right. PyTorch has one number for
            the whole process, which is not set here.
        precision: ``"fp32"``, or ``"bf16"``, which OpenVINO computes in where a processor can; None: as the file says.

    Raises:
        ValueError: If there is no such file, this package did not write it, or it does not run so.
        MissingExtraError: If the package that runs it is not installed.
    """
    path = Path(path)
    if not is_export(path):
        raise ValueError(f"{path} is not an export: its name must end in {', '.join(EXPORT_SUFFIXES)}")
    if not path.is_file():
        raise ValueError(f"{path} does not exist{nearest_path(path)}: write it with `scalablevit export`")
    if precision not in (None, *get_args(Arithmetic)):
        raise ValueError(f"precision is {precision!r}; it must be one of {', '.join(get_args(Arithmetic))}")
    runtime = _runtime(path, None if device is None else str(device), threads)
    description = Description.from_strings(runtime.metadata(), str(path))
    arithmetic = precision or description.arithmetic
    if isinstance(runtime, OpenVinoFiles):
        runtime.compile(arithmetic)
    elif arithmetic != "fp32":
        raise ValueError(f"precision is {arithmetic!r}, which OpenVINO alone computes in, not what runs {path}")
    if isinstance(runtime, ProgramArchive):
        runtime.load()
    return OpenedExport(path, description, runtime)


def _runtime(path: Path, device: str | None, threads: int | None) -> OnnxFile | OpenVinoFiles | ProgramArchive:
    if path.suffix.lower() == ".onnx":
        require_extra("export", "onnxruntime")
        return OnnxFile(path, device=device, threads=threads)
    if path.suffix.lower() == ".xml":
        require_extra("export", "openvino")
        return OpenVinoFiles(path, device=device, threads=threads)
    return ProgramArchive(path, device=device, threads=threads)
