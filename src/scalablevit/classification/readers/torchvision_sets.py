"""The small sets of torchvision, which lie in arrays."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from scalablevit.classification.images import LabelledImages
from scalablevit.classification.readers.arrays import ArrayStore
from scalablevit.classification.readers.idx_files import is_idx_folder, open_idx_folder
from scalablevit.classification.readers.image_set import ImageSet, number_labels, stored_images
from scalablevit.classification.readers.notation import SetName
from scalablevit.suggestions import nearest_name

CLASSES = {  # timm's names for them
    "cifar10": "CIFAR10",
    "cifar100": "CIFAR100",
    "fashion_mnist": "FashionMNIST",
    "kmnist": "KMNIST",
    "mnist": "MNIST",
}
FOLDERS = ("imagenet", "image_folder", "folder", "places365", "inaturalist", "inat")


def open_torchvision_set(name: SetName) -> ImageSet:
    """A set of torchvision's, with the parts train and test.

    Raises:
        ValueError: If torchvision has no such set, or it does not lie in the folder.
    """
    name, folder = _checked(name)
    if name.name in ("mnist", "fashion_mnist", "kmnist") and is_idx_folder(folder):
        return open_idx_folder(folder, str(name))
    splits = {split: partial(_read_part, name, folder, split) for split in ("train", "test")}
    return ImageSet(name=str(name), splits=splits)


def download_torchvision_set(name: SetName) -> None:
    """Fetches a set into its folder, if it is not there.

    Raises:
        ValueError: If torchvision has no such set, or it cannot be fetched.
    """
    name, folder = _checked(name)
    try:
        _class_of(name)(folder, download=True)
    except (OSError, RuntimeError) as error:
        raise ValueError(f"{name} cannot be fetched ({error}): put its files into {folder}") from error


def _checked(name: SetName) -> tuple[SetName, Path]:
    """The set under timm's name for it, in whatever spelling it was given, and where it lies."""
    spellings = {known.replace("_", ""): known for known in CLASSES}
    plain = name.name.lower().replace("_", "").replace("-", "")
    name = replace(name, name=spellings.get(plain, name.name))
    if name.name.lower() in FOLDERS:
        raise ValueError(f"{name} is a folder of images once it is unpacked: give that folder, train/ and val/ in it")
    if name.name not in CLASSES:
        hint = nearest_name(name.name, CLASSES)
        raise ValueError(f"{name}: there is no such set{hint}; there are {', '.join(CLASSES)}")
    if name.folder is None:
        raise ValueError(f"{name} does not say where the set lies: give torch/{name.name}:FOLDER")
    return name, name.folder


def _class_of(name: SetName) -> Any:
    import torchvision.datasets

    return getattr(torchvision.datasets, CLASSES[name.name])


def _read_part(name: SetName, folder: Path, split: str) -> LabelledImages:
    try:
        part = _class_of(name)(folder, train=split == "train", download=False)
    except (OSError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{name} is not in {folder}, or not whole ({reason.partition('. You can')[0]}): --download fetches it"
        ) from error
    labels, classes = number_labels([int(label) for label in part.targets], part.classes, f"{name}, {split}")
    return stored_images(ArrayStore(f"{name}/{split}", np.asarray(part.data)), labels, classes)
