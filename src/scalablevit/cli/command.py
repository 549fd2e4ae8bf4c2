"""The command: from its arguments to an exit code."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence

from jsonargparse import ArgumentParser

from scalablevit import __version__
from scalablevit.classification.devices import own_rank
from scalablevit.classification.faults import TrainingFault, describe_unreachable
from scalablevit.classification.stopping import StoppedBySignal
from scalablevit.cli.answers import EXPLAIN, PREDICT, SERVE
from scalablevit.cli.arguments import Verb
from scalablevit.cli.files import CONVERT, EXPORT
from scalablevit.cli.messages import known_options, nearest, one_line, plain, printable, with_hyphens
from scalablevit.cli.networks import BENCHMARK, MODELS
from scalablevit.cli.training import CHECK, EVALUATE, TRAIN
from scalablevit.extras import MissingExtraError
from scalablevit.images import UnreachableStoreError
from scalablevit.recipes import recipe_file

FAILED = 3
STOPPED = 75  # "temporary failure, try again" in sysexits.h

VERBS: dict[str, Verb] = {
    "train": TRAIN,
    "evaluate": EVALUATE,
    "predict": PREDICT,
    "export": EXPORT,
    "convert": CONVERT,
    "explain": EXPLAIN,
    "serve": SERVE,
    "check": CHECK,
    "benchmark": BENCHMARK,
    "models": MODELS,
}


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
        with _tidying_up():
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
    except (TrainingFault, UnreachableStoreError) as fault:
        message = describe_unreachable(fault) if isinstance(fault, UnreachableStoreError) else one_line(fault)
        print(f"scalablevit: error: {_own_name()}{printable(message)}", file=sys.stderr)
        return FAILED
    except (argparse.ArgumentError, ValueError, OSError, MissingExtraError) as error:
        message = one_line(error)
        if isinstance(error, argparse.ArgumentError):
            message = with_hyphens(plain(message) + nearest(message, [*VERBS, *known_options(parser)]))
        print(f"scalablevit: error: {_own_name()}{message}", file=sys.stderr)
        return 2


@contextlib.contextmanager
def _tidying_up() -> Iterator[None]:
    """SIGTERM ends the process as an exit does, which removes what is unfinished; verbs may handle it otherwise."""
    usual = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if usual:
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    finally:
        if usual:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


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
