"""What was found out about one image, and the picture of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from scalablevit.explanation.lattice import HeatMap
from scalablevit.explanation.looks import Look
from scalablevit.explanation.windows import WindowInfluence

if TYPE_CHECKING:
    from scalablevit.explanation.picture import Panel
    from scalablevit.explanation.view import View

TOP = 5  # classes that are shown


@dataclass(frozen=True, kw_only=True, eq=False)
class Explanation:
    """What a network looks at in an image.

    Args:
        path: The image's file, if it came from one.
        name: What it is called in headings; None: by the name of its file.
        view: The image as the network was given it.
        labels: Names of all classes, the most probable first.
        probabilities: Theirs, from 0 to 1.
        label: The class that is explained.
        multi_label: Whether each class has a probability of its own.
        evidence: For that class, ``evidence.values``: (h, w) of a stage's map, not negative.
        attention: Where SSA looks: for each chosen stage (and head) ``maps``, (heads, rows, columns) of its keys, each
            of whose sums is 1.
        windows: What a window of IWSA has a say in, with LIM and without: two maps, (h, w) of a stage; None for a
            network, or an image, with no more than one window.
    """

    path: Path | None
    view: View = field(repr=False)
    labels: tuple[str, ...]
    probabilities: tuple[float, ...]
    label: str
    multi_label: bool
    evidence: HeatMap = field(repr=False)
    attention: tuple[Look, ...] = field(repr=False)
    windows: WindowInfluence | None = field(repr=False)
    name: str | None = None

    @property
    def probability(self) -> float:
        """That of the class that is explained."""
        return self.probabilities[self.labels.index(self.label)]

    @property
    def answer(self) -> str:
        """The class that is explained, and its probability, in words."""
        return f"{self.label}, {per_cent(self.probability)}"

    @property
    def heading(self) -> str:
        """The same, with the name of the image."""
        name = self.name or (self.path and self.path.name)
        return f"{name}: {self.answer}" if name else self.answer

    def panels(self) -> list[list[Panel]]:
        """The picture in rows: image, evidence and classes; where the network looks; the windows, if any."""
        from scalablevit.explanation import panels

        shown = list(zip(self.labels, self.probabilities, strict=True))[:TOP]
        if self.label not in self.labels[:TOP]:
            shown[-1] = (self.label, self.probability)
        names, probabilities = zip(*shown, strict=True)
        first = [
            panels.given_panel(self.view),
            panels.evidence_panel(self.view, self.evidence, self.label),
            panels.bars_panel(names, probabilities, self.label, multi_label=self.multi_label),
        ]
        windows = panels.window_panels(self.view, self.windows) if self.windows is not None else []
        return [first, [panels.look_panel(self.view, look) for look in self.attention], windows]

    def picture(self) -> Image.Image:
        """All panels with their captions, 1400 pixels wide, in RGB."""
        from scalablevit.explanation.picture import draw_panels

        return draw_panels(self.panels(), self.heading)

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Writes the picture (``.png``), or a page that is complete in itself (``.html``).

        Raises:
            ValueError: If the file exists, or its name ends otherwise.
        """
        from scalablevit.explanation.writing import check_out, write

        check_out(Path(path), 1, overwrite=overwrite)
        write([self], Path(path), run="")


def per_cent(share: float) -> str:
    """A probability as people read it: 93 %, 0.4 %, or under 0.1 %."""
    value = 100 * share
    if value < 0.1:
        return "under 0.1 %"
    return f"{value:.1f} %" if value < 1 or 99 <= value < 99.95 else f"{value:.0f} %"
