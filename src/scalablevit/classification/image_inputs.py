"""What people give a model as images: files, folders, patterns, and pixels that they have in memory.

Axes: b batch, c channels, h height, w width.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from glob import glob
from io import IOBase
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from scalablevit.classification.class_folders import images_below, other_images_below
from scalablevit.images import DAMAGE, as_seen, read_image

ImageInput = str | Path | Image.Image | np.ndarray[Any, Any] | torch.Tensor
_NO_IMAGES = (bytes, bytearray, memoryview, Mapping, IOBase)  # which iterate over something else
FORMS = (
    "a path, a Pillow image, an array (height, width) or (height, width, 1, 3 or 4), or a tensor (height, width) or"
    " (1 or 3, height, width)"
)


def find_files(paths: Sequence[str | Path]) -> list[Path]:
    """The files that paths, folders and patterns mean, in that order; those of a folder or pattern sorted.

    Raises:
        ValueError: If a folder holds no images, or a pattern fits nothing.
    """
    return [file for path in paths for file in files_of(path)]


def count_files(paths: Sequence[str | Path]) -> int:
    """How many `find_files` would find, without holding them.

    Raises:
        ValueError: If a folder holds no images, or a pattern fits nothing.
    """
    return sum(1 for path in paths for _ in files_of(path))


def names_below(files: Sequence[Path], paths: Sequence[str | Path]) -> list[str]:
    """The names of files below the folder that they were given as, so that equal names in it can be told apart.

    Args:
        files: What `find_files` found.
        paths: What it was given. Of several, and of patterns, the folder is the one that all are in.
    """
    folders = {path if _is_folder(path) else Path(path).parent for path in paths if not _is_found_by_pattern(path)}
    if any(map(_is_found_by_pattern, paths)):
        folders |= {file.parent for file in files}
    try:
        common = os.path.commonpath([os.path.abspath(folder) for folder in folders])  # noqa: PTH100  # `..` is no name
        return [Path(os.path.relpath(file, common)).as_posix() for file in files]
    except ValueError:  # on several drives
        return [str(file) for file in files]


def _is_found_by_pattern(path: str | Path) -> bool:
    return is_pattern(path) and not _is_there(path)


def other_images(paths: Sequence[str | Path]) -> list[Path]:
    """The files in folders that are images by their endings, but of kinds that are not looked for there."""
    return [file for path in paths if _is_folder(path) for file in other_images_below(Path(path))]


def files_of(path: str | Path) -> Iterator[Path]:
    """The files that one of them means, as they are asked for: a folder may hold any number."""
    file = None
    for file in _files_meant(path):
        yield file
    if file is None:
        raise ValueError(f"{path} holds no images: give image files, a folder of them, or a pattern that fits some")


def _files_meant(path: str | Path) -> Iterator[Path]:
    if path == "":  # which Path takes for the working directory
        raise ValueError("a path is empty: give image files, a folder of them, or a pattern that fits some")
    if _is_folder(path):
        yield from images_below(Path(path))
    elif _is_there(path) or not is_pattern(path):
        yield Path(path)
    else:
        for each in sorted(Path(name) for name in glob(str(path), recursive=True)):  # noqa: PTH207  # absolute patterns
            yield from images_below(each) if each.is_dir() else (each,)


def _is_folder(path: str | Path) -> bool:
    return os.path.isdir(path)  # noqa: PTH112  # that of Path raises where a name is too long


def _is_there(path: str | Path) -> bool:
    return os.path.exists(path)  # noqa: PTH110  # the same


def is_pattern(path: str | Path) -> bool:
    """Whether a path has signs that stand for others in it."""
    return any(sign in str(path) for sign in "*?[")


def is_one_image(given: Any) -> bool:
    """Whether it is a single image, rather than several: a folder, a pattern, a batch, an iterable."""
    if isinstance(given, (str, Path)):
        return not _is_folder(given) and (_is_there(given) or not is_pattern(given))
    if isinstance(given, (np.ndarray, torch.Tensor)):
        return given.ndim < 4
    return isinstance(given, Image.Image)


def each_image(given: ImageInput | Iterable[ImageInput]) -> Iterator[ImageInput]:
    """The images one by one, as they are asked for: folders and patterns become files, batches their members.

    Raises:
        ValueError: If a folder or a pattern holds no images, or something is no image.
    """
    if isinstance(given, (str, Path)):
        yield from files_of(given)
    elif is_one_image(given):
        yield given  # type: ignore[misc]
    elif isinstance(given, Iterable) and not isinstance(given, _NO_IMAGES):
        for each in given:
            # A batch among images would give more results than there were images; a list in a list is a mistake.
            yield from files_of(each) if isinstance(each, (str, Path)) else (each,)
    else:
        raise ValueError(f"{_name_of(given)} is no image: give {FORMS}, or an iterable of those")


def open_image(given: ImageInput, channels: int) -> Image.Image:
    """An image of any of the forms, upright, on white, grey or colour, 8 bits.

    Numbers in memory are from 0 (black) to 255 (white) if they are whole numbers of 8 bits, and from 0 to 1 if they are
    floating-point numbers.

    Args:
        given: See `FORMS`.
        channels: 1 for grey, 3 for colour.

    Raises:
        ValueError: If it is no image.
        FileNotFoundError: If it is the path of a file that does not exist.
    """
    if isinstance(given, (str, Path)):
        return read_image(given, channels)
    if isinstance(given, Image.Image):
        return _in_memory(given, given, channels)
    if isinstance(given, torch.Tensor):
        if given.is_meta or given.layout != torch.strided:
            raise ValueError(f"{_name_of(given)} is no image: it must be dense and have values")
        if given.ndim != 2 and (given.ndim != 3 or given.shape[0] not in (1, 3)):
            raise ValueError(
                f"{_name_of(given)} is no image: its shape must be (height, width) or (1 or 3, height, width)"
            )
        values = given.detach().cpu()
        values = values.float() if values.is_floating_point() else values  # numpy knows no bfloat16
        values = values.movedim(0, -1) if values.ndim == 3 else values
        return _in_memory(_from_numbers(values.numpy(), given), given, channels)
    if isinstance(given, np.ndarray):
        if given.ndim != 2 and (given.ndim != 3 or given.shape[2] not in (1, 3, 4)):
            raise ValueError(
                f"{_name_of(given)} is no image: its shape must be (height, width) or (height, width, 1, 3 or 4)"
            )
        return _in_memory(_from_numbers(given, given), given, channels)
    raise ValueError(f"{_name_of(given)} is no image: give {FORMS}")


def _from_numbers(values: np.ndarray[Any, Any], given: Any) -> Image.Image:
    if 0 in values.shape:
        raise ValueError(f"{_name_of(given)} is no image: it has no pixels")
    if np.issubdtype(values.dtype, np.floating):
        low, high = values.min(), values.max()
        if not (low >= 0 and high <= 1):  # not-a-numbers included, which are neither above nor below
            raise ValueError(
                f"{_name_of(given)} holds numbers from {low:g} to {high:g}, but black is 0 and white is 1: give pixels"
                " that are not normalised"
            )
        values = np.round(values * 255).astype(np.uint8)
    if values.dtype != np.uint8:
        raise ValueError(
            f"{_name_of(given)} holds numbers of which nobody can say which is white: give whole numbers of 8 bits"
            " (white is 255) or floating-point numbers (white is 1)"
        )
    is_grey = values.ndim == 3 and values.shape[2] == 1
    return Image.fromarray(np.ascontiguousarray(values[..., 0] if is_grey else values))


def _in_memory(image: Image.Image, given: Any, channels: int) -> Image.Image:
    if 0 in image.size:
        raise ValueError(f"{_name_of(given)} is no image: it has no pixels")
    try:
        return as_seen(image, channels)
    except (*DAMAGE, AssertionError, AttributeError) as error:  # the last two if it has been closed
        # Pillow decodes what it has opened when the pixels are wanted.
        reason = "" if isinstance(error, AttributeError) else " ".join(str(error).split())
        reason = reason or "its pixels are not there: give it before it is closed"
        raise ValueError(f"{_name_of(given)}: {reason}") from error


def _name_of(given: Any) -> str:
    """How people are told of an image that has no path."""
    if isinstance(given, np.ndarray):
        return f"an array of {given.dtype} of shape {given.shape}"
    if isinstance(given, torch.Tensor):
        return f"a tensor of {given.dtype} of shape {tuple(given.shape)}"
    if isinstance(given, Image.Image):
        return f"a Pillow image of {given.width} x {given.height}, mode {given.mode}"
    length = f" of length {len(given)}" if isinstance(given, Sized) else f" ({given!r})"
    return f"something of type {type(given).__name__}{length}"
