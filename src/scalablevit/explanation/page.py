"""Explanations of any number of images as one HTML page that needs no other file, no script and no network."""

from __future__ import annotations

import io
from collections.abc import Iterable
from html import escape
from pathlib import Path

from PIL import Image

from scalablevit.classification.report.page import Section, render_page
from scalablevit.classification.report.theme import LIGHT, canvas, to_png
from scalablevit.classification.report.thumbnails import data_uri
from scalablevit.explanation.explanation import Explanation
from scalablevit.explanation.picture import Panel

_SIDE = 3.0  # inches of a panel; pages show it at less, for screens with dense pixels
_LEAD = (
    "What the network says of each image, where in the image the evidence for that is, and where its attention goes."
    " Bright places count; what a picture of attention does not say is that its bright places decided the answer."
)


def render(explanations: Iterable[Explanation], run: str) -> str:
    """The page.

    Args:
        explanations: Of each image, taken one by one.
        run: What the network is called; may be empty.
    """
    name = Path(run).name
    title = f"What {name} looks at" if name else "What the network looks at"
    sections = [
        Section(anchor=f"image-{number}", heading=each.heading, html=_panels(each))
        for number, each in enumerate(explanations, 1)
    ]
    return render_page(title, _LEAD, "", {}, sections)


def _panels(explanation: Explanation) -> str:
    figures = "".join(
        f'<figure><img src="{_drawn(panel)}" alt="{escape(f"{panel.title}. {panel.caption}")}">'
        f"<figcaption><b>{escape(panel.title)}</b> {escape(panel.caption)}</figcaption></figure>\n"
        for group in explanation.panels()
        for panel in group
    )
    return f'<div class="panels">\n{figures}</div>\n'


def _drawn(panel: Panel) -> str:
    """A panel without its words."""
    width = _SIDE / max(panel.aspect, 1)
    with canvas(LIGHT, width, width * panel.aspect) as figure:
        panel.draw(figure.add_axes((0, 0, 1, 1)))
        drawn = Image.open(io.BytesIO(to_png(figure))).convert("RGB")
    buffer = io.BytesIO()
    drawn.save(buffer, "JPEG", quality=85, optimize=True, subsampling=0)
    return data_uri(buffer.getvalue(), "image/jpeg")
