"""How the report's pictures look: colours for light and dark pages, fonts, and text that any font can show."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

from matplotlib import font_manager, rcParams, style
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

MARK = "scalablevit report"  # in every file that the report writes, so that it replaces no other
DPI = 144
UNKNOWN = "\N{REPLACEMENT CHARACTER}"

# matplotlib brings DejaVu Sans. For scripts that it lacks, these if a machine has them, then any font that has what is
# wanted.
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


_SURROGATES = range(0xD800, 0xE000)  # fonts may have them, but they are no characters, and matplotlib refuses them
_NO_SHAPES = ("LastResort", ".LastResort", "Adobe Blank")  # fonts that have every character, as a box or as nothing


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
    shown, fonts = shorten(text, limit), _fonts()
    fonts.look_for(shown)
    known = fonts.characters.difference(_SURROGATES)
    return "".join(character if ord(character) in known else UNKNOWN for character in shown)


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
        "font.family": list(_fonts().families),
        "font.size": 11.5,
        "legend.frameon": False,
        "lines.linewidth": 2.0,
    }


class Fonts:
    """The fonts that figures are drawn with: matplotlib's own, and of the machine's those that have what it lacks.

    Attributes:
        families: Their names, in the order in which they are asked for a character.
        characters: What one of them has, by number.
    """

    def __init__(self) -> None:
        installed = {font.name for font in font_manager.fontManager.ttflist}
        self.families = ["DejaVu Sans", *(name for name in _FALLBACK_FONTS if name in installed)]
        self.characters = set[int]().union(*(_characters_in(font_manager.findfont(name)) for name in self.families))
        self._missing: set[int] = set()

    def look_for(self, text: str) -> None:
        """Takes fonts of the machine in for what a text needs; says so, once, if none has it."""
        wanted = {ord(character) for character in text if character.isprintable()} - self.characters - self._missing
        for name, file in _machine_fonts() if wanted else ():
            characters = _characters_in(file) if wanted and name not in (*self.families, *_NO_SHAPES) else set()
            if wanted & characters:
                self.families.append(name)
                self.characters |= characters
                wanted -= characters
                rcParams["font.family"] = list(self.families)  # of the figure being drawn; `canvas` takes it back
        if wanted and not self._missing:
            logger.warning(
                "No font of this machine has %s, so that pictures show %s instead: install one that does, such as Noto"
                " Sans CJK for Chinese, Japanese and Korean",
                ", ".join(map(chr, sorted(wanted)[:5])),
                UNKNOWN,
            )
        self._missing |= wanted


@cache
def _fonts() -> Fonts:
    return Fonts()


def _machine_fonts() -> Iterator[tuple[str, str]]:
    """Names and files of all fonts, those last that were installed after matplotlib has written its list."""
    known = list(font_manager.fontManager.ttflist)
    yield from ((font.name, font.fname) for font in known)
    for file in sorted({*font_manager.findSystemFonts()} - {font.fname for font in known}):
        try:
            font_manager.fontManager.addfont(file)
        except (OSError, RuntimeError):  # one that matplotlib cannot draw
            continue
        yield font_manager.fontManager.ttflist[-1].name, file


def _characters_in(file: str) -> set[int]:
    try:
        return set(font_manager.get_font(file).get_charmap())
    except (OSError, RuntimeError):  # the same; or it is there no longer
        return set()


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
