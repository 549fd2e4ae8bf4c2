"""The panels of an explanation, with what is said of them to people who know nothing of networks."""

from __future__ import annotations

from matplotlib.axes import Axes

from scalablevit.classification.report.theme import drawable
from scalablevit.explanation import picture
from scalablevit.explanation.lattice import HeatMap
from scalablevit.explanation.looks import Look
from scalablevit.explanation.picture import Panel
from scalablevit.explanation.view import View, scaled

_LETTERS = 24  # of a class name in a title


def given_panel(view: View, caption: str) -> Panel:
    """The image."""
    return Panel(
        title="The image",
        caption=caption,
        draw=lambda axes: picture.draw_picture(axes, view.colours),
        aspect=_aspect(view),
    )


def evidence_panel(view: View, evidence: HeatMap, label: str) -> Panel:
    """Grad-CAM."""
    is_there = evidence.values.max() > 0
    heat = scaled(evidence.smooth(*view.size, view.zoom))
    return Panel(
        title=f"Where the evidence for “{drawable(label, _LETTERS)}” is",
        caption="The brighter a place, the more it speaks for this answer."
        if is_there
        else "No place speaks for this answer more than against it.",
        draw=lambda axes: picture.draw_picture(axes, view.heated(heat)),
        aspect=_aspect(view),
    )


def look_panel(view: View, look: Look) -> Panel:
    """The attention of one stage."""
    heat = scaled(look.mean.smooth(*view.size, view.zoom))

    def draw(axes: Axes) -> None:
        picture.draw_picture(axes, view.heated(heat))
        for row, column in look.points:
            mark(axes, view, row, column)

    where = "From the marked place, this is" if look.points else "On average over all places, this is"
    return Panel(
        title=f"Where stage {look.stage} looks{' from there' if look.points else ''}",
        caption=f"{where} how stage {look.stage} divides its attention over the whole image.",
        draw=draw,
        aspect=_aspect(view),
    )


def mark(axes: Axes, view: View, row: float, column: float) -> None:
    """A ring around a place of the image, in pixels, that is seen on dark and on bright ground."""
    place = [(column + 0.5) * view.zoom - 0.5], [(row + 0.5) * view.zoom - 0.5]
    for width, colour in ((4.5, "#000000"), (2.0, "#ffffff")):
        axes.plot(*place, "o", ms=13, mfc="none", mec=colour, mew=width, clip_on=False)


def _aspect(view: View) -> float:
    return view.size[0] / view.size[1]
