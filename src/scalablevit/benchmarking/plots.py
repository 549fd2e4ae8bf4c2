"""Pictures: throughput against published accuracy, time and memory against pixels, and floors of time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scalablevit.benchmarking.comparison import BenchmarkResult, Measurement
from scalablevit.benchmarking.roofline import Floor
from scalablevit.extras import require_extra

OURS, OTHERS, LIGHT = "#d1495b", "#30638e", "#a9bcd0"
PANEL_INCHES = (6.4, 4.8)


def plot_benchmark(result: BenchmarkResult, path: str | Path) -> None:
    """Draws what there is to draw, side by side, into a PNG, SVG or PDF file.

    Throughput against published accuracy, of the first size, if two contenders or more have one; time and memory per
    pixel against pixels, if there are two sizes or more.

    Raises:
        MissingExtraError: If matplotlib is not installed.
        ValueError: If there is nothing to draw.
    """
    require_extra("benchmark", "matplotlib")
    from matplotlib.figure import Figure

    measured = [m for m in result.measurements if m.error is None]
    sizes = list(dict.fromkeys((m.height, m.width) for m in measured))
    rated = [m for m in measured if m.top1 is not None and (m.height, m.width) == sizes[0]]
    panels: list[Any] = [_accuracy_panel] if len(rated) > 1 else []
    if len(sizes) > 1:
        panels.append(_time_panel)
        if any(m.peak_memory_bytes for m in measured):
            panels.append(_memory_panel)
    if not panels:
        raise ValueError(
            "there is nothing to plot: give several contenders with published accuracies, or several sizes"
        )
    figure = Figure(figsize=(PANEL_INCHES[0] * len(panels), PANEL_INCHES[1]), layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        panel(axes, rated if panel is _accuracy_panel else measured)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    work = result.workload
    how = f"{work.mode}, {work.precision}, batch {work.batch}, {'compiled' if work.compile else 'eager'}"
    figure.suptitle(f"{how}; {result.machine['device']}, PyTorch {result.machine['torch']}", fontsize=10)
    figure.savefig(path, dpi=150)


def plot_floors(
    floors: Sequence[Floor], measured: Mapping[str, float], path: str | Path, *, title: str, clock: str
) -> None:
    """Draws, for each kind of operation, the time that the machine would allow and the time that was measured.

    Args:
        floors: Of each kind.
        measured: Seconds of a step by kind; kinds without a floor are drawn as well.
        path: Of a PNG, SVG or PDF file.
        title: Above the picture.
        clock: What was measured, in words.

    Raises:
        MissingExtraError: If matplotlib is not installed.
    """
    require_extra("benchmark", "matplotlib")
    from matplotlib.figure import Figure

    kinds = list(dict.fromkeys([*measured, *(floor.name for floor in floors)]))
    kinds.sort(key=lambda kind: measured.get(kind, 0.0))
    of_kind = {floor.name: floor for floor in floors}
    figure = Figure(figsize=PANEL_INCHES, layout="constrained")
    axes = figure.subplots()
    bars = {
        clock: (OTHERS, 0.27, [measured.get(kind, 0.0) for kind in kinds]),
        "least for the bytes": (LIGHT, 0.0, [of_kind[kind].byte_seconds if kind in of_kind else 0.0 for kind in kinds]),
        "least for the products": (
            OURS, -0.27, [of_kind[kind].flop_seconds if kind in of_kind else 0.0 for kind in kinds]
        ),
    }  # fmt: skip
    for label, (colour, offset, seconds) in bars.items():
        places = [index + offset for index in range(len(kinds))]
        axes.barh(places, [1e3 * value for value in seconds], 0.25, label=label, color=colour)
    axes.set_yticks(range(len(kinds)), kinds)
    axes.set_xlabel("milliseconds of a step")
    axes.grid(axis="x", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=150)


def _accuracy_panel(axes: Any, measurements: list[Measurement]) -> None:
    fastest = max(m.images_per_second or 0.0 for m in measurements)
    for m in measurements:
        axes.plot(m.images_per_second, m.top1, "o", color=_colour(m.contender))
        axes.annotate(
            _label(m.contender),
            (m.images_per_second, m.top1),
            xytext=(4, 4),
            textcoords="offset points",
            rotation=50,  # models of one accuracy are often side by side
            rotation_mode="anchor",
            fontsize=8,
            color=_colour(m.contender),
        )
    axes.set_xlim(0, 1.25 * fastest)
    lowest, highest = min(m.top1 or 0.0 for m in measurements), max(m.top1 or 0.0 for m in measurements)
    axes.set_ylim(lowest - 0.2, highest + 0.2 + 0.4 * (highest - lowest))
    axes.set_xlabel(f"images per second at {measurements[0].height}x{measurements[0].width} px")
    axes.set_ylabel("ImageNet-1k top-1, % (published)")


def _time_panel(axes: Any, measurements: list[Measurement]) -> None:
    _lines(axes, measurements, lambda m: 1e3 / m.images_per_second if m.images_per_second else None)
    axes.set_ylabel("milliseconds per megapixel")


def _memory_panel(axes: Any, measurements: list[Measurement]) -> None:
    _lines(axes, measurements, lambda m: m.peak_memory_bytes / m.batch / 1e6 if m.peak_memory_bytes else None)
    axes.set_ylabel("peak memory of a step, MB per megapixel")


def _lines(axes: Any, measurements: list[Measurement], per_image: Any) -> None:
    """A line for each contender: level where its cost grows linearly with the pixels."""
    names = list(dict.fromkeys(m.contender for m in measurements))
    others = [name for name in names if not _is_ours(name)]
    for name in names:
        mine = [m for m in measurements if m.contender == name and per_image(m) is not None]
        points = sorted((m.height * m.width / 1e6, per_image(m) / (m.height * m.width / 1e6)) for m in mine)
        if points:
            style = "-" if _is_ours(name) else ("--", ":", "-.")[others.index(name) % 3]
            axes.plot(*zip(*points, strict=True), f"o{style}", label=_label(name), color=_colour(name), markersize=4)
    places = _ticks({(m.height, m.width) for m in measurements})
    axes.set_xscale("log")
    axes.set_xticks(list(places), list(places.values()), rotation=45, ha="right", fontsize=8)
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set_xlabel("pixels, height x width")
    axes.legend(frameon=False)


def _ticks(sizes: set[tuple[int, int]]) -> dict[float, str]:
    """Labels by megapixels. Sizes of about as many share one: two would lie over each other."""
    labels: dict[float, str] = {}
    for height, width in sorted(sizes, key=lambda size: size[0] * size[1]):
        place, label = height * width / 1e6, f"{height}x{width}"
        last = max(labels, default=0.0)
        if place < 1.1 * last:
            labels[last] += f",\n{label}"
        else:
            labels[place] = label
    return labels


def _is_ours(name: str) -> bool:
    return name.startswith("scalablevit")


def _colour(name: str) -> str:
    return OURS if _is_ours(name) else OTHERS


def _label(name: str) -> str:
    """The name without what all of timm's names of a kind have in common."""
    return name.removeprefix("timm:").partition("_patch")[0] if name.startswith("timm:") else name
