"""What is said of a user's mistakes: a line each, in the words of those who use the command."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, get_args

from jsonargparse import ArgumentParser

from scalablevit.classification.augmentation import ErasingMode, RandomCrop
from scalablevit.classification.configuration import (
    Balance,
    Keep,
    NonFinite,
    Normalisation,
    Precision,
    Strategy,
    TrainConfig,
)
from scalablevit.classification.learning_rates import LearningRateRule
from scalablevit.cli.arguments import LISTS
from scalablevit.suggestions import nearest_name

SHORT = {"--lr": "--learning_rate", "--wd": "--weight_decay", "--bs": "--batch_size", "--batch": "--batch_size"}


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
    if message.endswith("object is not iterable"):
        return f"one of {', '.join((*LISTS, 'log'))} is no list in a configuration file: write for example size: [64]"
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


def print_json(line: str) -> None:
    """Prints a line of JSON; signs that the output does not have by their numbers, as JSON writes them."""
    try:
        line.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        line = json.dumps(json.loads(line))
    print(line)


def one_line(error: Exception) -> str:
    """The message of an error on one line. Of one that crossed from a worker process, without that one's traceback."""
    lines = str(error).splitlines()
    if "Original Traceback" in str(error):
        lines = [lines[-1].partition(": ")[2]]
    return printable(" ".join(line.strip() for line in lines))
