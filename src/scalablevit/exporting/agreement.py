"""Whether an export gives what its model gives, on images of several sizes and batches of several lengths."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from scalablevit.exporting.opening import OpenedExport
from scalablevit.scalable_vit import ScalableViT

TOLERANCE = 1e-4  # of float32, of the spread of the logits


def shapes_to_check(height: int, width: int, smallest_side: int) -> list[tuple[int, int, int]]:
    """(batch, height, width): the usual size alone and in batches, others, not square, and the smallest."""
    side = max(smallest_side, 33)
    return [
        (1, height, width),
        (3, height, width),
        (2, max(height, side) + 19, max(width, side) + 6),  # no multiple of windows, cells, or each other
        (1, side, 2 * side),
        (2, smallest_side, smallest_side),
    ]


def check_agreement(
    model: ScalableViT, export: OpenedExport, path: Path, shapes: Sequence[tuple[int, int, int]]
) -> float:
    """The largest difference of any logit, as a fraction of the spread (largest minus smallest) of the model's logits.

    Args:
        model: What was exported, in evaluation mode, on the CPU.
        export: What became of it.
        path: Where it is to go, for the message.
        shapes: (batch, height, width) of random images.

    Raises:
        ValueError: If the difference is above `TOLERANCE`, or the export does not run on such images.
    """
    generator = torch.Generator().manual_seed(0)
    differences, low, high = [], [], []
    for batch, height, width in shapes:
        images = torch.randn(batch, model.in_chans, height, width, generator=generator)
        expected = _run(model, images)
        found = _run_export(export, images, path)
        if found.shape != expected.shape:
            raise ValueError(
                f"{_where(path, images)} gives logits of shape {tuple(found.shape)} rather than"
                f" {tuple(expected.shape)}: try another --to"
            )
        differences.append(float((found - expected).abs().max()))
        low.append(float(expected.min()))
        high.append(float(expected.max()))
    spread = (max(high) - min(low)) or 1.0
    shares = [difference / spread for difference in differences]
    for (batch, height, width), share in zip(shapes, shares, strict=True):
        if not share <= TOLERANCE:  # not a number is wrong, too
            raise ValueError(
                f"{path} was not written: for {batch} images of {height} x {width} pixels its logits differ from the"
                f" model's by {share:.1e} of their spread, more than {TOLERANCE:.0e}. Try another --to, or another"
                " version of its packages"
            )
    return max(shares)


def check_runs(
    export: OpenedExport, path: Path, channels: int, classes: int, shapes: Sequence[tuple[int, int, int]]
) -> None:
    """Has an export of other numbers than its model run on every shape; its accuracy is compared on real images.

    Raises:
        ValueError: If it fails, or gives what is no number.
    """
    generator = torch.Generator().manual_seed(0)
    for batch, height, width in shapes:
        images = torch.randn(batch, channels, height, width, generator=generator)
        logits = _run_export(export, images, path)
        if logits.shape != (batch, classes) or not bool(logits.isfinite().all()):
            raise ValueError(f"{_where(path, images)} gives no finite logits ({batch}, {classes}): try another --to")


def _where(path: Path, images: Tensor) -> str:
    batch, _, height, width = images.shape
    return f"{path} was not written: for {batch} images of {height} x {width} pixels it"


def _run_export(export: OpenedExport, images: Tensor, path: Path) -> Tensor:
    try:
        return _run(export, images)
    except Exception as error:  # each runtime has kinds of its own
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{_where(path, images)} fails ({reason}): try another --to") from error


def _run(network: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    with torch.inference_mode():
        return network(images).float().cpu()
