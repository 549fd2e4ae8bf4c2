"""How the report's pictures look: colours for light and dark pages, fonts, and text that any font can show."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

from matplotlib import font_manager, style
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

MARK = "scalablevit report"  # in every file that the report writes, so that it replaces no other
DPI = 144
UNKNOWN = "\N{REPLACEMENT CHARACTER}"

# matplotlib brings DejaVu Sans. For scripts that it lacks, the first of these that a machine has.
_FALLBACK_FONTS = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "PingFang SC",
    "Microsoft YaHei",
    "Hiragino Sans",
    "Yu Gothic",
    "Malgun Gothic",
    "WenQuanYi Zen Hei",
    "Noto Sans Devanagari",
    "Noto Sans Thai",
    "Arial Unicode MS",
)


@dataclass(frozen=True, kw_only=True)
class Theme:
    """Colours, as CSS and matplotlib write them.

    Args:
        background: Of the page.
        panel: Of what stands out from it.
        text: Letters.
        muted: Letters of less weight.
        line: Borders and grids.
        right: What is right.
        wrong: What is wrong, as letters.
        wrong_area: The same as areas, which may be brighter.
    """

    background: str
    panel: str
    text: str
    muted: str
    line: str
    right: str
    wrong: str
    wrong_area: str


LIGHT = Theme(
    background="#ffffff",
    panel="#f6f8fa",
    text="#24292f",
    muted="#59636e",
    line="#d0d7de",
    right="#2f6fd0",
    wrong="#b35c00",
    wrong_area="#e8861a",
)
DARK = Theme(
    background="#14181d",
    panel="#1d232a",
    text="#e6eaef",
    muted="#9aa6b2",
    line="#39424d",
    right="#6ba4f0",
    wrong="#f0a04b",
    wrong_area="#e8861a",
)


@contextmanager
def canvas(theme: Theme, width: float, height: float) -> Iterator[Figure]:
    """An empty figure, in inches. What is drawn in the block looks as the theme says, whatever the user's settings."""
    with style.context(["default", _settings(theme)]):
        figure = Figure(figsize=(width, height), dpi=DPI)
        FigureCanvasAgg(figure)  # without pyplot nothing needs a display, and nothing is left open
        yield figure


def to_png(figure: Figure) -> bytes:
    """The figure as a PNG file; to be called in the block of `canvas`. The same figure gives the same bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=DPI, format="png", metadata={"Software": MARK})
    return buffer.getvalue()


def drawable(text: str, limit: int = 28) -> str:
    """The text as a figure can show it: cut in its middle if it is long, characters that no font has replaced."""
    known = _characters()
    return "".join(character if ord(character) in known else UNKNOWN for character in shorten(text, limit))


def shorten(text: str, limit: int) -> str:
    """The text with at most `limit` characters, its middle left out where it has more: names differ at their ends."""
    kept = limit - 1
    return text if len(text) <= limit else f"{text[: kept - kept // 2]}…{text[len(text) - kept // 2 :]}"


def _settings(theme: Theme) -> dict[str, object]:
    return {
        "figure.facecolor": theme.background,
        "savefig.facecolor": theme.background,
        "axes.facecolor": theme.background,
        "axes.edgecolor": theme.line,
        "axes.labelcolor": theme.muted,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "text.color": theme.text,
        "text.parse_math": False,  # a class may be called $x$
        "xtick.color": theme.line,
        "ytick.color": theme.line,
        "xtick.labelcolor": theme.muted,
        "ytick.labelcolor": theme.muted,
        "grid.color": theme.line,
        "grid.linewidth": 0.6,
        "font.family": list(_families()),
        "font.size": 11.5,
        "legend.frameon": False,
        "lines.linewidth": 2.0,
    }


@cache
def _families() -> tuple[str, ...]:
    installed = {font.name for font in font_manager.fontManager.ttflist}
    return ("DejaVu Sans", *(name for name in _FALLBACK_FONTS if name in installed))


@cache
def _characters() -> frozenset[int]:
    """The characters that one of the fonts has."""
    files = [font_manager.findfont(family) for family in _families()]
    return frozenset().union(*(font_manager.get_font(file).get_charmap() for file in files))


def mix(theme: Theme, colour: str, share: float) -> tuple[float, float, float]:
    """The theme's background with a share, from 0 to 1, of a colour."""
    below, above = (to_rgb(name) for name in (theme.background, colour))
    red, green, blue = (low + (high - low) * share for low, high in zip(below, above, strict=True))
    return red, green, blue


def readable_on(colour: tuple[float, float, float], theme: Theme) -> str:
    """That of the theme's colours for letters and for the page which has more contrast on another colour."""

    def contrast(name: str) -> float:  # as the Web Content Accessibility Guidelines define it
        darker, lighter = sorted((_luminance(colour), _luminance(to_rgb(name))))
        return (lighter + 0.05) / (darker + 0.05)

    return max((theme.text, theme.background), key=contrast)


def _luminance(colour: tuple[float, float, float]) -> float:
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in colour)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
