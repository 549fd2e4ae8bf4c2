"""The report as one HTML page that needs no other file, no script and no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from html import escape
from pathlib import Path

from PIL import Image

from scalablevit.classification.report.figures import ClassScores, ConfusedPair, Prediction
from scalablevit.classification.report.sentences import per_cent
from scalablevit.classification.report.theme import DARK, LIGHT, MARK, Theme, shorten
from scalablevit.classification.report.thumbnails import data_uri, image_uri, is_tiny
from scalablevit.images import ImagePlace

STYLE = Path(__file__).with_name("style.css")
OPEN_ROWS = 20  # longer tables are folded
SKIPPED_ROWS = 1000
NAME_LETTERS = 60

# Nothing may be loaded from anywhere, which also holds what a class or a file may be called in check.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A picture for light and for dark pages.

    Args:
        light: A PNG file.
        dark: The same picture, in other colours.
        alternative: What it shows, in words, for those who cannot see it.
    """

    light: bytes
    dark: bytes
    alternative: str


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the page.

    Args:
        anchor: What links name it by.
        heading: Text.
        html: What follows the heading, as HTML.
    """

    anchor: str
    heading: str
    html: str


def render_page(title: str, lead: str, data: str, tiles: Mapping[str, str], sections: Sequence[Section]) -> str:
    """The whole page. All but the sections' HTML is text."""
    links = "".join(f'<a href="#{section.anchor}">{escape(section.heading)}</a>' for section in sections)
    numbers = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in tiles.items())
    evaluated = f'<p class="data">Evaluated on {escape(data)}.</p>' if data else ""
    body = "\n".join(
        f'<section id="{section.anchor}"><h2>{escape(section.heading)}</h2>\n{section.html}</section>'
        for section in sections
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="generator" content="{MARK}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>{escape(title)}</title>
<style>
:root {{ {_variables(LIGHT)} }}
@media (prefers-color-scheme: dark) {{ :root {{ {_variables(DARK)} }} }}
{STYLE.read_text(encoding="utf-8")}</style>
</head>
<body>
<main>
<header>
<h1>{escape(title)}</h1>
<p class="lead">{_prose(lead)}</p>
{evaluated}
<dl class="tiles">{numbers}</dl>
<nav aria-label="Parts of this page">{links}</nav>
</header>
{body}
<footer>Written by scalablevit. This page is complete in itself: it can be sent as one file.</footer>
</main>
</body>
</html>
"""


def paragraph(text: str) -> str:
    """Text as HTML."""
    return f"<p>{_prose(text)}</p>\n"


def chart(picture: Chart) -> str:
    """A chart, light or dark as the reader's device is."""
    return (
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="{data_uri(picture.dark)}">'
        f'<img class="chart" src="{data_uri(picture.light)}" alt="{escape(picture.alternative)}"></picture>\n'
    )


def cards(shown: Sequence[Prediction], images: Mapping[int, Image.Image | None], paths: Sequence[ImagePlace]) -> str:
    """Images with what the model says of them; where that is wrong, what they are as well."""
    items = [_card(prediction, images.get(prediction.index), paths[prediction.index]) for prediction in shown]
    return f'<ul class="cards">\n{"".join(items)}</ul>\n'


def pairs_table(pairs: Sequence[ConfusedPair]) -> str:
    """The most confused pairs of classes."""
    rows = [
        [
            f"<td>{_name(pair.actual)}</td>",
            f"<td>{_name(pair.named)}</td>",
            _number(f"{pair.count:,}"),
            _number(f"{pair.images:,}"),
        ]
        for pair in pairs
    ]
    return _table(["The image is", "The model says", "#Times", "#Of images"], rows)


def classes_table(scores: Sequence[ClassScores], *, multi_label: bool) -> str:
    """The scores of every class."""
    rows = []
    for row in scores:
        shares = [*([row.average_precision] if multi_label else []), row.precision, row.recall]
        cells = [_number(f"{row.images:,}"), *(_number(per_cent(share)) for share in shares)]
        rows.append([f'<th scope="row">{_name(row.name)}</th>', *cells])
    heads = ["Class", "#Images", *(["#AP"] if multi_label else []), "#Precision", "#Recall"]
    note = ""
    if any(row.precision is None or row.recall is None for row in scores):
        note = paragraph("A dash: the model never gives the class (precision), or no image is of it (recall).")
    return _fold(_table(heads, rows), f"All {len(rows):,} classes", len(rows)) + note


def skipped_table(skipped: Mapping[str, str]) -> str:
    """The images that could not be read, and why."""
    rows = [[_cell(path), _cell(reason)] for path, reason in list(skipped.items())[:SKIPPED_ROWS]]
    which = (
        f"The first {len(rows):,} of {len(skipped):,} files" if len(rows) < len(skipped) else f"All {len(rows)} files"
    )
    return _fold(_table(["File", "Why"], rows), which, len(rows))


def facts_table(facts: Mapping[str, str]) -> str:
    """What was run, with versions."""
    rows = "".join(
        f'<tr><th scope="row">{escape(str(name))}</th><td>{escape(str(value))}</td></tr>\n'
        for name, value in facts.items()
    )
    return f'<div class="scroll"><table class="facts"><tbody>\n{rows}</tbody></table></div>\n'


def _card(prediction: Prediction, image: Image.Image | None, path: ImagePlace) -> str:
    lines = [
        f'<span class="{"right" if right else "wrong"}">{"✓" if right else "✗"} {_name(label.name)}'
        f" {100 * label.probability:.0f}&nbsp;%</span>"
        for label in prediction.given
        for right in (prediction.has(label.name),)
    ]
    if not prediction.given:
        lines.append(f'<span class="{"right" if prediction.right else "muted"}">no label given</span>')
    missed = '<span class="wrong">misses' if prediction.multi_label else "<span>is"
    lines += [
        f"{missed} {_name(label.name)} {100 * label.probability:.0f}&nbsp;%</span>" for label in prediction.missed
    ]
    picture = "cannot be read" if image is None else _thumbnail(prediction, image)
    lines.append(f'<span class="file" title="{escape(str(path))}">{escape(path.name)}</span>')
    return f'<li><div class="frame">{picture}</div>{"".join(lines)}</li>\n'


def _thumbnail(prediction: Prediction, image: Image.Image) -> str:
    kind = ' class="tiny"' if is_tiny(image) else ""
    labels = ", ".join(label.name for label in prediction.actual)
    return f'<img{kind} src="{image_uri(image)}" alt="{escape(f"An image of: {labels}" if labels else "An image")}">'


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of cells that are HTML; a heading that begins with # stands over numbers."""
    head = "".join(
        f'<th scope="col"{" class=number" if name.startswith("#") else ""}>{escape(name.removeprefix("#"))}</th>'
        for name in heads
    )
    body = "".join(f"<tr>{''.join(row)}</tr>\n" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table></div>\n'


def _fold(table: str, summary: str, rows: int) -> str:
    """A long table, to be opened by who wants it."""
    return table if rows <= OPEN_ROWS else f"<details><summary>{summary}</summary>\n{table}</details>\n"


def _prose(text: str) -> str:
    """Text as HTML in which no line begins with a per cent sign."""
    return escape(text).replace(" %", "&nbsp;%")


def _name(name: str) -> str:
    """A class's name; a very long one is cut in its middle, and can be read by pointing at it."""
    short = shorten(name, NAME_LETTERS)
    return escape(name) if short == name else f'<abbr title="{escape(name)}">{escape(short)}</abbr>'


def _cell(text: str) -> str:
    return f"<td>{escape(text)}</td>"


def _number(text: str) -> str:
    return f'<td class="number">{escape(text)}</td>'


def _variables(theme: Theme) -> str:
    return " ".join(f"--{field.name}: {getattr(theme, field.name)};" for field in fields(theme))
