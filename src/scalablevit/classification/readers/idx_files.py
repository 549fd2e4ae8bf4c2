"""Folders of idx files, the format of MNIST and its kin: one file for all images, one for all labels."""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Callable
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from scalablevit.classification.images import LabelledImages
from scalablevit.classification.readers.arrays import ArrayStore
from scalablevit.classification.readers.image_set import ImageSet, number_labels, read_class_names, stored_images

PREFIXES = {"train": "train", "test": "t10k"}
# The labels of Fashion-MNIST, without which its files look like those of MNIST.
FASHION_LABELS = frozenset(
    {
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",  # of train-labels-idx1-ubyte
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",  # of t10k-labels-idx1-ubyte
    }
)


def is_idx_folder(folder: Path) -> bool:
    """Whether a folder holds the four files, compressed or not."""
    return all(_find(folder, prefix, kind) for prefix in PREFIXES.values() for kind in ("images-idx3", "labels-idx1"))


def open_idx_folder(folder: Path, name: str | None = None) -> ImageSet:
    """The set in a folder of idx files, with the parts train and test.

    The names of its classes are those that ``labels.txt`` or ``classes.txt`` in the folder lists. Without such a file
    Fashion-MNIST, known by its labels, has its own, and any other set the digits.
    """
    splits: dict[str, Callable[[], LabelledImages]] = {
        split: partial(_read_part, folder, split, prefix) for split, prefix in PREFIXES.items()
    }
    return ImageSet(name=name or str(folder), splits=splits)


def read_idx(path: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The bytes of an idx file, in its shape.

    Raises:
        ValueError: If the file is not of this format, holds other numbers than bytes, or is cut off.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} cannot be unpacked ({error}): replace it") from error
    if len(content) < 4 or content[:3] != b"\x00\x00\x08":
        raise ValueError(f"{path} is not an idx file of bytes (its first bytes are {content[:4].hex()}): replace it")
    start = 4 + 4 * content[3]
    if len(content) < start:
        raise ValueError(f"{path} ends within its header: replace it")
    shape = tuple(int(size) for size in np.frombuffer(content[4:start], dtype=">u4"))
    if len(content) - start != math.prod(shape):
        raise ValueError(f"{path} holds {len(content) - start} bytes, but says it has {shape}: replace it")
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape)


def _read_part(folder: Path, split: str, prefix: str) -> LabelledImages:
    files = [_find(folder, prefix, kind) for kind in ("images-idx3", "labels-idx1")]
    images, labels = (read_idx(file) for file in files if file is not None)
    if images.ndim != 3 or labels.shape != images.shape[:1]:
        raise ValueError(f"{folder}: {split} has images of shape {images.shape} and labels of shape {labels.shape}")
    names = read_class_names(folder)
    if names is None and sha256(_header(labels) + labels.tobytes()).hexdigest() in FASHION_LABELS:
        from torchvision.datasets import FashionMNIST

        names = tuple(FashionMNIST.classes)
    numbered, classes = number_labels(labels.tolist(), names, f"{folder}, {split}")
    return stored_images(ArrayStore(f"{folder}/{split}", images), numbered, classes)


def _header(labels: np.ndarray[Any, np.dtype[np.uint8]]) -> bytes:
    return b"\x00\x00\x08\x01" + np.array(len(labels), dtype=">u4").tobytes()


def _find(folder: Path, prefix: str, kind: str) -> Path | None:
    files = (folder / f"{prefix}-{kind}-ubyte{suffix}" for suffix in ("", ".gz"))
    return next((file for file in files if file.is_file()), None)
