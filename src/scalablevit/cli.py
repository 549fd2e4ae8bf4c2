"""The command ``scalablevit``: one thin function per verb.

A user's mistake is one line on standard error and exit code 2. What a verb needs is imported when it runs, so that the
others work without it, and quickly.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from scalablevit import __version__
from scalablevit.classification.configuration import TrainConfig
from scalablevit.classification.scores import AnyResult, MultiLabelResult
from scalablevit.extras import MissingExtraError

DATA_HELP = (
    "A folder with train/<class>/ and val/<class>/, a folder of class folders, a CSV file with the columns path, label"
    " and optionally split, or 'sample' for the embedded images."
)
# Options that are one number or several.
LISTS = {
    "size": "Height and width that images are given to the model in, in pixels; one number for both. Default: by the"
    " images.",
    "heads": "For weights of vit-pytorch: the number of heads, one or one per stage. Default: as many as are 32 wide.",
    "window_size": "For weights of vit-pytorch: the size of the windows, one or one per stage. Default: no windows.",
}
RUN_HELP = "A run folder, or a folder by save_model."


@dataclass(frozen=True, kw_only=True)
class Verb:
    """A verb of the command: what it is for, its arguments, and what it does."""

    summary: str
    add_arguments: Callable[[ArgumentParser], None]
    run: Callable[[Namespace], int | None]  # an exit code; None: 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
        argv: The arguments; None: those of the process.

    Returns:
        The exit code: 0; 1 if some of the images could not be used; 2 after a mistake of the user's; 130 after Ctrl-C.
    """
    given = [with_underscores(argument) for argument in (sys.argv[1:] if argv is None else argv)]
    parser = build_parser()
    try:
        arguments = parser.parse_args(given)
        return VERBS[arguments.verb].run(arguments[arguments.verb]) or 0
    except KeyboardInterrupt:
        print("scalablevit: interrupted", file=sys.stderr)
        return 130
    except (argparse.ArgumentError, ValueError, OSError, MissingExtraError) as error:
        message = one_line(error)
        if isinstance(error, argparse.ArgumentError):
            message += nearest(message, [*VERBS, *known_options(parser)])
        print(f"scalablevit: error: {message}", file=sys.stderr)
        return 2


def with_underscores(argument: str) -> str:
    """An option by its name here: ``--batch-size`` is ``--batch_size``."""
    name, equals, value = argument.partition("=")
    return f"--{name[2:].replace('-', '_')}{equals}{value}" if name.startswith("--") else argument


def known_options(parser: ArgumentParser) -> list[str]:
    """The names of all options of all verbs."""
    subcommands: Any = parser._subcommands_action  # there is no public way to them
    return sorted(
        {
            name
            for subparser in subcommands._name_parser_map.values()
            for action in subparser._actions
            for name in action.option_strings
        }
    )


def nearest(message: str, known: Sequence[str]) -> str:
    """A hint at the name that a message about an unknown one may have meant; empty if none is near."""
    for word in re.findall(r"--\w+|(?<=['\"])\w+(?=['\"])", message):
        if word in known:
            continue
        for candidates in (known, [name.removeprefix("--") for name in known]):
            near = get_close_matches(word, candidates, n=1, cutoff=0.6)
            if near and word not in candidates:
                return f": did you mean {near[0]}?"
    return ""


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
        allow_abbrev=False,
    )
    subcommands = parser.add_subcommands(dest="verb", metavar="VERB")
    for name, verb in VERBS.items():
        subparser = ArgumentParser(description=verb.summary, exit_on_error=False, allow_abbrev=False)
        verb.add_arguments(subparser)
        subcommands.add_subcommand(name, subparser, help=verb.summary)
    return parser


def _add_train_arguments(parser: ArgumentParser) -> None:
    # SUPPRESS, so that what is not given does not take the place of what the configuration file says.
    parser.add_argument("data", nargs="?", default=argparse.SUPPRESS, help=DATA_HELP)
    parser.add_argument("--out", required=True, help="The run folder to make.")
    parser.add_argument("--overwrite", action="store_true", help="Replace an earlier run folder there.")
    parser.add_argument("--resume", action="store_true", help="Go on with the run there; give no data and no options.")
    parser.add_argument("--dry_run", action="store_true", help="Say what would be trained on what, and stop.")
    parser.add_argument("--config", action="config", help="A YAML file with options, for example a run's config.yaml.")
    parser.add_class_arguments(TrainConfig, nested_key=None, skip=set(LISTS))
    for name, what in LISTS.items():
        parser.add_argument(f"--{name}", type=int, nargs="+", help=what)


def _train(arguments: Namespace) -> None:
    from scalablevit.extras import require_extra

    require_extra("train", "pytorch_lightning", "torchmetrics", "matplotlib")
    data = arguments.get("data")
    options = {field.name: arguments[field.name] for field in fields(TrainConfig)}
    if data is None and not arguments.resume:
        raise ValueError(f"data is not given: name it after 'train'. {DATA_HELP}")
    if arguments.dry_run:
        _print_plan(data, arguments.out, options)
        return
    from scalablevit.classification.progress import ProgressDisplay
    from scalablevit.classification.training import train

    try:
        result = train(
            data,
            arguments.out,
            overwrite=arguments.overwrite,
            resume=arguments.resume,
            callbacks=[ProgressDisplay()],
            **options,
        )
    except KeyboardInterrupt:
        print(f"To go on: scalablevit train --resume --out {arguments.out}", file=sys.stderr)
        raise
    print(
        f"{result.run}: val {result.scores.headline()}, of epoch {result.best_epoch} of {result.epochs};"
        f" {result.seconds:.0f} s in all. Report: {result.run / 'report' / 'index.html'}"
    )


def _print_plan(data: Any, out: str, options: dict[str, Any]) -> None:
    from rich.table import Table

    from scalablevit.classification.preparation import prepare
    from scalablevit.classification.run_folder import RunFolder

    plan = prepare(data, TrainConfig(**options)).plan()
    table = Table("class", "train", "val", box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, count in plan.training.items():
        table.add_row(name, str(count), str(plan.validation[name]))
    _console().print(table)
    for line in (*plan.notes, *map(str, plan.choices)):
        print(line)
    config = plan.config
    print(
        f"{sum(plan.training.values())} labels to train on, {sum(plan.validation.values())} to validate with;"
        f" {config.epochs} epochs of {plan.steps // (config.epochs or 1)} steps of {config.batch_size} images"
    )
    print(
        f"{plan.parameters / 1e6:.2f} M parameters, {plan.macs / 1e9:.3f} GMACs per image; about"
        f" {plan.memory_mb:.0f} MB of memory for a step, in float32"
    )
    is_free = not Path(out).exists() or not RunFolder(Path(out)).is_run_folder()
    print(f"nothing was trained; the run would go to {out}{'' if is_free else ', which holds an earlier run'}")


def _add_evaluate_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("run", help=RUN_HELP)
    parser.add_argument("data", help=DATA_HELP)
    parser.add_argument("--split", help="train, val or test; default: val, or all where the data are not told apart.")
    parser.add_argument("--batch_size", type=int, default=256, help="Images at once.")
    parser.add_argument("--workers", type=int, default=0, help="Processes that read images; 0: this one does.")
    parser.add_argument("--max_unreadable", type=float, default=0.01, help="The fraction that may be unreadable.")
    parser.add_argument("--json", action="store_true", help="Print all scores as JSON instead of a table.")
    _add_device_argument(parser)


def _evaluate(arguments: Namespace) -> None:
    from scalablevit.classification.evaluation import evaluate

    names = ("split", "batch_size", "workers", "device", "max_unreadable")
    result = evaluate(arguments.run, arguments.data, **{name: arguments[name] for name in names})
    if arguments.json:
        print(json.dumps(asdict(result), ensure_ascii=False))
        return
    _console().print(_scores_table(result))
    print(result.headline())
    for path, reason in result.skipped.items():
        print(f"skipped: {path} {reason}", file=sys.stderr)


def _scores_table(result: AnyResult) -> Any:
    from rich.table import Table

    columns = {"precision, %": result.precision, "recall, %": result.recall}
    if isinstance(result, MultiLabelResult):
        columns = {"average precision, %": result.average_precision, **columns}
    table = Table("class", *columns, box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    for name in sorted({*result.recall, *result.precision}):
        table.add_row(name, *(f"{values[name]:.1f}" if name in values else "-" for values in columns.values()))
    return table


def _add_predict_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("run", help=RUN_HELP)
    parser.add_argument("images", nargs="+", help="Image files, folders of them, or patterns such as 'photos/*.jpg'.")
    parser.add_argument("--top", type=int, default=5, help="How many classes to give for each image.")
    parser.add_argument("--batch_size", type=int, default=32, help="Images at once.")
    parser.add_argument("--json", action="store_true", help="A line of JSON for each image.")
    _add_device_argument(parser)


def _predict(arguments: Namespace) -> int:
    from scalablevit.classification.prediction import FailedPrediction, predict_each

    options = {name: arguments[name] for name in ("batch_size", "device")}
    failed = 0
    for prediction in predict_each(arguments.run, arguments.images, arguments.top, **options):
        if isinstance(prediction, FailedPrediction):
            failed += 1
            print(f"scalablevit: error: {' '.join(prediction.reason.split())}", file=sys.stderr)
        elif arguments.json:
            print(json.dumps({**asdict(prediction), "path": str(prediction.path)}, ensure_ascii=False))
        else:
            classes = zip(prediction.labels, prediction.probabilities, strict=True)
            print(f"{prediction.path}: {', '.join(f'{label} {100 * value:.1f} %' for label, value in classes)}")
    return 1 if failed else 0


def _add_check_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("data", help=DATA_HELP)
    parser.add_argument("--seed", type=int, default=0, help="Which images are drawn for validation, as in training.")
    parser.add_argument("--val_fraction", type=float, default=0.2, help="How many of each class are drawn.")
    parser.add_argument("--json", action="store_true", help="Print all that was found as JSON.")


def _check(arguments: Namespace) -> int:
    from rich.table import Table

    from scalablevit.classification.checking import check

    result = check(arguments.data, seed=arguments.seed, val_fraction=arguments.val_fraction)
    problems = result.problems()
    if arguments.json:
        print(json.dumps({**asdict(result), "problems": problems}, ensure_ascii=False))
        return 1 if problems else 0
    table = Table("class", "train", "val", box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, count in result.counts["train"].items():
        table.add_row(name, str(count), str(result.counts["val"][name]))
    _console().print(table)
    sizes = (f"{height}x{width}" for height, width in (result.smallest, result.median, result.largest))
    print(
        "{} images, {} of them grey; height x width from {}, median {}, to {}".format(
            result.images, result.grey, *sizes
        )
    )
    for path, reason in result.unreadable.items():
        print(f"unreadable: {path} {reason}")
    for title, groups in (
        ("in train and val", result.shared),
        ("labelled differently", result.conflicting),
        ("repeated", result.repeated),
    ):
        for group in groups:
            print(f"{title}: {', '.join(group)}")
    if result.ignored:
        print(f"ignored, no images by their names: {len(result.ignored)} files, for example {result.ignored[0]}")
    for problem in problems:
        print(f"problem: {problem}")
    print("all is well" if not problems else f"{len(problems)} problems")
    return 1 if problems else 0


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
    "check": Verb(
        summary="Read every image of a data set, and say what is wrong.", add_arguments=_add_check_arguments, run=_check
    ),
    "models": Verb(summary="List the models.", add_arguments=lambda parser: None, run=_models),
}
