"""Folders of class folders, the images of each class in a folder with its name."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from scalablevit.classification.images import LabelledImages, check_classes, normal_name

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
# Of images too, but not read here: those of phones, cameras, drawing programs, and rarer ones.
OTHER_IMAGE_SUFFIXES = frozenset(
    {
        ".arw", ".avif", ".cr2", ".cr3", ".dcm", ".dng", ".exr", ".hdr", ".heic", ".heif", ".j2k", ".jfif", ".jp2",
        ".jxl", ".nef", ".orf", ".pcx", ".psd", ".raf", ".raw", ".rw2", ".svg", ".tga", ".xcf",
    }
)  # fmt: skip
LAYOUT = "it must hold one folder per class, and in each the images of that class"


def images_in_class_folders(
    folder: Path, classes: Sequence[str] | None = None, *, allow_empty: bool = False
) -> LabelledImages:
    """The images in a folder of class folders, also those in folders further down, sorted.

    Args:
        folder: The folder. Names that begin with a dot, and files that are no images by their endings, are left out.
        classes: The classes that there are, in their order, of which some may have no folder, or an empty one; None:
            the class folders, sorted by name, each of which must hold images.
        allow_empty: Whether it need not.

    Raises:
        ValueError: If there is no image, two classes differ only in case, a class is not among `classes`, or a folder
            cannot be read.
    """
    found: dict[str, Path] = {}
    for entry in class_folders(folder):
        other = found.setdefault(normal_name(entry.name), entry)
        if other != entry:
            raise ValueError(f"{other} and {entry} have names that look the same: merge them, or rename one")
    if not found:
        raise ValueError(f"{folder} holds no folders: {LAYOUT}")
    found = dict(sorted(found.items()))
    check_classes(found, str(folder))
    names = list(found) if classes is None else list(classes)
    unknown = [name for name in found if name not in names]
    if unknown:
        raise ValueError(
            f"{found[unknown[0]]} is a class that the model does not have; it has {', '.join(names)}: rename or remove"
            " the folder"
        )
    paths: list[Path] = []
    labels: list[tuple[int, ...]] = []
    for name, entry in found.items():
        images = list(images_below(entry))
        if not images and classes is None and not allow_empty:
            endings = ", ".join(sorted(IMAGE_SUFFIXES))
            raise ValueError(f"{entry} holds no images ({endings}): put some there or remove the folder")
        paths += images
        labels += [(names.index(name),)] * len(images)
    if not paths:
        raise ValueError(f"{folder} holds no images: {LAYOUT}")
    return LabelledImages(paths=tuple(paths), labels=tuple(labels), classes=tuple(names))


def class_folders(folder: Path) -> list[Path]:
    """The folders in a folder, without those whose names begin with a dot, sorted by name.

    Raises:
        ValueError: If the folder cannot be read.
    """
    try:
        entries = [entry for entry in folder.iterdir() if not entry.name.startswith(".") and entry.is_dir()]
    except OSError as error:
        raise _unreadable(error, folder) from error
    return sorted(entries, key=lambda entry: entry.name)


def images_below(folder: Path) -> Iterator[Path]:
    """The image files in a folder and the folders below it, as `_files_below` finds them."""
    return (path for path in _files_below(folder) if _is_image(path))


def other_images_below(folder: Path) -> Iterator[Path]:
    """The same of `OTHER_IMAGE_SUFFIXES`."""
    return (path for path in _files_below(folder) if path.suffix.lower() in OTHER_IMAGE_SUFFIXES)


def other_files(folder: Path) -> list[Path]:
    """The files in class folders that are no images by their endings.

    Raises:
        ValueError: If a folder cannot be read.
    """
    return [path for each in class_folders(folder) for path in _files_below(each) if not _is_image(path)]


def _files_below(folder: Path) -> Iterator[Path]:
    """The files in a folder and the folders below it, sorted, without those whose names begin with a dot.

    Links are followed, each folder is entered once.

    Raises:
        ValueError: If a folder cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise _unreadable(error, folder) from error

    entered: set[str] = set()
    for parent, folders, files in os.walk(folder, followlinks=True, onerror=refuse):
        entered.add(os.path.realpath(parent))
        folders[:] = sorted(
            name for name in folders if not name.startswith(".") and os.path.realpath(Path(parent, name)) not in entered
        )
        for name in sorted(files):
            if not name.startswith("."):
                yield Path(parent, name)


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES


def _unreadable(error: OSError, folder: Path) -> ValueError:
    return ValueError(
        f"{error.filename or folder} cannot be read ({error.strerror}): allow yourself to read it, or remove it"
    )
