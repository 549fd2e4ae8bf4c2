"""Labelled images: files, and the classes that they belong to."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor

from scalablevit.images import ImagePlace


@dataclass(frozen=True, kw_only=True)
class LabelledImages:
    """Images and the classes that they belong to.

    Args:
        paths: The files, or places in a set that holds images otherwise.
        labels: For each file the positions of its classes in `classes`; a single one, unless `multi_label`.
        classes: Names of the classes.
        multi_label: Whether an image may have any number of labels.
        stretches: Of images that lie elsewhere, how many follow one another that are fetched together; see `stretches`.
            Empty for images that can be read in any order.
    """

    paths: tuple[ImagePlace, ...]
    labels: tuple[tuple[int, ...], ...]
    classes: tuple[str, ...]
    multi_label: bool = False
    stretches: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def are_files(self) -> bool:
        """Whether every image is a file of its own."""
        return all(isinstance(path, Path) for path in self.paths)

    def to_look_at(self, count: int) -> tuple[ImagePlace, ...]:
        """About so many images, evenly spaced; where they lie elsewhere, the first ones of a few stretches."""
        if not self.stretches:
            return self.paths[:: max(-(-len(self) // count), 1)]
        ends = list(accumulate(self.stretches))
        whole = [(end - length, end) for length, end in zip(self.stretches, ends, strict=True) if length]
        needed = max(4, -(-count * len(whole) // max(len(self), 1)))
        chosen = whole[:: max(-(-len(whole) // needed), 1)]
        share = -(-count // max(len(chosen), 1))
        return tuple(path for first, end in chosen for path in self.paths[first : min(end, first + share)])

    def targets(self) -> Tensor:
        """(n,), the class of each image; with several labels (n, classes), 1 for each label, in float32."""
        if not self.multi_label:
            return torch.tensor([label for (label,) in self.labels], dtype=torch.int64)
        targets = torch.zeros(len(self), len(self.classes))
        for row, labels in enumerate(self.labels):
            targets[row, list(labels)] = 1.0
        return targets

    def select(self, positions: Sequence[int]) -> LabelledImages:
        """Some of the images, under the same classes; not for those that lie in stretches."""
        assert not self.stretches
        return LabelledImages(
            paths=tuple(self.paths[position] for position in positions),
            labels=tuple(self.labels[position] for position in positions),
            classes=self.classes,
            multi_label=self.multi_label,
        )

    def under(self, classes: Sequence[str], where: str) -> LabelledImages:
        """The same under other classes, of which each label has the name of one.

        Raises:
            ValueError: If a label has not; `where` is of what the message speaks.
        """
        if tuple(classes) == self.classes:
            return self
        positions = {name: index for index, name in enumerate(classes)}
        used = {label for labels in self.labels for label in labels}
        unknown = next((self.classes[label] for label in sorted(used) if self.classes[label] not in positions), None)
        if unknown is not None:
            raise ValueError(
                f"{where} holds the class {unknown!r}, which the model does not have; it has {', '.join(classes)}"
            )
        return LabelledImages(
            paths=self.paths,
            labels=tuple(tuple(positions[self.classes[label]] for label in labels) for labels in self.labels),
            classes=tuple(classes),
            multi_label=self.multi_label,
            stretches=self.stretches,
        )

    def counts(self) -> dict[str, int]:
        """For each class the number of its images."""
        counted = Counter(label for labels in self.labels for label in labels)
        return {name: counted[index] for index, name in enumerate(self.classes)}


def normal_name(name: str) -> str:
    """A class name in Unicode's composed form, which is what people type, without spaces around it."""
    return unicodedata.normalize("NFC", name).strip()


def check_classes(classes: Iterable[str], where: str) -> None:
    """Raises a ValueError if two names of classes differ in nothing but case."""
    seen: dict[str, str] = {}
    for name in classes:
        other = seen.setdefault(name.casefold(), name)
        if other != name:
            raise ValueError(
                f"{where} holds the classes {other!r} and {name!r}, which differ only in case and are one folder on"
                " many machines: merge them, or rename one"
            )
