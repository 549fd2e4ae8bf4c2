"""Sheets of images with what the model says of them, as one picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from scalablevit.classification.report.figures import Label, Prediction
from scalablevit.classification.report.theme import DPI, Theme, canvas, drawable, to_png
from scalablevit.classification.report.thumbnails import fill_square

COLUMNS = 6
NAMES = 3  # labels said of an image, at most; the page says all
LETTERS = 20  # of a name, at most
_TILE, _GAP, _MARGIN = 1.3, 0.14, 0.2  # inches
_LINE = 0.16


@dataclass(frozen=True)
class Caption:
    """A line below an image.

    Args:
        start: What it begins with.
        label: The label that it tells of, if any.
        right: Whether that label is right (True) or wrong (False); None: neither.
    """

    start: str
    label: Label | None
    right: bool | None

    def text(self, limit: int) -> str:
        """The line, with a name of at most `limit` letters."""
        if self.label is None:
            return self.start
        return f"{self.start} {drawable(self.label.name, limit)} {100 * self.label.probability:.0f} %"


def draw_sheet(shown: Sequence[Prediction], images: Mapping[int, Image.Image | None], theme: Theme) -> bytes:
    """The images with what the model says, and what is right where that is something else.

    Args:
        shown: What the model says, in the order to be shown in; at least one.
        images: The image of each, by its index; None where it cannot be read.
        theme: Colours.
    """
    columns = min(COLUMNS, len(shown))
    lines = [captions(prediction) for prediction in shown]
    cell_height = _TILE + 0.1 + _LINE * max(map(len, lines)) + 0.12
    rows = -(-len(shown) // columns)
    width = 2 * _MARGIN + columns * _TILE + (columns - 1) * _GAP
    height = 2 * _MARGIN + rows * cell_height
    with canvas(theme, width, height) as figure:
        for place, (prediction, text) in enumerate(zip(shown, lines, strict=True)):
            left = _MARGIN + place % columns * (_TILE + _GAP)
            top = height - _MARGIN - place // columns * cell_height
            axes = _tile_axes(figure, left / width, (top - _TILE) / height, _TILE / width, _TILE / height)
            _draw_image(axes, images.get(prediction.index), theme)
            for line, caption in enumerate(text):
                bottom = (top - _TILE - 0.1 - line * _LINE) / height
                _write(figure, left / width, bottom, caption, theme)
        return to_png(figure)


def captions(prediction: Prediction) -> list[Caption]:
    """The lines below an image."""
    lines = [
        Caption("✓" if right else "✗", label, right)
        for label in prediction.given[:NAMES]
        for right in (prediction.has(label.name),)
    ]
    if not prediction.given:
        lines.append(Caption("no label given", None, prediction.right or None))
    missed = ("misses", False) if prediction.multi_label else ("is", None)
    lines += [Caption(missed[0], label, missed[1]) for label in prediction.missed[:NAMES]]
    left_out = len(prediction.given[NAMES:]) + len(prediction.missed[NAMES:])
    return [*lines, Caption(f"and {left_out} more", None, None)] if left_out else lines


def _write(figure: Figure, left: float, top: float, caption: Caption, theme: Theme) -> None:
    """Writes a line below an image, its name cut so that it is no wider than the image."""
    colour = {True: theme.right, False: theme.wrong, None: theme.muted}[caption.right]
    line = figure.text(left, top, "", color=colour, fontsize=8, va="top")
    for limit in range(LETTERS, 4, -2):
        line.set_text(caption.text(limit))
        if line.get_window_extent().width <= _TILE * DPI:
            return


def _tile_axes(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    axes = figure.add_axes((left, bottom, width, height))
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    return axes


def _draw_image(axes: Axes, image: Image.Image | None, theme: Theme) -> None:
    if image is None:
        axes.set_facecolor(theme.panel)
        axes.text(0.5, 0.5, "cannot\nbe read", color=theme.muted, ha="center", va="center", transform=axes.transAxes)
    else:
        pixels = np.asarray(fill_square(image, round(_TILE * DPI), theme.panel))
        axes.imshow(pixels, interpolation="nearest", aspect="auto")
