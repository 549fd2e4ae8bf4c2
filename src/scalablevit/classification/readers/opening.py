"""From what a user names to the set that it means."""

from __future__ import annotations

import re
from pathlib import Path

from scalablevit.classification.readers.hugging_face import open_hugging_face_set
from scalablevit.classification.readers.idx_files import is_idx_folder, open_idx_folder
from scalablevit.classification.readers.image_set import ImageSet
from scalablevit.classification.readers.notation import is_named_set, parse_set_name
from scalablevit.classification.readers.shards import open_shards
from scalablevit.classification.readers.streams import open_streamed_set
from scalablevit.classification.readers.torchvision_sets import download_torchvision_set, open_torchvision_set


def is_set(data: str | Path) -> bool:
    """Whether data are read by one of the readers here: a set by its name, or a folder of idx files."""
    return is_named_set(data) or (data != "sample" and is_idx_folder(Path(data)))


def open_set(data: str | Path, *, target_key: str | None = None) -> ImageSet:
    """The set that data name; its images are found when a part of it is asked for.

    Args:
        data: In timm's notation, or a folder of idx files.
        target_key: What holds the label, where a set has several such columns or fields.

    Raises:
        ValueError: If there is no such set.
        MissingExtraError: If a package is missing that reads it.
    """
    if not is_named_set(data):
        return open_idx_folder(Path(data))
    name = parse_set_name(str(data))
    if name.kind == "torch":
        return open_torchvision_set(name)
    if name.kind == "wds":
        return open_shards(name, target_key)
    return (open_streamed_set if name.kind == "hfids" else open_hugging_face_set)(name, target_key)


def download_set(data: str | Path) -> None:
    """Fetches a set of torchvision's into its folder.

    Raises:
        ValueError: If the data are none, or it cannot be fetched.
    """
    name = parse_set_name(str(data)) if is_named_set(data) else None
    if name is None or name.kind != "torch":
        raise ValueError(f"--download is for torchvision's sets, torch/NAME:FOLDER, and data is {data}: leave it out")
    download_torchvision_set(name)


def name_of_set(data: str | Path) -> str:
    """How files name a set: in a way that holds from any working directory."""
    return str(parse_set_name(str(data)).absolute()) if is_named_set(data) else str(Path(data).resolve())


def short_name(data: str | Path) -> str:
    """A name for a folder that is about a set."""
    if not is_named_set(data):
        return Path(data).resolve().name
    name = parse_set_name(str(data))
    return re.sub(r"[^\w.-]+", "-", name.name.rstrip("/")).strip("-").rpartition("/")[2] or name.kind
