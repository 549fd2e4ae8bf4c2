"""From an image file to what a model takes: the evaluation transform that every verb shares.

Axes: b batch, c channels, h height, w width. Pixels are whole numbers from 0 to 255, (c, h, w), until `normalise`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from scalablevit.images import ImagePlace, read_image

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
CropMode = Literal["center", "squash", "border"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """What is done to an image before a model sees it, outside training.

    The resize and crop are timm's, so that timm and everything built on it, given the same configuration, shows a
    model the same pixels.

    Args:
        size: Height and width that the model gets, in pixels.
        channels: 1 for grey, 3 for colour; images are converted.
        mean: Per channel, on a scale from 0 to 1; subtracted.
        std: Per channel, on the same scale; divided by.
        interpolation: Of the resize.
        crop_fraction: How much of the resized image is kept, along each axis; above 0, up to 1.
        crop_mode: ``"center"``: the shorter side is resized, and the centre cut out. ``"squash"``: both sides are
            resized, the aspect ratio is lost. ``"border"``: the longer side is resized, and the rest filled.

    Raises:
        ValueError: If a value is not possible.
    """

    size: tuple[int, int]
    channels: int = 3
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    interpolation: Interpolation = "bicubic"
    crop_fraction: float = 1.0
    crop_mode: CropMode = "center"

    def __post_init__(self) -> None:
        if self.channels not in (1, 3):
            raise ValueError(
                f"channels is {self.channels}; images can be read with 1 channel (grey) or 3 (colour). For others,"
                " give tensors to the model yourself"
            )
        if len(self.size) != 2 or min(self.size) < 1:
            raise ValueError(f"size is {self.size}; it must be a height and a width in pixels, for example (224, 224)")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.channels:
                raise ValueError(f"{name} is {values}; it must hold {self.channels} numbers, one for each channel")
        if min(self.std) <= 0:
            raise ValueError(f"std is {self.std}; it must hold positive numbers")
        if not 0 < self.crop_fraction <= 1:
            raise ValueError(f"crop_fraction is {self.crop_fraction}; it must lie above 0 and be at most 1")
        for name, value, allowed in (
            ("interpolation", self.interpolation, get_args(Interpolation)),
            ("crop_mode", self.crop_mode, get_args(CropMode)),
        ):
            if value not in allowed:
                raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(map(repr, allowed))}")

    @classmethod
    def from_pretrained_cfg(cls, cfg: Mapping[str, Any]) -> Preprocessing:
        """What the ``pretrained_cfg`` of timm's config.json says, with timm's defaults for what it does not.

        Raises:
            ValueError: If it holds something that is not possible.
        """
        size = cfg.get("input_size") or (3, 224, 224)
        if not _are_numbers(size, int) or len(size) != 3:
            raise ValueError(f"input_size is {size!r}; it must be channels, height and width, such as [3, 224, 224]")
        for name in ("mean", "std"):
            if cfg.get(name) and not _are_numbers(cfg[name], (int, float)):
                raise ValueError(f"{name} is {cfg[name]!r}; it must hold a number for each channel")
        channels, height, width = size
        return cls(
            size=(height, width),
            channels=channels,
            mean=tuple(cfg.get("mean") or (IMAGENET_MEAN if channels == 3 else (0.5,))),
            std=tuple(cfg.get("std") or (IMAGENET_STD if channels == 3 else (0.5,))),
            interpolation=cfg.get("interpolation") or "bicubic",
            crop_fraction=cfg.get("crop_pct") or 0.875,
            crop_mode=cfg.get("crop_mode") or "center",
        )

    def to_pretrained_cfg(self) -> dict[str, Any]:
        """The same for timm's config.json."""
        return {
            "input_size": [self.channels, *self.size],
            "mean": list(self.mean),
            "std": list(self.std),
            "interpolation": self.interpolation,
            "crop_pct": self.crop_fraction,
            "crop_mode": self.crop_mode,
        }

    def load(self, path: str | ImagePlace) -> Tensor:
        """The pixels (c, h, w) of an image file.

        Raises:
            ValueError: If the file is not a readable image.
            FileNotFoundError: If there is no such file.
        """
        return self.to_pixels(read_image(path, self.channels))

    def to_pixels(self, image: Image.Image) -> Tensor:
        """The pixels (c, h, w) of a decoded image, resized and cropped."""
        if self.crop_fraction == 1 and image.size == self.size[::-1]:  # there is nothing to resize or to crop
            pixels = torch.from_numpy(np.array(image)).view(*self.size, self.channels)
            return pixels.permute(2, 0, 1).contiguous()
        return self._resize_and_crop(image)

    def normalise(self, pixels: Tensor) -> Tensor:
        """What the model takes, (b, c, h, w) in float32, from pixels (b, c, h, w)."""
        mean = torch.tensor(self.mean, device=pixels.device).view(-1, 1, 1)
        std = torch.tensor(self.std, device=pixels.device).view(-1, 1, 1)
        return (pixels.float() / 255 - mean) / std

    @cached_property
    def _resize_and_crop(self) -> Any:
        from timm.data import create_transform  # a second to import, which `import scalablevit` is to be spared

        return create_transform(
            (self.channels, *self.size),
            mean=self.mean,
            interpolation=self.interpolation,
            crop_pct=self.crop_fraction,
            crop_mode=self.crop_mode,
            normalize=False,
        )


def _are_numbers(values: Any, kinds: Any) -> bool:
    return isinstance(values, (list, tuple)) and all(isinstance(value, kinds) for value in values)


def measure_preprocessing(paths: Sequence[str | ImagePlace], *, size: tuple[int, int], channels: int) -> Preprocessing:
    """A `Preprocessing` with the mean and standard deviation of some images.

    Args:
        paths: The image files.
        size: Height and width, in pixels.
        channels: 1 for grey, 3 for colour.

    Raises:
        ValueError: If an image cannot be read.
        FileNotFoundError: If there is no such file.
    """
    unscaled = Preprocessing(size=size, channels=channels, mean=(0.0,) * channels, std=(1.0,) * channels)
    # One by one: as many photographs at once would fill the memory.
    sums = torch.zeros(2, channels, dtype=torch.float64)
    for path in paths:
        pixels = unscaled.load(path).double().flatten(1) / 255
        sums += torch.stack([pixels.mean(1), pixels.square().mean(1)])
    mean, square = sums / len(paths)
    deviation = (square - mean.square()).clamp(min=0).sqrt()
    # A channel that never changes is not divided by zero; four digits say enough, and read better in files.
    std = tuple(round(value, 4) or 1.0 for value in deviation.tolist())
    return replace(unscaled, mean=tuple(round(value, 4) for value in mean.tolist()), std=std)
