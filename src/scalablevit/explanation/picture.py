"""Panels with a title and a sentence, in rows of three: how an explanation is drawn."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from PIL import Image

from scalablevit.classification.report.theme import DPI, LIGHT, canvas, drawable, to_png
from scalablevit.explanation.explanation import per_cent

COLUMNS = 3
WIDTH = 1400 / DPI  # inches
_MARGIN, _GAP, _TITLE, _LINE = 0.28, 0.3, 0.3, 0.19  # inches
_TALLEST = 1.35  # of a panel, as a multiple of its width
_LETTERS = 42  # in a line of a caption
_NUMBER = 0.85  # inches, of a probability beside a name
_MOST_LETTERS = 80  # of a text that is cut to what fits

Draw = Callable[[Axes], None]


@dataclass(frozen=True, kw_only=True)
class Panel:
    """A part of a picture.

    Args:
        title: A few words over it.
        caption: A sentence under it; may be empty.
        draw: Fills the axes.
        aspect: Height over width.
    """

    title: str
    caption: str
    draw: Draw
    aspect: float


def draw_panels(groups: Sequence[Sequence[Panel]], heading: str = "") -> Image.Image:
    """Panels in rows of three, as a picture 1400 pixels wide. Each group begins a row."""
    rows = [group[start : start + COLUMNS] for group in groups for start in range(0, len(group), COLUMNS)]
    width = (WIDTH - 2 * _MARGIN - (COLUMNS - 1) * _GAP) / COLUMNS
    captions = [[wrap(panel.caption, _LETTERS) for panel in row] for row in rows]
    heights = [width * min(max(panel.aspect for panel in row), _TALLEST) for row in rows]
    below = [_LINE * max(text.count("\n") + bool(text) for text in row) + (0.12 if any(row) else 0) for row in captions]
    top = 0.62 if heading else 0.15
    total = top + sum(heights) + sum(below) + len(rows) * (_TITLE + _GAP * 0.6) + 0.05
    with canvas(LIGHT, WIDTH, total) as figure:
        if heading:
            heading = fitting(figure, heading, WIDTH - 2 * _MARGIN, fontsize=14.5, bold=True)
            figure.text(_MARGIN / WIDTH, 1 - 0.36 / total, heading, fontsize=14.5, fontweight="bold", va="center")
        edge = total - top
        for row, texts, height, under in zip(rows, captions, heights, below, strict=True):
            edge -= _TITLE
            for column, (panel, text) in enumerate(zip(row, texts, strict=True)):
                left = _MARGIN + column * (width + _GAP)
                _place(figure, total, panel, text, (left, edge, width, height))
            edge -= height + under + _GAP * 0.6
        return Image.open(io.BytesIO(to_png(figure))).convert("RGB")


def _place(figure: Figure, total: float, panel: Panel, caption: str, box: tuple[float, float, float, float]) -> None:
    """Draws a panel with its upper left corner at `box`: left, top, width and height in inches."""
    left, top, width, height = box
    axes = figure.add_axes((left / WIDTH, (top - height) / total, width / WIDTH, height / total))
    panel.draw(axes)
    title = fitting(figure, panel.title, width, fontsize=11, bold=True)
    figure.text(left / WIDTH, (top + 0.1) / total, title, fontsize=11, fontweight="bold", va="baseline")
    figure.text(
        left / WIDTH, (top - height - 0.1) / total, caption, fontsize=9.5, va="top", color=LIGHT.muted, linespacing=1.35
    )


def draw_picture(axes: Axes, colours: np.ndarray) -> None:
    """Fills the axes with colours, (height, width, 3), at the upper left, as they are."""
    axes.imshow(np.clip(colours, 0, 1), interpolation="antialiased")
    axes.set_anchor("NW")
    axes.set_axis_off()


def draw_bars(axes: Axes, labels: Sequence[str], probabilities: Sequence[float], marked: str) -> None:
    """The probabilities of classes, the first above; that of the marked class is in the colour of what is right."""
    rows = range(len(labels))
    figure = cast(Figure, axes.figure)
    width = axes.get_position().width * figure.get_figwidth() - _NUMBER
    colours = [LIGHT.right if label == marked else "#9fb3c8" for label in labels]
    axes.barh(rows, [100 * value for value in probabilities], 0.34, color=colours)
    for row, (label, value) in enumerate(zip(labels, probabilities, strict=True)):
        name = fitting(figure, label, width, fontsize=10)
        axes.text(0, row - 0.27, name, va="bottom", fontsize=10)
        axes.text(100, row - 0.27, per_cent(value), va="bottom", ha="right", fontsize=10, color=LIGHT.muted)
    axes.set(xlim=(0, 100), ylim=(max(len(labels), 4) - 0.7, -0.75))
    axes.set_axis_off()


def fitting(figure: Figure, text: str, width: float, *, fontsize: float, bold: bool = False) -> str:
    """The text, its middle left out as far as it must be to be no wider than `width`, in inches."""
    font = FontProperties(size=fontsize, weight="bold" if bold else "normal")
    renderer = cast(FigureCanvasAgg, figure.canvas).get_renderer()
    for letters in range(min(len(text), _MOST_LETTERS), 0, -1):
        short = drawable(text, letters)
        if renderer.get_text_width_height_descent(short, font, ismath=False)[0] <= width * figure.dpi:
            return short
    return ""


def wrap(text: str, letters: int) -> str:
    """The text in lines of no more than so many letters."""
    return "\n".join(textwrap.wrap(drawable(text, len(text)), letters))
