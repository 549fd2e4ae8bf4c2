"""Where the positions of a map lie in the image, and how a map is laid over it.

Axes: h height, w width, of the map; H and W those of the image, in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True, kw_only=True)
class HeatMap:
    """Numbers on a map, and where in the image they belong.

    A patch embedding is a convolution whose kernel is centred on every `stride`-th position, from the first one on. So
    the centre of a position is not that of a tile of the image: the first lies on the first pixel.

    Args:
        values: (h, w), not negative.
        first: Row and column, in pixels, of the centre of the first position.
        spacing: Pixels from one position to the next.
    """

    values: np.ndarray
    first: float
    spacing: float

    def __post_init__(self) -> None:
        if self.values.ndim != 2 or not self.values.size:
            raise ValueError(f"values have the shape {self.values.shape}; it must be (height, width), neither 0")

    @property
    def peak(self) -> tuple[int, int]:
        """Row and column of the largest value; of several, the first."""
        row, column = np.unravel_index(int(self.values.argmax()), self.values.shape)
        return int(row), int(column)

    @property
    def peak_pixel(self) -> tuple[float, float]:
        """Where in the image that is: row and column, in pixels."""
        row, column = self.peak
        return self.pixel(row, column)

    def pixel(self, row: float, column: float) -> tuple[float, float]:
        """Row and column in the image, in pixels, of a place on the map."""
        return self.first + self.spacing * row, self.first + self.spacing * column

    def blurred(self, deviation: float) -> HeatMap:
        """The values, each shared with its neighbours by a Gaussian of so many positions, as one sees from afar."""
        rows, columns = (_gaussian_weights(count, deviation) for count in self.values.shape)
        return replace(self, values=(rows @ self.values @ columns.T).astype(self.values.dtype))

    def smooth(self, height: int, width: int, zoom: int = 1) -> np.ndarray:
        """(H * zoom, W * zoom): the values between the positions by cubic interpolation, from 0 to the largest."""
        rows = _cubic_weights(_places(height, zoom, self.first, self.spacing), self.values.shape[0])
        columns = _cubic_weights(_places(width, zoom, self.first, self.spacing), self.values.shape[1])
        return np.clip(rows @ self.values @ columns.T, 0, self.values.max())

    def blocks(self, height: int, width: int, zoom: int = 1) -> np.ndarray:
        """(H * zoom, W * zoom): each pixel with the value of the position that is nearest."""
        rows, columns = (
            np.clip(np.floor(_places(length, zoom, self.first, self.spacing) + 0.5), 0, count - 1).astype(int)
            for length, count in zip((height, width), self.values.shape, strict=True)
        )
        return self.values[rows][:, columns]


def _places(length: int, zoom: int, first: float, spacing: float) -> np.ndarray:
    """Where on a map, in positions, the pixels of an enlarged image lie, along one axis."""
    pixels = (np.arange(length * zoom) + 0.5) / zoom - 0.5
    return (pixels - first) / spacing


def _cubic_weights(places: np.ndarray, count: int) -> np.ndarray:
    """(places, count): what each position has in the value at each place, by Catmull-Rom; beyond the edge, as there."""
    places = np.clip(places, 0, count - 1)
    weights = np.zeros((len(places), count))
    below = np.floor(places).astype(int)
    for offset in (-1, 0, 1, 2):
        distance = np.abs(places - (below + offset))
        near = 1.5 * distance**3 - 2.5 * distance**2 + 1
        far = -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2
        share = np.where(distance <= 1, near, np.where(distance < 2, far, 0))
        np.add.at(weights, (np.arange(len(places)), np.clip(below + offset, 0, count - 1)), share)
    return weights


def _gaussian_weights(count: int, deviation: float) -> np.ndarray:
    """(count, count): what each position has in the value at each other. The sum over a row is 1."""
    places = np.arange(count)
    weights = np.exp(-((places[:, None] - places) ** 2) / (2 * deviation**2))
    return weights / weights.sum(1, keepdims=True)
