"""The command ``scalablevit``: one thin function per verb.

A user's mistake is one line on standard error and exit code 2. What a verb needs is imported when it runs, so that the
others work without it, and quickly.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from scalablevit import __version__
from scalablevit.classification.configuration import TrainConfig
from scalablevit.extras import MissingExtraError

DATA_HELP = "A folder with train/<class>/ and val/<class>/, or 'sample' for the embedded images."
RUN_HELP = "A run folder, or a folder by save_model."


@dataclass(frozen=True, kw_only=True)
class Verb:
    """A verb of the command: what it is for, its arguments, and what it does."""

    summary: str
    add_arguments: Callable[[ArgumentParser], None]
    run: Callable[[Namespace], None]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
        argv: The arguments; None: those of the process.

    Returns:
        The exit code: 0, or 2 after a mistake of the user's.
    """
    try:
        arguments = build_parser().parse_args(argv)
        VERBS[arguments.verb].run(arguments[arguments.verb])
    except (argparse.ArgumentError, ValueError, OSError, MissingExtraError) as error:
        print(f"scalablevit: error: {one_line(error)}", file=sys.stderr)
        return 2
    return 0


def one_line(error: Exception) -> str:
    """The message of an error on one line. Of one that crossed from a worker process, without that one's traceback."""
    lines = str(error).splitlines()
    if "Original Traceback" in str(error):
        lines = [lines[-1].partition(": ")[2]]
    return " ".join(line.strip() for line in lines)


def build_parser() -> ArgumentParser:
    """The parser of all verbs."""
    parser = ArgumentParser(
        prog="scalablevit",
        description="ScalableViT: from a folder of images to a trained, evaluated model.",
        version=__version__,
        exit_on_error=False,
    )
    subcommands = parser.add_subcommands(dest="verb", metavar="VERB")
    for name, verb in VERBS.items():
        subparser = ArgumentParser(description=verb.summary, exit_on_error=False)
        verb.add_arguments(subparser)
        subcommands.add_subcommand(name, subparser, help=verb.summary)
    return parser


def _add_train_arguments(parser: ArgumentParser) -> None:
    # SUPPRESS, so that what is not given does not take the place of what the configuration file says.
    parser.add_argument("data", nargs="?", default=argparse.SUPPRESS, help=DATA_HELP)
    parser.add_argument("--out", required=True, help="The run folder to make.")
    parser.add_argument("--overwrite", action="store_true", help="Replace an earlier run folder there.")
    parser.add_argument("--config", action="config", help="A YAML file with options, for example a run's config.yaml.")
    parser.add_class_arguments(TrainConfig, nested_key=None)


def _train(arguments: Namespace) -> None:
    from scalablevit.classification.training import train
    from scalablevit.extras import require_extra

    if "data" not in arguments:
        raise ValueError(f"data is not given: name it after 'train'. {DATA_HELP}")
    require_extra("train", "pytorch_lightning", "matplotlib")
    from scalablevit.classification.progress import ProgressDisplay

    result = train(
        arguments.data,
        arguments.out,
        overwrite=arguments.overwrite,
        callbacks=[ProgressDisplay()],
        **{field.name: arguments[field.name] for field in fields(TrainConfig)},
    )
    print(
        f"{result.run}: val top-1 {result.top1:.1f} %, top-5 {result.top5:.1f} %, of epoch {result.best_epoch} of"
        f" {result.epochs}; {result.seconds:.0f} s in all"
    )


def _add_evaluate_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("run", help=RUN_HELP)
    parser.add_argument("data", help="A folder with val/<class>/, or of class folders, or 'sample'.")
    parser.add_argument("--batch_size", type=int, default=256, help="Images at once.")
    parser.add_argument("--workers", type=int, default=0, help="Processes that read images; 0: this one does.")
    _add_device_argument(parser)


def _evaluate(arguments: Namespace) -> None:
    from rich.table import Table

    from scalablevit.classification.evaluation import evaluate

    options = {name: arguments[name] for name in ("batch_size", "workers", "device")}
    result = evaluate(arguments.run, arguments.data, **options)
    table = Table("class", "recall, %", box=None)
    table.columns[1].justify = "right"
    for name, recall in result.recall.items():
        table.add_row(name, f"{recall:.1f}")
    _console().print(table)
    print(f"top-1 {result.top1:.1f} %, top-5 {result.top5:.1f} %, loss {result.loss:.4f}, {result.images} images")


def _add_predict_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("run", help=RUN_HELP)
    parser.add_argument("images", nargs="+", help="Image files.")
    parser.add_argument("--top", type=int, default=5, help="How many classes to give for each image.")
    parser.add_argument("--batch_size", type=int, default=32, help="Images at once.")
    _add_device_argument(parser)


def _predict(arguments: Namespace) -> None:
    from scalablevit.classification.prediction import predict

    options = {name: arguments[name] for name in ("batch_size", "device")}
    for prediction in predict(arguments.run, arguments.images, arguments.top, **options):
        classes = zip(prediction.labels, prediction.probabilities, strict=True)
        print(f"{prediction.path}: {', '.join(f'{label} {100 * value:.1f} %' for label, value in classes)}")


def _add_device_argument(parser: ArgumentParser) -> None:
    parser.add_argument("--device", help="Where to compute; default: the machine's accelerator if it has one.")


def _models(arguments: Namespace) -> None:
    from rich.table import Table

    from scalablevit.benchmarking.cost import count_macs, count_parameters
    from scalablevit.variants import VARIANTS

    table = Table("name", "parameters, M", "GMACs at 224 px", "ImageNet-1k top-1, % (published)", "source", box=None)
    for column in table.columns[1:4]:
        column.justify = "right"
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
    _console().print(table)


def _console() -> Any:
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 200  # in a file or a pipe nothing is to be wrapped
    return console


VERBS: dict[str, Verb] = {
    "train": Verb(summary="Train a model on a folder of images.", add_arguments=_add_train_arguments, run=_train),
    "evaluate": Verb(
        summary="Score a trained model on labelled images.", add_arguments=_add_evaluate_arguments, run=_evaluate
    ),
    "predict": Verb(
        summary="Name the most probable classes of images.", add_arguments=_add_predict_arguments, run=_predict
    ),
    "models": Verb(summary="List the models.", add_arguments=lambda parser: None, run=_models),
}
