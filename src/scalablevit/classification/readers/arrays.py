"""Images that lie one after the other in an array."""

from __future__ import annotations

from typing import Any

import numpy as np


class ArrayStore:
    """Images in an array.

    Args:
        where: How people are told of the images.
        pixels: (n, height, width) for grey, or (n, height, width, 3) for colour; whole numbers from 0 to 255.
    """

    def __init__(self, where: str, pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
        self.where = where
        self.pixels = pixels

    def read(self, index: int) -> bytes:
        """One of them in the format PNM: a line of text before the bytes as they are."""
        pixels = np.ascontiguousarray(self.pixels[index])
        height, width = pixels.shape[:2]
        return b"P%d %d %d 255\n" % (5 if pixels.ndim == 2 else 6, width, height) + pixels.tobytes()

    def name(self, index: int) -> str:
        """Where, and which."""
        return f"{self.where}/{index}"
