"""What the command prints of plans, scores, data sets and models: tables, and lines below them."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from scalablevit.benchmarking.cost import count_macs, count_parameters
from scalablevit.variants import VARIANTS

if TYPE_CHECKING:
    from scalablevit.benchmarking.comparison import BenchmarkResult
    from scalablevit.classification.checking import CheckResult
    from scalablevit.classification.exports import ExportResult
    from scalablevit.classification.planning import Plan
    from scalablevit.classification.scores import AnyResult

T = TypeVar("T")


def count_along(items: Iterable[T], total: int) -> Iterator[T]:
    """The items as they come; meanwhile a bar on standard error, if that is a terminal, says how many have come."""
    console = Console(stderr=True)
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("images,"), TimeRemainingColumn(), TextColumn("left"))
    with Progress(
        *columns,
        console=console,
        transient=True,
        disable=not console.is_terminal,
        redirect_stdout=sys.stdout.isatty(),  # to this console: what goes into a file or a pipe is not the bar's
    ) as progress:
        yield from progress.track(items, total=total)


def show_plan(plan: Plan) -> None:
    """What a run would do and need."""
    _print(_counts(plan.training, plan.validation), *plan.notes, *map(str, plan.choices))
    config, images = plan.config, sum(plan.training.values())
    _print(
        f"{images} labels to train on, {sum(plan.validation.values())} to validate with; {config.epochs} epochs of"
        f" {plan.steps // (config.epochs or 1)} steps of {(config.batch_size or 1) * config.accumulate} images",
        f"{plan.parameters / 1e6:.2f} M parameters, {plan.macs / 1e9:.3f} GMACs per image; about {plan.memory_mb:.0f}"
        " MB of memory for a step, in float32",
    )


def show_scores(result: AnyResult) -> None:
    """How right a model is, class by class and in all."""
    columns = {"precision, %": result.precision, "recall, %": result.recall}
    if not hasattr(result, "top1"):
        columns = {"average precision, %": result.average_precision, **columns}
    table = _table("class", *columns)
    for name in sorted({*result.recall, *result.precision}):
        table.add_row(name, *(f"{values[name]:.1f}" if name in values else "-" for values in columns.values()))
    _print(table, result.headline())


def show_export(result: ExportResult) -> None:
    """What was written, and how near it is to the model."""
    told = result.description
    sides = "any size" if told.smallest_side == 1 else f"height and width from {told.smallest_side} pixels"
    numbers = " and ".join(dict.fromkeys((told.weights, told.arithmetic)))
    _print(
        f"{result.path}: {told.architecture}, {told.num_classes} classes, {numbers}, {result.bytes / 1e6:.1f} MB; any"
        f" number of images, {sides}",
        f"logits in float32 differ from the model's by {result.difference:.1e} of their spread at most",
    )
    if result.accuracy is not None:
        found = result.accuracy
        _print(
            f"{found.metric} on {found.images} images: {found.before:.2f} % before, {found.after:.2f} % after"
            f" ({-found.lost:+.2f} points)"
        )


def show_check(result: CheckResult) -> None:
    """What is in a data set, and what is wrong with it."""
    smallest, median, largest = (
        f"{height}x{width}" for height, width in (result.smallest, result.median, result.largest)
    )
    _print(
        _counts(result.counts["train"], result.counts["val"]),
        f"{result.images} images, {result.grey} of them grey; height x width from {smallest}, median {median}, to"
        f" {largest}",
        *(f"unreadable: {path} {reason}" for path, reason in result.unreadable.items()),
    )
    for title, groups in (
        ("in train and val", result.shared),
        ("labelled differently", result.conflicting),
        ("repeated", result.repeated),
    ):
        _print(*(f"{title}: {', '.join(group)}" for group in groups))
    if result.ignored:
        _print(f"ignored, no images by their names: {len(result.ignored)} files, for example {result.ignored[0]}")
    problems = result.problems()
    _print(*(f"problem: {problem}" for problem in problems), "all is well" if not problems else "")


def show_models() -> None:
    """The networks."""
    table = _table("name", "parameters, M", "GMACs at 224 px", "ImageNet-1k top-1, % (published)", "source")
    table.columns[4].justify = "left"
    for variant in VARIANTS.values():
        model = variant.build(device="meta")
        published = variant.published
        table.add_row(
            variant.name,
            f"{count_parameters(model) / 1e6:.2f}",
            f"{count_macs(model, 224, 224) / 1e9:.2f}",
            f"{published.top1:.1f}" if published else "-",
            published.source if published else "this project's own; not published",
        )
    _print(table)


def show_benchmark(result: BenchmarkResult) -> None:
    """How fast contenders are, and what they need."""
    work = result.workload
    how = f"{work.mode}, {work.precision}, batch {work.batch}, {'compiled' if work.compile else 'eager'}"
    about = result.machine
    where = f"{about['device']}, {about['threads']} threads" if work.device == "cpu" else about["device"]
    table = _table(
        "contender", "size", "images/s", "spread", "ratio", "peak memory, MB", "parameters, M", "GMACs",
        "of the matrix rate", "top-1, % (published)",
    )  # fmt: skip
    for m in result.measurements:
        if m.error is not None:
            continue
        table.add_row(
            m.contender,
            f"{m.height}x{m.width}",
            _number(m.images_per_second, ".1f"),
            _number(m.spread, ".0%"),
            _number(m.ratio, ".2f"),
            _number(m.peak_memory_bytes, ".0f", 1e6),
            _number(m.parameters, ".1f", 1e6),
            _number(m.macs, ".2f", 1e9),
            _number(m.matrix_share, ".0%"),
            _number(m.top1, ".1f"),
        )
    _print(
        f"{how}; {where}, PyTorch {about['torch']}; matrix rate {result.matrix_flops / 1e9:.0f} GFLOP/s",
        table,
        *(f"{m.contender} at {m.height}x{m.width}: {m.error}" for m in result.measurements if m.error is not None),
    )


def _number(value: float | None, form: str, unit: float = 1.0) -> str:
    return "-" if value is None else format(value / unit, form)


def _counts(training: Mapping[str, int], validation: Mapping[str, int]) -> Table:
    table = _table("class", "train", "val")
    for name, count in training.items():
        table.add_row(name, str(count), str(validation[name]))
    return table


def _table(first: str, *others: str) -> Table:
    """A table without lines, of which all columns but the first hold numbers."""
    table = Table(first, *others, box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    return table


def _print(*parts: str | Table) -> None:
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = 200  # in a file or a pipe nothing is to be wrapped
    for part in parts:
        if part:
            console.print(part, soft_wrap=isinstance(part, str))
