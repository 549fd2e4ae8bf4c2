"""Labelled images as data sets and batches.

Axes: b batch, c channels, h height, w width. Pixels are whole numbers from 0 to 255, (c, h, w). A batch is a
`Batch`, whose `unreadable` names the images that could not be read and are missing from it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import mean
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import BatchSampler, Dataset, Sampler

from scalablevit.classification.augmentation import Augmentation
from scalablevit.classification.devices import Processes
from scalablevit.classification.images import LabelledImages
from scalablevit.classification.randomness import Purpose, generator
from scalablevit.classification.stretches import mixed_order
from scalablevit.images import ImagePlace, decoded_bytes, read_image
from scalablevit.preprocessing import Preprocessing


class Unreadable(NamedTuple):
    """Stands for an image that could not be read."""

    path: str
    reason: str


class Batch(NamedTuple):
    """Samples of one step.

    Args:
        pixels: (b, c, h, w), from 0 to 255.
        targets: (b,) or (b, classes); see `LabelledImages.targets`.
        unreadable: Images that should have been here.
    """

    pixels: Tensor
    targets: Tensor
    unreadable: list[Unreadable]


Sample = tuple[Tensor, Tensor] | Unreadable


def collate(samples: Sequence[Sample]) -> Batch:
    """A batch of samples."""
    unreadable = [sample for sample in samples if isinstance(sample, Unreadable)]
    readable = [sample for sample in samples if not isinstance(sample, Unreadable)]
    if not readable:
        return Batch(torch.empty(0), torch.empty(0), unreadable)
    pixels, targets = zip(*readable, strict=True)
    return Batch(torch.stack(pixels), torch.stack(targets), unreadable)


class UnreadableImages:
    """The images of a run that could not be read, each with the reason; too many of them are an error.

    Args:
        total: How many images there are.
        limit: The fraction of them that may be unreadable.
    """

    def __init__(self, total: int, limit: float) -> None:
        self.total = total
        self.limit = limit
        self.reasons: dict[str, str] = {}

    def add(self, unreadable: Sequence[Unreadable]) -> None:
        """Notes images.

        Raises:
            ValueError: If they are more than the limit allows.
        """
        self.reasons.update({image.path: image.reason for image in unreadable})
        if len(self.reasons) > self.limit * self.total:
            path, reason = next(iter(self.reasons.items()))
            raise ValueError(
                f"{len(self.reasons)} of {self.total} images cannot be read, more than {100 * self.limit:g} %, for"
                f" example {path} ({reason}): `scalablevit check` lists all; remove or mend them, or raise"
                " --max-unreadable"
            )


class DecodedImages:
    """The images of files, decoded when they are asked for; a small set is decoded once, and kept in memory.

    Args:
        paths: The files.
        channels: 1 for grey, 3 for colour.
        limit_mb: A set that takes more megabytes than this when decoded is not kept; 0: none is.
        at_least: JPEGs may be decoded to a part of their size, as long as their shorter side keeps so many pixels.

    Attributes:
        unreadable: Those that are known to be; all, if the set is kept in memory.
    """

    def __init__(
        self, paths: Sequence[ImagePlace], channels: int, *, limit_mb: float, at_least: int | None = None
    ) -> None:
        self.paths = paths
        self.channels = channels
        self.at_least = at_least
        self.unreadable: list[Unreadable] = []
        self._kept: list[Image.Image | Unreadable] | None = None
        if limit_mb > 0 and self._estimated_mb() <= limit_mb:
            self._kept = [self._read(path) for path in paths]
            self.unreadable = [image for image in self._kept if isinstance(image, Unreadable)]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Image.Image | Unreadable:
        return self._read(self.paths[index]) if self._kept is None else self._kept[index]

    def _read(self, path: ImagePlace) -> Image.Image | Unreadable:
        try:
            return read_image(path, self.channels, at_least=self.at_least)
        except (ValueError, OSError) as error:
            return Unreadable(str(path), str(error).removeprefix(f"{path} "))

    def _estimated_mb(self, sample: int = 64) -> float:
        some = self.paths[:: max(len(self.paths) // sample, 1)]
        sizes = []
        for path in some:
            try:
                sizes.append(decoded_bytes(path, self.channels))
            except (ValueError, OSError):
                continue
        return mean(sizes) * len(self.paths) / 1e6 if sizes else 0.0


class TrainingSet(Dataset[Sample]):
    """Augmented samples. An item is asked for by (epoch, index), which say all that its randomness depends on.

    Where an index comes several times in an epoch, a third number says how often it came before.
    """

    def __init__(
        self, decoded: DecodedImages, images: LabelledImages, augmentation: Augmentation, *, seed: int
    ) -> None:
        self.decoded = decoded
        self.targets = images.targets()
        self.augmentation = augmentation
        self.seed = seed

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, position: tuple[int, ...]) -> Sample:
        epoch, index, *repeat = position
        image = self.decoded[index]
        if isinstance(image, Unreadable):
            return image
        random = generator(Purpose.AUGMENTATION, self.seed, epoch, index, *repeat)
        return self.augmentation(image, random), self.targets[index]


class EvaluationSet(Dataset[Sample]):
    """Samples as every verb but training sees them, in their order."""

    def __init__(self, decoded: DecodedImages, images: LabelledImages, preprocessing: Preprocessing) -> None:
        self.decoded = decoded
        self.targets = images.targets()
        self.preprocessing = preprocessing

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> Sample:
        image = self.decoded[index]
        if isinstance(image, Unreadable):
            return image
        return self.preprocessing.to_pixels(image), self.targets[index]


class EpochSampler(Sampler[tuple[int, int]]):
    """Each index once per epoch, as (epoch, index), in an order that depends on seed and epoch alone.

    Args:
        count: How many there are.
        seed: Of the run.
        stretches: Of those that are fetched together, how many follow one another: near ones stay near.
    """

    def __init__(self, count: int, *, seed: int, stretches: Sequence[int] = ()) -> None:
        self.count = count
        self.seed = seed
        self.stretches = stretches
        self.epoch = 0
        self._start = (0, 0)

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch."""
        self.epoch = epoch

    def start_at(self, epoch: int, position: int) -> None:
        """Begins with that epoch, of which so many indices have been given already."""
        self.epoch = epoch
        self._start = (epoch, position)

    def first_of(self, epoch: int) -> int:
        """How many indices of an epoch have been given already, where the run goes on within it."""
        return self._start[1] if self._start[0] == epoch else 0

    def order(self, epoch: int) -> list[int]:
        """All indices, in the order of an epoch."""
        random = generator(Purpose.ORDER, self.seed, epoch)
        return mixed_order(self.stretches, random) if self.stretches else random.permutation(self.count).tolist()

    def __len__(self) -> int:
        return self.count  # Lightning counts the batches of a whole epoch, also where it goes on within one

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch = self.epoch
        return ((epoch, index) for index in self.order(epoch)[self.first_of(epoch) :])


class BatchParts(BatchSampler):
    """Of each batch that all processes see together, the part of this process. A part of a small batch may be empty.

    So all processes see as many batches, in the order in which one alone would see them, and no image twice.
    """

    def __init__(self, sampler: Sampler[Any], batch_size: int, *, drop_last: bool, processes: Processes) -> None:
        super().__init__(sampler, batch_size, drop_last)
        self.processes = processes

    def __iter__(self) -> Iterator[list[Any]]:
        for batch in super().__iter__():
            yield batch[self.processes.part(len(batch))]
