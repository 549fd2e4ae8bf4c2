"""The command ``scalablevit``: one thin function per verb.

A user's mistake is one line on standard error and exit code 2. What a verb needs is imported when it runs, so that the
others work without it, and quickly.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import yaml
from jsonargparse import ArgumentParser, Namespace

from scalablevit import __version__
from scalablevit.classification.augmentation import ErasingMode, RandomCrop
from scalablevit.classification.configuration import (
    MAY_CHANGE,
    Balance,
    Keep,
    Log,
    NonFinite,
    Normalisation,
    Precision,
    Strategy,
    TrainConfig,
)
from scalablevit.classification.devices import own_rank
from scalablevit.classification.faults import TrainingFault
from scalablevit.classification.learning_rates import LearningRateRule
from scalablevit.classification.stopping import StoppedBySignal
from scalablevit.extras import MissingExtraError
from scalablevit.recipes import recipe_file, recipe_names, shorter_warmup
from scalablevit.suggestions import nearest_name

if TYPE_CHECKING:
    from scalablevit.classification.prediction import FailedPrediction
    from scalablevit.explanation import Explanation

DATA_HELP = (
    "A folder with train/<class>/ and val/<class>/, a folder of class folders, a CSV file with the columns path, label"
    " and optionally split, a set by its name (torch/NAME:FOLDER, hfds/NAME, wds/FOLDER), or 'sample' for the embedded"
    " images."
)
DOWNLOAD_HELP = "Fetch a set of torchvision's, torch/NAME:FOLDER, into its folder first, if it is not there."
# Options that are one number or several.
LISTS = {
    "size": "Height and width that images are given to the model in, in pixels; one number for both. Default: by the"
    " images.",
    "heads": "For weights of vit-pytorch: the number of heads, one or one per stage. Default: as many as are 32 wide.",
    "window_size": "For weights of vit-pytorch: the size of the windows, one or one per stage; none for the whole map."
    " Default: no windows.",
}
SHORT = {"--lr": "--learning_rate", "--wd": "--weight_decay", "--bs": "--batch_size", "--batch": "--batch_size"}
FAILED = 3
STOPPED = 75  # "temporary failure, try again" in sysexits.h
RESUME_HELP = (
    "Go on with the run in that folder from the last state that it saved; give no data, and no options but"
    f" {', '.join(MAY_CHANGE)}."
)
LOG_HELP = "Where metrics go beside metrics.csv; more in docs/training.md."
RECIPE_HELP = (
    f"Options that go together, by a name: {', '.join(recipe_names())}. Those of --config and flags go before them."
)
RUN_HELP = "A run folder, a folder by save_model, or the name of a trained model: fashion."
RUN_OR_EXPORT_HELP = f"{RUN_HELP} Or a file by scalablevit export."


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
        The exit code: 0; 1 if some of the images could not be used; 2 after a mistake of the user's; 3 if the machine
        or the numbers failed a training run; 75 if a signal ended one and it has saved its state; 130 after Ctrl-C.
    """
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files may hold what it cannot
    given = [with_underscores(argument) for argument in (sys.argv[1:] if argv is None else argv)]
    parser = build_parser()
    if not given:
        parser.print_help(sys.stderr)
        return 2
    try:
        arguments = parser.parse_args(in_order(given))
        arguments[arguments.verb].flags = {argument[2:].partition("=")[0] for argument in given}
        return VERBS[arguments.verb].run(arguments[arguments.verb]) or 0
    except StoppedBySignal as stopped:
        print(f"scalablevit: {stopped}", file=sys.stderr)
        return STOPPED
    except KeyboardInterrupt as interrupt:
        print(*getattr(interrupt, "__notes__", ()), "scalablevit: interrupted", sep="\n", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read the output has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except TrainingFault as fault:
        print(f"scalablevit: error: {_own_name()}{one_line(fault)}", file=sys.stderr)
        return FAILED
    except (argparse.ArgumentError, ValueError, OSError, MissingExtraError) as error:
        message = one_line(error)
        if isinstance(error, argparse.ArgumentError):
            message = with_hyphens(plain(message) + nearest(message, [*VERBS, *known_options(parser)]))
        print(f"scalablevit: error: {_own_name()}{message}", file=sys.stderr)
        return 2


def _own_name() -> str:
    """Which of several processes this is, if it is not the first."""
    rank = own_rank()
    return f"process {rank}: " if rank else ""


def with_underscores(argument: str) -> str:
    """An option by its name here: ``--batch-size`` is ``--batch_size``."""
    name, equals, value = argument.partition("=")
    return f"--{name[2:].replace('-', '_')}{equals}{value}" if name.startswith("--") else argument


def in_order(given: Sequence[str]) -> list[str]:
    """The arguments in the order in which later ones go before: a recipe's file, other configuration files, flags.

    Raises:
        ValueError: If there is no such recipe.
    """
    if given[0] != "train":
        return list(given)
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    finder.add_argument("--recipe")
    finder.add_argument("--config", action="append", default=[])
    found, flags = finder.parse_known_args(given[1:])
    recipe = [] if found.recipe is None else [f"--config={recipe_file(found.recipe)}", f"--recipe={found.recipe}"]
    return [given[0], *recipe, *(f"--config={file}" for file in found.config), *flags]


def with_hyphens(message: str) -> str:
    """A message with options as people write them: ``--batch_size`` becomes ``--batch-size``."""
    return re.sub(r"--\w+", lambda option: option[0].replace("_", "-"), message)


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


def whole_or_none(given: str | int | None) -> int | None:
    """A number, or None for "none".

    Raises:
        ValueError: If it is neither.
    """
    return None if str(given).lower() in ("none", "null") else int(str(given))


def nearest(message: str, known: Sequence[str]) -> str:
    """A hint at the name that a message about an unknown one may have meant; empty if none is near."""
    if not re.search("nrecognized|invalid choice|does not accept|not expected", message):
        return ""
    for word in re.findall(r"--\w+|(?<=['\"])\w+(?=['\"])", message):
        if word in known or f"--{word}" in known:
            continue
        if word in SHORT:
            return f" (did you mean {SHORT[word]}?)"
        hint = nearest_name(word, [*known, *(name.removeprefix("--") for name in known)])
        if hint:
            return hint
    return ""


def plain(message: str) -> str:
    """A message of the parser in the words of those who use the command."""
    message = re.sub(r"\b(?:train|evaluate|predict|export|check)\.(out)\b", r"--\1", message)
    message = re.sub(r"\b(?:train|evaluate|predict|export|check)\.(\w+)", lambda match: match[1].upper(), message)
    message = re.sub(
        r"argument --(\w+): invalid whole_or_none value: (.*)",
        r"\1 is \2; it must be whole numbers, or none for the whole map",
        message,
    )
    # Older versions of the parser do not repeat the value.
    wrong = re.match(r'Parser key "(\w+)"(?: element \d+)?: (?:Cannot|.*(?:Given value|Got value): (.*)$)', message)
    if wrong is None:
        return message
    name, value = wrong.groups("")
    kinds = {field.name: str(field.type) for field in fields(TrainConfig)}
    is_whole = "<class 'float'>" not in message and "int" in kinds.get(name, "int")
    kind = "whole numbers" if name in LISTS else "a whole number" if is_whole else "a number"
    allowed = {
        "precision": Precision,
        "random_crop": RandomCrop,
        "non_finite": NonFinite,
        "keep": Keep,
        "erasing_mode": ErasingMode,
        "balance": Balance,
        "strategy": Strategy,
        "normalisation": Normalisation,
        "learning_rate_rule": LearningRateRule,
    }.get(name)
    if allowed is not None:
        kind = f"one of {', '.join(get_args(allowed))}{nearest_name(value, get_args(allowed))}"
    return f"{name} is {value!r}; it must be {kind}" if value else f"{name} must be {kind}"


def printable(text: str) -> str:
    """A line with what would break it, or a terminal, written out: names of files may hold any sign."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]", lambda sign: ascii(sign[0])[1:-1], text)


def one_line(error: Exception) -> str:
    """The message of an error on one line. Of one that crossed from a worker process, without that one's traceback."""
    lines = str(error).splitlines()
    if "Original Traceback" in str(error):
        lines = [lines[-1].partition(": ")[2]]
    return printable(" ".join(line.strip() for line in lines))


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
        print(f"{len(skipped)} images could not be read and were skipped; the report lists them")


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
    _add_device_argument(parser)


def _evaluate(arguments: Namespace) -> None:
    from scalablevit.classification.evaluation import evaluate, evaluation_folder
    from scalablevit.display import show_scores

    names = ("split", "batch_size", "workers", "device", "max_unreadable")
    result = evaluate(arguments.run, arguments.data, **{name: arguments[name] for name in names})
    if arguments.json:
        print(json.dumps(asdict(result), ensure_ascii=False))
        return
    show_scores(result)
    print(f"Report: {evaluation_folder(arguments.run, arguments.data, arguments.split).report / 'index.html'}")
    if result.trained_on:
        print(
            f"scalablevit: warning: by their names, {result.trained_on} of the {result.images} images are among those"
            " that the run was trained on; if they are the same images, the scores are too good",
            file=sys.stderr,
        )
    for path, reason in result.skipped.items():
        print(f"skipped: {path} {reason}", file=sys.stderr)


def _add_predict_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("run", help=RUN_OR_EXPORT_HELP)
    parser.add_argument("images", nargs="+", help="Image files, folders of them, or patterns such as 'photos/*.jpg'.")
    parser.add_argument("--top", type=int, default=5, help="How many classes to give for each image.")
    parser.add_argument("--batch_size", type=int, default=32, help="Images at once.")
    parser.add_argument("--workers", type=int, help="Threads that read images; default: one per processor core.")
    parser.add_argument("--json", action="store_true", help="A line of JSON for each image.")
    _add_device_argument(parser)


def _predict(arguments: Namespace) -> int:
    from scalablevit.classification.image_inputs import count_files, other_images
    from scalablevit.classification.prediction import FailedPrediction
    from scalablevit.classification.predictor import Predictor
    from scalablevit.display import count_along

    names = ("top", "batch_size", "device", "workers")
    predictor = Predictor(arguments.run, **{name: arguments[name] for name in names})
    count = count_files(arguments.images)
    failed = 0
    for prediction in count_along(predictor.stream(arguments.images), count):
        if isinstance(prediction, FailedPrediction):
            failed += 1
            _tell_failure(prediction)
        elif arguments.json:
            print(prediction.to_json())
        else:
            classes = zip(prediction.labels, prediction.probabilities, strict=True)
            named = ", ".join(f"{label} {100 * value:.1f} %" for label, value in classes)
            print(printable(f"{prediction.path}: {named}"))
    if others := other_images(arguments.images):
        endings = ", ".join(sorted({path.suffix.lower() for path in others}))
        print(
            printable(
                f"scalablevit: warning: images left out, of kinds that are not looked for in folders ({endings}):"
                f" {len(others)}, for example {others[0]}; convert them to JPEG or PNG"
            ),
            file=sys.stderr,
        )
    return 1 if failed else 0


def _tell_failure(failed: FailedPrediction) -> None:
    print(printable(f"scalablevit: error: {' '.join(failed.reason.split())}"), file=sys.stderr)


def _add_export_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("run", help=RUN_HELP)
    parser.add_argument("--out", required=True, help="The file to write.")
    parser.add_argument(
        "--to", help="onnx, openvino, pt2 or aoti; default: by the ending of --out (.onnx, .xml, .pt2)."
    )
    parser.add_argument(
        "--int8", action="store_true", help="Quantise; needs --calibrate and --data. ONNX and OpenVINO."
    )
    parser.add_argument("--bf16", action="store_true", help="Have OpenVINO compute in bfloat16; needs --data.")
    parser.add_argument("--calibrate", metavar="FOLDER", help="Images like those to come, for --int8; or 'sample'.")
    parser.add_argument("--calibration_images", type=int, default=256, help="How many of them, at most.")
    parser.add_argument("--data", help=f"To compare the accuracy on, before and after. {DATA_HELP}")
    parser.add_argument("--split", help="Of the data: train, val or test; default: val, or all.")
    parser.add_argument("--max_lost", type=float, default=0.5, help="Points of accuracy that may be lost, at most.")
    parser.add_argument("--overwrite", action="store_true", help="Replace a file that is there.")


def _export(arguments: Namespace) -> None:
    from scalablevit.classification.exports import export
    from scalablevit.display import show_export

    names = ("to", "int8", "bf16", "calibrate", "calibration_images", "data", "split", "max_lost", "overwrite")
    show_export(export(arguments.run, arguments.out, **{name: arguments[name] for name in names}))


def _add_convert_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "source", help=f"{RUN_HELP} Or a file of this package, of vit-pytorch or of the paper's authors."
    )
    parser.add_argument("destination", help="A folder, for this package's layout; or a .safetensors, .pth or .pt file.")
    parser.add_argument("--model", help="The variant that the weights are of; needed for a file of this package.")
    parser.add_argument("--to", default="scalablevit", help="scalablevit, vit-pytorch or paper.")
    parser.add_argument("--heads", type=int, nargs="+", help=LISTS["heads"])
    parser.add_argument("--window_size", type=whole_or_none, nargs="+", help=LISTS["window_size"])
    parser.add_argument("--overwrite", action="store_true", help="Replace what is at the destination.")


def _convert(arguments: Namespace) -> None:
    from scalablevit.classification.weight_files import convert

    names = ("model", "to", "heads", "window_size", "overwrite")
    result = convert(arguments.source, arguments.destination, **{name: arguments[name] for name in names})
    print(
        f"{result.path}: {result.architecture}, {result.parameters} parameters, from the layout {result.source} to"
        f" {result.target}",
        *result.checks,
        sep="\n",
    )


def _add_explain_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("run", help=RUN_HELP)
    parser.add_argument("images", nargs="+", help="Image files, folders of them, or patterns such as 'photos/*.jpg'.")
    parser.add_argument(
        "--out", metavar="FILE", help="A .png of one image, or an .html of any number. Default: explanation.png, .html."
    )
    parser.add_argument("--overwrite", action="store_true", help="Replace an earlier file there.")
    parser.add_argument("--label", help="The class to find the evidence for; default: the most probable one.")
    parser.add_argument("--stages", type=int, nargs="+", help="Stages to show the attention of, from 1.")
    parser.add_argument("--heads", type=int, nargs="+", help="Which of their heads, from 1; default: the mean of all.")
    parser.add_argument(
        "--points",
        nargs="+",
        metavar="X,Y",
        help="From where the attention is looked at, from 0,0 (upper left) to 1,1, or 'all'; default: from where the"
        " evidence is strongest.",
    )
    parser.add_argument(
        "--method", default="integrated-gradients", help="How evidence is found: integrated-gradients, or grad-cam."
    )
    _add_device_argument(parser)


def _explain(arguments: Namespace) -> int:
    from scalablevit.classification.prediction import FailedPrediction
    from scalablevit.explanation import Question, explain_each
    from scalablevit.explanation.explaining import parse_points
    from scalablevit.explanation.writing import default_out, write

    points = None if arguments.points is None else parse_points(arguments.points)
    options = {name: arguments[name] for name in ("stages", "heads", "label", "method")}
    out = default_out(arguments.images) if arguments.out is None else Path(arguments.out)
    question = Question(points=points, **options)
    found = explain_each(
        arguments.run, arguments.images, question, out=out, device=arguments.device, overwrite=arguments.overwrite
    )
    failed = 0

    def told() -> Iterator[Explanation]:
        nonlocal failed
        for each in found:
            if isinstance(each, FailedPrediction):
                failed += 1
                _tell_failure(each)
            else:
                print(printable(f"{each.path}: {each.answer}"))
                yield each

    if write(told(), out, run=arguments.run):
        print(f"{'Picture' if out.suffix.lower() == '.png' else 'Page'}: {out}")
    return 1 if failed else 0


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
        print(json.dumps({**asdict(result), "problems": problems}, ensure_ascii=False))
    else:
        show_check(result)
    return 1 if problems else 0


def _add_benchmark_arguments(parser: ArgumentParser) -> None:
    from scalablevit.benchmarking.contenders import KINDS

    parser.add_argument("contenders", nargs="+", help=f"What to measure, the first being what ratios are to: {KINDS}.")
    parser.add_argument("--mode", default="infer", help="infer, or train: forward, loss and backward.")
    parser.add_argument(
        "--precision", default="fp32", help="fp32; autocast to bf16 or fp16; bf16-true or fp16-true: weights, too."
    )
    parser.add_argument("--size", nargs="+", default=["224"], help="Sizes of images, in pixels: 224, or 800x1344.")
    parser.add_argument("--batch", type=int, default=8, help="Images at once.")
    parser.add_argument("--compile", action="store_true", help="Compile the models.")
    parser.add_argument("--channels_last", action="store_true", help="Channels-last images and convolution weights.")
    parser.add_argument("--threads", type=int, help="Of PyTorch, on a CPU; default: as many as there are cores.")
    parser.add_argument("--rounds", type=int, default=9, help="How many turns each contender has.")
    parser.add_argument("--no_memory", action="store_true", help="Leave memory out, which takes a process for each.")
    parser.add_argument("--json", metavar="FILE", help="Write all that was measured, with versions and the command.")
    parser.add_argument("--plot", metavar="FILE", help="Draw throughput against accuracy, or growth with the size.")
    parser.add_argument("--device", default="cpu", help="Where: cpu, or cuda.")


def _benchmark(arguments: Namespace) -> int:
    from scalablevit.benchmarking.comparison import benchmark, parse_size
    from scalablevit.display import show_benchmark

    for name in ("json", "plot"):  # before minutes of measuring rather than after
        if arguments[name] and not Path(arguments[name]).resolve().parent.is_dir():
            raise ValueError(f"--{name} {arguments[name]}: there is no folder {Path(arguments[name]).parent}: make it")
    if arguments.plot:
        from scalablevit.benchmarking.plots import plot_benchmark
        from scalablevit.extras import require_extra

        require_extra("benchmark", "matplotlib")
    names = ("mode", "precision", "batch", "compile", "channels_last", "device", "threads", "rounds")
    result = benchmark(
        arguments.contenders,
        sizes=[parse_size(size) for size in arguments.size],
        memory=not arguments.no_memory,
        **{name: arguments[name] for name in names},
    )
    show_benchmark(result)
    if arguments.json:
        result.write(arguments.json)
    if arguments.plot:
        plot_benchmark(result, arguments.plot)
    return 1 if any(measurement.error for measurement in result.measurements) else 0


def _add_serve_arguments(parser: ArgumentParser) -> None:
    from scalablevit.serving.options import ServingOptions

    parser.add_argument("run", help=RUN_OR_EXPORT_HELP)
    parser.add_class_arguments(ServingOptions, nested_key=None, skip={"page"})
    parser.add_argument("--no_page", action="store_true", help="The API alone, without the web page and Gradio.")
    _add_device_argument(parser)


def _serve(arguments: Namespace) -> None:
    from scalablevit.serving import ServingOptions, serve

    options = {field.name: arguments[field.name] for field in fields(ServingOptions) if field.name in arguments}
    if options["token"] is None:
        del options["token"]  # that of the environment
    serve(arguments.run, device=arguments.device, page=not arguments.no_page, **options)


def _add_device_argument(parser: ArgumentParser) -> None:
    parser.add_argument("--device", help="Where to compute; default: the machine's accelerator if it has one.")


def _models(arguments: Namespace) -> None:
    from scalablevit.display import show_models

    show_models()


VERBS: dict[str, Verb] = {
    "train": Verb(summary="Train a model on a folder of images.", add_arguments=_add_train_arguments, run=_train),
    "evaluate": Verb(
        summary="Score a trained model on labelled images.", add_arguments=_add_evaluate_arguments, run=_evaluate
    ),
    "predict": Verb(
        summary="Name the most probable classes of images.", add_arguments=_add_predict_arguments, run=_predict
    ),
    "export": Verb(
        summary="Write a trained model as ONNX, OpenVINO or a PyTorch program.",
        add_arguments=_add_export_arguments,
        run=_export,
    ),
    "convert": Verb(
        summary="Write weights in another layout, and prove it.", add_arguments=_add_convert_arguments, run=_convert
    ),
    "explain": Verb(
        summary="Show what a trained model looks at in images.", add_arguments=_add_explain_arguments, run=_explain
    ),
    "serve": Verb(
        summary="Serve a trained model: an HTTP API and a web page.", add_arguments=_add_serve_arguments, run=_serve
    ),
    "check": Verb(
        summary="Read every image of a data set, and say what is wrong.", add_arguments=_add_check_arguments, run=_check
    ),
    "benchmark": Verb(
        summary="Measure the speed and memory of models side by side.",
        add_arguments=_add_benchmark_arguments,
        run=_benchmark,
    ),
    "models": Verb(summary="List the models.", add_arguments=lambda parser: None, run=_models),
}
