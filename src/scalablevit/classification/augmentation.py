"""What training does to images at random, so that no two epochs show the same pixels.

Axes: b batch, c channels, h height, w width. Pixels are whole numbers from 0 to 255, (c, h, w).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from scalablevit.classification.policies import RandAugment, jitter
from scalablevit.preprocessing import Preprocessing

RandomCrop = Literal["pad", "resize", "none"]
ErasingMode = Literal["noise", "pixel", "const"]


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Makes training pixels out of a decoded image. All that is random comes from the generator given with the image.

    Args:
        preprocessing: What is done outside training: the size, and where nothing is drawn at random, the pixels.
        random_crop: ``"pad"``: moves the image by up to `padding` pixels along each axis, with black coming in from
            the border. ``"resize"``: cuts out a part of random area and aspect ratio, and resizes it.
        padding: For ``"pad"``, in pixels.
        smallest_area: For ``"resize"``, the smallest part, as a fraction of the image's area.
        flip: Probability that left and right are exchanged.
        erasing: Probability that a rectangle is filled with something else; see `erase`.
        erasing_mode: With what.
        rand_augment: A policy of RandAugment; None for none.
        color_jitter: How much brightness, contrast and saturation change; see `policies.jitter`.
    """

    preprocessing: Preprocessing
    random_crop: RandomCrop
    padding: int
    smallest_area: float
    flip: float
    erasing: float
    erasing_mode: ErasingMode = "noise"
    rand_augment: str | None = None
    color_jitter: float = 0.0

    @cached_property
    def _policy(self) -> RandAugment | None:
        return None if self.rand_augment is None else RandAugment(self.rand_augment, self.preprocessing)

    def __call__(self, image: Image.Image, random: np.random.Generator) -> Tensor:
        """Pixels (c, h, w) of an image."""
        if self.random_crop == "resize":
            image = cut_out(image, self.preprocessing, self.smallest_area, random)
        pixels = self.preprocessing.to_pixels(image)
        if self.random_crop == "pad":
            pixels = shift(pixels, *random.integers(-self.padding, self.padding, 2, endpoint=True).tolist())
        if random.random() < self.flip:
            pixels = pixels.flip(-1)
        if self._policy is not None:
            pixels = self._policy(pixels, random)
        if self.color_jitter:
            pixels = jitter(pixels, self.color_jitter, random)
        if random.random() < self.erasing:
            pixels = erase(pixels, random, self.erasing_mode, self.preprocessing)
        return pixels


def shift(pixels: Tensor, down: int, right: int) -> Tensor:
    """Moves pixels (c, h, w) by whole pixels; zeros come in."""
    return F.pad(pixels, (right, -right, down, -down))


def random_box(
    height: int, width: int, *, areas: tuple[float, float], ratios: tuple[float, float], random: np.random.Generator
) -> tuple[int, int, int, int] | None:
    """A box (top, left, height, width) inside an image, of random area and aspect ratio, at a random place.

    Args:
        height: Of the image.
        width: Of the image.
        areas: Smallest and largest area of the box, as fractions of the image's.
        ratios: Smallest and largest width / height of the box.
        random: Where the randomness comes from.

    Returns:
        The box, or None if ten draws gave none that fits.
    """
    for _ in range(10):
        area = height * width * random.uniform(*areas)
        ratio = math.exp(random.uniform(math.log(ratios[0]), math.log(ratios[1])))
        box_height, box_width = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < box_height <= height and 0 < box_width <= width:
            top, left = random.integers((height - box_height + 1, width - box_width + 1)).tolist()
            return top, left, box_height, box_width
    return None


def cut_out(
    image: Image.Image, preprocessing: Preprocessing, smallest_area: float, random: np.random.Generator
) -> Image.Image:
    """A random part of an image, resized to what the model takes; the whole image where no part fits."""
    box = random_box(image.height, image.width, areas=(smallest_area, 1.0), ratios=(3 / 4, 4 / 3), random=random)
    if box is None:
        return image
    top, left, height, width = box
    resampling = Image.Resampling[preprocessing.interpolation.upper()]
    size = (preprocessing.size[1], preprocessing.size[0])
    return image.resize(size, resampling, box=(left, top, left + width, top + height))


def erase(
    pixels: Tensor,
    random: np.random.Generator,
    mode: ErasingMode = "noise",
    preprocessing: Preprocessing | None = None,
) -> Tensor:
    """Fills a random rectangle (Zhong et al., arXiv:1708.04896, with its areas and ratios).

    Args:
        pixels: (c, h, w).
        random: Where the randomness comes from.
        mode: ``"noise"``: each value drawn evenly from 0 to 255. ``"pixel"``: from a normal distribution with the
            images' mean and deviation, as timm's mode of that name, but cut to 0 to 255. ``"const"``: the images' mean.
        preprocessing: Says mean and deviation; needed for the last two.
    """
    channels, height, width = pixels.shape
    box = random_box(height, width, areas=(0.02, 0.33), ratios=(0.3, 3.3), random=random)
    if box is None:
        return pixels
    top, left, box_height, box_width = box
    filling = _filling((channels, box_height, box_width), random, mode, preprocessing)
    pixels = pixels.clone()
    pixels[:, top : top + box_height, left : left + box_width] = torch.from_numpy(filling)
    return pixels


def _filling(
    shape: tuple[int, int, int], random: np.random.Generator, mode: ErasingMode, preprocessing: Preprocessing | None
) -> np.ndarray:
    if mode == "noise":
        return random.integers(0, 256, shape, dtype=np.uint8)
    assert preprocessing is not None
    mean, deviation = (np.array(values)[:, None, None] for values in (preprocessing.mean, preprocessing.std))
    values = mean + deviation * random.standard_normal(shape) if mode == "pixel" else np.broadcast_to(mean, shape)
    return (255 * values).round().clip(0, 255).astype(np.uint8)
