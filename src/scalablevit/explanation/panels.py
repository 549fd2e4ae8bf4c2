"""The panels of an explanation, with what is said of them to people who know nothing of networks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from scalablevit.explanation import picture
from scalablevit.explanation.lattice import HeatMap
from scalablevit.explanation.looks import Look
from scalablevit.explanation.picture import Panel
from scalablevit.explanation.view import View, scaled
from scalablevit.explanation.windows import WindowInfluence

_EVEN = 1.05  # times an even share, below which an attention is called even


def given_panel(view: View, caption: str = "As the network is given it: cut and scaled to its size.") -> Panel:
    """The image."""
    return _panel(view, "The image", caption, lambda axes: picture.draw_picture(axes, view.colours))


def evidence_panel(view: View, evidence: HeatMap, label: str) -> Panel:
    """Where what speaks for the class is."""
    heat = scaled(evidence.smooth(*view.size, view.zoom))
    speaks = "The brighter a place, the more it speaks for this answer."
    caption = speaks if heat.any() else "No place speaks for this answer more than against it."
    return _panel(view, f"Evidence for “{label}”", caption, lambda axes: picture.draw_picture(axes, view.heated(heat)))


def bars_panel(labels: Sequence[str], probabilities: Sequence[float], label: str, *, multi_label: bool) -> Panel:
    """The most probable classes."""
    whole = "Each label has a probability of its own." if multi_label else "All classes together make 100 %."
    return Panel(
        title="What the network says",
        caption=f"The most probable {'labels' if multi_label else 'answers'}; blue is the one explained here. {whole}",
        draw=lambda axes: picture.draw_bars(axes, labels, probabilities, label),
        aspect=0.8,
    )


def look_panel(view: View, look: Look) -> Panel:
    """The attention of one stage."""
    share = look.over_even()
    most = share.values.max()
    heat = scaled(np.clip(share.smooth(*view.size, view.zoom) - 1, 0, None)) * (most > _EVEN)

    def draw(axes: Axes) -> None:
        picture.draw_picture(axes, view.heated(heat))
        for row, column in look.points:
            _mark(axes, view, row, column)

    who = f"stage {look.stage}" if look.is_mean else f"head {look.heads[0]} of stage {look.stage}"
    place = {0: "all places together", 1: "the ringed place"}.get(len(look.points), "the ringed places")
    caption = f"From {place}, {who} looks at what is bright: up to {most:.1f} times an even share."
    if most <= _EVEN:
        caption = f"From {place}, {who} looks everywhere alike."
    return _panel(view, f"Where {who} looks", caption, draw)


def window_panels(view: View, windows: WindowInfluence) -> list[Panel]:
    """The window, and what it has a say in with and without LIM."""

    def picture_of(change: HeatMap | None) -> Panel:
        title, caption = _on_windows(windows, change)

        def draw(axes: Axes) -> None:
            colours = view.colours
            if change is not None:
                colours = view.heated(scaled(change.blocks(*view.size, view.zoom)))
            picture.draw_picture(axes, colours)
            _draw_grid(axes, view, windows)

        return _panel(view, title, caption, draw)

    return [picture_of(None), picture_of(windows.without_lim), picture_of(windows.with_lim)]


def _on_windows(windows: WindowInfluence, change: HeatMap | None) -> tuple[str, str]:
    """The title and the caption of one of the three panels."""
    if change is None:
        return (
            f"The windows of stage {windows.stage}",
            "Half of its blocks work inside windows. Beside: what changes if the framed window is blanked.",
        )
    if change is windows.without_lim:
        return "One window, without LIM", "Without LIM nothing leaves the framed window: its neighbours stay dark."
    return (
        "The same window, with LIM",
        "LIM, a small convolution, carries it across the border: one step into the neighbours.",
    )


def _draw_grid(axes: Axes, view: View, windows: WindowInfluence) -> None:
    """The borders of the windows, and a frame around the one."""
    heat, (top, bottom, left, right) = windows.with_lim, windows.window
    height, width = view.colours.shape[:2]
    rows, columns = heat.values.shape
    for row in range(windows.window_size, rows, windows.window_size):
        _line(axes, [0, width - 1], [_edge(heat, view, row)] * 2)
    for column in range(windows.window_size, columns, windows.window_size):
        _line(axes, [_edge(heat, view, column)] * 2, [0, height - 1])
    x, y = max(_edge(heat, view, left), 0), max(_edge(heat, view, top), 0)
    right_edge = width - 1 if right == columns else _edge(heat, view, right)
    bottom_edge = height - 1 if bottom == rows else _edge(heat, view, bottom)
    for line, colour in ((4.5, "#000000"), (2.2, "#ffffff")):
        axes.add_patch(Rectangle((x, y), right_edge - x, bottom_edge - y, fill=False, lw=line, ec=colour, zorder=3))


def _line(axes: Axes, x: Sequence[float], y: Sequence[float]) -> None:
    for width, colour, alpha in ((1.6, "#000000", 0.6), (0.8, "#ffffff", 0.75)):
        axes.plot(x, y, color=colour, linewidth=width, alpha=alpha, scalex=False, scaley=False)


def _edge(heat: HeatMap, view: View, position: int) -> float:
    """Where in the enlarged image the border before a row or column of the map lies."""
    return (heat.pixel(position - 0.5, 0)[0] + 0.5) * view.zoom - 0.5


def _mark(axes: Axes, view: View, row: float, column: float) -> None:
    """A ring around a place of the image, in pixels, that is seen on dark and on bright ground."""
    place = [(column + 0.5) * view.zoom - 0.5], [(row + 0.5) * view.zoom - 0.5]
    for width, colour in ((4.5, "#000000"), (2.0, "#ffffff")):
        axes.plot(*place, "o", ms=13, mfc="none", mec=colour, mew=width, clip_on=False, scalex=False, scaley=False)


def _panel(view: View, title: str, caption: str, draw: picture.Draw) -> Panel:
    return Panel(title=title, caption=caption, draw=draw, aspect=view.size[0] / view.size[1])
