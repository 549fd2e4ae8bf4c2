"""Folders of class folders as data sets.

Axes: c channels, h height, w width. A sample is (pixels (c, h, w) from 0 to 255, class index).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from scalablevit.classification.augmentation import Augmentation
from scalablevit.classification.randomness import Purpose, generator
from scalablevit.preprocessing import Preprocessing, decoded_bytes, read_image

logger = logging.getLogger(__name__)

SAMPLE = "sample"
IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
LAYOUT = "it must hold one folder per class, and in each the images of that class"


@dataclass(frozen=True, kw_only=True)
class LabelledImages:
    """Image files and the classes that they belong to.

    Args:
        paths: The files, sorted.
        labels: For each file the position of its class in `classes`.
        classes: Names of the classes.
    """

    paths: tuple[Path, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]


def data_folder(data: str | Path) -> Path:
    """The folder that `data` means: a path, or ``"sample"`` for the embedded images (``"./sample"`` is a path).

    Raises:
        ValueError: If there is no such folder.
    """
    if data == SAMPLE:
        from scalablevit.sample import sample_folder

        return sample_folder()
    folder = Path(data)
    if not folder.is_dir():
        problem = "is a file, not a folder" if folder.exists() else "does not exist"
        raise ValueError(f"{folder} {problem}: give a folder with train/ and val/, or 'sample' for the embedded images")
    return folder


def training_images(data: str | Path) -> tuple[LabelledImages, LabelledImages]:
    """The images in train/ and val/ of a data set, under the same classes.

    Raises:
        ValueError: If a folder is missing or empty, or val/ holds a class that train/ does not.
    """
    folder = data_folder(data)
    for split in ("train", "val"):
        if not (folder / split).is_dir():
            raise ValueError(f"{folder} holds no folder {split}/: {LAYOUT}, below train/ and below val/")
    training = labelled_images(folder / "train")
    if len(training.classes) < 2:
        raise ValueError(
            f"{folder / 'train'} holds one class, {training.classes[0]!r}: classification needs at least two"
        )
    return training, labelled_images(folder / "val", training.classes)


def evaluation_images(data: str | Path, classes: Sequence[str]) -> LabelledImages:
    """The images to evaluate a model with these classes on: those in val/, or, if there is none, in the folder itself.

    Raises:
        ValueError: If the folder is missing or empty, or holds a class that is not among `classes`.
    """
    folder = data_folder(data)
    return labelled_images(folder / "val" if (folder / "val").is_dir() else folder, classes)


def labelled_images(folder: Path, classes: Sequence[str] | None = None) -> LabelledImages:
    """The images in a folder of class folders, also those in folders further down.

    Args:
        folder: The folder. Names that begin with a dot are left out.
        classes: The classes that there are, in their order; None: the class folders, sorted by name.

    Raises:
        ValueError: If there is no image, a class folder has none, or is not among `classes`.
    """
    found = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not found:
        raise ValueError(f"{folder} holds no folders: {LAYOUT}")
    classes = found if classes is None else list(classes)
    unknown = [name for name in found if name not in classes]
    if unknown:
        raise ValueError(
            f"{folder / unknown[0]} is a class that the model does not have; it has {', '.join(classes)}: rename or"
            " remove the folder"
        )
    paths: list[Path] = []
    labels: list[int] = []
    for name in found:
        images = list(_images_below(folder / name))
        if not images:
            endings = ", ".join(sorted(IMAGE_SUFFIXES))
            raise ValueError(f"{folder / name} holds no images ({endings}): put some there or remove the folder")
        paths += images
        labels += [classes.index(name)] * len(images)
    return LabelledImages(paths=tuple(paths), labels=tuple(labels), classes=tuple(classes))


def _images_below(folder: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if Path(name).suffix.lower() in IMAGE_SUFFIXES and not name.startswith("."):
                yield Path(parent, name)


class DecodedImages(Sequence[Image.Image]):
    """The images of files, decoded when they are asked for; a small set is decoded once, and kept in memory.

    Args:
        paths: The files.
        channels: 1 for grey, 3 for colour.
        limit_mb: A set that takes more megabytes than this when decoded is not kept.
    """

    def __init__(self, paths: Sequence[Path], channels: int, *, limit_mb: float) -> None:
        self.paths = paths
        self.channels = channels
        self._kept: list[Image.Image] | None = None
        if self._estimated_mb() <= limit_mb:
            self._kept = [read_image(path, channels) for path in paths]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Image.Image:  # type: ignore[override]  # slices are nobody's need
        return self._kept[index] if self._kept is not None else read_image(self.paths[index], self.channels)

    def _estimated_mb(self, sample: int = 64) -> float:
        some = self.paths[:: max(len(self.paths) // sample, 1)]
        return mean(decoded_bytes(path, self.channels) for path in some) * len(self.paths) / 1e6


class TrainingSet(Dataset[tuple[Tensor, int]]):
    """Augmented samples. An item is asked for by (epoch, index), which say all that its randomness depends on."""

    def __init__(
        self,
        images: Sequence[Image.Image],
        labels: Sequence[int],
        augmentation: Augmentation,
        *,
        seed: int,
    ) -> None:
        self.images = images
        self.labels = labels
        self.augmentation = augmentation
        self.seed = seed

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, position: tuple[int, int]) -> tuple[Tensor, int]:
        epoch, index = position
        random = generator(Purpose.AUGMENTATION, self.seed, epoch, index)
        return self.augmentation(self.images[index], random), self.labels[index]


class EvaluationSet(Dataset[tuple[Tensor, int]]):
    """Samples as every verb but training sees them, in their order."""

    def __init__(self, images: Sequence[Image.Image], labels: Sequence[int], preprocessing: Preprocessing) -> None:
        self.images = images
        self.labels = labels
        self.preprocessing = preprocessing

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.preprocessing.to_pixels(self.images[index]), self.labels[index]


class EpochSampler(Sampler[tuple[int, int]]):
    """Each index once per epoch, as (epoch, index), in an order that depends on seed and epoch alone."""

    def __init__(self, count: int, *, seed: int) -> None:
        self.count = count
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = generator(Purpose.ORDER, self.seed, self.epoch).permutation(self.count)
        return ((self.epoch, int(index)) for index in order)
