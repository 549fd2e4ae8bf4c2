"""The image as the network is given it, in colours, with heat laid over it. H and W are its size in pixels."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from matplotlib import colormaps
from PIL import Image

from scalablevit.images import convert_image
from scalablevit.preprocessing import Preprocessing

SIDE = 448  # pixels that the longer side is enlarged to, about
TINY = 96  # pixels of the longer side, up to which an image is enlarged in squares
HEAT = "inferno"  # from black over red to yellow, ever brighter: safe for colour-blind readers, and in grey print


@dataclass(frozen=True, kw_only=True)
class View:
    """An image as the network is given it, enlarged.

    Args:
        colours: (H * zoom, W * zoom, 3), from 0 to 1.
        size: H and W.
        zoom: How much it is enlarged.
    """

    colours: np.ndarray
    size: tuple[int, int]
    zoom: int

    def heated(self, heat: np.ndarray) -> np.ndarray:
        """The image in grey with heat on it, (H * zoom, W * zoom), from 0 to 1: the brighter, the hotter."""
        grey = self.colours @ np.array([0.299, 0.587, 0.114])
        below = 0.12 + 0.55 * grey[..., None].repeat(3, 2)
        share = 0.85 * np.clip(heat, 0, 1)[..., None] ** 0.7
        return below * (1 - share) + colormaps[HEAT](0.25 + 0.75 * np.clip(heat, 0, 1))[..., :3] * share


def view_of(image: Image.Image, preprocessing: Preprocessing) -> View:
    """What the network is given of an image, as sharp as the image has it."""
    height, width = preprocessing.size
    zoom = max(round(SIDE / max(height, width)), 1)
    decoded = convert_image(image, preprocessing.channels)
    if max(height, width) <= TINY:
        pixels = preprocessing.to_pixels(decoded).repeat_interleave(zoom, 1).repeat_interleave(zoom, 2)
    else:  # the same crop, with more pixels
        pixels = replace(preprocessing, size=(height * zoom, width * zoom)).to_pixels(decoded)
    colours = pixels.permute(1, 2, 0).numpy() / 255
    return View(colours=np.broadcast_to(colours, (*colours.shape[:2], 3)), size=(height, width), zoom=zoom)


def scaled(values: np.ndarray) -> np.ndarray:
    """The values over their maximum; all 0 stay 0."""
    largest = values.max()
    return values / largest if largest > 0 else np.zeros_like(values)
