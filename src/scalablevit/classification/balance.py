"""Classes of unequal size: weights of their losses, or a sampler that shows each as often.

Axes: n images.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from scalablevit.classification.configuration import Balance
from scalablevit.classification.data import EpochSampler
from scalablevit.classification.images import LabelledImages
from scalablevit.classification.randomness import Purpose, generator

UNEQUAL = 5  # times as many images in the largest class as in the smallest; from then on it is told of


def class_weights(images: LabelledImages) -> Tensor:
    """A factor for each class, so that all classes together weigh as much in the loss as if they were equal.

    Of images with one label it is n / (classes * images of the class), whose mean over the images is 1. With several
    labels it is the factor of a label that is there: images without it / images with it. A class without images has 1,
    and so has a label of all images, which nothing would teach otherwise.
    """
    counts = torch.tensor(list(images.counts().values()), dtype=torch.float32)
    weights = (len(images) - counts) / counts if images.multi_label else len(images) / ((counts > 0).sum() * counts)
    return torch.where((counts > 0) & (weights > 0), weights, 1.0)


class BalancedSampler(EpochSampler):
    """As many images as there are, drawn with replacement, of each class as many as of any other, on average.

    What is drawn depends on seed and epoch alone. An image that comes again in an epoch is asked for by (epoch, index,
    how often it came before), so that it does not come with the same pixels.

    Args:
        images: Those to draw from, with one label each.
        seed: Of the run.

    Raises:
        ValueError: If an image may have several labels, or images are streamed.
    """

    def __init__(self, images: LabelledImages, *, seed: int) -> None:
        if images.multi_label:
            raise ValueError(
                "balance is 'sampling', but images have several labels, whose classes cannot be drawn one by one: give"
                " --balance weights"
            )
        if images.stretches:
            raise ValueError(
                "balance is 'sampling', which draws from anywhere, and these images are streamed: give --balance"
                " weights"
            )
        super().__init__(len(images), seed=seed)
        labels = images.targets().numpy()
        shares = 1.0 / np.bincount(labels)[labels]
        self._shares = shares / shares.sum()

    def order(self, epoch: int) -> list[int]:
        """The indices of an epoch."""
        drawn: list[int] = (
            generator(Purpose.ORDER, self.seed, epoch).choice(self.count, self.count, p=self._shares).tolist()
        )
        return drawn

    def __iter__(self) -> Iterator[tuple[int, ...]]:  # type: ignore[override]
        seen: Counter[int] = Counter()
        positions: list[tuple[int, ...]] = []
        for index in self.order(self.epoch):
            positions.append((self.epoch, index, seen[index]) if seen[index] else (self.epoch, index))
            seen[index] += 1
        return iter(positions[self.first_of(self.epoch) :])


def describe_balance(images: LabelledImages, balance: Balance) -> list[str]:
    """What there is to know of unequal classes, as lines."""
    counts = {name: count for name, count in images.counts().items() if count}
    smallest, largest = (pick(counts, key=counts.__getitem__) for pick in (min, max))
    if counts[largest] == counts[smallest]:
        return []
    sizes = f"{counts[largest]} images of {largest}, {counts[smallest]} of {smallest}"
    if balance == "weights":
        return [f"{sizes}: their losses are weighted, so that classes count alike"]
    if balance == "sampling":
        return [f"{sizes}: images are drawn so that each class comes as often"]
    if counts[largest] >= UNEQUAL * counts[smallest]:
        return [f"{sizes}: if the rare ones matter as much, try --balance weights, or --balance sampling"]
    return []
