"""Sheets of images with what the model says of them, as one picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from scalablevit.classification.report.figures import Label, Prediction
from scalablevit.classification.report.theme import DPI, Theme, canvas, drawable, to_png
from scalablevit.classification.report.thumbnails import fill_square

COLUMNS = 6
NAMES = 3  # labels said of an image, at most; the page says all
_TILE, _GAP, _MARGIN = 1.42, 0.14, 0.2  # inches
_LINE = 0.17


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
            for line, (line_text, right) in enumerate(text):
                figure.text(
                    left / width,
                    (top - _TILE - 0.1 - line * _LINE) / height,
                    line_text,
                    color={True: theme.right, False: theme.wrong, None: theme.muted}[right],
                    fontsize=8,
                    va="top",
                )
        return to_png(figure)


def captions(prediction: Prediction) -> list[tuple[str, bool | None]]:
    """The lines below an image, each with whether it tells something right (True), wrong (False) or neither (None)."""
    lines: list[tuple[str, bool | None]] = [
        (_line("✓" if right else "✗", label), right)
        for label in prediction.given[:NAMES]
        for right in (prediction.has(label.name),)
    ]
    if not prediction.given:
        lines.append(("no label given", prediction.right or None))
    lines += [(_line("is", label), None) for label in prediction.missed[:NAMES]]
    left_out = len(prediction.given[NAMES:]) + len(prediction.missed[NAMES:])
    return [*lines, (f"and {left_out} more", None)] if left_out else lines


def _line(sign: str, label: Label) -> str:
    return f"{sign} {drawable(label.name, 17)} {100 * label.probability:.0f} %"


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
