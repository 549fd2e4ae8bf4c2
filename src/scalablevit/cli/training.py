"""The verbs that take labelled images: train, evaluate and check."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, get_args

import yaml
from jsonargparse import ArgumentParser, Namespace

from scalablevit.classification.configuration import MAY_CHANGE, Log, TrainConfig
from scalablevit.classification.devices import own_rank
from scalablevit.cli.arguments import (
    DATA_HELP,
    DOWNLOAD_HELP,
    LISTS,
    RUN_HELP,
    Verb,
    add_device_argument,
    whole_or_none,
)
from scalablevit.cli.messages import print_json
from scalablevit.recipes import recipe_names, shorter_warmup

RESUME_HELP = (
    "Go on with the run in that folder from the last state that it saved; give no data, and no options but"
    f" {', '.join(MAY_CHANGE)}."
)
LOG_HELP = "Where metrics go beside metrics.csv; more in docs/training.md."
RECIPE_HELP = (
    f"Options that go together, by a name: {', '.join(recipe_names())}. Those of --config and flags go before them."
)


def _add_train_arguments(parser: ArgumentParser) -> None:
    # SUPPRESS, so that what is not given does not take the place of what the configuration file says.
    parser.add_argument("data", nargs="?", default=argparse.SUPPRESS, help=DATA_HELP)
    parser.add_argument("--out", help="The run folder to make.")
    parser.add_argument("--overwrite", action="store_true", help="Replace an earlier run folder there.")
    parser.add_argument("--resume", nargs="?", const="", metavar="RUN_FOLDER", help=RESUME_HELP)
    parser.add_argument("--download", action="store_true", help=DOWNLOAD_HELP)
    parser.add_argument("--dry_run", action="store_true", help="Say what would be trained on what, and stop.")
    parser.add_argument("--recipe", metavar="NAME", help=RECIPE_HELP)
    parser.add_argument("--config", action="config", help="A YAML file with options, for example a run's config.yaml.")
    parser.add_class_arguments(TrainConfig, nested_key=None, skip={*LISTS, "log"})
    parser.add_argument("--log", nargs="+", choices=get_args(Log), help=LOG_HELP)
    for name, what in LISTS.items():
        kind = whole_or_none if name == "window_size" else int
        parser.add_argument(f"--{name}", type=kind, nargs="+", help=what)


def _train(arguments: Namespace) -> None:
    from scalablevit.extras import require_extra

    require_extra("train", "pytorch_lightning", "torchmetrics", "matplotlib")
    data, is_resumed = arguments.get("data"), arguments.resume is not None
    usual = TrainConfig()
    if arguments.recipe and arguments.epochs and "warmup_epochs" not in _own_options(arguments):
        shorter = shorter_warmup(arguments.recipe, arguments.epochs)
        if shorter is not None:
            arguments.warmup_epochs = shorter.epochs
            if own_rank() == 0:
                print(shorter.remark)
    arguments.log = tuple(arguments.log or usual.log)
    options = {
        field.name: arguments[field.name]
        for field in fields(TrainConfig)
        if arguments[field.name] != getattr(usual, field.name) or (is_resumed and field.name in arguments.flags)
    }
    out = _resumed_folder(arguments) if is_resumed else arguments.out
    if out is None:
        raise ValueError("out is not given: name the run folder to make with --out")
    if data is None and not is_resumed:
        raise ValueError(f"data is not given: name it after 'train'. {DATA_HELP}")
    if arguments.download and not is_resumed:
        _download(data)
    if arguments.dry_run:
        _plan(arguments, options)
        return
    from scalablevit.classification.input_rate import InputRate
    from scalablevit.classification.progress import ProgressDisplay
    from scalablevit.classification.run_folder import RunFolder
    from scalablevit.classification.training import train

    result = train(
        data,
        out,
        overwrite=arguments.overwrite,
        resume=is_resumed,
        callbacks=[ProgressDisplay()] if own_rank() == 0 else [],
        **options,
    )
    if own_rank() > 0:
        return
    if rate := RunFolder(result.run).read_input_rate():
        print(f"last epoch: {InputRate.from_json(rate).sentence()}")
    if result.ended_early:
        print(
            f"ended early, after {result.epochs} epochs: {result.epochs - result.best_epoch} were no better than"
            f" epoch {result.best_epoch}, as many as --patience allows"
        )
    print(
        f"{result.run}: val {result.scores.headline()}, of epoch {result.best_epoch} of {result.epochs};"
        f" {result.seconds:.0f} s in all. Report: {result.run / 'report' / 'index.html'}"
    )
    skipped = {**RunFolder(result.run).read_skipped(), **result.scores.skipped}
    if skipped:
        print(f"images that could not be read and were skipped: {len(skipped)}; the report lists them")


def _own_options(arguments: Namespace) -> set[str]:
    """The names of options that the user gave, as flags and in files, beside those of the recipe."""
    own = set(arguments.flags)
    for file in arguments.config[1:]:  # the first one is the recipe's
        own |= set(yaml.safe_load(Path(str(file)).read_text(encoding="utf-8")) or ())
    return own


def _download(data: str) -> None:
    from scalablevit.classification.readers import download_set

    download_set(data)


def _resumed_folder(arguments: Namespace) -> str | None:
    """The folder that ``--resume`` names, or ``--out`` beside it."""
    if arguments.dry_run or arguments.overwrite or arguments.recipe:
        raise ValueError("--resume goes on with what is there: leave --dry-run, --overwrite and --recipe out")
    if arguments.resume and arguments.out not in (None, arguments.resume):
        raise ValueError(f"--resume names the run {arguments.resume}, and --out {arguments.out}: leave --out out")
    return arguments.resume or arguments.out


def _plan(arguments: Namespace, options: dict[str, Any]) -> None:
    from scalablevit.classification.preparation import prepare
    from scalablevit.classification.run_folder import RunFolder
    from scalablevit.display import show_plan

    prepared = prepare(arguments.data, TrainConfig(**options))
    show_plan(prepared.plan())
    reading = prepared.measure_reading()
    if reading is not None:
        print(f"reading and augmenting alone: {reading:,.0f} images/s with {prepared.config.workers} workers")
    is_taken = RunFolder(Path(arguments.out)).is_run_folder()
    print(
        f"nothing was trained; the run would go to {arguments.out}{', which holds an earlier run' if is_taken else ''}"
    )


def _add_evaluate_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("run", help=RUN_HELP)
    parser.add_argument("data", help=DATA_HELP)
    parser.add_argument(
        "--split", help="train, val, test, or a split of a set; default: val, or all where the data are not told apart."
    )
    parser.add_argument("--batch_size", type=int, default=256, help="Images at once.")
    parser.add_argument("--workers", type=int, default=0, help="Processes that read images; 0: this one does.")
    parser.add_argument("--max_unreadable", type=float, default=0.01, help="The fraction that may be unreadable.")
    parser.add_argument("--json", action="store_true", help="Print all scores as JSON instead of a table.")
    add_device_argument(parser)


def _evaluate(arguments: Namespace) -> None:
    from scalablevit.classification.evaluation import are_drawn, evaluate, evaluation_folder
    from scalablevit.display import show_scores

    names = ("split", "batch_size", "workers", "device", "max_unreadable")
    result = evaluate(arguments.run, arguments.data, **{name: arguments[name] for name in names})
    if arguments.json:
        print_json(json.dumps(asdict(result), ensure_ascii=False))
        return
    show_scores(result)
    if are_drawn(arguments.run, arguments.data, arguments.split):
        print(f"Scored on the {result.images} images that the run drew for validation.")
    print(f"Report: {evaluation_folder(arguments.run, arguments.data, arguments.split).report / 'index.html'}")
    if result.trained_on:
        print(
            f"scalablevit: warning: by their names, {result.trained_on} of the {result.images} images are among those"
            " that the run was trained on; if they are the same images, the scores are too good",
            file=sys.stderr,
        )
    for path, reason in result.skipped.items():
        print(f"skipped: {path} {reason}", file=sys.stderr)


def _add_check_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("data", help=DATA_HELP)
    parser.add_argument("--seed", type=int, default=0, help="Which images are drawn for validation, as in training.")
    parser.add_argument("--val_fraction", type=float, default=0.2, help="How many of each class are drawn.")
    parser.add_argument("--train_split", help="Of a set by its name, or of idx files, as in training.")
    parser.add_argument("--val_split", help="The same.")
    parser.add_argument("--target_key", help="The column, or the field, that holds the label, as in training.")
    parser.add_argument("--download", action="store_true", help=DOWNLOAD_HELP)
    parser.add_argument("--json", action="store_true", help="Print all that was found as JSON.")


def _check(arguments: Namespace) -> int:
    from scalablevit.classification.checking import check
    from scalablevit.display import show_check

    if arguments.download:
        _download(arguments.data)
    names = ("seed", "val_fraction", "train_split", "val_split", "target_key")
    result = check(arguments.data, **{name: arguments[name] for name in names})
    problems = result.problems()
    if arguments.json:
        print_json(json.dumps({**asdict(result), "problems": problems}, ensure_ascii=False))
    else:
        show_check(result)
    return 1 if problems else 0


TRAIN = Verb(summary="Train a model on a folder of images.", add_arguments=_add_train_arguments, run=_train)
EVALUATE = Verb(
    summary="Score a trained model on labelled images.", add_arguments=_add_evaluate_arguments, run=_evaluate
)
CHECK = Verb(
    summary="Read every image of a data set, and say what is wrong.", add_arguments=_add_check_arguments, run=_check
)
