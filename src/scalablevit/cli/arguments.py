"""A verb of the command, and what the arguments of several verbs are called and mean."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from jsonargparse import ArgumentParser, Namespace

DATA_HELP = (
    "A folder with train/<class>/ and val/<class>/, a folder of class folders, a CSV file with the columns path, label"
    " and optionally split, a set by its name (torch/NAME:FOLDER, hfds/NAME, hfids/NAME, wds/FOLDER), or 'sample' for"
    " the embedded images."
)
DOWNLOAD_HELP = "Fetch a set of torchvision's, torch/NAME:FOLDER, into its folder first, if it is not there."
RUN_HELP = "A run folder, a folder by save_model, or the name of a trained model: fashion."
RUN_OR_EXPORT_HELP = f"{RUN_HELP} Or a file by scalablevit export."
# Options that are one number or several.
LISTS = {
    "size": "Height and width that images are given to the model in, in pixels; one number for both. Default: by the"
    " images.",
    "heads": "For weights of vit-pytorch: the number of heads, one or one per stage. Default: as many as are 32 wide.",
    "window_size": "For weights of vit-pytorch: the size of the windows, one or one per stage; none for the whole map."
    " Default: no windows.",
}


@dataclass(frozen=True, kw_only=True)
class Verb:
    """A verb of the command: what it is for, its arguments, and what it does."""

    summary: str
    add_arguments: Callable[[ArgumentParser], None]
    run: Callable[[Namespace], int | None]  # an exit code; None: 0


def whole_or_none(given: str | int | None) -> int | None:
    """A number, or None for "none".

    Raises:
        ValueError: If it is neither.
    """
    return None if str(given).lower() in ("none", "null") else int(str(given))


def add_device_argument(parser: ArgumentParser) -> None:
    parser.add_argument("--device", help="Where to compute; default: the machine's accelerator if it has one.")
