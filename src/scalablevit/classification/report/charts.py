"""The report's charts. Each is drawn from figures alone, in the colours of a theme, and returned as a PNG file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from scalablevit.classification.report.figures import ClassScores, ReliabilityBin
from scalablevit.classification.report.theme import Theme, canvas, drawable, mix, readable_on, to_png
from scalablevit.classification.run_folder import EpochMetrics, best_row

WIDTH = 5.4  # inches; a phone shows the picture at half its size, where its letters can still be read
NUMBERED_CLASSES = 20  # up to as many the confusion matrix has numbers in its cells
NAMED_CLASSES = 40  # up to as many every row has its name
BARS = 30
FEW_ANSWERS = 10  # of which the share that is right says little

_PADS = {"w_pad": 0.1, "h_pad": 0.1}  # inches


def draw_curves(rows: Sequence[EpochMetrics], score_name: str, theme: Theme) -> bytes:
    """Losses, and the validation score, over the epochs."""
    epochs = [row.epoch for row in rows]
    best = best_row(rows)
    with canvas(theme, WIDTH, 4.8) as figure:
        figure.set_layout_engine("constrained", hspace=0.06, **_PADS)
        score, loss = figure.subplots(2, 1, sharex=True)
        score.plot(epochs, [row.val_score for row in rows], color=theme.right, marker=".", markersize=7)
        score.plot(best.epoch, best.val_score, "o", color=theme.right, markersize=9)
        _title(score, f"{score_name} on validation images, per cent", theme)
        loss.plot(epochs, [row.val_loss for row in rows], color=theme.right, marker=".", markersize=7)
        loss.plot(
            epochs, [row.train_loss for row in rows], color=theme.wrong_area, marker=".", markersize=7, ls=(0, (4, 2))
        )
        loss.legend(["validation", "training (augmented)"], labelcolor=theme.muted, fontsize=10.5)
        _title(loss, "Loss", theme)
        loss.set_xlabel("epoch")
        loss.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        for axes in (score, loss):
            axes.grid()
            axes.margins(x=0.03, y=0.12)
        return to_png(figure)


def draw_confusion(confusion: Sequence[Sequence[int]], classes: Sequence[str], theme: Theme) -> bytes:
    """What the images are (rows) against what the model says (columns), coloured by the share of the row."""
    counts = np.array(confusion)
    count = len(classes)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    step = 1 if count <= NAMED_CLASSES else math.ceil(count / 24)
    names = [drawable(name, 18) for name in classes[::step]]
    turned = count > 4 or max(map(len, names)) > 12
    with canvas(theme, WIDTH, WIDTH if turned else 3.2) as figure:
        figure.set_layout_engine("constrained", **_PADS)
        axes = figure.subplots()
        colours = _confusion_colours(shares, theme)
        axes.imshow(colours, interpolation="nearest" if count <= 300 else "auto")
        size = 10.5 if count <= 12 else 8.5 if count <= 24 else 7.0
        axes.set_xticks(range(0, count, step), names, fontsize=size, rotation=90 if turned else 0)
        axes.set_yticks(range(0, count, step), names, fontsize=size)
        axes.tick_params(length=0 if step == 1 else 3, pad=4)
        axes.set_xlabel("the model says", fontsize=10.5)
        axes.set_ylabel("the image is", fontsize=10.5)
        axes.spines[:].set_visible(step > 1)
        if count <= NUMBERED_CLASSES:
            _number_cells(axes, counts, colours, theme)
        return to_png(figure)


def draw_calibration(bins: Sequence[ReliabilityBin], theme: Theme, *, multi_label: bool) -> bytes:
    """How often answers are right, against how probable the model holds them; and how many answers there are.

    Bars of a few answers are paler.
    """
    width = bins[0].high - bins[0].low
    middles = [100 * (part.low + part.high) / 2 for part in bins]
    with canvas(theme, WIDTH, 4.8) as figure:
        figure.set_layout_engine("constrained", hspace=0.06, **_PADS)
        right, number = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        bars = right.bar(middles, [100 * part.right for part in bins], 92 * width, color=mix(theme, theme.right, 0.8))
        for bar, part in zip(bars, bins, strict=True):
            bar.set_alpha(1.0 if part.count >= FEW_ANSWERS else 0.4)
        right.plot([0, 100], [0, 100], color=theme.text, linewidth=1.2, ls=(0, (4, 3)), label="as sure as right")
        right.legend(loc="lower right", bbox_to_anchor=(1.01, 0.98), labelcolor=theme.muted, fontsize=10.5)
        right.set(xlim=(0, 100), ylim=(0, 102))
        what = "the label is there" if multi_label else "it is right"
        _title(right, f"How often {what}, per cent", theme)
        number.bar(middles, [part.count for part in bins], 92 * width, color=mix(theme, theme.muted, 0.6))
        _title(number, "How many labels" if multi_label else "How many answers", theme)
        sure = "how probable the model holds the label" if multi_label else "how sure the model is"
        number.set_xlabel(f"{sure}, per cent")
        number.yaxis.set_major_locator(MaxNLocator(3, integer=True))
        for axes in (right, number):
            axes.grid(axis="y")
        return to_png(figure)


def draw_classes(scores: Sequence[ClassScores], bar_name: str, theme: Theme) -> bytes:
    """A bar for the score of each of the first classes, and for its precision a mark."""
    shown = [row for row in scores if row.score is not None][:BARS]
    height = 1.15 + 0.31 * max(len(shown), 2)
    with canvas(theme, WIDTH, height) as figure:
        figure.set_layout_engine("constrained", **_PADS)
        axes = figure.subplots()
        rows = range(len(shown))
        axes.barh(rows, [row.score or 0 for row in shown], 0.62, color=mix(theme, theme.right, 0.8), label=bar_name)
        marked = [(row.precision, place) for place, row in enumerate(shown) if row.precision is not None]
        if marked and all(row.average_precision is None for row in shown):
            mark: dict[str, Any] = {"ms": 6, "mec": theme.background, "clip_on": False, "zorder": 3}
            axes.plot(*zip(*marked, strict=True), "D", color=theme.wrong_area, label="precision", **mark)
        axes.set(xlim=(0, 102), ylim=(len(shown) - 0.4, -0.6))
        axes.set_yticks(rows, [drawable(row.name) for row in shown], fontsize=10.5, color=theme.text)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x")
        axes.spines["bottom"].set_visible(False)
        axes.set_xlabel("per cent")
        handles, labels = axes.get_legend_handles_labels()
        bar_first = sorted(zip(labels, handles, strict=True), key=lambda pair: pair[0] == "precision")
        figure.legend(
            [handle for _, handle in bar_first],
            [label for label, _ in bar_first],
            loc="outside upper left",
            ncols=2,
            labelcolor=theme.muted,
            handlelength=1.2,
        )
        return to_png(figure)


def _title(axes: Axes, text: str, theme: Theme) -> None:
    axes.set_title(text, loc="left", fontsize=11.5, color=theme.text, pad=8)


def _confusion_colours(shares: np.ndarray, theme: Theme) -> np.ndarray:
    """(c, c, 3): right answers in one colour, wrong ones in another, the stronger the larger their share of the row."""
    right, wrong = np.array(mix(theme, theme.right, 1)), np.array(mix(theme, theme.wrong_area, 1))
    background = np.array(mix(theme, theme.right, 0))
    diagonal = np.eye(len(shares), dtype=bool)[..., None]
    # A root lets rare mistakes be seen at all, small cells more so.
    root = 2 if len(shares) <= NUMBERED_CLASSES else 3
    strength = np.where(diagonal, shares[..., None], shares[..., None] ** (1 / root))
    return background + (np.where(diagonal, right, wrong) - background) * strength


def _number_cells(axes: Axes, counts: np.ndarray, colours: np.ndarray, theme: Theme) -> None:
    count = len(counts)
    size = 13 if count <= 4 else 10.5 if count <= 10 else 7.5
    if counts.max() >= 1000 and count > 4:
        size *= 0.75
    for edge in range(1, count):
        axes.axhline(edge - 0.5, color=theme.line, linewidth=0.6)
        axes.axvline(edge - 0.5, color=theme.line, linewidth=0.6)
    for row, column in zip(*counts.nonzero(), strict=True):
        colour = readable_on(tuple(colours[row, column]), theme)
        axes.text(column, row, f"{counts[row, column]}", ha="center", va="center", fontsize=size, color=colour)
